"""What the benchmarks of throughput and scaling make of their figures, and how they count calls."""

import contextlib
import importlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from edge_agent import packages
from model_packager import writing
from support.importing import beside

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Each member sleeps for as many seconds as its key says.
SLEEPER = partial(contextlib.nullcontext, partial(partial, time.sleep))


@pytest.fixture(autouse=True)
def beside_the_benchmarks():
    """Import benchmarks as they are when they are run, here and in the processes that they start."""
    with beside(BENCHMARKS):
        yield


def of(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16])
def test_settings_to_try_keep_within_twice_the_cores(cores):
    tried = of("throughput").candidates(cores)
    assert len(set(tried)) == len(tried)
    assert max(one.threads * one.slots for one in tried) == 2 * cores
    pairs = {(one.threads, one.slots) for one in tried}
    assert {(cores, 1), (1, cores), (1, 2 * cores)} <= pairs
    assert {one.threads for one in tried if one.spinning} == {one.threads for one in tried} - {1}


def test_two_cores_have_eight_settings_to_try():
    tried = of("throughput").candidates(2)
    assert [(one.threads, one.slots, one.spinning) for one in tried] == [
        (1, 1, False),
        (1, 2, False),
        (1, 3, False),
        (1, 4, False),
        (2, 1, False),
        (2, 1, True),
        (2, 2, False),
        (2, 2, True),
    ]


def test_best_is_by_the_median_and_not_by_one_lucky_turn():
    throughput = of("throughput")
    steady, lucky = throughput.candidates(2)[:2]
    assert throughput.best({steady: [10, 11, 12], lucky: [9, 9, 99]}) == steady


def test_search_drops_what_falls_behind():
    throughput = of("throughput")
    tried = throughput.candidates(2)[:3]
    asked = []

    def way(options, seconds):
        asked.append(options)
        rate = {tried[0]: 100, tried[1]: 86, tried[2]: 84}[options]
        return of("callers").Turn(1.0, [[1.0] * rate], 0.0, [])

    rates = throughput.search({"agent": way}, tried, throughput.Plan(search_rounds=5))["agent"]
    assert {one: len(found) for one, found in rates.items()} == {tried[0]: 5, tried[1]: 5, tried[2]: 2}
    assert len(asked) == len(tried) + 12  # each was warmed up
    assert throughput.best(rates) == tried[0]


def test_calls_count_when_they_end_in_the_window():
    ended = []

    def call():
        time.sleep(0.004)
        ended.append(time.monotonic())

    callers = of("callers")
    begin = time.monotonic() + 0.3
    times, cpu = callers._call_until(call, begin, begin + 0.1)
    within = sum(begin <= one < begin + 0.1 for one in ended)
    assert ended[0] < begin
    assert ended[-1] > begin + 0.09
    # One that ended a few microseconds before the end may be seen after it.
    assert within - 1 <= len(times) <= within
    assert all(4 <= one < 4000 for one in times)
    assert 0 <= cpu < 0.1


def test_a_call_longer_than_the_window_counts_nothing():
    begin = time.monotonic()
    assert of("callers")._call_until(partial(time.sleep, 0.05), begin, begin + 0.02) == ([], 0.0)


def test_callers_work_beside_each_other_in_one_window():
    callers = of("callers")
    with callers.callers([SLEEPER] * 3) as three:
        turn = three.turn([0.1, 0.01], 0.4, [os.getpid()])
        assert len(turn.times) == 2  # as many as have keys
        slow, fast = map(len, turn.times)
        assert 1 <= slow <= 4 < fast <= 40
        assert turn.calls == slow + fast
        assert turn.rate == pytest.approx((slow + fast) / 0.4)
        assert turn.members_cpu < 0.2
        assert len(turn.watched_cpu) == 1
        with pytest.raises(SystemExit, match="died"):
            three.turn([0.01, 0.01, "no number"], 0.1)


def test_cpu_of_a_process_grows_while_it_works():
    callers = of("callers")
    before, end = callers.cpu_of(os.getpid()), time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.08 <= callers.cpu_of(os.getpid()) - before < 1


def test_descendants_are_children_and_their_children():
    with subprocess.Popen(
        [sys.executable, "-c", "import subprocess; subprocess.Popen(['cat']).wait()"], stdin=subprocess.PIPE
    ) as child:
        grandchildren = []
        while not grandchildren:
            grandchildren = of("callers").descendants(child.pid)
            time.sleep(0.01)
        assert {child.pid, *grandchildren} <= set(of("callers").descendants(os.getpid()))


@pytest.mark.parametrize("block", [True, False])
def test_a_copied_model_is_a_component_of_its_own(tmp_path, block):
    models = tmp_path / "models"
    manifest = writing.mochi_manifest((64, 64), 0.5, (), normalize=True)
    writing.write(models / "one", manifest, b"model", "one")
    if not block:
        path = models / "one" / "manifest.json"
        path.write_text(path.read_text().partition(',\n "package"')[0] + "}")
    of("callers").copy_model(models, "one", "two", tmp_path / "more")
    (tmp_path / "more").chmod(0o755)
    found = packages.look(tmp_path / "more" / "two", tmp_path / "more", packages.Rules())
    assert (found.name, found.refusal) == ("two", "")


