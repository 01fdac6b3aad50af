"""G1: after a million calls an agent holds what it held.

1. Four models, frames of 64 to 512 pixels a side and one in a thousand of 4096, inline and in shared memory; one call in fifty is
   malformed, and under one in a hundred the client is killed and another takes its place; every thousand calls a model is
   stopped and started. Every answer is checked.
2. From the first tenth of the calls on the memory of all processes grows by less than a hundredth, looked at a hundred times
   while the clients rest, and open files, threads, processes and /dev/shm are as they were. Of the latency it is only told what it was at first and at last.
3. A backend that leaks a kilobyte a call is noticed.

The full count is made in the background (background.py), where it goes on when who waits for it is interrupted.
"""

from collections import Counter

import pytest

from promises.soak import background, curve
from promises.soak.plan import EPOCH, KILLED, MALFORMED
from promises.soak.rig import Holds, Sample, Soak
from support.promises import FULL
from support.sabotage import sabotaged

PROMISE = background.PROMISE


def test_soak(promises, folder):
    with promises.run(PROMISE) as run:
        if run.full:
            progress = background.follow(run.declared, run.seed)
            assert not progress["failed"], progress["failed"]
            found = progress["figures"]
            background.keep(found)
            print(background.table(found))
            assert found["broken"] == []
            run.count(found["calls"])
            return
        rig = Soak(folder, run.seed)
        try:
            result = curve.soak(rig, run.declared)
        finally:
            rig.close()
        # So few calls say nothing of memory.
        assert [one for one in result.broken() if "memory grew" not in one] == []
        assert result.outcomes["killed"] == KILLED * run.declared // EPOCH
        assert result.outcomes["refused"] == MALFORMED * run.declared // EPOCH
        run.count(sum(result.outcomes.values()))


# The backend keeps some bytes of each call.
LEAK = """
from edge_agent.backends.timed import Timed
run, kept = Timed.run, []
def leaking(self, tensor):
    kept.append(b"x" * {size} + bytes(1))
    return run(self, tensor)
Timed.run = leaking
"""


def test_a_leak_is_noticed(pytestconfig, folder):
    """With few calls, a larger one: a kilobyte of each of a few thousand is less than one frame leaves for a while."""
    full = pytestconfig.getoption("--promises") == FULL
    size, calls = (1 << 10, 40 * EPOCH) if full else (1 << 16, 5 * EPOCH)
    rig = Soak(folder, 1, **sabotaged(folder, LEAK.format(size=size)))
    try:
        result = curve.soak(rig, calls)
    finally:
        rig.close()
    print(f"  {size} bytes a call, {calls} calls: {result.growth.part:+.2%}, {result.growth.bytes / 1e6:+.1f} MB")
    assert [one.partition(" by ")[0] for one in result.broken()] == ["memory grew"]


def sample(calls: int, memory: float) -> Sample:
    return Sample(calls, calls / 500, int(memory), 0, 0, 1, 1, 1, 1, 1.0, 2.0)


@pytest.mark.parametrize("part", [0.0, 0.02, -0.03])
def test_growth_is_what_it_is_whatever_stands_out(part):
    level = [300e6 * (1 + part * nth / 200) for nth in range(201)]
    samples = [sample(nth * EPOCH, one + (90e6 if nth % 5 == 0 else 0)) for nth, one in enumerate(level)]
    found = curve.growth(samples)
    assert abs(found.part - part) < 2e-3
    assert found.least - 1e-9 <= part <= found.most + 1e-9


LEVEL = curve.Growth(0, 0)
HELD = Holds(7, Counter({"pipe:": 40}), 63, frozenset({"a"}))
OUTCOMES = {"judged": 90, "refused": 5, "stopped": 2, "killed": 3}


@pytest.mark.parametrize(
    ("end", "counted", "told"),
    [
        (HELD, 97, ""),
        (HELD, 100, ""),
        (HELD, 96, "97 calls were answered, 3 cut off, and 96 counted"),
        (HELD, 101, "97 calls were answered, 3 cut off, and 101 counted"),
        (Holds(8, HELD.files, 63, HELD.segments), 97, "'processes': (7, 8)"),
        (Holds(7, HELD.files, 62, HELD.segments), 97, "'threads': (63, 62)"),
        (Holds(7, Counter({"pipe:": 41}), 63, HELD.segments), 97, "'pipe:': 41"),
        (Holds(7, HELD.files, 63, frozenset({"a", "b"})), 97, "'segments'"),
    ],
)
def test_what_is_left_or_missing_is_noticed(end, counted, told):
    result = curve.Result([], [], HELD, end, OUTCOMES, {"OK": counted}, LEVEL, LEVEL)
    assert told in "; ".join(result.broken())
    assert bool(told) == bool(result.broken())


@pytest.mark.parametrize(
    ("rest", "busy", "told"),
    [
        (curve.Growth(3e6, 0.01), LEVEL, ["memory grew by 1.00%, 3.0 MB"]),
        (curve.Growth(3e6, 0.009), curve.Growth(3e6, 0.012, 0.009, 0.015), []),
        (LEVEL, curve.Growth(6e6, 0.02, 0.01, 0.03), ["memory under way grew by at least 1.00%"]),
    ],
)
def test_growth_of_a_hundredth_is_noticed(rest, busy, told):
    result = curve.Result([], [], HELD, HELD, OUTCOMES, {"OK": 97}, rest, busy)
    assert result.broken() == told
