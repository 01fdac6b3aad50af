"""The systemd unit: what it says fits the agent, and under a real systemd it serves, is watched, restarted and stopped.

Where no systemd can be run (not root, or none installed) the last part skips and says why.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from edge_agent import address, config
from edge_agent.config import Settings
from edge_agent.server import CUT_OFF_PATIENCE
from support import packages, systemd_root
from support.sabotage import HANGS, MODULE
from support.systemd_root import Systemd
from support.users import MYSELF, agent_user
from support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "systemd"
UNIT = FOLDER / "edge-agent.service"
README = (FOLDER / "README.md").read_text()
DROP_INS = sorted((FOLDER / "drop-ins").iterdir())
SOCKET = address.socket_path(address.DEFAULT)
UNIT_NAME = UNIT.name
PROGRAM = "/opt/edge-agent/venv/bin/edge-agent"
# What may be chosen in the unit.
BOUND = "MemoryMax=80%"
# The agent whose number is in it answers no calls.
HANGING = "/run/hangs"


def lines(path: Path) -> list[tuple[str, str]]:
    """Return key and value of each setting of a unit file."""
    told = [line.partition("=") for line in path.read_text().splitlines() if re.match("[A-Z]", line)]
    return [(key, value) for key, _, value in told]


SAYS = dict(lines(UNIT))


def seconds(key: str) -> float:
    return float(SAYS[key])


class TestWhatItSays:
    def test_the_socket_is_where_programs_look_for_it(self):
        assert SAYS["PrivateTmp"] == "no"
        assert SAYS["ReadWritePaths"] == str(SOCKET.parent)
        assert f"x {SOCKET}" in (FOLDER / "tmpfiles.conf").read_text().splitlines()

    def test_systemd_waits_longer_than_the_agent_drains(self):
        drains = Settings.model_fields["drain_timeout"].default
        assert seconds("TimeoutStopSec") > 2 * (drains + CUT_OFF_PATIENCE)

    def test_a_model_that_takes_too_much_memory_and_clients_segments_are_spared(self):
        assert (SAYS["OOMPolicy"], SAYS["RemoveIPC"], SAYS["KillMode"]) == ("continue", "no", "mixed")

    def test_a_bound_on_memory_is_there_to_be_chosen(self):
        """None fits all devices and models, so it is a comment, once; and no other that slows all processes down."""
        assert not {key for key in SAYS if key.startswith("Memory")} - {"MemoryDenyWriteExecute"}
        assert len(re.findall(f"^#{BOUND}$", UNIT.read_text(), re.MULTILINE)) == 1

    def test_the_settings_are_ones(self):
        settings = config.load(FOLDER / "config.yaml")
        assert settings.socket_group == SAYS["Group"]
        assert f"u {SAYS['User']} -" in (FOLDER / "sysusers.conf").read_text()
        assert SAYS["ExecStart"].startswith(PROGRAM)

    def test_there_are_no_others_in_the_drop_ins_than_the_readme_tells_of(self):
        for path in DROP_INS:
            assert f"drop-ins/{path.name}" in README
            assert {key for key, _ in lines(path)} <= {*SAYS, "SupplementaryGroups", "IPAddressAllow"}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_score_is_the_one_that_the_readme_tells():
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"exposure level for edge-agent\.service: ([0-9.]+)", told.stdout)
    assert score, told.stdout + told.stderr
    assert f"**{score[1]}**" in README


@pytest.fixture(scope="module")
def systemd(tmp_path_factory) -> Iterator[Systemd]:
    """A systemd with the agent installed as the README says, but for its code, which is this checkout's."""
    if why := systemd_root.why_not():
        pytest.skip(why)
    if agent_user() == MYSELF:
        pytest.skip("no unprivileged user can run this Python")
    one = Systemd()
    try:
        one.wait()
        install(one, tmp_path_factory.mktemp("models"))
        yield one
    finally:
        one.close()


