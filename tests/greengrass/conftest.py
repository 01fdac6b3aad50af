"""The components of all tests here, made once, and the orders of all, run at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import greengrass_components as components
from support.agent import place
from support.greengrass_orders import Orders, Outcome, run_all


@pytest.fixture(scope="session")
def outputs() -> Iterator[Path]:
    """A folder with the outputs of components, called as `agent-1.3.0`."""
    made = place()
    work = made / "work"
    for version in ("1.3.0", "1.3.1"):
        components.agent(made / f"agent-{version}", version)
    for version, score in (("1.0.0", 0.25), ("1.1.0", 0.75), ("1.2.0", 0.5)):
        components.model(made / f"boards-{version}", work, version=version, score=score)
    components.model(made / "cans-1.0.0", work, "com.example.Cans", score=0.5)
    good = made / "boards-1.2.0"
    good.rename(made / "good")
    components.changed(good, made / "good", components.BOARDS, "1.2.0", components.spoil)
    for version in ("1.0.0", "1.1.0"):
        components.caller(made / f"caller-{version}", version=version)
    components.caller(made / "tins-1.0.0", "com.example.Tins", "com.example.Cans")
    (made / "customer").mkdir()
    components.customer(made / "customer")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def ran(request, outputs) -> dict[tuple[Orders, str], Outcome]:
    """How the orders ended that the tests of this run are about, by the module's orders and the name."""
    chosen = []
    for item in request.session.items:
        orders = getattr(getattr(item, "module", None), "ORDERS", None)
        if isinstance(orders, Orders) and "ran" in item.fixturenames:
            chosen.append((orders, item.callspec.params["name"]))
    return run_all(chosen, outputs)
