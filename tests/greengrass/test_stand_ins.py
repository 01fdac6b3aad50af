"""The stand-ins of the nuclei run lifecycles as the nuclei do, as far as an order could come out otherwise."""

import os
import shutil
import subprocess

import pytest

from support import greengrass_notify as notify
from support.greengrass_deployments import SUCCEEDED
from support.greengrass_lite import LiteDevice
from support.greengrass_orders import Orders
from support.greengrass_parts import HARD, ONE, SOFT, STAYS, TWO, UP, begin, deploy, lines, one
from support.greengrass_processes import DEVICE_MARK, marked
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 25


@ORDERS.on()
def install_runs_at_each_launch_or_once(site: Site) -> None:
    assert deploy(site, one(install="echo installed", run="echo run; " + STAYS)) == SUCCEEDED
    until(lambda: "run" in lines(site), "it runs")
    site.device.shut_down()
    site.device.boot()
    until(lambda: lines(site).count("run") == 2, "it runs again")
    assert lines(site).count("installed") == (2 if site.kind == JAVA else 1)


@ORDERS.on()
def a_failing_install(site: Site) -> None:
    status = deploy(site, one(install="exit 7", run="echo run"))
    assert status.startswith("FAILED")
    assert "install" in status
    assert "run" not in lines(site)


@ORDERS.on()
def three_errors_are_the_end(site: Site) -> None:
    assert deploy(site, one(startup="echo begun; exit 1")).startswith(f"FAILED: {ONE} is BROKEN")
    # What has a process counts as started, and so perhaps a deployment as done.
    begin(site, (TWO, {"lifecycle": {"run": "echo run; exit 1"}}), remove=(ONE,))
    site.device.until_state(TWO, "BROKEN", "failed")
    assert lines(site) == ["begun"] * 3
    assert lines(site, TWO) == ["run"] * 3


@ORDERS.on()
def a_startup_that_takes_too_long(site: Site) -> None:
    status = deploy(site, one(startup={"Script": "echo begun; " + STAYS, "Timeout": "1"}))
    assert "timed out" in status or "timeout" in status
    assert lines(site) == ["begun"] * 3


@ORDERS.on()
def a_startup_that_ended_well_is_up(site: Site) -> None:
    assert deploy(site, one(startup=UP), (TWO, {"lifecycle": {"run": "echo run"}, "needs": HARD})) == SUCCEEDED
    until(lambda: lines(site, TWO) == ["run"], "what depends on it runs")
    site.until_up(ONE)
    process = site.device.process(ONE)
    assert process is not None
    until(lambda: process.code is not None, "its process has ended")
    assert process.code == 0
    site.until_up(ONE)


@ORDERS.on(LITE)
def a_startup_that_never_says_that_it_is_ready(site: Site) -> None:
    assert deploy(site, one(startup="exec true")) == f"FAILED: {ONE} is BROKEN: start-limit-hit, after protocol"


@ORDERS.on(LITE)
def what_the_runner_adds_to_a_startup(site: Site) -> None:
    """It says that all is well, and then that the unit stops, which takes along what is bound to it."""
    part = (TWO, {"lifecycle": {"run": STAYS}, "needs": HARD})
    assert deploy(site, one(startup="false"), part) == SUCCEEDED
    site.device.until_state(ONE, "inactive")
    site.device.until_state(TWO, "inactive")


@ORDERS.on()
def hard_waits_until_it_is_up(site: Site) -> None:
    first = one(startup=f"sleep 0.5; touch ready; {UP}")
    there = f'test -e "{{kernel:rootPath}}/work/{ONE}/ready" && echo there || echo "not yet"'
    assert deploy(site, first, (TWO, {"lifecycle": {"run": there}, "needs": HARD})) == SUCCEEDED
    until(lambda: lines(site, TWO), "it runs")
    assert lines(site, TWO) == ["there"]


@ORDERS.on()
def soft_gives_an_order_on_lite_only(site: Site) -> None:
    first = one(startup=f"sleep 1; touch ready; {UP}")
    there = f'test -e "{{kernel:rootPath}}/work/{ONE}/ready" && echo there || echo "not yet"'
    assert deploy(site, first, (TWO, {"lifecycle": {"run": there}, "needs": SOFT})) == SUCCEEDED
    until(lambda: lines(site, TWO), "it runs")
    assert lines(site, TWO) == (["there"] if site.kind == LITE else ["not yet"])


