"""The bare model in a process of its own, ordered about as the clients are, to take turns with them."""

import time
from pathlib import Path

from edge_agent.bench import child
from edge_agent.bench.bare import Bare, Frame
from edge_agent.bench.child import Order, Refused
from edge_agent.bench.subject import look
from edge_agent.errors import PackageRefused
from edge_agent.jobs import STAGES, SessionOptions

ROUNDS = 30


class Lent(Frame):
    """A frame in a segment that somebody else has made and will remove, its mask behind it."""

    def __init__(self, name: str, width: int, height: int) -> None:
        """Use the segment `name`, of 6 * width * height bytes."""
        self.width, self.height = width, height
        self.size = 3 * width * height
        self.name = name


class Rival:
    """The bare model."""

    def __init__(self, setup: Order) -> None:
        """Load the package in the folder `package`, which `uid` may own; raise Refused."""
        try:
            found = look(Path(setup["package"]), setup["uid"])
            if found.package is None:
                raise Refused(found.refusal)
            frame = Lent(setup["segment"], setup["width"], setup["height"])
            self._bare = Bare(found.package, frame, SessionOptions(**setup["options"]))
        except (PackageRefused, OSError) as refusal:
            raise Refused(str(refusal)) from None
        except MemoryError:
            raise Refused("The model does not fit into memory beside the agent's.") from None

    def __call__(self, order: Order) -> Order:
        """Do an order: `turn`, as of a client, or `stages`, the median seconds of each stage."""
        if order["kind"] == "stages":
            return dict(zip(STAGES, self._bare.stages(ROUNDS).values(), strict=True))
        times: list[float] = []
        self._bare.call()
        until = time.perf_counter() + order["seconds"]
        while not times or time.perf_counter() < until:
            begin = time.perf_counter()
            self._bare.call()
            times.append(time.perf_counter() - begin)
        return {"times": times, "errors": {}, "good": len(times) + 1, "last": time.perf_counter()}


if __name__ == "__main__":
    child.serve(Rival)