def install(systemd: Systemd, folder: Path) -> None:
    packages.segmenter(folder / "board")
    for source, target in ((ROOT / "agent", "code"), (ROOT / "packaging", "code"), (folder, "models")):
        packed = BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(source, ".")
        systemd.run("mkdir", "-p", f"/opt/edge-agent/{target}")
        systemd.run("tar", "-x", "--no-same-owner", "-C", f"/opt/edge-agent/{target}", content=packed.getvalue())
    systemd.write(f"/opt/edge-agent/code/{MODULE}", HANGS.format(flag=HANGING).encode())
    systemd.run("chmod", "-R", "a+rX", "/opt/edge-agent")
    program = f'#!/bin/sh\nPYTHONPATH=/opt/edge-agent/code exec {sys.executable} -m edge_agent "$@"\n'
    systemd.write(PROGRAM, program.encode(), "755")
    for name, target in (
        ("sysusers.conf", "sysusers.d/edge-agent.conf"),
        ("tmpfiles.conf", "tmpfiles.d/edge-agent.conf"),
    ):
        systemd.write(f"/etc/{target}", (FOLDER / name).read_bytes())
    systemd.write("/etc/edge-agent/config.yaml", (FOLDER / "config.yaml").read_bytes() + b"autostart: [board]\n")
    systemd.write(f"/etc/systemd/system/{UNIT_NAME}", UNIT.read_bytes())
    systemd.write("/opt/edge-agent/README.md", b"")
    systemd.run("systemd-sysusers")
    systemd.run("useradd", "--no-create-home", "--groups", "edge-agent", "client")
    systemd.run("systemctl", "daemon-reload")
    systemd.run("systemctl", "enable", "--now", UNIT_NAME)


def shown(systemd: Systemd, key: str) -> str:
    return systemd.run("systemctl", "show", "--property", key, "--value", UNIT_NAME).strip()


def restarted(systemd: Systemd, before: str) -> bool:
    return shown(systemd, "ActiveState") == "active" and shown(systemd, "MainPID") not in {before, "0"}


def judged(systemd: Systemd) -> str:
    """Return the verdict that a client of another user gets through shared memory, its mask too."""
    systemd.run(PROGRAM, "describe", "board", user="client")
    until(lambda: "RUNNING" in systemd.run(PROGRAM, "models", check=False, user="client"), "the model runs")
    picture = "from PIL import Image; Image.new('RGB', (64, 64), 'white').save('/tmp/white.png')"
    systemd.run(sys.executable, "-c", picture, user="client")
    return systemd.run(PROGRAM, "detect", "/tmp/white.png", "--model", "board", "--shm", "--json", user="client")


