"""The address of the agent: a Unix domain socket, written as gRPC or people write it."""

from pathlib import Path

DEFAULT = "unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock"
# sockaddr_un.sun_path holds 108 bytes with the terminating NUL (unix(7)).
LONGEST = 107


def socket_path(address: str) -> Path:
    """Return the absolute path in `unix:///path`, `unix:path` or a plain path; raise ValueError with what to write."""
    if not isinstance(address, str):
        raise ValueError("an address is a text, as in unix:///tmp/agent.sock")  # noqa: TRY004  (what callers are promised)
    text = address.removeprefix("unix:")
    if address.startswith("unix://"):
        text = address.removeprefix("unix://")
        if not text.startswith("/"):
            raise ValueError("after unix:// an absolute path must follow, as in unix:///tmp/agent.sock")
    if address.startswith(("unix-abstract:", "tcp:", "dns:", "ipv4:", "ipv6:", "vsock:")) or "\0" in address:
        raise ValueError("only Unix domain sockets with a path are served, as in unix:///tmp/agent.sock")
    if not text or text.endswith("/"):
        raise ValueError("the path of the socket is missing, as in unix:///tmp/agent.sock")
    path = Path(text).absolute()
    if any("\ud800" <= one <= "\udfff" for one in str(path)):
        raise ValueError("a socket path must be UTF-8, since gRPC takes no other; give the socket another path")
    if any(one in str(path) for one in "%#?"):
        raise ValueError("a socket path may not have %, # or ? in it, which gRPC reads as parts of an address")
    if len(bytes(path)) > LONGEST:
        raise ValueError(f"a socket path may have {LONGEST} bytes at most; this one has {len(bytes(path))}")
    return path


def target(address: str) -> str:
    """Return the address as gRPC's channel wants it."""
    return f"unix://{socket_path(address)}"
