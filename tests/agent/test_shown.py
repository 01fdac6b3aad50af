"""The status for people in terminals of every size: no number is cut, and what is left out is told."""

import re

import click
import pytest

from edge_agent.cli.shown import HEADS, SPARED, Room, shortened, shown, wrapped

NAMES = ("board-front", "board-back", "com.example.vision.models.housing-of-the-left-line-7")
KILLED = "The model's worker process ended: it was ended by signal 9 (SIGKILL)."
WIDE = "The bitmap is 65 pixels wide, but the model takes images of 64x64 pixels; resize it before the call."


def model(name: str, number: int, state: str = "RUNNING") -> dict:
    return {
        "model": name,
        "version": "12.0.3",
        "state": state,
        "message": KILLED + " It was the last of 5 deaths within a minute." if state == "FAILED" else "",
        "accelerator": "cuda" if state == "RUNNING" else None,
        "fallback": "",
        "worker_pid": 100 + number,
        "queue": {"waiting": 3, "limit": 16, "in_flight": 1},
    }


def error(number: int, of: str, reason: str, text: str) -> dict:
    return {
        "number": number,
        "time": f"2026-01-02T03:04:{number:02d}Z",
        "of": of,
        "code": "X",
        "reason": reason,
        "text": text,
    }


def status(models: int = 3) -> dict:
    names = [*NAMES, *(f"part-{number:02d}" for number in range(models - 3))]
    return {
        "agent": {"version": "1.3.0", "pid": 4242, "started": "2026-01-02T03:04:05Z", "socket": "/tmp/" + "s" * 40},
        "memory": {"front": 70_000_000, "helpers": 41_000_000, "workers": dict.fromkeys(names, 123_456_789)},
        "models": [model(name, number, "FAILED" if number == 1 else "RUNNING") for number, name in enumerate(names)],
        "calls": [
            {"rpc": "DetectAnomalies", "model": name, "code": "OK", "reason": "", "count": 1_234_567} for name in names
        ],
        "workers": {name: {"started": 9, "died": 17, "hung": 23, "swapped": 29} for name in names},
        "restarts": dict.fromkeys(names, 31),
        "recent": {name: {"calls": 9, "calls_per_s": 112.5, "p50": 0.0312, "p99": 12.3456} for name in names},
        "last_errors": {
            NAMES[0]: [error(3, "agent", "died", KILLED), error(9, "caller", "argument", WIDE)],
            NAMES[1]: [error(7, "agent", "hung", "It hung."), error(2, "caller", "rejected", "Too fast.")],
        },
    }


CELLS = dict(
    zip(
        HEADS,
        [None, "12.0.3", None, None, "1234567", "0", "112.5", "31.2", "12345.6", "3/16", "123", "31", "17", "23", "29"],
        strict=True,
    )
)


def lines(*arguments: object) -> list[str]:
    return click.unstyle(shown(*arguments)).splitlines()


