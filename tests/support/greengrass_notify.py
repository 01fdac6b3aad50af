"""systemd's notify socket: what a unit's processes tell of themselves; and a systemd-notify."""

import array
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

FLUSH = b"X_FLUSH"
# Tells NOTIFY_SOCKET what its flags say, as far as nucleus lite and components need it.
NOTIFY = f"""#!{sys.executable} -IS
import os, socket, sys
texts = {{"--ready": "READY=1", "--stopping": "STOPPING=1"}}
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    sender.sendto("\\n".join(texts[one] for one in sys.argv[1:]).encode(), os.environ["NOTIFY_SOCKET"])
"""


class NotifySocket:
    """A socket of one unit. `told` gets each line that somebody sends."""

    def __init__(self, path: Path, told: Callable[[str], None]) -> None:
        self.path = path
        self._told = told
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._closing = threading.Lock()
        self._closed = False
        self._flushed = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Return when all that was sent has been told; systemd, too, reads what a process said before it sees its end."""
        with self._closing:
            if not self._closed:
                self._send(FLUSH)
                self._flushed.acquire()

    def close(self) -> None:
        with self._closing:
            self._closed = True
            self._send(b"")
            self._thread.join()
            self._socket.close()
            self.path.unlink()

    def _send(self, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(data, str(self.path))

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, 1024)
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    # systemd-notify waits until the descriptor that comes with BARRIER=1 is closed.
                    for fd in array.array("i", content):
                        os.close(fd)
            if data == FLUSH:
                self._flushed.release()
                continue
            if not data:
                return
            for line in data.decode().splitlines():
                self._told(line)


def install(folder: Path) -> Path:
    """Write a systemd-notify into a folder."""
    program = folder / "systemd-notify"
    program.write_text(NOTIFY)
    program.chmod(0o755)
    return program
