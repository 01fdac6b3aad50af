"""Log lines: one event a line, what callers can cause is limited, a file has a size, and a full disk costs lines only."""

import contextlib
import errno
import json
import logging
import logging.handlers

import pytest

from edge_agent import log
from edge_agent.log import LogSettings, RateLimit

LOGGER = logging.getLogger("edge_agent.test")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(message: str = "%s failed", *args: object, limited: bool = True) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.WARNING, "file", 1, message, args, None)
    if limited:
        made.limited = True
    return made


@pytest.fixture
def restored():
    """The root logger as it was before."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    for handler in root.handlers:
        with contextlib.suppress(OSError):  # what a full disk has not taken
            handler.close()
    root.handlers[:], logging.raiseExceptions = handlers, raising
    root.setLevel(level)


class TestLimit:
    def test_ten_lines_of_a_kind_a_second(self):
        clock = Clock()
        limit = RateLimit(clock)
        assert [limit.filter(record("%s failed", number)) for number in range(25)] == [True] * 10 + [False] * 15
        assert limit.filter(record("another kind"))
        clock.now += 1
        following = record("%s failed", "x")
        assert limit.filter(following)
        assert following.getMessage() == "x failed (15 more like this were left out)"
        again = record("%s failed", "y")
        assert limit.filter(again)
        assert again.getMessage() == "y failed", "they are told once"

    def test_what_nobody_can_cause_at_will_is_never_left_out(self):
        limit = RateLimit(Clock())
        assert all(limit.filter(record("%s stopped", number, limited=False)) for number in range(100))

    def test_what_grpc_tells_of_metadata_is_a_short_line_and_limited(self, capsys, restored):
        """Any caller may send metadata that is no text, and gRPC tells of each with a traceback."""
        log.set_up(LogSettings("info", "text"))
        logger = logging.getLogger(log.GRPC)
        for _ in range(30):
            try:
                b"\xff".decode()
            except UnicodeDecodeError:
                logger.exception("Invalid encoding on %s", b"\x1b\n\xff" + b"a" * 5000)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 10
        assert all(" WARNING gRPC: " in line and r"b'\\x1b\\n\\xff" in line and len(line) < 200 for line in lines)

    def test_both_outputs_leave_out_the_same(self, tmp_path, capsys, restored):
        log.set_up(LogSettings("info", "text", tmp_path / "agent.log", 1 << 20))
        for number in range(30):
            LOGGER.warning("call %d failed", number, extra=log.LIMITED)
        on_stdout = capsys.readouterr().out
        assert on_stdout.count("failed") == 10
        assert (tmp_path / "agent.log").read_text() == on_stdout


class TestFile:
    def test_two_files_of_the_size_at_most(self, tmp_path, restored):
        path = tmp_path / "agent.log"
        log.set_up(LogSettings("info", "json", path, 10_000))
        for number in range(500):
            LOGGER.info("line %d", number)
        files = sorted(tmp_path.iterdir())
        assert [one.name for one in files] == ["agent.log", "agent.log.1"]
        assert all(0 < one.stat().st_size <= 10_000 for one in files)
        assert json.loads(path.read_text().splitlines()[-1])["message"] == "line 499"

    def test_a_worker_follows_the_file_and_does_not_rename_it(self, tmp_path, restored):
        path = tmp_path / "agent.log"
        log.set_up(LogSettings("info", "text", path, 1000), own=False)
        LOGGER.info("before")
        path.rename(tmp_path / "agent.log.1")
        LOGGER.info("after")
        assert "after" in path.read_text()
        assert "before" not in path.read_text()
        for number in range(200):
            LOGGER.info("line %d", number)
        assert path.stat().st_size < 2 * 1000 + 100, "it stops where the agent is late to rename it"

    @pytest.mark.parametrize("own", [True, False])
    def test_a_full_disk_costs_one_warning_a_minute(self, capsys, monkeypatch, restored, own):
        """/dev/full takes no byte; the lines go on to stdout."""
        log.set_up(LogSettings("info", "text", log.Path("/dev/full"), 1000), own=own)
        for number in range(50):
            LOGGER.info("line %d", number)
        out = capsys.readouterr().out
        assert out.count("line ") == 50
        assert out.count("/dev/full cannot be written (No space left on device); 1 lines were lost so far.") == 1
        assert out.count("cannot be written") == 1
        monkeypatch.setattr(log.time, "monotonic", lambda now=log.time.monotonic: now() + log.QUIET)
        LOGGER.info("later")
        assert "51 lines were lost so far" in capsys.readouterr().out

    def test_a_file_that_cannot_be_opened_is_told_and_costs_nothing_else(self, tmp_path, capsys, restored):
        log.set_up(LogSettings("info", "text", tmp_path / "missing" / "agent.log", 1000))
        LOGGER.info("line")
        out = capsys.readouterr().out
        assert "line" in out
        assert f"{tmp_path}/missing/agent.log cannot be written" in out


def test_stdout_that_takes_nothing_raises_nothing(monkeypatch, restored):
    class Full:
        def write(self, _: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    log.set_up(LogSettings("info", "text"))
    LOGGER.info("line")