def table(told: list[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Return the heads, and the rows by their heads."""
    first = next(number for number, line in enumerate(told) if line.startswith("MODEL"))
    heads = re.split("  +", told[first])
    rows = [dict(zip(heads, re.split("  +", line), strict=True)) for line in told[first + 1 : first + 4]]
    return heads, rows


@pytest.mark.parametrize("columns", [*range(40, 200, 3), None])
def test_no_number_is_cut_and_what_is_left_out_is_told(columns):
    told = lines(status(), "", Room(columns))
    assert columns is None or max(map(len, told)) <= columns
    heads, rows = table(told)
    assert heads == [head for head in HEADS if head in heads], "what is left keeps its order"
    for row in rows:
        assert {head: cell for head, cell in row.items() if CELLS[head]} == {
            head: CELLS[head] for head in heads if CELLS[head]
        }
    gone = [head for head in HEADS if head not in heads]
    assert sorted(gone) == sorted(SPARED[: len(gone)]), "the least important goes first"
    text = " ".join(line.strip() for line in told)
    assert (f"Too narrow for {len(gone)} more columns: {', '.join(gone)} MODEL" in text) == bool(gone)
    assert columns is not None or not gone


def test_each_column_can_go_but_the_name_and_the_state():
    assert sorted((*SPARED, "MODEL", "STATUS")) == sorted(HEADS)


def test_a_long_name_keeps_both_ends():
    heads, rows = table(lines(status(), "", Room(80)))
    assert {"FAILED", "DIED", "HUNG"} < {*heads}
    assert rows[0]["MODEL"] == NAMES[0]
    short = rows[2]["MODEL"]
    before, after = short.split("…")
    assert len(short) == 80 // 4
    assert NAMES[2].startswith(before)
    assert NAMES[2].endswith(after)
    assert table(lines(status(), "", Room(None)))[1][2]["MODEL"] == NAMES[2]


def test_what_is_wrong_comes_first_and_what_callers_do_wrong_last():
    told = lines(status(), "It stands still.")
    assert told[0] == "It stands still."
    assert told[3:6] == [
        f"board-back is FAILED: {KILLED} It was the last of 5 deaths within a minute.",
        "2026-01-02T03:04:07Z board-back: hung: It hung.",
        f"2026-01-02T03:04:03Z board-front: died: {KILLED}",
    ]
    assert told[-3:] == [
        "The last errors of callers",
        f"2026-01-02T03:04:09Z board-front: argument: {WIDE}",
        "2026-01-02T03:04:02Z board-back: rejected: Too fast.",
    ]


def test_what_a_worker_died_of_and_its_caller_was_told_is_one():
    found = status()
    found["last_errors"][NAMES[0]].append(error(4, "agent", "crashed", KILLED))
    assert [line for line in lines(found) if line.endswith(KILLED)] == [
        f"2026-01-02T03:04:04Z board-front: crashed: {KILLED}"
    ]


def test_the_newest_is_the_one_that_came_last_whatever_the_wall_clock_said():
    found = status()
    found["last_errors"][NAMES[1]][0]["time"] = "1999-01-01T00:00:00Z"
    assert lines(found)[3].startswith("1999-01-01T00:00:00Z")


@pytest.mark.parametrize("rows", [15, 24, 40])
def test_on_a_screen_what_is_wrong_leaves_room_for_the_models(rows):
    found = status(30)
    for one in found["models"]:
        one |= {"state": "FAILED", "message": "It says why, and that takes more than one line. " * 8}
    told = lines(found, "", Room(80, rows))
    wrong = told[told.index("") - rows // 3 : told.index("")]
    assert wrong[0].startswith("board-front is FAILED: ")
    assert re.fullmatch(r"\.\.\. \d+ more lines", wrong[-1])
    assert wrong[1].endswith(" ..."), "what is cut is marked"
    assert told[told.index("") + 1].startswith("Too narrow for "), "it is there however few lines there are"
    assert told[told.index("") + 2].startswith("MODEL")
    assert len(lines(found)) > 30 * 2, "elsewhere nothing is left out"
    assert "more lines" not in "\n".join(lines(found, "", Room(80)))


def test_shortened():
    assert shortened(["a", "b"], 2) == ["a", "b"]
    assert shortened(["a", "b", "c", "d"], 3) == ["a", "b", "... 2 more lines"]
    assert shortened(["a", "b"], 1) == ["... 2 more lines"]
    assert shortened(["a", "b"], None) == ["a", "b"]


def test_wrapped():
    assert wrapped(["abcdefg cd", ""], Room(10)) == ["abcdefg cd"]
    assert wrapped(["abcdefgh cd", ""], Room(10)) == ["abcdefgh", "  cd"]
    assert wrapped(["a b c d e f g h i j k l m"], Room(10, 9)) == ["a b c d e", "  f g ..."]
    assert wrapped(["ab cd ef gh"], Room(1, 9)) == ["ab cd ef", "  gh"]  # narrower than any text can be
    assert wrapped(["x" * 500], Room()) == ["x" * 500]