@ORDERS.on()
def what_depends_hard_on_a_process_that_is_killed(site: Site) -> None:
    ready = '[ -z "$NOTIFY_SOCKET" ] || systemd-notify --ready; ' + STAYS
    first = one(**({"startup": ready} if site.kind == LITE else {"run": STAYS}))
    assert deploy(site, first, (TWO, {"lifecycle": {"run": "echo run; " + STAYS}, "needs": HARD})) == SUCCEEDED
    until(lambda: lines(site, TWO) == ["run"], "it runs")
    site.device.kill(ONE)
    if site.kind == JAVA:
        until(lambda: lines(site, TWO) == ["run"] * 2, "it is restarted")
        return
    site.device.until_state(TWO, "inactive")
    site.until_up(ONE)
    assert site.device.state(TWO) == "inactive"
    assert lines(site, TWO) == ["run"]


@ORDERS.on()
def what_depends_hard_on_a_first_start_that_fails(site: Site) -> None:
    first = one(startup=f"mkdir once 2>&- && exit 1; {UP}")
    begin(site, first, (TWO, {"lifecycle": {"run": "echo run"}, "needs": HARD})).wait()
    site.until_up(ONE)
    if site.kind == JAVA:
        until(lambda: lines(site, TWO) == ["run"], "it runs")
        return
    assert isinstance(site.device, LiteDevice)
    assert (site.device.state(TWO), site.device.reason(TWO)) == ("inactive", "dependency")
    assert lines(site, TWO) == []


@ORDERS.on(JAVA)
def children_are_told_first(site: Site) -> None:
    child = "trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.05; done"
    script = f"trap 'wait; echo parent; exit' TERM\n( {child} ) &\nwhile :; do sleep 0.05; done"
    assert deploy(site, one(run=script)) == SUCCEEDED
    until(lambda: lines(site) == ["ready"], "it runs")
    site.device.shut_down()
    assert [one for one in lines(site) if one != "Terminated"] == ["ready", "child", "parent"]


@ORDERS.on()
def who_does_not_listen_is_killed(site: Site) -> None:
    assert deploy(site, one(run="trap '' TERM; echo run; while :; do sleep 0.05; done")) == SUCCEEDED
    until(lambda: lines(site) == ["run"], "it runs")
    process = site.device.process(ONE)
    site.device.shut_down()
    assert process is not None
    assert process.code == -9


@ORDERS.on()
def nobody_outlives_a_power_cut(site: Site) -> None:
    """Not even who has left the session, the process group and the parent."""
    assert deploy(site, one(run=f"setsid sh -c 'sleep 300 & echo away' & {STAYS}")) == SUCCEEDED
    until(lambda: lines(site) == ["away"], "one is away")
    assert len(marked(DEVICE_MARK, site.device.mark)) >= 2
    site.device.cut_power()
    assert marked(DEVICE_MARK, site.device.mark) == []


@pytest.mark.parametrize("name", ORDERS.all)
def test_it_does_as_the_nucleus_does(name, ran):
    ran[ORDERS, name].check()


def test_they_are_counted():
    assert len(ORDERS.all) == COUNT


@pytest.mark.parametrize("which", ["the system's", "ours"])
def test_systemd_notify(which, tmp_path):
    program = shutil.which("systemd-notify") if which == "the system's" else str(notify.install(tmp_path))
    if program is None:
        pytest.skip("there is no systemd-notify here")
    told: list[str] = []
    listening = notify.NotifySocket(tmp_path / "notify", told.append)
    environment = {**os.environ, "NOTIFY_SOCKET": str(listening.path)}
    subprocess.run([program, "--ready"], env=environment, timeout=30, check=True)
    listening.flush()
    listening.close()
    assert [one for one in told if one != "BARRIER=1"] == ["READY=1"]
    assert not listening.path.exists()
    assert subprocess.run([program, "--ready"], env=environment, capture_output=True, check=False).returncode != 0
