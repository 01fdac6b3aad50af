"""Metrics as Prometheus has them, of made-up status: on an address of this machine, or in a file.

1. Addresses: of this machine only.
2. The metrics: what is told, of deployed models alone, and by the conventions.
3. The server: bounded, and refused where its port is taken.
4. The file: whole at any instant, for others to read; it says when it was written, that the agent has ended, and that the
   next one does not serve yet.
5. Nothing of it is imported unless it is asked for.
"""

import errno
import http.client
import itertools
import os
import re
import socket
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from edge_agent import config, files
from edge_agent.errors import AgentRefused
from edge_agent.exporter import Exporter, address, families, reasons, served, textfile
from edge_agent.exporter.address import Loopback
from edge_agent.histograms import BOUNDS
from edge_agent.metrics import Metrics
from support.waiting import until

MODEL = {
    "model": "board",
    "version": "2.0.0",
    "state": "RUNNING",
    "provider": "CPUExecutionProvider",
    "accelerator": "cpu",
    "fallback": "Runs on the CPU, since it cannot run on CUDA.",
    "worker_pid": os.getpid(),
    "queue": {"waiting": 3, "limit": 16, "in_flight": 1},
}
IDLE = {
    **MODEL,
    "model": "idle",
    "state": "FAILED",
    "worker_pid": None,
    "queue": None,
    "accelerator": None,
    "provider": None,
    "fallback": None,
}
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def counted() -> Metrics:
    metrics = Metrics()
    for name in ("board", "gone"):
        metrics.called("DetectAnomalies", name, "OK", "", 100, 0.02)
        metrics.called("DetectAnomalies", name, "RESOURCE_EXHAUSTED", "rejected", 100, 0.0002)
        metrics.called("DetectAnomalies", name, "INVALID_ARGUMENT", "argument", 100, 0.0002)
        metrics.judged(name, 0.001, (0.002, 0.003, 0.03, 0.004), anomalous=True)
        for event in ("started", "started", "died", "not_started", "hung", "swapped", "fell_back"):
            metrics.happened(event, name)
        metrics.restarted(name)
        metrics.queued(name, 5)
    metrics.called("DetectAnomalies", "", "NOT_FOUND", "name", 100, 0.0001)
    return metrics


def status(metrics: Metrics, *models: dict) -> dict:
    return {"agent": {"version": "1.3.0"}, "models": list(models), **metrics.snapshot()}