def test_a_line_is_fitted():
    fit = of("picture").fit
    exact = fit([(0, 1), (1, 3), (2, 5), (5, 11)])
    assert (exact.slope, exact.intercept) == pytest.approx((2, 1))
    assert exact.slope_error == pytest.approx(0, abs=1e-9)
    assert exact.r2 == pytest.approx(1)
    # Worked out by hand: residuals -1/3, 2/3, -1/3.
    peak = fit([(0, 0), (1, 1), (2, 0)])
    assert (peak.slope, peak.intercept, peak.r2) == pytest.approx((0, 1 / 3, 0), abs=1e-9)
    assert peak.slope_error == pytest.approx((2 / 3 / 2) ** 0.5)
    assert fit([(0, 4), (1, 4), (2, 4)]).r2 == 1


def test_large_images_are_called_less_often():
    how_often = of("scaling").how_often
    assert [how_often(milliseconds) for milliseconds in (0.1, 10, 50, 400)] == [20, 15, 3, 1]


def throughput_result():
    bare = {
        "threads": 1,
        "slots": 2,
        "spinning": False,
        "calls_per_s": 200.0,
        "cores_busy": 1.98,
        "cpu_ms": {"bare": 9.9},
    }
    through = {"threads": 2, "slots": 1, "spinning": True, "calls_per_s": 180.0, "cores_busy": 1.9, "fairness": 0.987}
    through |= {"p50": 44.44, "p99": 60.06, "cpu_ms": {"worker": 9.95, "front": 0.5, "clients": 0.25}}
    shared = {"calls_per_s": 150.0, "of one model, default settings": 1.25, "p50": 50.0, "p99": 70.0}
    return {
        "cases": {"small": {"bare": bare, "agent": through, "agent / bare": 0.9}},
        "sharing": {"4 models, threads=1": shared},
        "clients": 8,
        "machine": {"cores": 2},
    }


def test_throughput_is_told_in_tables():
    lines = of("throughput").table(throughput_result()).splitlines()
    assert (
        "| small | 2 processes x 1 thread | 200.0 | 1 slot x 2 threads, spinning | 180.0 | 0.90 | 44.4 | 60.1 | 0.99 |"
        in lines
    )
    assert "| small | 9.90 | 9.95 | 0.50 | 0.25 | 1.98 | 1.90 |" in lines
    assert "| 4 models, threads=1 | 150.0 | 1.25 | 50.0 | 70.0 |" in lines


def scaling_result(name="small"):
    scaling, growth, fit = of("scaling"), of("growth"), of("picture").fit
    squares = {str(side): {"p50": 1 + side * side / 1e6, "p99": 9.0} for side in scaling.SIDES}
    steps = [{"running": one, "front": 36.0, "workers": [40.0] * one, "all": 70.0 + 30 * one} for one in range(4)]
    for step in steps[1:]:
        step |= {"latency": {"p50": 4.4, "p99": 5.0}, "alone": {"p50": 4.0, "p99": 5.0}}
    result = {
        "pixels": dict.fromkeys(scaling.WAYS, squares),
        "clients": {str(one): {"p50": 4.0 * one, "p99": 5.0 * one, "calls_per_s": 250.0} for one in scaling.CLIENTS},
        "running": {name: steps},
        "stopped": [
            {"stopped": one, "front": 36 + 0.005 * one, "list_models": 0.3 + 0.002 * one} for one in scaling.STOPPED
        ],
    }
    result["lines"] = {key: vars(fit(points)) for key, (points, *_) in growth.curves(result).items()}
    return result


def test_growth_is_told_in_tables():
    lines = of("scaling").table(scaling_result()).splitlines()
    for told in (
        "| latency p50, inline | pixels, 64² to 4096² | 1.00 ms | 1.00 ± 0.00 ms a megapixel | 1.0000 |",
        "| latency p50 | clients, 1 to 16 | 0.00 ms | 4.00 ± 0.00 ms a client | 1.0000 |",
        "| memory of all processes, small model | running models, 1 to 3 | 70.00 MB | 30.00 ± 0.00 MB a model | 1.0000 |",
        "| latency p50 by that alone, small model | running models, 1 to 3, one busy | 1.10 | 0.00 ± 0.00 % a model | 1.0000 |",
        "| memory of the front process | stopped models, 0 to 50 | 36.00 MB | 5.00 ± 0.00 kB a model | 1.0000 |",
        "| ListModels p50 | stopped models, 0 to 50 | 0.30 ms | 2.00 ± 0.00 µs a model | 1.0000 |",
        "| calls/s | 250.0 | 250.0 | 250.0 | 250.0 | 250.0 | 250.0 |",
    ):
        assert told in lines


def test_growth_is_drawn():
    picture, growth = of("picture"), of("growth")
    drawn = ET.fromstring(picture.draw("<six>", growth.plots(scaling_result("<a & b>"))))
    svg = "{http://www.w3.org/2000/svg}"
    assert drawn.get("aria-label") == "<six>"
    texts = {one.text for one in drawn.iter(f"{svg}text")}
    assert {"Latency by pixels", "Memory by stopped models", "<a & b>", "front +5 kB a model"} <= texts
    width, height = int(drawn.get("width")), int(drawn.get("height"))
    assert (width, height) == (3 * picture.WIDTH, 2 * picture.HEIGHT)
    circles = [(float(one.get("cx")), float(one.get("cy"))) for one in drawn.iter(f"{svg}circle")]
    assert len(circles) == 3 * 7 + 2 * 6 + 6 + 3 + 3 + 6
    assert all(0 < x < width and 0 < y < height for x, y in circles)
