"""Deaths, restarts and a contested socket path: each behaves as the design says."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import hanging, packages
from support.agent import Agent, alive, serving
from support.calls import INTERNAL, OK, PRECONDITION, outcome, request
from support.processes import hold
from support.users import AGENT, I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

PIXELS = bytes(3 * 64 * 64)
needs_two_uids = [
    pytest.mark.two_uids,
    pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to act as two users"),
]


def unprivileged() -> None:
    if agent_user() == MYSELF and I_AM_ROOT:
        pytest.skip("no unprivileged user can run this Python")


@pytest.fixture
def models(folder) -> Path:
    for name in ("board", "part"):
        packages.segmenter(folder / "models" / name)
    return folder / "models"


def refused(agent: Agent) -> str:
    """Return the one line with which an agent refused to start."""
    agent.spawn()
    assert agent.process.wait(30) == 2, agent.log()
    last = agent.log().strip().splitlines()[-1]
    assert last.startswith("Error: "), agent.log()
    assert "Traceback" not in agent.log()
    return last


def limit(agent: Agent, tasks: str) -> None:
    """Set how many tasks the agent's user may have for the agent to start another one; those that it has stay."""
    subprocess.run(["prlimit", "--pid", str(agent.pid), f"--nproc={tasks}:"], check=True, **agent.user.popen())


def call_in_worker(agent: Agent):
    """Run the model `board` and stop its worker in the middle of a call; return the worker's pid and the call."""
    agent.run_model("board")
    worker = agent.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    marked = os.urandom(len(PIXELS))
    call = agent.stub().DetectAnomalies.future(request("board", 64, 64, marked))  # held, or it would be cancelled
    until(lambda: agent.inbox_holds(marked), "the call is in the worker")
    return worker, call


@pytest.mark.parametrize("source", ["none", "models", "scan"])
def test_an_agent_that_can_find_no_models_says_so(folder, source):
    (folder / "models").mkdir()
    with serving(*[folder / "models"] * (source == "models"), scan=str(folder) if source == "scan" else None) as agent:
        assert ("name one with --models" in agent.log()) is (source == "none")


