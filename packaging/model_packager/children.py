"""Work that is done in a process of its own: asked by one line of JSON, limited, and gone when its asker is gone."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from model_packager.errors import PackagingRefused

REFUSED = "refused"
LARGEST_FILE = 16 << 30


def ask(module: str, request: Mapping[str, Any], *, what: str, seconds: float) -> dict[str, Any]:
    """Run `python -m module` on a request; return its answer.

    Args:
        module: a module that calls `serve`.
        request: what it gets.
        what: what it does, for the sentence when it fails, as in "Converting the model".
        seconds: after so long it is ended.

    Raises:
        PackagingRefused: it refused, ended without an answer, or took too long.

    """
    try:
        # In a folder that is nobody's: Python imports modules from the one that it is started in.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
    except OSError as error:
        raise PackagingRefused(f"{what} could not be started: {error.strerror}.") from None
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def end() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()  # and kept open: its end tells the child that nobody waits any more
            answer = process.stdout.read()
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
            with contextlib.suppress(BrokenPipeError):  # what it has not read is tried again
                process.stdin.close()
        code = process.wait()
    if code == 0 and answer:
        content: dict[str, Any] = json.loads(answer)
        if REFUSED in content:
            raise PackagingRefused(content[REFUSED])
        return content
    if expired.is_set():
        raise PackagingRefused(f"{what} took longer than {seconds:g} s and was ended.")
    ended = f"by signal {-code}" if code < 0 else f"with code {code}"
    hint = "; it may have run out of memory" if -code in {signal.SIGKILL, signal.SIGABRT} else ""
    raise PackagingRefused(f"{what} ended {ended}{hint}; the job's log has what it said.")


def serve(
    work: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    data_limit: Callable[[Mapping[str, Any]], int] | None = None,
) -> None:
    """Be the child: answer one request, with at most `data_limit(request)` bytes of memory of its own."""
    # Libraries print what they like; only the answer goes to the asker.
    told = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    if data_limit:
        _limit(resource.RLIMIT_DATA, data_limit(request))
    threading.Thread(target=_end_with_asker, daemon=True).start()
    try:
        answer = work(request)
    except PackagingRefused as refusal:
        answer = {REFUSED: str(refusal)}
    except MemoryError:
        answer = {REFUSED: "There is not enough memory for the model."}
    with os.fdopen(told, "wb", closefd=False) as out:
        out.write(json.dumps(answer).encode())
    # At once: the asker reads to the end, which comes with ours, and lets go of us then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _limit(kind: int, most: int) -> None:
    """Lower a limit of the system's; one that is lower already stays, since only root may raise it."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _end_with_asker() -> None:
    os.read(0, 1)
    os._exit(1)
