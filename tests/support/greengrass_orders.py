"""Orders: what happens at a site in which order, declared by tests, and run all at once.

They spend their time waiting, so that those of all modules are run together, each on a device of its own.
"""

import importlib.util
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site

AT_ONCE = 16
SDK = importlib.util.find_spec("awsiot")


@dataclass(frozen=True)
class Outcome:
    """How an order ended, and all that happened."""

    error: str = ""
    story: str = ""
    skipped: str = ""

    def check(self) -> None:
        """Fail or skip as the order did."""
        if self.skipped:
            pytest.skip(self.skipped)
        if self.error:
            pytest.fail(f"{self.error}\n{self.story}", pytrace=False)


class Orders:
    """The orders of a module, by name."""

    def __init__(self) -> None:
        self.all: dict[str, tuple[str, Callable[[Site], None]]] = {}

    def on(self, *kinds: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
        """Declare a function to be an order on nuclei, both where none is named."""

        def declare(order: Callable[[Site], None]) -> Callable[[Site], None]:
            for kind in kinds or (JAVA, LITE):
                self.add(kind, order.__name__, order)
            return order

        return declare

    def add(self, kind: str, name: str, order: Callable[[Site], None]) -> None:
        title = f"{kind}: {name.replace('_', ' ')}"
        assert title not in self.all
        self.all[title] = kind, order

    def run(self, name: str, outputs: Path) -> Outcome:
        """Run an order on a device of its own; return how it ended."""
        kind, order = self.all[name]
        if kind == JAVA and SDK is None:
            return Outcome(skipped="without awsiotsdk nobody tells the Java nucleus that the agent runs")
        site = Site(kind, outputs)
        error = ""
        try:
            order(site)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        story = site.device.story()
        try:
            site.close()
        except Exception as caught:
            error += f"\nat its end {type(caught).__name__}: {caught}"
        return Outcome(error, story)


def run_all(chosen: Collection[tuple[Orders, str]], outputs: Path) -> dict[tuple[Orders, str], Outcome]:
    """Run orders all at once; return how each ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(chosen, pool.map(lambda one: one[0].run(one[1], outputs), chosen), strict=True))
