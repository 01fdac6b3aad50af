"""What must not pass does not: components with the faults that the orders are there to find, and each is found."""

from pathlib import Path
from typing import Any

import pytest

from edge_agent.address import DEFAULT
from support import greengrass_components as components
from support.greengrass_components import AGENT, BOARDS, CALLER
from support.greengrass_deployments import SUCCEEDED
from support.greengrass_orders import Orders
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 17
FOLDER = "folder=$6/work/aws.iot.lookoutvision.EdgeAgent/models.d\n"
WRITE = """
path=$5/${3%.zip}
[ -d "$path" ] || path=$4/$3
printf '{"component": "%s", "version": "%s", "path": "%s", "autostart": "false"}\\n' "$1" "$2" "$path" >"$folder/.new"
mv "$folder/.new" "$folder/$1.json"
"""
DONE = '[ -z "$NOTIFY_SOCKET" ] || exec systemd-notify --ready\n'
# What may stand in the place of register.sh -> what it does wrong.
DOES_NOT_WAIT = FOLDER + '[ ! -d "$folder" ] || {' + WRITE + "}\n" + DONE
TAKES_ANY_ANSWER = (
    FOLDER
    + 'until [ -d "$folder" ]; do sleep 0.1; done\n'
    + WRITE
    + 'until [ -e "$folder/$1.ack" ]; do sleep 0.1; done\n'
    + DONE
)
# In the place of the agent: acknowledges whatever is registered, and serves nothing.
ONLY_ACKNOWLEDGES = """
mkdir -p models.d
while :; do
    for entry in models.d/*.json; do
        [ ! -e "$entry" ] || cp "$entry" "${entry%.json}.ack"
    done
    sleep 0.05
done &
[ -z "$NOTIFY_SOCKET" ] || systemd-notify --ready
wait
"""


def with_script(site: Site, script: str, **step: Any) -> Path:
    """Return the model's component with another register.sh."""

    def edit(recipe: dict[str, Any], artifacts: Path) -> None:
        (artifacts / "register.sh").write_text(script)
        recipe["Manifests"][0]["Lifecycle"]["startup"].update(step)

    output = site.device.base / "changed"
    return components.changed(output, site.outputs / "boards-1.0.0", BOARDS, "1.0.0", edit)


def calls(site: Site) -> dict[str, Any]:
    return {
        AGENT: components.settings(site.device),
        CALLER: {"Socket": f"unix://{site.socket}", "Python": str(site.python)},
    }


def begin(site: Site, *instead: Path) -> Any:
    """Begin to deploy agent, model and client, some of them out of other outputs."""
    names = {AGENT: "agent-1.3.0", BOARDS: "boards-1.0.0", CALLER: "caller-1.0.0"}
    given = {path.stem.rpartition("-")[0] for output in instead for path in (output / "recipes").iterdir()}
    outputs = [site.outputs / output for name, output in names.items() if name not in given]
    return site.device.deploy({name: one[-5:] for name, one in names.items()}, *outputs, *instead, merge=calls(site))


def noticed(site: Site, *scores: str) -> None:
    """Fail unless it is noticed that the client did not get its answer."""
    with pytest.raises(AssertionError, match=r"failed (UNAVAILABLE|NOT_FOUND)"):
        site.answered(*scores)


@ORDERS.on()
def a_model_component_that_does_not_wait(site: Site) -> None:
    site.late_agent()
    begin(site, with_script(site, DOES_NOT_WAIT))
    noticed(site, "0.25")


@ORDERS.on()
def a_model_component_that_takes_any_answer(site: Site) -> None:
    """It passes as long as nothing is left over."""
    begin(site, with_script(site, TAKES_ANY_ANSWER)).succeeds()
    site.answered("0.25")
    site.device.shut_down()
    site.late_agent()
    site.device.boot()
    noticed(site, "0.25", "0.25")


@ORDERS.on()
def a_model_component_without_an_agent(site: Site) -> None:
    site.make_registry()
    nobody = components.component(site.device.base / "nobody", AGENT, {"run": "exec sleep 300"}, "1.3.0")
    script = (site.outputs / "boards-1.0.0" / "artifacts" / BOARDS / "1.0.0" / "register.sh").read_text()
    status = begin(site, nobody, with_script(site, script, Timeout="2")).wait()
    assert BOARDS in status
    assert "timed out" in status or "timeout" in status
    assert "waiting for Edge Agent's answer" in site.device.log(BOARDS)
    site.not_called()


@ORDERS.on()
def an_agent_that_acknowledges_before_it_serves(site: Site) -> None:
    del site.device.instead_of_install[AGENT]
    step = {"startup": 'exec sh "{artifacts:path}/agent.sh"'}
    liar = {"agent.sh": ONLY_ACKNOWLEDGES}
    begin(site, components.component(site.device.base / "liar", AGENT, step, "1.3.0", files=liar))
    noticed(site, "0.25")


@ORDERS.on()
def a_client_that_depends_soft(site: Site) -> None:
    """There is no order on the Java nucleus; on nucleus lite there is, unless the first start of what comes before fails."""
    output = components.caller(site.device.base / "soft", kind="SOFT")
    if site.kind == LITE:
        begin(site, output).succeeds()
        site.answered("0.25")
        return
    site.device.hold(AGENT)
    begin(site, output)
    noticed(site, "0.25")


@ORDERS.on()
def a_client_of_another_socket(site: Site) -> None:
    deployment = site.deploy()
    assert deployment.wait() == SUCCEEDED
    site.answered("0.25")
    assert str(site.socket) not in DEFAULT
    site.device.configuration[CALLER]["Socket"] = f"unix://{site.device.base}/absent.sock"
    site.call_again()
    noticed(site, "0.25", "0.25")


@ORDERS.on()
def calls_that_are_not_answered(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")

    def call_meanwhile() -> None:
        with site.answering():
            site.device.kill(AGENT)
            site.until_served(2)

    with pytest.raises(AssertionError, match="UNAVAILABLE"):
        call_meanwhile()


@ORDERS.on()
def a_client_that_was_started_early(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    with pytest.raises(AssertionError):
        site.not_called()


@ORDERS.on(JAVA)
def a_client_that_calls_twice(site: Site) -> None:
    site.deploy().succeeds()
    site.answered("0.25")
    site.call_again()
    until(lambda: len(site.lines()) == 2, "it has called again")
    with pytest.raises(AssertionError, match="verdict"):
        site.answered("0.25")


@pytest.mark.parametrize("name", ORDERS.all)
def test_it_is_noticed(name, ran):
    ran[ORDERS, name].check()


def test_they_are_counted():
    assert len(ORDERS.all) == COUNT
