"""Boots: in order, after a power cut, and with whatever is left over from before; the client is started with the rest.

What is left must never be taken for an answer, so that the agent comes late wherever that makes it harder.
"""

import shutil
import signal
from collections.abc import Callable

import pytest

from support.greengrass_components import AGENT, BOARDS, CALLER
from support.greengrass_orders import Orders
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 23


@ORDERS.on()
def a_boot(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.shut_down()
    assert not site.socket.exists()
    site.device.boot()
    site.answered("0.25", "0.25")


@ORDERS.on()
def a_boot_with_a_late_agent(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.shut_down()
    assert (site.registry / f"{BOARDS}.ack").read_bytes() == (site.registry / f"{BOARDS}.json").read_bytes()
    boot_late(site)
    site.answered("0.25", "0.25")


@ORDERS.on(JAVA)
def a_boot_with_a_late_model(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.shut_down()
    site.device.hold(BOARDS)
    site.device.boot()
    site.until_up(AGENT)
    site.device.release(BOARDS)
    site.answered("0.25", "0.25")


@ORDERS.on()
def a_boot_at_which_the_agent_is_killed(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.shut_down()
    site.device.hold(CALLER)
    site.device.boot()
    site.kill_start(2)
    site.answered("0.25", "0.25")


@ORDERS.on(JAVA)
def a_boot_with_a_model_that_starts_by_itself(site: Site) -> None:
    site.deploy(boards={"Autostart": "true"}).succeeds()
    site.answered("0.25")
    site.device.shut_down()
    boot_late(site)
    site.answered("0.25", "0.25")


@ORDERS.on()
def a_power_cut(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.cut_power()
    assert site.socket.is_socket(), "the socket is left behind"
    site.device.boot()
    site.answered("0.25", "0.25")


@ORDERS.on()
def a_power_cut_while_the_model_starts(site: Site) -> None:
    site.device.hold(CALLER)
    site.deploy()
    until(lambda: (site.registry / f"{BOARDS}.json").exists(), "the model is registered")
    site.device.cut_power()
    site.device.release(CALLER)
    site.device.boot()
    site.answered("0.25")


@ORDERS.on(JAVA)
def a_power_cut_while_the_model_waits(site: Site) -> None:
    site.late_agent()
    site.deploy()
    site.until_waits()
    site.device.cut_power()
    site.device.boot()
    site.agent_comes(2)
    site.answered("0.25")


@ORDERS.on(LITE)
def two_power_cuts(site: Site) -> None:
    """The second comes while the agent starts."""
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.cut_power()
    site.device.hold(CALLER)
    site.device.boot()
    until(lambda: site.device.starts[AGENT] == 2, "the agent starts")
    site.device.cut_power()
    site.device.release(CALLER)
    boot_late(site)
    site.answered("0.25", "0.25")


@ORDERS.on(LITE)
def a_first_start_that_fails_leaves_the_client_to_the_next_boot(site: Site) -> None:
    """The model component dies at a boot; nucleus lite starts it again, and nothing that depends on it."""
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.shut_down()
    site.late_agent()
    site.device.boot()
    site.until_waits(2)
    site.device.kill(BOARDS, signal.SIGTERM)
    site.agent_comes(2)
    site.until_up()
    assert len(site.lines()) == 1
    site.device.shut_down()
    site.device.boot()
    site.answered("0.25", "0.25")


def boot_late(site: Site) -> None:
    """Boot with an agent that comes once the model waits again, before which the client must not be started."""
    waits, calls = site.waits(), site.device.starts[CALLER]
    site.late_agent()
    site.device.boot()
    site.until_waits(waits + 1)
    assert site.device.starts[CALLER] == calls, "the client was started before the agent"
    site.agent_comes()


# What a power cut may leave of the registry, where a file system loses what was not on the disk yet.
def half_written_files(site: Site) -> None:
    site.put(f".{BOARDS}.json.new", b'{"component": "com.exa')
    site.put(f".{BOARDS}.0a1b2c3d", b'{"compo')
    site.put(f"{BOARDS}.ack", b'{"component": "com.example.Boards", "version": ')


def empty_files(site: Site) -> None:
    for name in (f".{BOARDS}.json.new", f"{BOARDS}.json", f"{BOARDS}.ack"):
        site.put(name, b"")


def half_an_entry(site: Site) -> None:
    entry = (site.registry / f"{BOARDS}.json").read_bytes()
    site.put(f"{BOARDS}.json", entry[: len(entry) // 2])
    site.put(f"{BOARDS}.ack", entry[: len(entry) // 2])


def an_answer_without_an_entry(site: Site) -> None:
    (site.registry / f"{BOARDS}.json").unlink()


def an_error_for_an_answer(site: Site) -> None:
    site.put(f"{BOARDS}.ack", b"error: of an earlier time.\n")


def nothing(site: Site) -> None:
    shutil.rmtree(site.registry)


def of_everything(left: Callable[[Site], None]) -> Callable[[Site], None]:
    """Return the order in which that is left."""

    def order(site: Site) -> None:
        site.deploy().succeeds()
        site.answered("0.25")
        site.device.cut_power()
        left(site)
        boot_late(site)
        site.answered("0.25", "0.25")

    return order


for one, nuclei in (
    (half_written_files, (JAVA, LITE)),
    (empty_files, (LITE,)),
    (half_an_entry, (LITE,)),
    (an_answer_without_an_entry, (JAVA,)),
    (an_error_for_an_answer, (LITE,)),
    (nothing, (JAVA, LITE)),
):
    for nucleus in nuclei:
        ORDERS.add(nucleus, f"a_power_cut_leaves_{one.__name__}", of_everything(one))


@pytest.mark.parametrize("name", ORDERS.all)
def test_each_call_is_answered(name, ran):
    ran[ORDERS, name].check()


def test_the_orders_are_counted():
    assert len(ORDERS.all) == COUNT
