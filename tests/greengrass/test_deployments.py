"""First deployments: agent, model and a client that calls once come in every order, die, and come again.

Whatever the order, the client must get its answer at its first and only try.
"""

import shutil

import pytest

from support.greengrass_components import AGENT, BOARDS, CALLER
from support.greengrass_orders import Orders
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 28


@ORDERS.on()
def all_at_once(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")


@ORDERS.on()
def one_after_the_other(site: Site) -> None:
    for one in ("agent-1.3.0", "boards-1.0.0", "caller-1.0.0"):
        site.deploy(one).succeeds()
    site.answered("0.25")


@ORDERS.on()
def the_agent_comes_late(site: Site) -> None:
    site.late_agent()
    deployment = site.deploy()
    site.agent_comes()
    deployment.succeeds()
    assert "Waiting for the folder " in site.device.log(BOARDS)
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_agent_comes_late_and_the_registry_is_there(site: Site) -> None:
    site.make_registry()
    site.late_agent()
    deployment = site.deploy()
    site.agent_comes()
    deployment.succeeds()
    assert "Waiting for the folder " not in site.device.log(BOARDS)
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_agent_comes_first_and_the_model_late(site: Site) -> None:
    site.device.hold(BOARDS)
    deployment = site.deploy()
    site.until_up(AGENT)
    site.device.release(BOARDS)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_client_comes_late(site: Site) -> None:
    site.device.hold(CALLER)
    deployment = site.deploy()
    site.until_up()
    site.device.release(CALLER)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on()
def the_agent_is_killed_as_it_starts(site: Site) -> None:
    site.device.hold(CALLER)
    deployment = site.deploy()
    site.kill_start(1)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on()
def the_agent_is_killed_with_an_entry_before_it(site: Site) -> None:
    site.make_registry()
    site.late_agent()
    site.device.hold(CALLER)
    deployment = site.deploy()
    site.agent_comes()
    site.kill_start(1 if site.kind == JAVA else 2)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on()
def the_agent_is_killed_after_it_acknowledged(site: Site) -> None:
    site.device.hold(CALLER)
    deployment = site.deploy()
    site.until_up()
    site.device.kill(AGENT)
    site.until_served(2)
    site.device.release(CALLER)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_agent_is_killed_while_the_model_runs(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.kill(AGENT)
    site.until_served(2)
    site.call_again()
    site.answered("0.25", "0.25")


@ORDERS.on(JAVA)
def the_model_component_is_killed_while_it_waits(site: Site) -> None:
    site.late_agent()
    deployment = site.deploy()
    site.until_waits()
    site.device.kill(BOARDS)
    site.agent_comes(2)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on(LITE)
def the_model_component_is_killed_while_it_waits_and_the_device_boots(site: Site) -> None:
    """What depends on it stays dead on nucleus lite, so that a boot, or another deployment, must bring it back."""
    site.late_agent()
    deployment = site.deploy()
    site.until_waits()
    site.device.kill(BOARDS)
    site.agent_comes()
    deployment.wait()
    site.until_up()
    site.not_called()
    site.device.shut_down()
    site.device.boot()
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_nucleus_ends_while_the_model_waits(site: Site) -> None:
    """A model component that is told to end must not count as started."""
    site.late_agent()
    site.deploy()
    site.until_waits()
    site.device.shut_down()
    site.not_called()
    assert "Edge Agent knows" not in site.device.log(BOARDS)
    site.device.boot()
    site.agent_comes(2)
    site.answered("0.25")


@ORDERS.on(JAVA)
def the_registry_is_removed_while_the_model_waits(site: Site) -> None:
    registry = site.make_registry()
    site.late_agent()
    deployment = site.deploy()
    until(lambda: (registry / f"{BOARDS}.json").exists(), "the entry is there")
    shutil.rmtree(registry)
    site.device.until_log(BOARDS, "Waiting for the folder ")
    site.device.release(AGENT)
    deployment.succeeds()
    site.answered("0.25")


@ORDERS.on(LITE)
def the_registry_is_removed_while_the_agent_runs(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    shutil.rmtree(site.registry)
    until(site.registry.is_dir, "the folder is there again")
    site.device.restart(BOARDS)
    site.until_up()
    site.call_again()
    site.answered("0.25", "0.25")


@ORDERS.on(LITE)
def the_model_component_is_restarted(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.restart(BOARDS)
    site.until_up()
    site.call_again()
    site.answered("0.25", "0.25")


@ORDERS.on(JAVA)
def the_model_starts_by_itself(site: Site) -> None:
    site.deploy(boards={"Autostart": "true"}).succeeds()
    site.answered("0.25")


@ORDERS.on(LITE)
def the_model_is_told_to_start_by_itself_later(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.deploy("boards-1.0.0", boards={"Autostart": "true"}).succeeds()
    assert b'"autostart": "true"' in (site.registry / f"{BOARDS}.ack").read_bytes()
    site.call_again()
    site.answered("0.25", "0.25")


@ORDERS.on(LITE)
def the_registry_is_another_folder(site: Site) -> None:
    registry = site.device.base / "registry"
    roots = str(site.device.root / "packages")
    site.deploy(
        agent={"Registry": str(registry), "RegistryRoots": roots}, boards={"Registry": f"{registry}/"}
    ).succeeds()
    site.answered("0.25")
    assert (registry / f"{BOARDS}.ack").is_file()
    assert not site.registry.exists()


@ORDERS.on(LITE)
def two_models_come_at_once(site: Site) -> None:
    site.deploy("agent-1.3.0", "boards-1.0.0", "cans-1.0.0", "caller-1.0.0", "tins-1.0.0").succeeds()
    site.answered("0.25")
    site.answered("0.50", name="com.example.Tins")


@ORDERS.on()
def a_broken_model_is_followed_by_a_good_one(site: Site) -> None:
    """The first deployment fails, and leaves an entry and an answer behind."""
    assert site.deploy("agent-1.3.0", "boards-1.2.0").wait().startswith("FAILED")
    assert "manifest.json is not JSON" in site.device.log(BOARDS)
    site.deploy().succeeds()
    site.answered("0.25")


@pytest.mark.parametrize("name", ORDERS.all)
def test_each_call_is_answered(name, ran):
    ran[ORDERS, name].check()


def test_the_orders_are_counted():
    assert len(ORDERS.all) == COUNT