def values(text: str) -> Values:
    """Return each value by its name and its labels."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            key = (one.name, tuple(sorted(one.labels.items())))
            assert key not in found, "each is told once"
            found[key] = one.value
    return found


def told(look) -> Values:
    collector = look if isinstance(look, families.AgentCollector) else families.AgentCollector(look)
    return values(textfile.generate_latest(families.registry(collector)).decode())


def of(found: Values, name: str, **labels: str) -> float | None:
    return found.get((f"edge_agent_{name}", tuple(sorted(labels.items()))))


# 1. Addresses.


@pytest.mark.parametrize(
    ("text", "is_"),
    [
        ("127.0.0.1:9464", "127.0.0.1:9464"),
        ("127.8.9.10:1", "127.8.9.10:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("localhost:9464", "127.0.0.1:9464"),
        ("LocalHost:9464", "127.0.0.1:9464"),
    ],
)
def test_addresses_of_this_machine(text, is_):
    assert str(address.parse(text)) == is_
    assert config.load(flags={"metrics_address": text}).metrics_address == is_


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0:9464", "this machine only"),
        ("192.168.1.2:9464", "this machine only"),
        ("[::]:9464", "this machine only"),
        ("[fe80::1]:9464", "this machine only"),
        ("example.com:9464", "the host is an address"),
        ("127.1:9464", "the host is an address"),
        ("127.0.0.1:0", "between 1 and 65535"),
        ("127.0.0.1:65536", "between 1 and 65535"),
        ("127.0.0.1", "host:port"),
        (":9464", "host:port"),
        ("9464", "host:port"),
        ("::1:9464", "host:port"),
        ("http://127.0.0.1:9464/metrics", "host:port"),
        ("127.0.0.1:94640000", "host:port"),
        ("127.0.0.1:٩٤٦٤", "host:port"),
        ("", "host:port"),
    ],
)
def test_all_others_are_refused_by_a_sentence_that_names_the_setting(text, why):
    with pytest.raises(AgentRefused, match=f"--metrics-address: .*{why}"):
        config.load(flags={"metrics_address": text})


def test_off_by_default():
    settings = config.load()
    assert (settings.metrics_address, settings.metrics_file) == (None, None)
    quiet = Exporter(None, None)
    quiet.start(lambda: pytest.fail("nobody asked"))
    quiet.close()


def test_a_file_without_a_name_is_refused():
    with pytest.raises(AgentRefused, match="--metrics-file: an empty path"):
        config.load(flags={"metrics_file": ""})


# 2. The metrics.


def test_what_is_counted():
    found = told(lambda: status(counted(), MODEL))
    for code, reason in (("OK", ""), ("RESOURCE_EXHAUSTED", "rejected"), ("INVALID_ARGUMENT", "argument")):
        assert of(found, "calls_total", rpc="DetectAnomalies", model="board", code=code, reason=reason) == 1
    assert of(found, "calls_total", rpc="DetectAnomalies", model="", code="NOT_FOUND", reason="name") == 1
    for name in ("processed", "anomalous", "invalid"):
        assert of(found, f"images_{name}_total", model="board") == 1
    once = ("deaths", "start_failures", "hangs", "swaps", "fallbacks", "restarts")
    for name, times in (("starts", 2), *((one, 1) for one in once)):
        assert of(found, f"worker_{name}_total", model="board") == times
    assert of(found, "received_bytes_total") == 700
    assert of(found, "queue_longest_calls", model="board") == 5


def test_what_is_now():
    found = told(lambda: status(counted(), MODEL, IDLE))
    states = {
        dict(labels)["state"]: value
        for (name, labels), value in found.items()
        if name == "edge_agent_model_state" and ("model", "idle") in labels
    }
    assert states == {"STOPPED": 0, "STARTING": 0, "RUNNING": 0, "FAILED": 1, "STOPPING": 0}
    runs_on = {"accelerator": "cpu", "provider": "CPUExecutionProvider", "fallback": "true"}
    assert of(found, "model_info", model="board", version="2.0.0", **runs_on) == 1
    assert of(found, "model_info", model="idle", version="2.0.0", accelerator="", provider="", fallback="false") == 1
    assert [of(found, f"{name}_calls", model="board") for name in ("queue", "queue_limit", "in_flight")] == [3, 16, 1]
    assert of(found, "queue_calls", model="idle") is None, "what does not run has no queue"
    for process, model in (("front", ""), ("worker", "board")):
        resident, proportional = (
            of(found, f"memory_{kind}_bytes", process=process, model=model) for kind in ("resident", "proportional")
        )
        assert 10 << 20 < proportional <= resident
    assert of(found, "memory_resident_bytes", process="worker", model="idle") is None
    assert of(found, "up") == 1
    assert of(found, "process_open_fds") > 3
    (build,) = (dict(labels) for name, labels in found if name == "edge_agent_build_info")
    assert build["version"] == "1.3.0"


def test_counters_of_a_model_begin_at_nothing():
    """So that the first of all is an increase that an alert sees."""
    found = told(lambda: status(Metrics(), IDLE))
    for name in ("images_anomalous", "images_invalid", "worker_deaths", "worker_restarts", "worker_hangs"):
        assert of(found, f"{name}_total", model="idle") == 0


def test_so_do_calls_by_all_that_detections_can_come_to():
    found = told(lambda: status(Metrics(), IDLE))
    calls = {
        tuple(dict(labels)[key] for key in ("rpc", "model", "code", "reason")): value
        for (name, labels), value in found.items()
        if name == "edge_agent_calls_total"
    }
    assert set(calls.values()) == {0}
    assert set(calls) == {
        ("DetectAnomalies", "idle", code, reason)
        for code, reason in (
            ("OK", ""),
            ("INVALID_ARGUMENT", "argument"),
            ("FAILED_PRECONDITION", "state"),
            ("RESOURCE_EXHAUSTED", "rejected"),
            ("RESOURCE_EXHAUSTED", "expired"),
            ("RESOURCE_EXHAUSTED", "memory"),
            ("INTERNAL", "model"),
            ("INTERNAL", "crashed"),
            ("INTERNAL", "hung"),
            ("INTERNAL", "agent"),
        )
    } | {
        ("DetectAnomalies", "", code, reason)
        for code, reason in (
            ("INVALID_ARGUMENT", "argument"),
            ("INVALID_ARGUMENT", "name"),
            ("NOT_FOUND", "name"),
        )
    }


def test_what_was_counted_comes_in_the_place_of_nothing():
    quiet, busy = (told(lambda one=one: status(one, MODEL)) for one in (Metrics(), counted()))
    assert of(quiet, "calls_total", rpc="DetectAnomalies", model="board", code="OK", reason="") == 0
    assert of(busy, "calls_total", rpc="DetectAnomalies", model="board", code="OK", reason="") == 1
    assert quiet.keys() == busy.keys(), "no series begins with its first count"


def test_so_do_histograms():
    found = told(lambda: status(Metrics(), IDLE))
    for name in ("detection", "rejection"):
        assert of(found, f"{name}_seconds_count", model="idle") == 0
        assert of(found, f"{name}_seconds_bucket", model="idle", le="0.01") == 0
    for stage in ("queue", "copy", "preprocess", "run", "postprocess"):
        assert of(found, "stage_seconds_sum", model="idle", stage=stage) == 0


def test_a_model_takes_so_many_bytes_and_series_and_no_more():
    """Prometheus pays for each series, and the agent for writing it: what one model adds is bounded, whatever it did."""
    several = [{**MODEL, "model": f"com.example.vision.board-{number:02}"} for number in range(11)]
    texts = [
        textfile.generate_latest(families.registry(families.AgentCollector(lambda: status(Metrics(), *some))))
        for some in (several[:1], several)
    ]
    size, series = (
        (len(texts[1]) - len(texts[0])) / 10,
        (len(values(texts[1].decode())) - len(values(texts[0].decode()))) / 10,
    )
    assert size < 18_000
    assert series < 200


def test_reasons_are_those_of_the_errors():
    assert {one.reason for one in reasons.kinds()} == {
        reason for _, reason in (*reasons.OF_A_MODEL, *reasons.OF_NO_MODEL)
    } - {""}


def test_histograms_are_cumulative_and_whole():
    metrics = Metrics()
    for seconds in (0.00001, 0.0001, 0.00011, 0.003, 49.0, 51.0, 1000.0):
        metrics.called("DetectAnomalies", "board", "OK", "", 1, seconds)
    found = told(lambda: status(metrics, MODEL))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "edge_agent_detection_seconds_bucket"
    }
    assert list(buckets) == [f"{one:.15g}" for one in families.EXPOSED] + ["+Inf"]
    assert (buckets["0.0001"], buckets["0.00025"], buckets["0.0025"], buckets["0.005"]) == (2, 3, 3, 4)
    assert (buckets["25"], buckets["50"], buckets["+Inf"]) == (4, 5, 7)
    assert [*buckets.values()] == sorted(buckets.values())
    assert of(found, "detection_seconds_count", model="board") == 7
    assert of(found, "detection_seconds_sum", model="board") == pytest.approx(1100.00322)
    assert set(families.EXPOSED) < set(BOUNDS), "else a count would be told of a bound that it was not counted by"


def test_stages():
    found = told(lambda: status(counted(), MODEL))
    sums = {
        stage: of(found, "stage_seconds_sum", model="board", stage=stage)
        for stage in ("queue", "copy", "preprocess", "run", "postprocess")
    }
    assert sums == {"queue": 0.001, "copy": 0.002, "preprocess": 0.003, "run": 0.03, "postprocess": 0.004}
    assert of(found, "rejection_seconds_count", model="board") == 1
    assert of(found, "rejection_seconds_sum", model="board") == 0.0002


def test_of_a_model_that_is_gone_nothing_is_told():
    metrics = counted()
    there = told(lambda: status(metrics, MODEL, {**IDLE, "model": "gone"}))
    assert of(there, "worker_deaths_total", model="gone") == 1
    gone = told(lambda: status(metrics, MODEL))
    assert not [labels for _, labels in gone if ("model", "gone") in labels]
    assert gone.keys() < there.keys()


def test_before_it_serves_there_is_nothing_but_that_it_does_not():
    found = told(families.AgentCollector())
    assert of(found, "up") == 0
    ours = {name for name, _ in found if not name.startswith("edge_agent_process_")}
    assert ours == {"edge_agent_up", "edge_agent_metrics_written_timestamp_seconds"}


def test_when_it_was_written(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    found = told(lambda: status(Metrics()))
    assert of(found, "metrics_written_timestamp_seconds") == 1_800_000_000.5


def test_after_the_end_no_model_is_told_of():
    collector = families.AgentCollector(lambda: status(counted(), MODEL))
    collector.end()
    found = told(collector)
    assert of(found, "up") == 0
    assert of(found, "images_processed_total", model="board") == 1
    assert not [
        name
        for name, _ in found
        if name.startswith(("edge_agent_model", "edge_agent_queue_calls", "edge_agent_memory"))
    ]


def test_names_by_the_conventions():
    """https://prometheus.io/docs/practices/naming: a prefix, base units in the plural, `_total` for what only grows."""
    text = textfile.generate_latest(
        families.registry(families.AgentCollector(lambda: status(counted(), MODEL)))
    ).decode()
    assert values(text)
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"edge_agent_[a-z_]+[a-z]", family.name)
        assert family.documentation.endswith(".")
        assert not re.search(r"milli|micro|_ms$|_mb$|kilo", family.name)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        for one in family.samples:
            assert set(one.labels) <= {
                "rpc",
                "model",
                "code",
                "reason",
                "stage",
                "state",
                "process",
                "le",
                "version",
                "accelerator",
                "provider",
                "fallback",
                "python",
                "architecture",
            }
    for line in re.findall("^# TYPE .*", text, re.MULTILINE):
        assert ("_total" in line) == line.endswith(" counter")


