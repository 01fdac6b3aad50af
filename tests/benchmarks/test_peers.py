"""What the comparison with other servers makes of its figures, and how it starts and ends processes."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.importing import beside
from support.processes import hold
from support.waiting import until

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_benchmarks():
    """Import the benchmark as it is when it is run."""
    with beside(BENCHMARKS, BENCHMARKS / "peers"):
        yield


def of(name):
    return importlib.import_module(name)


def ways(**p50):
    return {way.replace("_", " "): {"p50": time, "p99": 2 * time, "calls": 300} for way, time in p50.items()}


@pytest.fixture
def result():
    server = {"memory_mb": 100.0, "ready_seconds": 1.0, "idle_cores": 0.001, "held": False}
    shared, inline = of("peers").SHARED, of("peers").INLINE
    return {
        "bare": {"ways": ways(in_one_process=4.0)},
        "ours": {**server, "ways": {shared: {"p50": 5.0, "p99": 6.0}, inline: {"p50": 8.0, "p99": 9.0}}},
        "peers": {
            "One 1.0": {**server, "lacks": "nothing", "ways": ways(HTTP=10.0, shared_memory=6.5)},
            "Two 2.0": {**server, "held": True, "lacks": "much", "ways": ways(HTTP=9.0)},
            "Three 3.0": {"lacks": "all", "error": "it ended"},
        },
    }


def test_ratios_are_of_the_fastest_peers(result):
    found = of("peers").ratios(result)
    assert found["best without shared memory / ours"] == {"peer": "Two 2.0", "way": "HTTP", "ratio": 9 / 5}
    assert found["best with shared memory / ours"] == {"peer": "One 1.0", "way": "shared memory", "ratio": 6.5 / 5}


def test_ratios_without_a_peer_are_missing(result):
    del result["peers"]["One 1.0"]
    assert set(of("peers").ratios(result)) == {"best without shared memory / ours"}


def test_table_has_the_fastest_first_and_names_who_did_not_run(result):
    lines = of("peers").table(result).splitlines()
    medians = [float(line.split("|")[3]) for line in lines[2:] if line.startswith("|")]
    assert medians == [4.0, 5.0, 6.5, 8.0, 9.0, 10.0]
    assert "| Two 2.0 | HTTP | 9.00 | 18.00 | 1.80 | 100 | 1.0 | 0.1%, held |" in lines
    assert "- Three 3.0: could not be run: it ended. It has: all." in lines
    assert "- Two 2.0: much." in lines


@pytest.mark.parametrize("name", ["pytriton", "litserve", "mlserver", "bentoml"])
def test_requirements_are_pinned_and_leave_the_work_to_ours(name):
    pins = of("environments").pins(name)
    for peer in of("peers").PEERS:
        if peer.program == name:
            assert pins[peer.distribution] in peer.label
    # onnxruntime is installed without its dependencies.
    assert {"numpy", "flatbuffers", "protobuf", "packaging"} <= set(pins)
    assert not set(of("environments").WORK) & set(pins)


def test_mlserver_keeps_to_a_uvloop_with_which_its_workers_start():
    assert tuple(map(int, of("environments").pins("mlserver")["uvloop"].split(".")[:2])) < (0, 22)


def test_an_environment_that_cannot_be_built_says_why(tmp_path, monkeypatch):
    environments, pip = of("environments"), tmp_path / "pip"
    pip.write_text("#!/bin/sh\necho WARNING: old >&2\necho ERROR: no such version >&2\necho a hint >&2\nexit 1\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    with pytest.raises(of("processes").NotRun, match="^its environment cannot be built: ERROR: no such version$"):
        environments.build("litserve", tmp_path / "cache")
    assert not list(tmp_path.rglob("complete"))


def test_a_score_of_other_work_voids_the_comparison():
    peers = of("peers")
    assert peers.warm_up(peers.Contender("a", lambda _way, _calls: ([1.0], 0.5), ["x", "y"]), None) == 0.5
    with pytest.raises(SystemExit, match="different work"):
        peers.warm_up(peers.Contender("b", lambda _way, _calls: ([1.0], 0.5001), ["x"]), 0.5)


def test_every_contender_begins_a_round_and_no_first_call_counts():
    peers, order = of("peers"), []

    def contender(name):
        def call(_way, calls):
            order.append(name)
            return [99.0] + [1.0] * (calls - 1), 0.5

        return peers.Contender(name, call, ["x"])

    both = [contender("a"), contender("b")]
    peers.take_turns(both, 2)
    assert order == ["a", "b", "b", "a"]
    assert [one.found["ways"]["x"] for one in both] == [{"p50": 1.0, "p99": 1.0, "calls": 2 * peers.TURN}] * 2


def test_a_server_is_ended_with_all_that_it_started_even_one_that_will_not(tmp_path):
    processes = of("processes")
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    log = tmp_path / "log"
    with processes.server([sys.executable, "-c", parent], {}, log) as process:
        processes.wait(process, lambda: "up" in log.read_text(), log)
        tree = processes.Tree(process.pid)
        pids = tree.pids()
        assert len(pids) == 2
        assert 2 < tree.memory_mb() < 100
    until(lambda: not any(map(_lives, pids)), "all have ended")


def test_a_server_that_ends_at_once_is_told_of_with_its_last_words(tmp_path):
    processes, log = of("processes"), tmp_path / "log"
    with (
        processes.server([sys.executable, "-c", "print('no port'); print()"], {}, log) as process,
        pytest.raises(processes.NotRun, match="it ended: no port"),
    ):
        processes.wait(process, lambda: False, log)


def test_a_held_server_computes_in_its_turn_only(tmp_path):
    peers, processes = of("peers"), of("processes")
    with processes.server([sys.executable, "-c", "while True: pass"], {}, tmp_path / "log") as process:
        one = peers.Contender("busy", lambda _way, _calls: ([], 0.0), [], processes.Tree(process.pid))
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patched:
            patched.setattr(peers, "IDLE_SECONDS", 0.3)
            peers.look_at_idle([one])
        assert one.held
        assert one.tree is not None
        one.tree.signal(19)  # SIGSTOP
        hold(process.pid)  # which waits until it stands
        stood = one.tree.cpu_seconds()
        time.sleep(0.2)
        assert one.tree.cpu_seconds() == stood
        with one.turn():
            time.sleep(0.3)
        assert one.tree.cpu_seconds() > stood
        one.tree.signal(18)  # SIGCONT, so that it can end


def test_a_client_calls_in_its_turns_and_tells_of_errors(tmp_path):
    processes = of("processes")
    program = "import turns; turns.take({'good': lambda: 0.25, 'bad': lambda: 1 / 0})"
    variables = {"PYTHONPATH": str(BENCHMARKS / "peers")}
    client = processes.Client([sys.executable, "-c", program], variables, tmp_path / "log")
    try:
        assert client.ways == ["good", "bad"]
        times, score = client.call("good", 3)
        assert (len(times), score) == (3, 0.25)
        with pytest.raises(processes.NotRun, match="bad: ZeroDivisionError"):
            client.call("bad", 1)
    finally:
        client.close()


def test_a_client_that_cannot_start_is_told_of(tmp_path):
    processes = of("processes")
    with pytest.raises(processes.NotRun, match="its client ended: ValueError: no server"):
        processes.Client([sys.executable, "-c", "raise ValueError('no server')"], {}, tmp_path / "log")


def test_an_upload_is_a_form_of_one_file():
    body, headers = of("turns").upload("frame", b"\0\r\n--\xff")
    boundary = headers["Content-Type"].partition("boundary=")[2].encode()
    head, _, rest = body.partition(b"\r\n\r\n")
    assert head.startswith(b"--" + boundary + b'\r\nContent-Disposition: form-data; name="frame"; filename="frame"')
    assert rest == b"\0\r\n--\xff\r\n--" + boundary + b"--\r\n"


def test_help():
    told = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--envs" in told.stdout


def _lives(pid):
    try:
        return of("processes")._fields(pid)[0] != "Z"
    except OSError:
        return False
