"""The address that metrics are served on: loopback only, since whoever reaches it may read them."""

import ipaddress
import re
from typing import NamedTuple

EXAMPLE = "127.0.0.1:9464"


class Loopback(NamedTuple):
    """An IP address of this machine alone, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write it as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Loopback:
    """Read `host:port`, the host 127.x.x.x, [::1] or localhost; raise ValueError with what is wrong."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([^:\[\]]+)):([0-9]{1,5})", text)
    if not found:
        raise ValueError(f"write it as host:port, as in {EXAMPLE}")
    host, port = found[1] or found[2], int(found[3])
    if not 1 <= port <= 65535:
        raise ValueError("a port is between 1 and 65535")
    if host.lower() == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"the host is an address, as in {EXAMPLE}, or localhost") from None
    if not address.is_loopback:
        raise ValueError(
            f"metrics are served to this machine only, as on {EXAMPLE}; for others, let something with a login of its own "
            "pass them on"
        )
    return Loopback(str(address), port)