def test_what_a_name_may_hold_is_escaped():
    odd = {**MODEL, "provider": 'a"b\\c\nd'}
    found = told(lambda: status(Metrics(), odd))
    assert next(labels for name, labels in found if name == "edge_agent_model_info")[3] == ("provider", 'a"b\\c\nd')


# 3. The server.


def serving(where: Loopback, look=lambda: status(counted(), MODEL)) -> Exporter:
    made = Exporter(where, None)
    made.start(look)
    return made


@pytest.fixture
def served_on(port) -> Iterator[Loopback]:
    where = Loopback("127.0.0.1", port)
    made = serving(where)
    yield where
    made.close()


def get(
    where: Loopback, path: str = "/metrics", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*where, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_scraped(served_on):
    code, headers, body = get(served_on)
    assert code == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert of(values(body.decode()), "images_processed_total", model="board") == 1


def test_only_what_is_asked_for(served_on):
    _, _, body = get(served_on, "/metrics?name[]=edge_agent_up&name[]=edge_agent_calls_total")
    assert {name for name, _ in values(body.decode())} == {"edge_agent_up", "edge_agent_calls_total"}


def test_nothing_can_be_done_but_read(served_on):
    for method in ("POST", "PUT", "DELETE"):
        assert get(served_on, method=method)[0] == 405


def test_over_ipv6(port):
    where = Loopback("::1", port)
    try:
        made = serving(where)
    except AgentRefused:
        pytest.skip("this machine has no ::1")
    assert get(where)[0] == 200
    made.close()


def test_a_port_that_is_taken_is_refused_before_anything_is_served(served_on):
    with pytest.raises(
        AgentRefused,
        match=rf"metrics_address: {re.escape(str(served_on))} cannot be served on: Address already in use\. ",
    ):
        Exporter(served_on, None)
    assert get(served_on)[0] == 200


def test_the_port_is_free_again_at_once(port):
    where = Loopback("127.0.0.1", port)
    for _ in range(3):
        made = serving(where)
        assert get(where)[0] == 200
        made.close()
        with pytest.raises(ConnectionRefusedError):
            get(where)


def test_one_that_never_served_can_be_closed(port):
    Exporter(Loopback("127.0.0.1", port), None).close()


def test_connections_that_say_nothing_take_no_more_than_their_share(port, monkeypatch):
    """There are so many at once and no more; they are hung up on when they say nothing for long, and then it goes on."""
    monkeypatch.setattr(served._Handler, "timeout", 0.5)
    where = Loopback("127.0.0.1", port)
    made = serving(where)
    before = threading.active_count()
    idle = [socket.create_connection(where) for _ in range(3 * served.MOST_AT_ONCE)]
    until(lambda: threading.active_count() > before, "they are served")
    assert threading.active_count() - before <= served.MOST_AT_ONCE
    refused = [one for one in idle if closed(one, 0.05)]
    assert len(refused) >= 2 * served.MOST_AT_ONCE
    until(lambda: all(closed(one, 0.05) for one in idle), "they are hung up on")
    assert get(where)[0] == 200
    for one in idle:
        one.close()
    made.close()


def test_a_request_that_comes_in_drops_is_hung_up_on_all_the_same(port, monkeypatch):
    monkeypatch.setattr(served._Handler, "timeout", 0.5)
    where = Loopback("127.0.0.1", port)
    made = serving(where)
    began = time.monotonic()
    with socket.create_connection(where) as slow:
        while not closed(slow, 0.05):
            assert time.monotonic() - began < 10, "it is hung up on"
            try:
                slow.sendall(b"G")
            except OSError:
                break
    assert time.monotonic() - began >= 0.5
    made.close()


def test_a_request_in_pieces_is_answered(served_on):
    with socket.create_connection(served_on) as one:
        for piece in (b"GET /metrics HT", b"TP/1.0\r", b"\nAccept: */*\r\n\r", b"\n"):
            one.sendall(piece)
            time.sleep(0.05)
        assert one.recv(15) == b"HTTP/1.0 200 OK"


@pytest.mark.parametrize(("size", "answered"), [(served.LONGEST_HEAD // 2, True), (2 * served.LONGEST_HEAD, False)])
def test_requests_have_a_largest_size(served_on, size, answered):
    headers = {f"x-{number}": "x" * 500 for number in range(size // 512)}
    if answered:
        assert get(served_on, **headers)[0] == 200
    else:
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            get(served_on, **headers)
    assert get(served_on)[0] == 200


def test_who_asks_all_the_time_waits(port):
    """A collection takes the calls' time; so many take a part of it and no more."""
    collected = []

    def look() -> dict:
        collected.append(time.monotonic())
        return status(Metrics(), MODEL)

    where = Loopback("127.0.0.1", port)
    made = serving(where, look)
    askers = [threading.Thread(target=lambda: [get(where) for _ in range(3)]) for _ in range(3)]
    for one in askers:
        one.start()
    for one in askers:
        one.join()
    made.close()
    assert len(collected) == 9
    pauses = [later - earlier for earlier, later in itertools.pairwise(collected)]
    assert min(pauses) >= served.PACE


def test_where_no_more_files_can_be_opened_the_processor_is_not_taken(served_on, monkeypatch):
    tries, accept = [], socketserver.TCPServer.get_request

    def fails(server: socketserver.TCPServer) -> tuple[socket.socket, object]:
        tries.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socketserver.TCPServer, "get_request", fails)
    began = time.monotonic()
    with socket.create_connection(served_on) as waiting:
        until(lambda: len(tries) >= 4, "it is tried again and again")
        assert len(tries) - 1 <= (time.monotonic() - began) / served.NOTICES_END
        monkeypatch.setattr(socketserver.TCPServer, "get_request", accept)
        waiting.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert waiting.recv(15) == b"HTTP/1.0 200 OK"


def closed(connection: socket.socket, patience: float) -> bool:
    connection.settimeout(patience)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_what_goes_wrong_is_logged_and_no_traceback_is_told(port, caplog):
    def look() -> dict:
        raise ValueError("a secret of ours")

    where = Loopback("127.0.0.1", port)
    made = serving(where, look)
    code, _, body = get(where)
    made.close()
    assert (code, body) == (500, b"The metrics could not be collected; the agent's log has the cause.\n")
    assert "a secret of ours" in caplog.text
    assert caplog.records[-1].limited, "who asks decides how often it is"


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=x", "text/plain;version=1..0", ";,;", "\x80", ""]
)
def test_an_accept_header_that_means_nothing_gets_the_text_that_all_can_read(served_on, caplog, accept):
    with socket.create_connection(served_on) as one:
        one.sendall(f"GET /metrics HTTP/1.0\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
        answer = one.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in answer
    assert b"edge_agent_up 1" in answer
    assert caplog.text == ""


def test_the_network_is_not_asked_for_our_name(port, monkeypatch):
    """Where no name server answers, that would take until its time is over."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("the network was asked"))
    Exporter(Loopback("127.0.0.1", port), None).close()


# 4. The file.


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(textfile, "INTERVAL", 0.02)


def test_it_is_there_from_the_beginning_and_others_may_read_it(tmp_path):
    before = os.umask(0o077)
    try:
        made = Exporter(None, tmp_path / "agent.prom")
        made.start(lambda: status(counted(), MODEL))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "agent.prom").stat().st_mode) == 0o644
    assert of(values((tmp_path / "agent.prom").read_text()), "up") == 1
    assert of(values((tmp_path / "agent.prom").read_text()), "images_processed_total", model="board") == 1
    made.close()
    assert [one.name for one in tmp_path.iterdir()] == ["agent.prom"]
    assert of(values((tmp_path / "agent.prom").read_text()), "up") == 0


def left_behind(path: Path) -> None:
    """Write a file as an agent does that is killed afterwards."""
    registry = families.registry(families.AgentCollector(lambda: status(counted(), MODEL)))
    textfile.MetricsFile(path, registry).write()


def test_what_a_killed_agent_left_behind_is_corrected_before_the_next_one_serves(tmp_path):
    path = tmp_path / "agent.prom"
    left_behind(path)
    assert of(values(path.read_text()), "up") == 1
    made = Exporter(None, path)
    assert of(values(path.read_text()), "up") == 0
    assert "board" not in path.read_text()
    made.start(lambda: status(counted(), MODEL))
    assert of(values(path.read_text()), "up") == 1
    made.close()


def test_so_it_is_where_the_next_one_is_refused(tmp_path, served_on):
    path = tmp_path / "agent.prom"
    left_behind(path)
    with pytest.raises(AgentRefused):
        Exporter(served_on, path)
    assert of(values(path.read_text()), "up") == 0


def test_one_that_never_served_says_so_at_its_end(tmp_path):
    Exporter(None, tmp_path / "agent.prom").close()
    assert of(values((tmp_path / "agent.prom").read_text()), "up") == 0


def test_it_says_when_it_was_written(tmp_path, often):
    path = tmp_path / "agent.prom"
    made = Exporter(None, path)
    made.start(lambda: status(counted(), MODEL))
    first = of(values(path.read_text()), "metrics_written_timestamp_seconds")
    assert first == pytest.approx(path.stat().st_mtime, abs=5)
    until(lambda: of(values(path.read_text()), "metrics_written_timestamp_seconds") > first, "it is written once more")
    made.close()


def test_it_follows_what_is_counted_and_is_whole_at_any_instant(tmp_path, often):
    metrics, path = Metrics(), tmp_path / "agent.prom"
    made = Exporter(None, path)
    made.start(lambda: status(metrics, MODEL))
    for number in range(1, 20):
        metrics.judged("board", 0, (0, 0, 0, 0))
        until(lambda: of(values(path.read_text()), "images_processed_total", model="board") == number, "it is told")
    made.close()


def test_a_folder_that_is_missing_costs_a_line_and_no_more(tmp_path, often, caplog):
    path = tmp_path / "missing" / "agent.prom"
    made = Exporter(None, path)
    made.start(lambda: status(counted(), MODEL))
    time.sleep(0.2)
    assert [one.message for one in caplog.records] == [
        f"metrics_file: {path} cannot be written (No such file or directory); it is tried again."
    ]
    path.parent.mkdir()
    until(path.exists, "it is tried again")
    made.close()


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_lies_in_its_way_is_replaced_and_not_followed(tmp_path, kind):
    path, other = tmp_path / "agent.prom", tmp_path / "other"
    other.write_text("not ours")
    for one in (path, tmp_path / ".agent.prom.new"):
        one.symlink_to(other) if kind == "link" else os.mkfifo(one)
    made = Exporter(None, path)
    made.start(lambda: status(counted(), MODEL))
    made.close()
    assert other.read_text() == "not ours"
    assert path.is_file()
    assert not path.is_symlink()


def test_a_file_that_takes_its_place_meanwhile_is_not_opened_to_others(tmp_path, monkeypatch):
    """Where others may write the folder, another user may put a link where the file was."""
    path, other, made_new = tmp_path / "agent.prom", tmp_path / "other", files._made
    other.write_text("not for others")
    other.chmod(0o600)

    def swapped(beside: str, flags: int, mode: int) -> int:
        fd = made_new(beside, flags, mode)
        os.rename(beside, tmp_path / "ours")
        os.symlink(other, beside)
        return fd

    monkeypatch.setattr(files, "_made", swapped)
    made = Exporter(None, path)
    made.start(lambda: status(counted(), MODEL))
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o644
    assert stat.S_IMODE(other.stat().st_mode) == 0o600
    assert other.read_text() == "not for others"
    made.close()


def test_a_failure_to_collect_is_logged_and_tried_again(tmp_path, often, caplog):
    broken = threading.Event()
    broken.set()

    def look() -> dict:
        return {} if broken.is_set() else status(counted(), MODEL)

    made = Exporter(None, tmp_path / "agent.prom")
    made.start(look)
    assert "could not be collected" in caplog.text
    broken.clear()
    until(lambda: of(values((tmp_path / "agent.prom").read_text()), "up") == 1, "it is tried again")
    made.close()


# 5. Only where it is asked for.


@pytest.mark.parametrize(
    ("setting", "given"),
    [("metrics_address", (Loopback("127.0.0.1", 1), None)), ("metrics_file", (None, Path("/x.prom")))],
)
def test_without_the_library_it_is_refused_and_what_to_do_is_said(setting, given, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(
        AgentRefused, match=rf"^{setting} needs the `prometheus_client` package; install the extra `metrics`"
    ):
        Exporter(*given)


def test_nothing_is_imported_that_was_not_asked_for():
    code = (
        "import sys; import edge_agent.server; from edge_agent.exporter import Exporter; Exporter(None, None).start(dict); "
        "print(sorted({'prometheus_client', 'http.server', 'wsgiref'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_registry_is_our_own():
    """A program that embeds the agent may have metrics of its own."""
    made = families.registry(families.AgentCollector(lambda: status(Metrics())))
    assert isinstance(made, CollectorRegistry)
    from prometheus_client import REGISTRY

    assert made is not REGISTRY
