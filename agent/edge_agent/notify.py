"""systemd's notify socket, to which the agent tells how it is, a datagram each time. Source: sd_notify(3)."""

import os
import socket

NOTIFY_SOCKET = "NOTIFY_SOCKET"


def address() -> str:
    """Return where systemd listens, "" where it does not ask to be told."""
    return os.environ.get(NOTIFY_SOCKET, "")


def is_one(where: str) -> bool:
    """Return whether it is an address that can be told: an absolute path or an abstract socket."""
    return where.startswith(("/", "@"))


def send(where: str, text: bytes, patience: float) -> None:
    """Tell `text`; raises OSError, also when it is not taken within `patience` seconds."""
    name = os.fsencode(where)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(patience)
        sender.sendto(text, b"\0" + name[1:] if where.startswith("@") else name)
