"""Updates of model and agent, whatever else happens meanwhile; the client is started with what is new, and calls once.

Where the model runs already, it is called all the time, and each call must be answered.
"""

import os
import shutil

import pytest

from support.greengrass_components import AGENT, BOARDS, CALLER
from support.greengrass_deployments import SUCCEEDED
from support.greengrass_orders import Orders
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user

ORDERS = Orders()
COUNT = 25
# An agent answers with the old version until the new one is loaded.
EITHER = {"0.25", "0.75"}


def updated(site: Site) -> None:
    """Wait until the new version answers, and nothing of the old one is left."""
    site.until_score("0.75")
    packages = site.device.root / "packages"
    assert [str(one.relative_to(packages)) for one in packages.glob(f"*/{BOARDS}/1.0.0")] == []
    assert b'"version": "1.1.0"' in (site.registry / f"{BOARDS}.ack").read_bytes()


@ORDERS.on()
def the_model_is_updated_while_it_runs(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    with site.answering():
        site.deploy("boards-1.1.0", "caller-1.1.0").succeeds()
        site.answered("0.25", EITHER)
        updated(site)
    site.call_again()
    site.answered("0.25", EITHER, "0.75")


@ORDERS.on(JAVA)
def the_model_is_updated_before_it_has_run(site: Site) -> None:
    site.deploy("agent-1.3.0", "boards-1.0.0").succeeds()
    site.deploy("boards-1.1.0", "caller-1.1.0").succeeds()
    site.answered("0.75")
    updated(site)


@ORDERS.on()
def the_model_is_updated_while_the_agent_is_down(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(AGENT)
    site.device.kill(AGENT)
    site.device.until_state(AGENT, "INSTALLED", "auto-restart")
    waited = site.device.log(BOARDS).count("waiting for Edge Agent's answer")
    deployment = site.deploy("boards-1.1.0", "caller-1.1.0")
    if site.kind == JAVA:
        site.device.until_log(BOARDS, "waiting for Edge Agent's answer", waited + 1)
    assert len(site.lines()) == 1
    site.device.release(AGENT)
    deployment.succeeds()
    site.answered("0.25", EITHER)
    updated(site)


@ORDERS.on()
def the_model_is_updated_while_the_agent_restarts(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(CALLER)
    deployment = site.deploy("boards-1.1.0", "caller-1.1.0")
    site.kill_start(1)
    deployment.succeeds()
    site.answered("0.25", EITHER)
    updated(site)


@ORDERS.on(LITE)
def the_model_is_updated_and_the_device_boots_at_once(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(CALLER)
    site.deploy("boards-1.1.0", "caller-1.1.0")
    site.device.until_log(BOARDS, "Registered com.example.Boards 1.1.0")
    site.device.cut_power()
    site.device.release(CALLER)
    site.device.boot()
    site.answered("0.25", EITHER)
    site.until_score("0.75")


@ORDERS.on()
def agent_and_model_are_updated_at_once(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.deploy("agent-1.3.1", "boards-1.1.0", "caller-1.1.0").succeeds()
    site.answered("0.25", EITHER)
    updated(site)
    assert (site.device.work(AGENT) / "venv-1.3.1").is_dir()


@ORDERS.on(JAVA)
def agent_and_model_are_updated_at_once_and_the_new_agent_is_killed(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(CALLER)
    deployment = site.deploy("agent-1.3.1", "boards-1.1.0", "caller-1.1.0")
    site.kill_start(2)
    deployment.succeeds()
    site.answered("0.25", EITHER)
    updated(site)


@ORDERS.on(JAVA)
def agent_and_model_are_updated_while_a_call_is_in_hand(site: Site) -> None:
    """The old agent takes seconds to end, in which it must not acknowledge what the next one will serve."""
    site.deploy().succeeds()
    site.answered("0.25")
    with site.a_call_in_hand():
        site.deploy("agent-1.3.1", "boards-1.1.0", "caller-1.1.0").succeeds()
    site.answered("0.25", EITHER)
    updated(site)


@ORDERS.on(LITE)
def the_agent_is_updated(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.deploy("agent-1.3.1").succeeds()
    site.call_again()
    site.answered("0.25", "0.25")


@ORDERS.on(JAVA)
def the_agent_is_updated_with_the_client(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(CALLER)
    deployment = site.deploy("agent-1.3.1", "caller-1.1.0")
    site.until_served(2)
    site.device.release(CALLER)
    deployment.succeeds()
    site.answered("0.25", "0.25")


@ORDERS.on()
def an_update_fails_and_is_taken_back(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    with site.answering():
        status = site.deploy("boards-1.2.0").wait()
        assert status.startswith("FAILED")
        assert BOARDS in status
        assert "manifest.json is not JSON" in site.device.log(BOARDS)
        # The Java nucleus goes back by itself.
        assert site.kind == JAVA or site.deploy("boards-1.0.0").wait() == SUCCEEDED
        site.until_up()
        site.call_again()
        site.answered("0.25", "0.25")
    assert b'"version": "1.0.0"' in (site.registry / f"{BOARDS}.ack").read_bytes()


@ORDERS.on(LITE)
def the_model_goes_back_to_an_older_version(site: Site) -> None:
    site.deploy("agent-1.3.0", "boards-1.1.0", "caller-1.1.0").succeeds()
    site.answered("0.75")
    with site.answering():
        site.deploy("boards-1.0.0", "caller-1.0.0").succeeds()
        site.answered("0.75", EITHER)
        site.until_score("0.25")


@ORDERS.on(LITE)
def model_and_client_are_removed_and_come_again(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.deploy("agent-1.3.0", remove=(BOARDS, CALLER)).succeeds()
    until(lambda: list(site.registry.iterdir()) == [], "entry and answer are removed")
    until(lambda: site.models() == [], "the model is dropped")
    site.deploy().succeeds()
    site.answered("0.25", "0.25")


@ORDERS.on()
def all_are_removed_and_come_again(site: Site) -> None:
    """The entry and an answer that is equal to it stay in the folder of the agent, which cannot remove them any more."""
    site.deploy().succeeds()
    site.answered("0.25")
    site.deploy("agent-1.3.0", remove=(AGENT, BOARDS, CALLER)).succeeds()
    assert (site.registry / f"{BOARDS}.ack").read_bytes() == (site.registry / f"{BOARDS}.json").read_bytes()
    site.late_agent()
    deployment = site.deploy()
    site.agent_comes(2)
    deployment.succeeds()
    site.answered("0.25", "0.25")


@ORDERS.on()
def the_old_files_go_before_the_new_model_is_loaded(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.device.hold(CALLER)
    with site.answering():
        deployment = site.deploy("boards-1.1.0", "caller-1.1.0")
        until(lambda: b"1.1.0" in (site.registry / f"{BOARDS}.json").read_bytes(), "the new version is registered")
        for folder in (site.device.root / "packages").glob(f"*/{BOARDS}/1.0.0"):
            shutil.rmtree(folder)
        site.until_up()
        site.device.release(CALLER)
        deployment.succeeds()
        site.answered("0.25", EITHER)
        updated(site)


@ORDERS.on()
def the_old_files_go_while_a_new_agent_is_about_to_load_them(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    with site.no_worker_starts():
        site.device.kill(AGENT)
        site.until_served(2)
        site.deploy("boards-1.1.0").succeeds()
    site.deploy("caller-1.1.0").succeeds()
    site.answered("0.25", EITHER)
    updated(site)


@ORDERS.on(JAVA)
def strangers_have_put_things_into_the_registry(site: Site) -> None:
    registry = site.make_registry()
    entry = '{{"component": "{0}", "version": "1.0.0", "path": "{1}", "autostart": "true"}}\n'
    site.put("thief.json", entry.format("thief", "/etc/passwd").encode())
    site.put("flood.json", entry.format("flood", site.device.root / "packages").encode() + b" " * 5000)
    site.put("garbage.json", b"\xff\x00" * 50)
    (registry / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(registry / "pipe.json")
    (registry / "folder.json").mkdir()
    (registry / f"{BOARDS}.ack").symlink_to("/etc/passwd")
    # An entry of somebody else for the very component, and one of its temporary file's name.
    site.put(f"{BOARDS}.json", entry.format(BOARDS, "/tmp").encode())
    (registry / f".{BOARDS}.json.new").symlink_to("/etc/passwd")
    if I_AM_ROOT and agent_user() != MYSELF:
        os.chown(registry / f"{BOARDS}.json", OTHER.uid, OTHER.gid)
    site.late_agent()
    deployment = site.deploy()
    site.agent_comes()
    deployment.succeeds()
    site.answered("0.25")
    assert site.models() == [BOARDS]
    # Those that come later change nothing either.
    site.put("late.json", entry.format("late", "/etc").encode())
    until(lambda: (registry / "late.ack").exists(), "the late one is refused")
    site.call_again()
    site.answered("0.25", "0.25")


@pytest.mark.parametrize("name", ORDERS.all)
def test_each_call_is_answered(name, ran):
    ran[ORDERS, name].check()


def test_the_orders_are_counted():
    assert len(ORDERS.all) == COUNT