class TestUnderSystemd:
    def test_it_serves_within_its_bounds(self, systemd):
        assert shown(systemd, "ActiveState") == "active"
        assert '"is_anomalous"' in judged(systemd)
        assert systemd.run("stat", "-c", "%a %U %G", str(SOCKET)).split() == ["660", "edge-agent", "edge-agent"]
        status = systemd.run("cat", f"/proc/{shown(systemd, 'MainPID')}/status")
        bounds = dict(re.findall(r"^(Seccomp|NoNewPrivs|CapBnd):\s*(\w+)$", status, re.MULTILINE))
        assert bounds == {"Seccomp": "2", "NoNewPrivs": "1", "CapBnd": "0" * 16}
        assert systemd.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT_NAME}") == ""

    def test_a_bound_on_memory_is_taken_as_it_stands_in_the_unit(self, systemd):
        path = f"/etc/systemd/system/{UNIT_NAME}"
        assert shown(systemd, "MemoryMax") == "infinity"
        systemd.write(path, UNIT.read_text().replace(f"#{BOUND}", BOUND).encode())
        systemd.run("systemctl", "daemon-reload")
        assert systemd.run("systemd-analyze", "verify", path) == ""
        total = 1024 * int(re.search(r"^MemTotal:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)[1])
        assert 0 < int(shown(systemd, "MemoryMax")) <= total
        systemd.write(path, UNIT.read_bytes())
        systemd.run("systemctl", "daemon-reload")
        assert shown(systemd, "MemoryMax") == "infinity"

    @pytest.mark.parametrize("hang", ["all of it", "calls only"])
    def test_a_front_that_hangs_is_started_again_and_its_models_run(self, systemd, hang):
        """Where only calls hang, the thread that tells of life runs on, and tells nothing."""
        before = shown(systemd, "MainPID")
        if hang == "calls only":
            systemd.write(HANGING, before.encode())
        else:
            systemd.run("kill", "-STOP", before)
        began = time.monotonic()
        until(lambda: restarted(systemd, before), "it is started again", patience=2 * seconds("WatchdogSec"))
        # At the last sign of life the hang was half of the limit away, at most.
        assert time.monotonic() - began > 0.5 * seconds("WatchdogSec") - 1
        assert '"is_anomalous"' in judged(systemd)
        log = systemd.run("journalctl", "--no-pager", "--output=cat")
        assert "Watchdog timeout" in log
        assert "most recent call first" in log, "the stack of each thread is there"

    def test_one_that_is_killed_is_started_again(self, systemd):
        before = shown(systemd, "MainPID")
        systemd.run("kill", "-KILL", before)
        until(lambda: restarted(systemd, before), "it is started again")
        assert '"is_anomalous"' in judged(systemd)

    def test_old_files_are_removed_from_tmp_but_not_the_socket(self, systemd):
        systemd.run("touch", "-d", "2 days ago", "/tmp/old")
        systemd.write("/etc/tmpfiles.d/tmp.conf", b"d /tmp 1777 root root 1s\n")
        time.sleep(1.1)
        systemd.run("systemd-tmpfiles", "--clean", "--prefix=/tmp")
        assert systemd.run("ls", "/tmp").split() == [SOCKET.name]

    def test_without_its_line_the_socket_is_removed_too(self, systemd):
        """Negative control."""
        systemd.run("rm", "/etc/tmpfiles.d/edge-agent.conf")
        time.sleep(1.1)
        systemd.run("systemd-tmpfiles", "--clean", "--prefix=/tmp")
        assert systemd.run("ls", "/tmp") == ""
        systemd.run("systemctl", "restart", UNIT_NAME)
        assert systemd.run("ls", "/tmp").split() == [SOCKET.name]

    def test_metrics_are_served_with_their_drop_in(self, systemd):
        own = f"/etc/systemd/system/{UNIT_NAME}.d/metrics.conf"
        systemd.write(own, (FOLDER / "drop-ins" / "metrics.conf").read_bytes())
        settings = (FOLDER / "config.yaml").read_bytes() + b"autostart: [board]\n"
        systemd.write("/etc/edge-agent/config.yaml", settings + b"metrics_address: 127.0.0.1:9464\n")
        systemd.run("ip", "link", "set", "lo", "up")
        systemd.run("systemctl", "daemon-reload")
        systemd.run("systemctl", "restart", UNIT_NAME)
        fetch = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9464/metrics').read().decode())"
        assert "edge_agent_" in systemd.run(sys.executable, "-c", fetch)
        systemd.run("rm", own)
        systemd.write("/etc/edge-agent/config.yaml", settings)
        systemd.run("systemctl", "daemon-reload")
        systemd.run("systemctl", "restart", UNIT_NAME)

    def test_it_stops_in_time_and_spares_the_segments_of_clients(self, systemd):
        systemd.run("sh", "-c", "echo image > /dev/shm/mine; chgrp edge-agent /dev/shm/mine")
        began = time.monotonic()
        systemd.run("systemctl", "stop", UNIT_NAME)
        assert time.monotonic() - began < seconds("TimeoutStopSec")
        assert (shown(systemd, "Result"), shown(systemd, "ExecMainStatus")) == ("success", "0")
        assert systemd.run("ls", "/dev/shm").split() == ["mine"]
        assert not systemd.run("pgrep", "-u", "edge-agent", check=False)
        assert SOCKET.name not in systemd.run("ls", "/tmp")

    def test_one_that_cannot_start_is_left_alone_in_the_end(self, systemd):
        systemd.write("/etc/edge-agent/config.yaml", b"no_such_setting: 1\n")
        systemd.run("systemctl", "start", UNIT_NAME, check=False)
        until(lambda: shown(systemd, "ActiveState") == "failed", "it is FAILED", patience=90)
        assert shown(systemd, "Result") in {"exit-code", "start-limit-hit"}
        assert "no such setting" in systemd.run("journalctl", "--no-pager", "--output=cat")
