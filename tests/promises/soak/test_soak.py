"""G1: after a million calls an agent holds what it held.

1. Four models, frames of 64 to 512 pixels a side and one in a thousand of 4096, inline and in shared memory; one call in fifty is
   malformed, and under one in a hundred the client is killed and another takes its place; every thousand calls a model is
   stopped and started. Every answer is checked.
2. From the first tenth of the calls on the memory of all processes grows by less than a hundredth, looked at again and
   again while the clients rest, and open files, threads, processes and /dev/shm are as they were. Of the latency it is only told what it was at first and at last.
3. A backend that leaks a kilobyte a call is noticed.
4. What is reported of a soak in the background is of this code, this number of calls and this seed.

The full count is made in the background (background.py), where it goes on when who waits for it is interrupted.
"""

import json
from collections import Counter
from typing import Any

import pytest

from promises.soak import background, curve
from promises.soak.plan import EPOCH, KILLED, MALFORMED
from promises.soak.rig import Holds, Sample, Soak
from support.promises import FULL
from support.sabotage import sabotaged

PROMISE = background.PROMISE
# Seconds: what a leak leaves is more than what the agent keeps so soon.
SHORT_REST = 0.5


def test_soak(promises, pytestconfig, folder):
    with promises.run(PROMISE) as run:
        if run.full:
            progress = background.follow(run.declared, pytestconfig.getoption("--seed"))
            run.seed = progress["seed"]
            assert not progress["failed"], progress["failed"]
            found = progress["figures"]
            print(background.table(found))
            assert found["broken"] == []
            run.count(found["calls"])
            background.keep(progress)
            return
        rig = Soak(folder, run.seed)
        try:
            result = curve.soak(rig, run.declared, rest=SHORT_REST)
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
        result = curve.soak(rig, calls, rest=SHORT_REST)
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


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A place of its own for the soak in the background, and for its results."""
    for name in ("PROGRESS", "LOCK", "LOG", "SAMPLES", "LAST", "RESULT", "PICTURE", "RESULTS"):
        monkeypatch.setattr(background, name, tmp_path / getattr(background, name).name)
    monkeypatch.setattr(background, "PLACE", tmp_path)
    return tmp_path


FIGURES = {"calls": 10_000, "seconds": 20.0, "broken": []}


@pytest.fixture
def begun(monkeypatch, place) -> list[tuple[int, int]]:
    """The soaks that were begun; each ends at once."""
    made: list[tuple[int, int]] = []

    def begin(calls: int, seed: int) -> None:
        made.append((calls, seed))
        background.work(calls, seed)

    monkeypatch.setattr(background, "_begin", begin)
    monkeypatch.setattr(background, "_soaked", lambda calls, *_: {**FIGURES, "calls": calls, "begun": len(made)})
    return made


def left(**other: Any) -> None:
    """Leave a soak of 10,000 calls with the seed 7 that has ended, and nobody has seen; keys whose value is None are not there."""
    background.work(10_000, 7)
    progress = {**background._read(), **other}
    background._write(background.PROGRESS, {key: value for key, value in progress.items() if value is not None})


@pytest.mark.parametrize("seed", [7, None])
def test_a_soak_that_ended_unseen_is_reported(begun, seed):
    left()
    assert background.follow(10_000, seed)["figures"]["begun"] == 0
    assert begun == []
    assert background._read() is None
    assert json.loads(background.LAST.read_text())["figures"]["begun"] == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"digest": "of older code"}, "A soak of other code has"),
        ({"digest": None}, "A soak of other code has"),
        ({"declared": 20_000}, "A soak of another number of calls has"),
        ({"seed": 8}, "A soak of another seed has"),
        ({"digest": None, "seed": None}, "A soak of other code and another seed has"),
        ({"ended": False}, "was ended after 0 calls"),
    ],
)
def test_another_is_not_and_one_is_begun_anew(begun, capsys, other, said):
    left(**other)
    progress = background.follow(10_000, 7)
    assert said in capsys.readouterr().out
    assert begun == [(10_000, 7)]
    assert progress["figures"]["begun"] == 1
    assert (progress["declared"], progress["seed"], progress["digest"]) == (10_000, 7, background.digest())


def test_another_that_runs_is_neither_followed_nor_ended(begun, capsys, monkeypatch):
    left(digest="of older code", ended=False, pid=12345)
    before = background._read()
    monkeypatch.setattr("sys.argv", ["background.py", "--calls", "10000"])
    with background._locked():
        with pytest.raises(background.AnotherRuns, match="A soak of other code runs: .* `kill 12345`"):
            background.follow(10_000)
        assert background.main() == 1
    assert "A soak of other code runs" in capsys.readouterr().out
    assert (begun, background._read()) == ([], before)


def test_code_is_the_same_until_a_file_of_it_changes(tmp_path):
    inner = tmp_path / "code" / "inner"
    inner.mkdir(parents=True)
    seen = [background.digest([tmp_path / "code"])]
    for name, text in (("a.py", ""), ("b.py", ""), ("a.py", "x = 1\n"), ("inner/a.py", "x = 1\n")):
        (tmp_path / "code" / name).write_text(text)
        seen.append(background.digest([tmp_path / "code"]))
    (tmp_path / "code" / "b.py").rename(inner / "b.py")
    seen.append(background.digest([tmp_path / "code"]))
    assert len(set(seen)) == len(seen)
    (inner / "__pycache__").mkdir()
    (inner / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert background.digest([tmp_path / "code"]) == seen[-1]


@pytest.mark.parametrize("figures", [FIGURES, {**FIGURES, "calls": background.CALLS, "broken": ["memory grew by 2 %"]}])
def test_no_result_is_written_over_by_fewer_calls_or_a_broken_promise(begun, capsys, monkeypatch, figures):
    background.RESULT.write_text("a result")
    monkeypatch.setattr(background, "_soaked", lambda *_: {**figures, "growth_at_rest": 0})
    monkeypatch.setattr(background, "table", str)
    monkeypatch.setattr("sys.argv", ["background.py", "--calls", str(figures["calls"])])
    assert background.main() == (1 if figures["broken"] else 0)
    with pytest.raises(AssertionError, match=r"kept nowhere|memory grew"):
        background.keep({"declared": figures["calls"], "figures": figures})
    assert background.RESULT.read_text() == "a result"
    assert background.RESULTS.exists() == (figures["calls"] == background.CALLS)
