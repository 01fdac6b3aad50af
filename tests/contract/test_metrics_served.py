"""Metrics of an agent that serves: each counter is moved by real calls over the socket, and read as Prometheus reads it.

1. Good, anomalous, malformed, unknown, rejected, expired, hung and crashed calls, each under its own code and reason.
2. What is deployed is told of, and what is gone is not.
3. A file that an agent has left behind without an orderly end grows old, and says so; who starts next corrects it.
4. An agent that cannot tell its metrics as it was asked to does not start, and says why.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from support import hanging, packages
from support.agent import Agent, environment, serving
from support.calls import EXHAUSTED, INTERNAL, INVALID, NOT_FOUND, OK, PRECONDITION, outcome, request
from support.waiting import until

SIZE = 3 * 64 * 64
DARK, BRIGHT = bytes(SIZE), b"\xff" * SIZE


class Scraped:
    """An agent's metrics, and what they were before."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._before: dict[tuple[str, frozenset], float] = {}

    def now(self) -> dict[tuple[str, frozenset], float]:
        with urllib.request.urlopen(self._url, timeout=30) as answer:
            text = answer.read().decode()
        return {
            (one.name.removeprefix("edge_agent_"), frozenset(one.labels.items())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.now().get((name, frozenset(labels.items())))

    def grown(self) -> dict[tuple, float]:
        """Return which counts have grown since it was last asked, and by how much; those of the tests' own looks are none."""
        found = self.now()
        grown = {
            (name, *sorted(dict(labels).values())): value - self._before.get((name, labels), 0)
            for (name, labels), value in found.items()
            if name.endswith(("_total", "_seconds_count"))
            and not name.startswith(("process_", "received_"))
            and dict(labels).get("rpc") not in {"DescribeModel", "ListModels"}
        }
        self._before = found
        return {key: value for key, value in grown.items() if value}


def called(code: str, reason: str, model: str = "board", rpc: str = "DetectAnomalies") -> tuple[str, ...]:
    return ("calls_total", *sorted((code, model, reason, rpc)))


STAGES = {
    ("stage_seconds_count", *sorted(("board", stage))): 1.0
    for stage in ("queue", "copy", "preprocess", "run", "postprocess")
}
JUDGED = {
    called("OK", ""): 1,
    ("images_processed_total", "board"): 1,
    ("detection_seconds_count", "board"): 1,
    **STAGES,
}


def test_each_counter_by_real_calls(folder, port):
    for name in ("board", "stuck"):
        hanging.package(folder / "models" / name, hanging.endless)
    settings = {
        "metrics_address": f"127.0.0.1:{port}",
        "queue_limit": 2,
        "model_settings": {"stuck": {"call_timeout": 0.5}},
    }
    with serving(folder / "models", **settings) as agent:
        scraped, detect = Scraped(port), agent.stub().DetectAnomalies
        grey = hanging.grey(hanging.GREY - 100)
        assert outcome(detect, request("board", 64, 64, grey))[0] == PRECONDITION
        assert scraped.grown() == {called("FAILED_PRECONDITION", "state"): 1}
        agent.run_model("board")
        assert scraped.grown() == {called("OK", "", rpc="StartModel"): 1, ("worker_starts_total", "board"): 1}

        assert outcome(detect, request("board", 64, 64, grey))[0] == OK
        assert scraped.grown() == JUDGED
        code, _, answer = outcome(detect, request("board", 64, 64, hanging.nearly_white()))
        assert (code, answer.detect_anomaly_result.is_anomalous) == (OK, True)
        assert scraped.grown() == {**JUDGED, ("images_anomalous_total", "board"): 1}

        assert outcome(detect, request("board", 65, 64, grey))[0] == INVALID
        assert scraped.grown() == {called("INVALID_ARGUMENT", "argument"): 1, ("images_invalid_total", "board"): 1}
        for number in range(3):
            assert outcome(detect, request(f"nobody-{number}", 64, 64, grey))[0] == NOT_FOUND
        assert outcome(detect, request("no/name", 64, 64, grey))[0] == INVALID
        assert scraped.grown() == {called("NOT_FOUND", "name", ""): 3, called("INVALID_ARGUMENT", "name", ""): 1}

        before = set(agent.workers())
        agent.run_model("stuck")
        scraped.grown()
        assert outcome(detect, request("stuck", 64, 64, hanging.nearly_black()))[0] == INTERNAL
        assert scraped.grown() == {called("INTERNAL", "hung", "stuck"): 1, ("worker_hangs_total", "stuck"): 1}

        (worker,) = before
        os.kill(worker, signal.SIGSTOP)
        marked = os.urandom(SIZE // 2) + grey[SIZE // 2 :]
        crashing = detect.future(request("board", 64, 64, marked))
        until(lambda: agent.inbox_holds(marked), "the call is in the worker")
        waiting = [detect.future(request("board", 64, 64, grey), timeout=3.0) for _ in range(2)]
        until(lambda: scraped.value("queue_calls", model="board") == 2, "both wait")
        assert scraped.value("in_flight_calls", model="board") == 1
        assert scraped.value("queue_limit_calls", model="board") == 2
        assert outcome(detect, request("board", 64, 64, grey))[0] == EXHAUSTED
        assert scraped.grown() == {called("RESOURCE_EXHAUSTED", "rejected"): 1, ("rejection_seconds_count", "board"): 1}
        assert scraped.value("rejection_seconds_sum", model="board") < 1.0

        assert all(one.exception(30) for one in waiting)
        until(lambda: scraped.value("queue_calls", model="board") == 0, "they have left")
        until(
            lambda: (
                scraped.value(
                    "calls_total", rpc="DetectAnomalies", model="board", code="RESOURCE_EXHAUSTED", reason="expired"
                )
                == 2
            ),
            "they are counted",
        )
        assert scraped.grown() == {called("RESOURCE_EXHAUSTED", "expired"): 2}
        assert scraped.value("queue_longest_calls", model="board") == 2

        os.kill(worker, signal.SIGKILL)
        assert crashing.exception(30).code().value[0] == INTERNAL
        until(lambda: scraped.value("worker_restarts_total", model="board") == 1, "another one is there")
        assert scraped.grown() == {
            called("INTERNAL", "crashed"): 1,
            **{(f"worker_{what}_total", "board"): 1 for what in ("deaths", "starts", "restarts")},
        }
        assert outcome(detect, request("board", 64, 64, grey))[0] == OK
        assert scraped.grown() == JUDGED

        runs_on = {"accelerator": "cpu", "provider": "CPUExecutionProvider", "fallback": "false"}
        assert scraped.value("model_info", model="board", version="0.0.0", **runs_on) == 1
        for process, model in (("front", ""), ("worker", "board"), ("helpers", "")):
            assert scraped.value("memory_proportional_bytes", process=process, model=model) > 1 << 20
        assert scraped.value("received_bytes_total") > 8 * SIZE
        assert scraped.value("up") == 1


def test_swaps_states_and_models_that_go(folder, port):
    packages.segmenter(folder / "models" / "board")
    packages.segmenter(folder / "models" / "part")
    file = folder / "agent.prom"
    folder.chmod(0o777)
    with serving(folder / "models", metrics_address=f"127.0.0.1:{port}", metrics_file=str(file)) as agent:
        scraped = Scraped(port)
        first = file.read_text()
        assert "edge_agent_up 1.0" in first
        for name in ("board", "part"):
            assert f'edge_agent_model_state{{model="{name}",state="STOPPED"}} 1.0' in first, "from the first on"
        agent.run_model("board")
        assert scraped.value("model_state", model="board", state="RUNNING") == 1
        assert scraped.value("model_state", model="part", state="STOPPED") == 1
        packages.segmenter(folder / "models" / "board", threshold=0.25)
        until(lambda: scraped.value("worker_swaps_total", model="board") == 1, "the new version has taken over")
        assert scraped.value("worker_starts_total", model="board") == 2
        assert scraped.value("images_processed_total", model="part") == 0
        shutil.rmtree(folder / "models" / "part")
        until(
            lambda: not [labels for _, labels in scraped.now() if ("model", "part") in labels], "it is told of no more"
        )
        assert agent.stop() == 0
        assert "edge_agent_up 0.0" in file.read_text()
        assert 'edge_agent_worker_swaps_total{model="board"} 1.0' in file.read_text()


def test_what_a_killed_agent_leaves_behind(folder):
    """It says for ever that the agent is up, and when it was written; who starts next corrects it, also in vain."""
    packages.segmenter(folder / "models" / "board")
    file = folder / "agent.prom"
    folder.chmod(0o777)
    with serving(folder / "models", metrics_file=str(file)) as agent:
        agent.stop(signal.SIGKILL)
    left = file.read_text()
    assert "edge_agent_up 1.0" in left
    (written,) = re.findall(r"^edge_agent_metrics_written_timestamp_seconds (\S+)$", left, re.MULTILINE)
    assert 0 <= time.time() - float(written) < 60
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused(folder, metrics_address=f"127.0.0.1:{taken.getsockname()[1]}", metrics_file=str(file))
    assert "edge_agent_up 0.0" in file.read_text()
    assert "board" not in file.read_text()


def test_who_is_refused_for_another_agent_leaves_its_file_alone(folder):
    file = folder / "agent.prom"
    folder.chmod(0o777)
    with serving(metrics_file=str(file)) as agent:
        assert "edge_agent_up 1.0" in file.read_text()
        other = Agent(**agent.settings, folder=agent.folder)
        assert other.spawn().process.wait(30) == 2
        assert "edge_agent_up 1.0" in file.read_text()


def test_an_address_that_is_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"metrics_address: {address} cannot be served on: Address already in use. Name another port" in refused(
            folder, metrics_address=address
        )


def test_an_address_of_others(folder):
    said = refused(folder, metrics_address="0.0.0.0:9464")
    assert re.search("metrics_address in .*: metrics are served to this machine only", said)


def refused(folder, **settings: str) -> str:
    agent = Agent(folder, **settings)
    try:
        agent.spawn()
        assert agent.process.wait(30) == 2
        assert not agent.socket.exists()
        return agent.log()
    finally:
        agent.close()


def test_the_front_process_imports_nothing_of_it_without_being_asked(folder):
    """What a daemon does not use it does not carry."""
    code = "import sys; from edge_agent.__main__ import main; import edge_agent.cli.agent, edge_agent.server, edge_agent.service; print([one for one in sys.modules if one.startswith(('prometheus', 'wsgiref'))])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