class TestWorkerKilled:
    """With `restart: never`, as the original; what becomes of a worker that is replaced is among the promises."""

    def test_calls_fail_at_once_and_the_model_is_failed(self, models):
        with serving(models, restart="never") as agent:
            agent.run_model("board")
            (victim,) = agent.workers()
            agent.run_model("part")
            stub = agent.stub()
            codes: Counter = Counter()
            ended = threading.Event()

            def call_on() -> None:
                mine = agent.stub()
                while not ended.is_set():
                    codes[outcome(mine.DetectAnomalies, request("board", 64, 64, PIXELS))[:2]] += 1

            callers = [threading.Thread(target=call_on) for _ in range(4)]
            for caller in callers:
                caller.start()
            until(lambda: codes[OK, ""] > 50, "calls are answered")
            hold(victim)
            until(lambda: agent.log().count("a call waits") >= 3, "one call is under way, the others wait")
            os.kill(victim, signal.SIGKILL)
            # Measured: some milliseconds. A bound for "at once" that a busy machine keeps.
            until(lambda: any(code == PRECONDITION for code, _ in list(codes)), "the death is told", patience=1.0)
            ended.set()
            for caller in callers:
                caller.join(30)
                assert not caller.is_alive()
            assert {code for code, _ in codes} <= {OK, INTERNAL, PRECONDITION}
            internal = [details for code, details in codes if code == INTERNAL]
            assert internal, "at least the call under way failed INTERNAL"
            assert all("signal 9 (SIGKILL)" in details for details in internal)
            assert not any(str(victim) in details for details in internal)
            description = agent.describe("board")
            assert description.status == pb2.FAILED
            assert "signal 9 (SIGKILL)" in description.status_message
            assert outcome(stub.DetectAnomalies, request("part", 64, 64, PIXELS))[0] == OK
            agent.run_model("board")
            assert outcome(stub.DetectAnomalies, request("board", 64, 64, PIXELS))[0] == OK

    def test_images_of_calls_that_failed_are_given_back(self, folder):
        """An error that several threads raise would keep all their frames, and the images in them, alive."""
        packages.classifier(folder / "models" / "part")
        agent = Agent(folder / "models", any_image_size=True, restart="never")
        # What is freed must be seen to go, at once, and not stay with the allocator.
        returned = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0"}
        with contextlib.closing(agent):
            agent.start(**returned)
            agent.run_model("part")
            worker = agent.workers()[0]
            os.kill(worker, signal.SIGSTOP)
            side = 4096  # above glibc's largest threshold for mmap, so that what is freed is seen to go
            stub = agent.stub()
            image = bytes(3 * side * side)
            before = _resident(agent.pid)
            calls = [stub.DetectAnomalies.future(request("part", side, side, image)) for _ in range(10)]
            until(lambda: agent.log().count("a call waits") == 9, "they wait")
            os.kill(worker, signal.SIGKILL)
            assert {call.exception(30).code().value[0] for call in calls} == {INTERNAL}
            # gRPC's own buffers keep up to three (measured); an error that holds its callers' frames keeps all ten.
            until(lambda: _resident(agent.pid) - before < 5 * len(image), "the images are given back")

    def test_state_is_failed_before_the_caller_knows(self, models):
        with serving(models, restart="never") as agent:
            stub = agent.stub()
            for _ in range(20):
                agent.run_model("board")
                worker = agent.workers()[0]
                os.kill(worker, signal.SIGSTOP)
                marked = os.urandom(len(PIXELS))
                call = stub.DetectAnomalies.future(request("board", 64, 64, marked))
                until(lambda: agent.inbox_holds(marked), "the call is in the worker")
                os.kill(worker, signal.SIGKILL)
                assert call.exception(30).code().value[0] == INTERNAL
                assert agent.describe("board").status == pb2.FAILED

    def test_death_of_an_idle_worker_is_seen(self, models):
        with serving(models, restart="never") as agent:
            agent.run_model("board")
            os.kill(agent.workers()[0], signal.SIGSEGV)
            until(lambda: agent.state("board") == "FAILED", "the death is seen")
            assert "SIGSEGV" in agent.describe("board").status_message

    def test_death_of_the_forkserver_is_survived(self, models):
        with serving(models, restart="never") as agent:
            agent.run_model("board")
            os.kill(agent.forkserver(), signal.SIGKILL)
            until(lambda: agent.state("board") == "FAILED", "the loss is seen")
            assert "the process that starts all workers" in agent.describe("board").status_message
            agent.run_model("board")
            assert outcome(agent.stub().DetectAnomalies, request("board", 64, 64, PIXELS))[0] == OK

    def test_death_while_loading(self, models):
        with serving(models, restart="never") as agent:
            forkserver = agent.forkserver()
            for _ in range(5):
                agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
                worker = until(lambda: (agent.workers() or [0])[0], "a worker is there")
                os.kill(worker, signal.SIGKILL)
                # Either it was killed while it loaded, or it had just finished.
                until(lambda: agent.state("board") == "FAILED", "the death is seen")
                assert "SIGKILL" in agent.describe("board").status_message
            assert alive(forkserver)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _cpu(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class TestWorkerReplaced:
    """What is on disk by then is started; the model is FAILED only when the restart budget is spent."""

    def test_files_that_were_touched_are_no_reason_not_to_replace_it(self, models):
        with serving(models, scan_interval=3600) as agent:
            agent.run_model("board")
            os.utime(models / "board" / "mochi" / "model.onnx")
            (worker,) = agent.workers()
            os.kill(worker, signal.SIGKILL)
            until(lambda: "It is started again in" in agent.log(), "the death is seen")
            assert outcome(agent.stub().DetectAnomalies, request("board", 64, 64, PIXELS))[:2] == (OK, "")
            assert agent.state("board") == "RUNNING"

    def test_no_caller_is_told_of_files(self, models):
        """What keeps a worker from being replaced is for operators, who are told what to do once."""
        with serving(models) as agent:
            worker, _ = call_in_worker(agent)
            calls = [agent.stub().DetectAnomalies.future(request("board", 64, 64, PIXELS)) for _ in range(3)]
            until(lambda: agent.log().count("a call waits") == 3, "they wait")
            shutil.rmtree(models / "board" / "mochi")
            os.kill(worker, signal.SIGKILL)
            told = "The model's worker process ended and could not be replaced; DescribeModel says why."
            for error in (call.exception(30) for call in calls):
                assert (error.code().value[0], error.details()) == (INTERNAL, told)
            assert agent.state("board") == "FAILED"
            until(lambda: "changed since" in agent.describe("board").status_message, "the disk is looked at")
            message = agent.describe("board").status_message
            assert "could not be replaced: mochi/model.onnx is missing. It was the last of 5 deaths" in message
            assert message.lower().count("start the model") == 1, message
            code, details, _ = outcome(agent.stub().DetectAnomalies, request("board", 64, 64, PIXELS))
            assert (code, details) == (PRECONDITION, "The model is FAILED; DetectAnomalies needs RUNNING.")


class TestNoThreads:
    """The agent may start no further thread, as where systemd's TasksMax or a container's pids limit is reached."""

    def test_nothing_hangs_and_all_goes_on_when_there_are_some_again(self, models):
        unprivileged()  # root may start any number
        with serving(models) as agent:
            agent.run_model("board")
            (worker,) = agent.workers()
            limits = Path(f"/proc/{agent.pid}/limits").read_text()
            before = next(line.split()[2] for line in limits.splitlines() if line.startswith("Max processes"))
            limit(agent, "1")
            stub = agent.stub()
            code, _, response = outcome(stub.StartModel, pb2.StartModelRequest(model_component="part"), 10)
            assert (code, response.status) == (OK, pb2.STARTING)
            description = outcome(stub.DescribeModel, pb2.DescribeModelRequest(model_component="part"), 10)[2]
            assert description.model_description.status == pb2.FAILED
            assert "no further thread can be started" in description.model_description.status_message
            calls = [stub.DetectAnomalies.future(request("board", 64, 64, PIXELS), timeout=30) for _ in range(10)]
            assert [call.exception(30) for call in calls] == [None] * len(calls)
            os.kill(worker, signal.SIGKILL)
            until(lambda: agent.state("board") == "FAILED", "the restart budget is spent")
            assert agent.workers() == []
            limit(agent, before)
            for name in ("board", "part"):
                agent.run_model(name)
                assert outcome(stub.DetectAnomalies, request(name, 64, 64, PIXELS), 30)[:2] == (OK, "")
            limit(agent, "1")
            assert agent.stop() == 0
            assert "Traceback" not in agent.log()


class TestAgentKilled:
    def test_no_orphan_and_the_models_come_back(self, models):
        agent = Agent(models)
        try:
            agent.start()
            agent.run_model("board")
            agent.run_model("part")
            agent.stub().StopModel(pb2.StopModelRequest(model_component="part"))
            for _ in range(3):
                below = agent.children()
                assert len(below) >= 2
                agent.stop(signal.SIGKILL)
                until(lambda: not any(map(alive, below)), "no process of the dead agent is left")
                assert agent.socket.exists(), "the dead agent's socket is still there"
                agent.start()
                until(lambda: agent.state("board") == "RUNNING", "the model that ran runs again")
                assert agent.state("part") == "STOPPED"
                assert "Removed the dead socket" in agent.log()
            assert len(list((agent.folder / "state").glob("*.run/*"))) <= 1, "crashed runs left no sockets of their own"
        finally:
            agent.close()

    def test_a_busy_worker_ends_with_the_agent(self, folder):
        hanging.package(folder / "models" / "slow", hanging.endless)
        agent = Agent(folder / "models", call_timeout=300)
        try:
            agent.start()
            agent.run_model("slow")
            worker = agent.workers()[0]
            stub = agent.stub()
            before = _cpu(worker)
            calls = [stub.DetectAnomalies.future(request("slow", 64, 64, hanging.nearly_black())) for _ in range(8)]
            until(lambda: _cpu(worker) - before > 5, "the worker is busy")
            agent.stop(signal.SIGKILL)
            assert not any(call.done() and call.exception() is None for call in calls)
            until(lambda: not alive(worker), "the busy worker is gone")
        finally:
            agent.close()

    def test_one_channel_survives_the_restart(self, models):
        agent = Agent(models)
        try:
            agent.start()
            stub = agent.stub()
            assert outcome(stub.ListModels, pb2.ListModelsRequest())[0] == OK
            agent.stop(signal.SIGKILL)
            agent.start()
            until(lambda: outcome(stub.ListModels, pb2.ListModelsRequest())[0] == OK, "the old channel works again")
        finally:
            agent.close()

    def test_nothing_is_restored_where_that_is_switched_off(self, models):
        agent = Agent(models, restore=False, autostart=["part"])
        try:
            agent.start()
            agent.run_model("board")
            agent.stop(signal.SIGKILL)
            agent.start()
            until(lambda: agent.state("part") == "RUNNING", "the autostart list is started")
            assert agent.state("board") == "STOPPED"
        finally:
            agent.close()

    def test_damaged_state_file_costs_a_warning(self, models):
        agent = Agent(models)
        try:
            agent.start()
            agent.run_model("board")
            agent.stop(signal.SIGKILL)
            state_file = next((agent.folder / "state").glob("*.running.json"))
            state_file.write_text('["board"')
            agent.start()
            assert agent.state("board") == "STOPPED"
            assert "cannot be read" in agent.log()
        finally:
            agent.close()


class TestSigterm:
    def test_accepted_calls_are_answered_and_nothing_is_left(self, folder):
        packages.write(folder / "models" / "slow", packages.manifest(), packages.slow(20_000))
        agent = Agent(folder / "models")
        try:
            agent.start()
            agent.run_model("slow")
            below = agent.children()
            stub = agent.stub()
            hold(agent.workers()[0])
            calls = [stub.DetectAnomalies.future(request("slow", 64, 64, os.urandom(len(PIXELS)))) for _ in range(4)]
            until(lambda: agent.log().count("a call waits") == 3, "one is in hand, and the others wait")
            os.kill(agent.workers()[0], signal.SIGCONT)
            assert agent.stop() == 0
            codes = [call.exception(30) for call in calls]
            assert codes == [None] * 4, "every accepted call was answered"
            until(lambda: not any(map(alive, below)), "no process is left")
            assert not agent.socket.exists()
            assert "Traceback" not in agent.log()
        finally:
            agent.close()

    def test_drain_has_a_limit(self, models):
        agent = Agent(models, drain_timeout=0.2)
        try:
            agent.start()
            worker, call = call_in_worker(agent)
            assert agent.stop() == 0
            assert not alive(worker)
            assert call.exception(30) is not None
        finally:
            agent.close()

    def test_while_starting(self, models):
        agent = Agent(models)
        try:
            agent.start()
            agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
            assert agent.stop() == 0
        finally:
            agent.close()

    def test_second_signal_exits_at_once(self, models):
        agent = Agent(models, drain_timeout=3600)
        try:
            agent.start()
            worker, call = call_in_worker(agent)
            agent.process.terminate()
            until(lambda: not agent.socket.exists(), "the first signal has been seen")
            with pytest.raises(subprocess.TimeoutExpired):
                agent.process.wait(0.5)
            assert agent.stop() == 128 + signal.SIGTERM
            assert call.exception(30) is not None
            os.kill(worker, signal.SIGCONT)
            until(lambda: not alive(worker), "the worker is gone")
        finally:
            agent.close()

    def test_children_ignore_it(self, models):
        """Greengrass signals the children first: calls that were accepted must still be answered."""
        with serving(models) as agent:
            agent.run_model("board")
            before = agent.children()
            for pid in before:
                os.kill(pid, signal.SIGTERM)
            assert outcome(agent.stub().DetectAnomalies, request("board", 64, 64, PIXELS))[0] == OK
            agent.run_model("part")
            assert set(before) <= set(agent.children()), "not one of them went"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_models_that_ran_run_again_after_a_clean_end(self, models, number):
        agent = Agent(models)
        try:
            agent.start()
            agent.run_model("board")
            assert agent.stop(number) == 0
            agent.start()
            until(lambda: agent.state("board") == "RUNNING", "it runs again")
            assert agent.state("part") == "STOPPED"
        finally:
            agent.close()

    def test_a_call_that_is_cut_off_gets_a_documented_code(self, models):
        agent = Agent(models, drain_timeout=0.2)
        try:
            agent.start()
            _, call = call_in_worker(agent)
            assert agent.stop() == 0
            assert call.exception(30).code().value[0] == INTERNAL
            assert "the agent ends" in call.exception().details()
        finally:
            agent.close()

    def test_log_lines_are_json_where_that_is_asked_for(self, models):
        import json

        with serving(models, log_format="json", log_level="info") as agent:
            agent.run_model("board")
            events = [json.loads(line) for line in agent.log().splitlines()]
        assert any("STARTING -> RUNNING" in event["message"] for event in events)
        assert {event["level"] for event in events} <= {"info", "warning"}


class TestSocket:
    @pytest.mark.parametrize("same_state", [True, False], ids=["same state folder", "own state folder"])
    def test_second_agent_is_refused(self, models, same_state):
        with serving(models) as first:
            second = Agent(models, socket=str(first.socket))
            if same_state:
                second.settings["state_dir"] = str(first.folder / "state")
            try:
                line = refused(second)
                assert "Stop it first" in line
                assert first._serves()
                with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
                    probe.connect(str(first.socket))
            finally:
                second.close()

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink"])
    def test_path_occupied(self, models, kind):
        agent = Agent(models)
        try:
            if kind == "file":
                agent.socket.write_text("precious")
            elif kind == "directory":
                agent.socket.mkdir()
            else:
                agent.socket.symlink_to("/etc/hostname" if kind == "symlink" else "/nonexistent")
            before = agent.socket.lstat()
            line = refused(agent)
            assert "is no socket" in line
            assert agent.socket.lstat() == before
        finally:
            agent.close()

    def test_live_server_of_another_kind(self, models):
        agent = Agent(models)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(str(agent.socket))
            os.chown(agent.socket, agent.user.uid, agent.user.gid)
            server.listen()
            try:
                assert "answers on" in refused(agent)
                assert stat.S_ISSOCK(agent.socket.lstat().st_mode)
            finally:
                agent.close()

    @pytest.mark.parametrize("live", [True, False])
    def test_socket_of_another_user(self, models, live):
        if not I_AM_ROOT:
            pytest.skip("needs root, to make a socket of another user")
        unprivileged()
        agent = Agent(models)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(str(agent.socket))
            os.chown(agent.socket, OTHER.uid, OTHER.gid)
            if live:
                server.listen()
            try:
                assert f"belongs to uid {OTHER.uid}" in refused(agent)
            finally:
                agent.close()

    def test_missing_folder(self, models, folder):
        assert "does not exist" in refused(Agent(models, folder=folder, socket=str(folder / "nowhere" / "s")))

    def test_folder_that_may_not_be_written(self, models, folder):
        unprivileged()
        if not I_AM_ROOT:
            pytest.skip("needs root, to make a folder of another user")
        closed = folder / "closed"
        closed.mkdir(mode=0o755)
        line = refused(Agent(models, folder=folder, socket=str(closed / "s")))
        assert "may not be written" in line

    def test_released_only_if_it_is_still_ours(self, models):
        agent = Agent(models)
        try:
            agent.start()
            agent.socket.unlink()
            agent.socket.write_text("somebody else's")
            assert agent.stop() == 0
            assert agent.socket.read_text() == "somebody else's"
        finally:
            agent.close()

    @pytest.mark.parametrize("mode", ["0660", "0600", "0666"])
    def test_mode_is_exact_whatever_the_umask(self, models, mode):
        before = os.umask(0o077 if mode == "0666" else 0)
        try:
            with serving(models, socket_mode=mode) as agent:
                assert f"{stat.S_IMODE(agent.socket.stat().st_mode):04o}" == mode
                assert sorted(path.name for path in agent.folder.iterdir() if path.is_socket()) == ["agent.sock"]
        finally:
            os.umask(before)

    def test_root_is_refused_and_told_three_ways_out(self, models):
        if not I_AM_ROOT:
            pytest.skip("needs root")
        with contextlib.closing(Agent(models, user=MYSELF, allow_root=False)) as agent:
            line = refused(agent)
        for way in ("--allow-root", "EDGE_AGENT_ALLOW_ROOT=1", "allow_root: true"):
            assert way in line

    @pytest.mark.parametrize("state_dir", ["/nonexistent/state", "/proc/state"])
    def test_state_dir_that_cannot_be_made(self, models, state_dir):
        unprivileged()
        with contextlib.closing(Agent(models, state_dir=state_dir)) as agent:
            assert "--state-dir" in refused(agent)

    def test_state_dir_that_others_may_write(self, models, folder):
        open_to_all = folder / "open"
        open_to_all.mkdir()
        os.chown(open_to_all, agent_user().uid, agent_user().gid)
        open_to_all.chmod(0o777)
        with contextlib.closing(Agent(models, state_dir=str(open_to_all))) as agent:
            assert "writable by nobody else" in refused(agent)

    @pytest.mark.parametrize(("name", "there"), [("lock", "folder"), ("run", "file")])
    def test_something_else_in_the_state_dir(self, models, name, there):
        with contextlib.closing(Agent(models)) as agent:
            agent.start()
            assert agent.stop() == 0
            (path,) = (agent.folder / "state").glob("*.lock")
            path.unlink()
            path = path.with_suffix(f".{name}")
            if path.is_dir():
                shutil.rmtree(path)
            if there == "folder":
                path.mkdir()
            else:
                path.write_text("")
            line = refused(agent)
            assert f"--state-dir {agent.folder / 'state'}: {path.name} in it cannot be used: " in line
            assert line.endswith(". Remove it, or name another folder.")
            assert not agent.socket.exists()

    def test_state_dir_is_private(self, models):
        with serving(models) as agent:
            assert stat.S_IMODE((agent.folder / "state").stat().st_mode) == 0o700


class TestTwoUsers:
    pytestmark = needs_two_uids

    def test_group_decides_who_may_call(self, models):
        unprivileged()
        group = 54400
        from support.users import User

        agent = Agent(models, user=User(AGENT.uid, AGENT.gid, (group,)), socket_group=str(group))
        try:
            agent.start()
            assert agent.socket.stat().st_gid == group
            codes = {}
            for who, groups in (("member", (group,)), ("stranger", ())):
                done = subprocess.run(
                    ["/bin/sh", "-c", 'exec "$0" "$@"', __import__("sys").executable, "-c", CALL, str(agent.socket)],
                    capture_output=True,
                    text=True,
                    check=False,
                    env={"PATH": "/usr/bin:/bin"},
                    cwd="/",
                    **User(OTHER.uid, OTHER.gid, groups).popen(),
                )
                codes[who] = done.stdout.strip()
            assert codes == {"member": "connected", "stranger": "PermissionError"}
        finally:
            agent.close()

    def test_group_that_the_agent_is_not_in_costs_a_warning(self, models):
        unprivileged()
        with serving(models, socket_group="54401") as agent:
            assert agent.socket.stat().st_gid == AGENT.gid
            assert "usermod -aG 54401" in agent.log()

    def test_missing_group_costs_a_warning(self, models):
        with serving(models, socket_group="no-such-group") as agent:
            assert "groupadd no-such-group" in agent.log()


CALL = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""
