"""A real Prometheus server scrapes an agent, and its linter reads what the agent tells: `make test-prometheus`.

Both are Debian's package `prometheus`; a folder with them elsewhere is named by the variable PROMETHEUS.
"""

import json
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, outcome, request
from support.waiting import until

SIZE = 3 * 64 * 64
PATH = os.pathsep.join(filter(None, [os.environ.get("PROMETHEUS"), os.environ.get("PATH")]))


def program(name: str) -> str:
    found = shutil.which(name, path=PATH)
    if not found:
        pytest.skip(f"no {name} here: apt-get install prometheus, or name its folder with PROMETHEUS")
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def agent(folder) -> Iterator[Agent]:
    packages.segmenter(folder / "models" / "board")
    packages.segmenter(folder / "models" / "part")
    address = f"127.0.0.1:{free_port()}"
    with serving(folder / "models", metrics_address=address) as one:
        one.address = address
        one.run_model("board")
        yield one


class Server:
    """A Prometheus server with one target."""

    def __init__(self, program: str, folder: Path, target: str) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        scrape = {"job_name": "edge-agent", "static_configs": [{"targets": [target]}]}
        written = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scrape]}
        (folder / "prometheus.yml").write_text(yaml.safe_dump(written))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except OSError:
            assert self._process.poll() is None, self.log.read_text()
            return {}

    def value(self, query: str) -> float | None:
        """Return the one value of an instant query, None where there is none."""
        found = self.ask("query", query=query).get("result", [])
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def server(agent, tmp_path) -> Iterator[Server]:
    made = Server(program("prometheus"), tmp_path, agent.address)
    yield made
    made.close()


def test_a_server_scrapes_it(agent, server):
    until(lambda: server.value("up") == 1, "the target is up")
    detect = agent.stub().DetectAnomalies
    bright = b"\xff" * SIZE
    for _ in range(50):
        assert outcome(detect, request("board", 64, 64, bright))[0] == OK
    assert outcome(detect, request("board", 65, 64, bright))[0] == INVALID
    until(lambda: server.value('edge_agent_images_processed_total{model="board"}') == 50, "the images are there")
    assert server.value('edge_agent_images_anomalous_total{model="board"}') == 50
    assert server.value('edge_agent_images_invalid_total{model="board"}') == 1
    assert server.value('edge_agent_calls_total{rpc="DetectAnomalies",model="board",reason="argument"}') == 1
    assert server.value('edge_agent_model_state{state="RUNNING"} == 1') == 1
    assert server.value("sum(edge_agent_memory_proportional_bytes)") > 10 << 20
    # As a dashboard asks: of how fast it grows, and of a percentile by the buckets.
    until(
        lambda: (server.value('rate(edge_agent_images_processed_total{model="board"}[1m])') or 0) > 0, "a rate is told"
    )
    # As an alert asks, of the very first of its kind.
    first = 'increase(edge_agent_calls_total{rpc="DetectAnomalies",model="board",reason="argument"}[1m])'
    until(lambda: (server.value(first) or 0) > 0, "the first error is an increase")
    assert server.value("time() - edge_agent_metrics_written_timestamp_seconds") < 60
    p99 = server.value("histogram_quantile(0.99, sum by (le) (edge_agent_detection_seconds_bucket))")
    assert 0.0001 < p99 < 1
    (target,) = server.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    metadata = server.ask("metadata")
    told = {name: one[0]["type"] for name, one in metadata.items() if name.startswith("edge_agent_")}
    assert told["edge_agent_detection_seconds"] == "histogram"
    # OpenMetrics, which a server prefers, names the family without its ending.
    assert "counter" in (told.get("edge_agent_calls"), told.get("edge_agent_calls_total"))
    assert len(told) >= 30


def test_its_linter_finds_nothing(agent):
    with urllib.request.urlopen(f"http://{agent.address}/metrics", timeout=10) as answer:
        text = answer.read()
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
    # The control: a name against the conventions is found.
    odd = text.replace(b"edge_agent_received_bytes_total", b"edge_agent_received_milliseconds")
    assert subprocess.run(
        [program("promtool"), "check", "metrics"], input=odd, capture_output=True, check=False
    ).returncode
