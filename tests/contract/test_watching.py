"""Packages that appear, change, break and disappear while the agent serves; who may have written them."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, outcome, request
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

PIXELS = b"\x80" * (3 * 64 * 64)


@pytest.fixture
def models(folder) -> Path:
    made = folder / "models"
    made.mkdir(mode=0o755)
    return made


def listed(agent) -> dict[str, str]:
    """Return the state of each listed model."""
    response = agent.stub().ListModels(pb2.ListModelsRequest(), timeout=30)
    return {one.model_component: pb2.ModelStatus.Name(one.status) for one in response.models}


def score(agent, name: str) -> float:
    code, details, response = outcome(agent.stub().DetectAnomalies, request(name, 64, 64, PIXELS))
    assert code == OK, details
    return response.detect_anomaly_result.anomaly_score


def constant(folder: Path, value: float) -> Path:
    return packages.write(folder, packages.manifest(), packages.constant(scores=[value, 1 - value]))


def test_appears_changes_and_disappears(models):
    with serving(models) as agent:
        assert listed(agent) == {}
        constant(models / "board", 0.25)
        until(lambda: listed(agent) == {"board": "STOPPED"}, "it appears")
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.25)
        constant(models / "board", 0.75)
        states = set()

        def taken_over() -> bool:
            states.add(agent.state("board"))
            return score(agent, "board") == pytest.approx(0.75)

        until(taken_over, "the new one takes over")
        assert states == {"RUNNING"}
        until(lambda: "has changed" not in agent.describe("board").status_message, "and nothing is left to say")
        shutil.rmtree(models / "board")
        until(lambda: listed(agent) == {}, "it disappears")
        until(lambda: agent.workers() == [], "and its worker with it")
        assert "its files are gone" in agent.log()
        constant(models / "board", 0.5)
        until(lambda: listed(agent) == {"board": "RUNNING"}, "what ran runs again when its files come back")


def test_a_known_model_is_never_not_found_after_a_restart(models):
    constant(models / "board", 0.25)
    agent = Agent(models)
    try:
        for _ in range(10):
            agent.spawn()
            stub = agent.stub()
            codes = set()
            until(
                lambda: (
                    codes.add(outcome(stub.DescribeModel, pb2.DescribeModelRequest(model_component="board"))[0])
                    or OK in codes
                ),
                "it answers",
            )
            assert codes <= {OK, 14}  # UNAVAILABLE: no socket yet
            agent.stop(signal.SIGKILL)
    finally:
        agent.close()


def test_a_broken_package_is_failed_with_the_reason_and_recovers(models):
    constant(models / "board", 0.25)
    (models / "board" / "manifest.json").write_text('{"model_graph": ')
    with serving(models) as agent:
        assert listed(agent) == {"board": "FAILED"}
        assert "manifest.json is not JSON" in agent.describe("board").status_message
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it is refused again")
        assert "manifest.json is not JSON" in agent.describe("board").status_message
        constant(models / "board", 0.25)
        until(lambda: listed(agent) == {"board": "STOPPED"}, "it is mended")
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.25)


def test_a_half_copied_package_never_runs(models):
    """Copied slowly, manifest first, while its model is started again and again."""
    source = constant(models.parent / "source", 0.25)
    onnx = (source / "mochi" / "model.onnx").read_bytes()
    target = models / "board"
    with serving(models, scan_interval=0.05) as agent:
        states = set()
        (target / "mochi").mkdir(parents=True)
        shutil.copy(source / "manifest.json", target / "manifest.json")
        with (target / "mochi" / "model.onnx").open("wb") as file:
            steps = range(0, len(onnx), max(1, len(onnx) // 20))
            for start in steps:
                file.write(onnx[start : start + steps.step])
                file.flush()
                until(lambda: "board" in listed(agent), "it is seen")
                if start + steps.step < len(onnx):
                    outcome(agent.stub().StartModel, pb2.StartModelRequest(model_component="board"))
                    until(lambda: agent.state("board") != "STARTING", "it has been tried")
                    states.add(agent.state("board"))
        assert states <= {"FAILED", "STOPPED"}
        assert "FAILED" in states
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.25)


def test_a_start_in_the_middle_of_a_copy_waits_for_its_end(models):
    """The manifest is new and the weights are still the old ones: together they would give a wrong verdict."""
    constant(models / "board", 0.4)
    with serving(models, scan_interval=1.0) as agent:
        (models / "board" / "manifest.json").write_text(json.dumps(packages.manifest(threshold=0.2)))
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: "settled" in agent.describe("board").status_message, "it waits")
        assert agent.state("board") == "STARTING"
        (models / "board" / "mochi" / "model.onnx").write_bytes(packages.constant(scores=[0.1, 0.9]))
        until(lambda: agent.state("board") == "RUNNING", "it runs")
        assert score(agent, "board") == pytest.approx(0.1), "the whole new package was loaded"


def test_what_is_told_during_and_after_a_slow_replacement(models):
    """A start reads newer files than the last look has settled on: neither while it waits nor then has anything changed."""
    constant(models / "board", 0.4)
    with serving(models, scan_interval=0.8) as agent:
        stub, told = agent.stub(), []
        constant(models / "board", 0.1)
        stub.StartModel(pb2.StartModelRequest(model_component="board"))
        looks = 0

        def running() -> bool:
            nonlocal looks
            description = stub.DescribeModel(pb2.DescribeModelRequest(model_component="board")).model_description
            told.append(description.status_message)
            if looks < 5 and description.status == pb2.STARTING:  # what it has just seen is not the last of it
                looks += 1
                until(lambda: time.monotonic() > began + 0.15 * looks, "the disk is slow")
                (models / "board" / "mochi" / "model.onnx").touch()
            return description.status == pb2.RUNNING

        began = time.monotonic()
        until(running, "it runs")
        seen_running = time.monotonic()
        until(lambda: not running() or time.monotonic() > seen_running + 2, "some looks have come")
        assert any(message.startswith("Waiting until the package on disk has settled.") for message in told)
        assert not any("changed since" in message for message in told), set(told)
        constant(models / "board", 0.7)
        until(lambda: "changed since" in agent.describe("board").status_message, "a real change is told")
        until(lambda: score(agent, "board") == pytest.approx(0.7), "it is taken over")


class TestModelsFolderThatIsALink:
    @pytest.fixture
    def current(self, models) -> Path:
        """A link to the folder v1, beside v2."""
        constant(models / "v1" / "board", 0.25)
        constant(models / "v2" / "board", 0.75)
        made = models / "current"
        made.symlink_to("v1")
        return made

    @staticmethod
    def turn(link: Path, target: str) -> None:
        """Do what `ln -sfn` does."""
        beside = link.with_suffix(".new")
        beside.symlink_to(target)
        beside.replace(link)

    def test_is_followed_anew_at_each_look(self, current):
        constant(current.parent / "v2" / "part", 0.5)
        with serving(current) as agent:
            agent.run_model("board")
            assert listed(agent) == {"board": "RUNNING"}
            self.turn(current, "v2")
            until(lambda: "part" in listed(agent), "what is new is seen")
            shutil.rmtree(current.parent / "v1")
            until(lambda: score(agent, "board") == pytest.approx(0.75), "the new one takes over")
            assert agent.state("board") == "RUNNING"
            until(lambda: "changed" not in agent.describe("board").status_message, "nothing is left to say")

    def test_a_start_follows_it_this_instant(self, current):
        with serving(current, scan_interval=3600) as agent:
            self.turn(current, "v2")
            agent.run_model("board")
            assert score(agent, "board") == pytest.approx(0.75)

    def test_a_package_that_is_gone_behind_it_is_gone(self, current):
        with serving(current) as agent:
            (current.parent / "v3").mkdir()
            self.turn(current, "v3")
            until(lambda: listed(agent) == {}, "it disappears")

    def test_that_leads_to_what_cannot_be_looked_at_costs_no_model(self, current):
        if agent_user().uid == 0:
            pytest.skip("the agent runs as root, which may read everything")
        closed = current.parent / "closed"
        closed.mkdir()
        closed.chmod(0)
        with serving(current) as agent:
            agent.run_model("board")
            self.turn(current, "closed")
            until(lambda: f"Folder {closed} cannot be looked at" in agent.log(), "it is told")
            looked = time.monotonic()
            until(lambda: time.monotonic() > looked + 0.5, "some looks have come")
            assert listed(agent) == {"board": "RUNNING"}
            self.turn(current, "v2")
            until(lambda: score(agent, "board") == pytest.approx(0.75), "it is turned on")

    def test_keeps_its_place_among_the_sources(self, current):
        first = current.parent / "first"
        first.mkdir()
        with serving(first, current) as agent:
            assert listed(agent) == {"board": "STOPPED"}
            constant(first / "board", 0.5)
            until(lambda: "is ignored" in agent.describe("board").status_message, "the second source is told of")
            self.turn(current, "v2")
            until(lambda: f"deployed, STOPPED, from {current.parent / 'v2' / 'board'}" in agent.log(), "it is turned")
            agent.run_model("board")
            assert score(agent, "board") == pytest.approx(0.75), "the source that had it first keeps it"

    def test_permissions_are_those_of_what_is_behind_it(self, current):
        (current.parent / "v2").chmod(0o777)
        with serving(current) as agent:
            agent.run_model("board")
            self.turn(current, "v2")
            until(lambda: "has changed" in agent.describe("board").status_message, "the change is told")
            agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))
            agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
            until(lambda: agent.state("board") == "FAILED", "it is refused")
            assert "Folder 'v2' is writable by everybody" in agent.describe("board").status_message

    def test_that_leads_nowhere_costs_a_warning(self, models):
        link = models / "link"
        link.symlink_to(link)
        with serving(link) as agent:
            assert "link cannot be looked at" in agent.log()
            constant(models / "v1" / "board", 0.25)
            self.turn(link, "v1")
            until(lambda: "board" in listed(agent), "it is found")


def test_the_cause_of_a_failure_outlives_a_new_package(models):
    constant(models / "board", 0.25)
    with serving(models, restart="never") as agent:
        agent.run_model("board")
        (models / "board" / "manifest.json").write_text('{"model_graph": ')
        until(lambda: "cannot take over: manifest.json is not JSON" in agent.describe("board").status_message, "told")
        assert score(agent, "board") == pytest.approx(0.25), "the one before goes on"
        os.kill(agent.workers()[0], signal.SIGKILL)
        until(lambda: agent.state("board") == "FAILED", "the death is seen")
        constant(models / "board", 0.75)
        constant(models / "other", 0.5)
        until(lambda: "other" in listed(agent), "looks go on")
        description = agent.describe("board")
        assert pb2.ModelStatus.Name(description.status) == "FAILED"
        assert "SIGKILL" in description.status_message
        assert "start the model to load it" in description.status_message
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.75)


def test_a_package_that_changes_all_the_time_is_never_taken(models):
    """Negative control of the settling: without it, each scan would take what it sees."""
    ended = threading.Event()
    source = constant(models.parent / "source", 0.25)
    # Far longer than the one that writes may stand still on a busy machine.
    with serving(models, scan_interval=0.5) as agent:

        def rewrite() -> None:
            source.rename(models / "board")
            while not ended.is_set():
                os.utime(models / "board" / "manifest.json")

        writer = threading.Thread(target=rewrite)
        writer.start()
        constant(models / "other", 0.5)
        until(lambda: "other" in listed(agent), "a quiet package is taken")
        seen = listed(agent)
        ended.set()
        writer.join()
        assert "board" not in seen
        until(lambda: "board" in listed(agent), "it is taken once it is quiet")


def test_start_reads_the_package_as_it_is_this_instant(models):
    constant(models / "board", 0.25)
    with serving(models, scan_interval=3600) as agent:
        constant(models / "board", 0.75)
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.75)
        agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))
        shutil.rmtree(models / "board")
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it is refused")
        assert "files are gone" in agent.describe("board").status_message


def test_two_sources_of_one_component(models):
    constant(models / "first" / "board", 0.25)
    constant(models / "second" / "board", 0.75)
    with serving(models / "first", models / "second") as agent:
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.25)
        assert str(models / "second" / "board") in agent.describe("board").status_message
        assert f"{models / 'second' / 'board'} is ignored" in agent.log()


def test_the_source_that_is_known_keeps_the_component(models):
    constant(models / "second" / "board", 0.75)
    (models / "first").mkdir()
    with serving(models / "first", models / "second") as agent:
        agent.run_model("board")
        constant(models / "first" / "board", 0.25)
        until(lambda: "is ignored" in agent.describe("board").status_message, "the conflict is told")
        assert score(agent, "board") == pytest.approx(0.75)


def test_highest_version_of_one_source_wins(models):
    for version, value in (("1.9.0", 0.25), ("1.10.0", 0.75)):
        constant(models / "board" / version / "unpacked", value)
    with serving(models) as agent:
        agent.run_model("board")
        assert score(agent, "board") == pytest.approx(0.75)
        assert agent.describe("board").lookout_vision_model_arn.endswith(":model/board/1")


def test_one_package_of_nonsense_costs_nothing_but_itself(models):
    constant(models / "board", 0.25)
    with serving(models) as agent:
        for name, old, new, words in (
            ("number", '"threshold": 0.5', '"threshold": 1' + "0" * 400, "must be a finite number"),
            ("text", '"model.onnx"', '"\\ud800"', "not Unicode"),
            ("deep", '"threshold": 0.5', '"threshold": ' + "[" * 50_000 + "]" * 50_000, "manifest.json is not JSON"),
        ):
            content = json.dumps(packages.manifest())
            assert old in content
            constant(models / name, 0.25)
            (models / name / "manifest.json").write_text(content.replace(old, new))
            until(lambda: listed(agent).get(name) == "FAILED", "it is listed with the reason")
            assert words in agent.describe(name).status_message
        constant(models / "sparse", 0.25)
        os.truncate(models / "sparse" / "manifest.json", 1 << 43)
        until(lambda: listed(agent).get("sparse") == "FAILED", "it is not read")
        assert "larger than" in agent.describe("sparse").status_message
        assert listed(agent)["board"] == "STOPPED"
        constant(models / "later", 0.25)
        until(lambda: listed(agent).get("later") == "STOPPED", "the watch goes on")


def test_a_folder_that_cannot_be_looked_at_for_a_while_costs_no_model(models):
    """Here: no file can be opened any more, because idle connections have taken all descriptors."""
    import socket

    constant(models / "board", 0.25)
    agent = Agent(models)
    agent.prefix = ["/bin/sh", "-c", 'ulimit -n 100; exec "$0" "$@"']
    try:
        agent.start()
        agent.run_model("board")
        idle = []
        for _ in range(120):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].settimeout(5)
            idle[-1].connect(str(agent.socket))
        until(lambda: "Too many open files" in agent.log(), "the folder cannot be looked at")
        until(lambda: agent.state("board") and agent.log().count("DescribeModel") > 300, "many looks have failed")
        assert agent.state("board") == "RUNNING"
        for connection in idle:
            connection.close()
        until(lambda: score(agent, "board"), "it answers")
        assert "files are gone" not in agent.log()
    finally:
        agent.close()


def test_weights_in_a_second_file_are_refused_wherever_that_file_is(models, tmp_path):
    """A model is the bytes that were checked: no second file is read, from the package or from anywhere else."""
    import numpy as np
    import onnx
    from onnx import external_data_helper

    content = packages.manifest()
    whole = onnx.load_from_string(packages.constant(scores=[0.25, 0.75]))
    for tensor in whole.graph.initializer:
        external_data_helper.set_external_data(tensor, location="w.bin", length=len(tensor.raw_data))
        tensor.ClearField("raw_data")
    packages.write(models / "board", content, whole.SerializeToString())
    (models / "board" / "mochi" / "w.bin").write_bytes(np.zeros(64, np.float32).tobytes())
    agent = Agent(models)
    agent.cwd = models / "board" / "mochi"
    try:
        agent.start()
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it is refused")
        assert "weights in a second file" in agent.describe("board").status_message
    finally:
        agent.close()


def test_autostart_waits_for_a_package_that_comes_late(models):
    with serving(models, autostart=["board"]) as agent:
        assert "'board' is to be started, but: " in agent.log()
        constant(models / "board", 0.25)
        until(lambda: listed(agent).get("board") == "RUNNING", "it is started when it comes")


def test_models_folder_that_comes_late(models):
    later = models / "later"
    with serving(later) as agent:
        assert "later cannot be looked at" in agent.log()
        constant(later / "board", 0.25)
        until(lambda: "board" in listed(agent), "it is found")


def test_a_name_outside_the_pattern_is_skipped_with_a_log_line(models):
    constant(models / "a board", 0.25)
    with serving(models) as agent:
        assert listed(agent) == {}
        assert "its name 'a board' is not of" in agent.log()


def test_memory_that_must_remain_is_counted(models):
    constant(models / "board", 0.25)
    with serving(models, memory_reserve="900TiB") as agent:
        code, details, _ = outcome(agent.stub().StartModel, pb2.StartModelRequest(model_component="board"))
        assert (code, "; 0 MiB are free above the reserve" in details) == (8, True)


def test_peak_memory_and_any_size_of_the_block(models):
    import hashlib

    onnx = packages.constant(scores=[0.25, 0.75])
    digest = {"size": len(onnx), "sha256": hashlib.sha256(onnx).hexdigest()}
    for name, more in (("huge", {"peak_memory_bytes": 10**15}), ("any", {"any_image_size": True}), ("one", {})):
        block = {"format": 1, "component": {"name": name, "version": "1.0.0"}, "files": {"mochi/model.onnx": digest}}
        packages.write(models / name, {**packages.manifest(), "package": {**block, **more}}, onnx)
    with serving(models) as agent:
        assert outcome(agent.stub().StartModel, pb2.StartModelRequest(model_component="huge"))[0] == 8
        for name in ("any", "one"):
            agent.run_model(name)
        image = bytes(3 * 80 * 70)
        assert outcome(agent.stub().DetectAnomalies, request("any", 80, 70, image))[0] == OK
        assert outcome(agent.stub().DetectAnomalies, request("one", 80, 70, image))[0] == 3


def test_a_setting_lets_only_packages_without_a_block_take_any_size(models):
    """A package that has one says itself what sizes its model takes."""
    import hashlib

    onnx = packages.constant(scores=[0.25, 0.75])
    digest = {"size": len(onnx), "sha256": hashlib.sha256(onnx).hexdigest()}
    block = {"format": 1, "component": {"name": "made", "version": "1.0.0"}, "files": {"mochi/model.onnx": digest}}
    packages.write(models / "made", {**packages.manifest(), "package": block}, onnx)
    packages.write(models / "field", packages.manifest(), onnx)
    with serving(models, any_image_size=True) as agent:
        stub, image = agent.stub(), bytes(3 * 80 * 70)
        for name in ("made", "field"):
            agent.run_model(name)
        assert outcome(stub.DetectAnomalies, request("field", 80, 70, image))[0] == OK
        code, details, _ = outcome(stub.DetectAnomalies, request("made", 80, 70, image))
        assert (code, "bitmap is 80x70" in details, "64x64" in details) == (INVALID, True, True)


class TestTrust:
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to make a folder that the agent may not enter")
    def test_what_cannot_be_read_is_failed_and_says_so(self, models):
        if agent_user() == MYSELF:
            pytest.skip("no unprivileged user can run this Python")
        constant(models / "board", 0.25)
        (models / "board" / "mochi").chmod(0o700)
        with serving(models) as agent:
            assert listed(agent) == {"board": "FAILED"}
            assert "cannot be read: Permission denied" in agent.describe("board").status_message
            (models / "board" / "mochi").chmod(0o755)
            until(lambda: agent.state("board") == "STOPPED", "it can be read now")

    @pytest.mark.parametrize("what", ["manifest.json", "mochi/model.onnx", "mochi", ".", ".."])
    def test_writable_by_everybody(self, models, what):
        constant(models / "board", 0.25)
        with serving(models) as agent:
            path = models / "board" / what
            path.chmod(path.stat().st_mode | 0o002)
            until(lambda: agent.state("board") == "FAILED", "it is refused")
            assert "writable by everybody" in agent.describe("board").status_message
            path.chmod(path.stat().st_mode & ~0o002)
            until(lambda: agent.state("board") == "STOPPED", "it is trusted again")

    def test_group_writable_is_allowed(self, models):
        constant(models / "board", 0.25)
        for path in (models, *models.rglob("*")):
            path.chmod(path.stat().st_mode | 0o020)
        with serving(models) as agent:
            agent.run_model("board")

    @pytest.mark.two_uids
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to give files to another user")
    @pytest.mark.parametrize("what", ["manifest.json", "mochi/model.onnx", "mochi", ".", ".."])
    @pytest.mark.parametrize("trusted", [False, True])
    def test_owned_by_another_user(self, models, what, trusted):
        if agent_user() == MYSELF:
            pytest.skip("no unprivileged user can run this Python")
        constant(models / "board", 0.25)
        os.chown(models / "board" / what, OTHER.uid, OTHER.gid)
        with serving(models, trusted_uids=[OTHER.uid] if trusted else []) as agent:
            if trusted:
                agent.run_model("board")
            else:
                assert agent.state("board") == "FAILED"
                assert f"belongs to uid {OTHER.uid}" in agent.describe("board").status_message

    def test_links_are_not_followed(self, models):
        real = constant(models.parent / "elsewhere" / "board", 0.25)
        (models / "linked").symlink_to(real)
        inner = constant(models / "inner", 0.25)
        (inner / "mochi" / "model.onnx").unlink()
        (inner / "mochi" / "model.onnx").symlink_to(real / "mochi" / "model.onnx")
        with serving(models) as agent:
            assert listed(agent) == {"inner": "FAILED"}
            assert "not a regular file" in agent.describe("inner").status_message


def test_package_block_names_and_checks_the_package(models):
    import hashlib

    folder = models / "anything"
    onnx = packages.constant(scores=[0.25, 0.75])
    content = packages.manifest()
    digest = {"size": len(onnx), "sha256": hashlib.sha256(onnx).hexdigest()}
    content["package"] = {
        "format": 1,
        "component": {"name": "board", "version": "2.0.1"},
        "model_arn": "arn:aws:lookoutvision:eu-west-1:1:model/boards/7",
        "files": {"mochi/model.onnx": digest},
    }
    packages.write(folder, content, onnx)
    with serving(models) as agent:
        agent.run_model("board")
        description = agent.describe("board")
        assert description.lookout_vision_model_arn.endswith(":model/boards/7")
        assert description.status_message == ""
        agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))

        (folder / "stray").write_text("")
        until(lambda: agent.state("board") == "FAILED", "a stray file is seen")
        assert "'stray' is not listed" in agent.describe("board").status_message
        (folder / "stray").unlink()
        until(lambda: agent.state("board") == "STOPPED", "it is whole again")

        agent.run_model("board")
        (folder / "manifest.json").write_text('{"model_graph": ')
        until(lambda: "has changed" in agent.describe("board").status_message, "it is damaged, and keeps its name")
        assert listed(agent) == {"board": "RUNNING"}
        (folder / "manifest.json").write_bytes(packages.manifest_bytes(content))
        agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))
        until(lambda: "has changed" not in agent.describe("board").status_message, "it is whole again")

        damaged = bytearray(onnx)
        damaged[len(onnx) // 2] ^= 1
        (folder / "mochi" / "model.onnx").write_bytes(damaged)
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "the flipped bit is seen")
        assert "SHA-256" in agent.describe("board").status_message


def test_model_that_is_not_what_the_manifest_says(models):
    two = packages.manifest(segmentation=True, pixel_names=("background", "dent"))
    cases = {
        "no-mask": (two, packages.constant(scores=[0.1, 0.9])),
        "three-channels": (two, packages.constant([0.1, 0.9], [[[0.0]]] * 3)),
        "no-such-class": (packages.manifest(class_normal_ids=[2]), packages.constant(scores=[0.1, 0.9])),
        "other-input": (packages.manifest(size=(96, 64)), packages.constant(scores=[0.1, 0.9])),
        "not-a-number": (packages.manifest(), packages.constant(scores=[float("nan"), 0.9])),
        "not-onnx": (packages.manifest(), b"not ONNX"),
        "empty": (packages.manifest(), b""),
    }
    words = {
        "no-mask": "the manifest promises mask logits 1xCxHxW and class scores 1xK",
        "three-channels": "for 2 pixel classes",
        "no-such-class": "class_normal_ids [2]",
        "other-input": "failed its warm-up: Got invalid dimensions",
        "not-a-number": "no number to compare",
        "not-onnx": "cannot load the model",
        "empty": "cannot load the model",
    }
    for name, (content, onnx) in cases.items():
        packages.write(models / name, json.loads(json.dumps(content)), onnx)
    with serving(models) as agent:
        for name in cases:
            agent.stub().StartModel(pb2.StartModelRequest(model_component=name))
            until(lambda: agent.state(name) == "FAILED", "it is refused")
            message = agent.describe(name).status_message
            assert words[name] in message, message
            assert "Traceback" not in message
        assert agent.workers() == []
