"""How often a worker may die: the delays, the budget, and what begins it anew, at instants that the test decides."""

import math

import pytest

from edge_agent.budget import (
    FIRST_DELAY,
    GOOD_ANSWERS,
    JITTER,
    LONGEST_DELAY,
    MOST_DEATHS,
    WINDOW,
    RestartBudget,
)

# Deaths so far apart that the budget is never spent, and so close that it never begins anew.
APART = WINDOW / (MOST_DEATHS - 1)


def budget(jitter: float = 0.0) -> RestartBudget:
    """Return a budget whose jitter is a share of the largest, -1 to 1."""
    return RestartBudget(lambda least, most: (least + most) / 2 + jitter * (most - least) / 2)


def delays(of: RestartBudget, deaths: int, apart: float = APART) -> list[float | None]:
    return [of.died(number * apart) for number in range(deaths)]


def test_what_is_promised():
    assert (FIRST_DELAY, LONGEST_DELAY, MOST_DEATHS, WINDOW, GOOD_ANSWERS) == (0.1, 30.0, 5, 60.0, 100)


def test_delays_double_up_to_the_longest():
    expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
    assert delays(budget(), len(expected)) == pytest.approx(expected)


@pytest.mark.parametrize(("jitter", "factor"), [(-1, 1 - JITTER), (1, 1 + JITTER)])
def test_jitter_spreads_them_and_never_beyond_the_longest(jitter, factor):
    first, *_, last = delays(budget(jitter), 12)
    assert first == pytest.approx(FIRST_DELAY * factor)
    assert last == pytest.approx(min(LONGEST_DELAY * factor, LONGEST_DELAY))


def test_jitter_is_there_where_nobody_takes_it_away():
    seen = {RestartBudget().died(0.0) for _ in range(100)}
    assert len(seen) > 90
    assert all(FIRST_DELAY * (1 - JITTER) <= one <= FIRST_DELAY * (1 + JITTER) for one in seen)


def test_delays_go_on_for_ever():
    """Two to the power of the number of deaths is soon more than a float can be."""
    assert delays(budget(), 5000)[-1] == LONGEST_DELAY


def test_the_fifth_death_within_a_minute_is_one_too_many():
    assert delays(budget(), 5, apart=1.0) == [*map(pytest.approx, [0.1, 0.2, 0.4, 0.8]), None]
    assert delays(budget(), 5, apart=math.nextafter(APART, 0))[-1] is None
    assert None not in delays(budget(), 5, apart=APART), "the first of them is a minute ago"


def test_what_is_spent_stays_spent_while_it_dies_on():
    spent = budget()
    delays(spent, 5, apart=1.0)
    assert spent.died(5.0) is None


def test_a_minute_without_a_death_begins_anew():
    used = budget()
    delays(used, 4, apart=1.0)
    assert used.died(3.0 + WINDOW) == pytest.approx(FIRST_DELAY)
    assert used.deaths == 1


def test_less_than_a_minute_does_not():
    used = budget()
    delays(used, 4, apart=1.0)
    assert used.died(math.nextafter(3.0 + WINDOW, 0)) == pytest.approx(1.6)


def test_a_hundred_good_answers_begin_anew():
    used = budget()
    delays(used, 4, apart=1.0)
    for _ in range(GOOD_ANSWERS):
        assert used.deaths == 4, "not before the last of them"
        used.answered()
    assert used.deaths == 0
    assert used.died(4.0) == pytest.approx(FIRST_DELAY)


def test_answers_count_from_the_last_death():
    used = budget()
    used.died(0.0)
    for _ in range(GOOD_ANSWERS - 1):
        used.answered()
    assert used.died(1.0) == pytest.approx(2 * FIRST_DELAY)
    used.answered()
    assert used.deaths == 2


def test_answers_beyond_the_hundredth_count_towards_nothing():
    used = budget()
    for _ in range(3 * GOOD_ANSWERS):
        used.answered()
    assert [used.died(one) for one in (0.0, 1.0)] == pytest.approx([FIRST_DELAY, 2 * FIRST_DELAY])


@pytest.mark.parametrize("apart", [1.0, 16.0, WINDOW, 400.0])
def test_time_without_a_process_is_no_time_without_a_death(apart):
    """As where each try to replace one takes so long, and is refused."""
    spent = budget()
    assert spent.died(0.0) == pytest.approx(0.1)
    told = [spent.died(number * apart, ran=False) for number in range(1, MOST_DEATHS)]
    assert told == [*map(pytest.approx, [0.2, 0.4, 0.8]), None]


def test_what_came_before_it_stays_as_far_away():
    spent = budget()
    for number in range(MOST_DEATHS - 2):
        spent.died(number * APART)
    assert spent.died(1000.0, ran=False) is not None
    assert spent.died(1000.0 + 2 * APART) is not None, "the first of them is a minute ago, but for the time without"
    spent = budget()
    for number in range(MOST_DEATHS - 2):
        spent.died(number * APART)
    assert spent.died(1000.0, ran=False) is not None
    assert spent.died(1000.0 + 2 * APART - 1) is None
