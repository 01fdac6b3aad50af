"""The client library: results, errors, and segments that are reused, grown and never left behind."""

import gc
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import posix_ipc
import pytest
from PIL import Image

from edge_agent import client as library
from edge_agent import segments
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.client import EdgeAgentClient
from edge_agent.images import NotAnImage
from support import packages
from support.agent import Agent, environment, serving
from support.calls import INVALID, expected_mask, outcome, picture
from support.processes import computes, cpu_ticks
from support.shm import of_clients
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

pytestmark = pytest.mark.usefixtures("client_segments")


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.segmenter(module_folder / "models" / "board")
    packages.classifier(module_folder / "models" / "part")
    packages.classifier(module_folder / "models" / "stopped")
    packages.write(module_folder / "models" / "broken", packages.manifest(), b"not ONNX")
    with serving(module_folder / "models") as running:
        running.run_model("board")
        running.run_model("part")
        yield running


@pytest.fixture
def client(agent):
    with EdgeAgentClient(str(agent.socket)) as made:
        yield made


@pytest.mark.parametrize("shm", [True, False])
def test_detect_from_an_array(client, shm):
    pixels = picture(64, 64)
    result = client.detect("board", pixels, shm=shm)
    assert result.anomaly_score == pytest.approx((pixels / 255).mean(), abs=1e-4)
    assert (result.mask == expected_mask(pixels)).all()
    assert [one.name for one in result.anomalies] == ["background", "bright"]
    assert client.detect("part", pixels, shm=shm).mask is None


def test_detect_from_a_file(client, tmp_path):
    pixels = picture(64, 64, 5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert (client.detect("board", path).mask == expected_mask(pixels)).all()


def test_arrays_that_are_not_contiguous(client):
    wide = picture(128, 128)
    for view in (wide[::2, ::2], wide[:64, 64:][::-1], wide[:64, :64, ::-1]):
        assert (client.detect("board", view).mask == expected_mask(view)).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image(client, image):
    with pytest.raises(ValueError, match="it must be uint8, height x width x 3"):
        client.detect("board", image)


@pytest.mark.parametrize("image", [b"bytes", None, [[0]], 5])
def test_what_is_no_image_at_all(client, image):
    with pytest.raises(NotAnImage, match=f"^image is {type(image).__name__}; give a path, a Pillow image, or a NumPy"):
        client.detect("board", image)


def test_detect_from_a_pillow_image(client):
    pixels = picture(64, 64)
    assert (client.detect("board", Image.fromarray(pixels)).mask == expected_mask(pixels)).all()
    with pytest.raises(NotAnImage, match=r"^image has pixels of Pillow's mode F"):
        client.detect("board", Image.new("F", (64, 64)))


@pytest.mark.parametrize("name", ["\udcff", None, b"board", 5], ids=ascii)
def test_names_that_are_no_text(client, name):
    calls = (client.describe_model, client.start_model, client.stop_model, client.start_and_wait)
    for call in (*calls, lambda name: client.detect(name, picture(64, 64))):
        with pytest.raises(library.NameRejected, match="model_component is ") as caught:
            call(name)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["", "a b", "a/b", "board\n", "\u00e9", "a" * 129], ids=ascii)
def test_names_that_are_none(client, agent, name):
    """Each call says so in the agent's words, also the one whose image may be what is wrong."""
    code, told, _ = outcome(agent.stub().DescribeModel, pb2.DescribeModelRequest(model_component=name))
    assert code == INVALID
    calls = [client.describe_model, client.start_model, client.stop_model, client.start_and_wait]
    calls += [partial(client.detect, image=picture(64, 64), shm=shm) for shm in (True, False)]
    for call in calls:
        with pytest.raises(library.NameRejected) as caught:
            call(name)
        assert (caught.value.code, str(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, told)


@pytest.mark.parametrize("address", [None, b"/tmp/a", Path("/tmp/a"), "/tmp/\udcff"], ids=ascii)
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match=r"^(an address is a text|a socket path must be UTF-8)"):
        EdgeAgentClient(address)


def test_a_mask_that_the_agent_leaves_out(folder):
    packages.segmenter(folder / "models" / "board")
    packages.classifier(folder / "models" / "part")
    with serving(folder / "models", inline_mask_limit=100) as agent, EdgeAgentClient(str(agent.socket)) as client:
        for name in ("board", "part"):
            agent.run_model(name)
        inline, shared = (client.detect("board", picture(64, 64), shm=shm) for shm in (False, True))
        assert (inline.mask, inline.mask_left_out, shared.mask_left_out) == (None, True, False)
        assert shared.mask is not None
        assert client.detect("part", picture(64, 64), shm=False).mask_left_out is False, "it makes none"


def test_a_model_that_gets_a_mask_later(folder):
    """The name was a classifier's, for which no room for a mask is taken; then a segmenter takes it over."""
    packages.classifier(folder / "models" / "board")
    with serving(folder / "models", inline_mask_limit=100) as agent, EdgeAgentClient(str(agent.socket)) as client:
        client.start_and_wait("board")
        assert client.detect("board", picture(64, 64)).mask is None
        client.stop_model("board")
        packages.segmenter(folder / "models" / "board")
        client.start_and_wait("board")
        client.detect("board", picture(64, 64))  # shows that there is a mask now
        assert client.detect("board", picture(64, 64)).mask is not None


def test_segments_are_reused(client):
    for seed in range(20):
        client.detect("board", picture(64, 64, seed))
        client.detect("part", picture(64, 64, seed))
    assert len(of_clients()) == 2


def test_a_mask_stays_as_it_is_while_it_is_held(client):
    pictures = [picture(64, 64, seed) for seed in range(5)]
    masks = [client.detect("board", pixels).mask for pixels in pictures]
    corner = client.detect("board", pictures[0]).mask[:8, :8]
    for pixels, mask in zip(pictures, masks, strict=True):
        assert (mask == expected_mask(pixels)).all()
    assert len(of_clients()) == 1 + 5 + 1
    del masks, mask
    gc.collect()
    for seed in range(10):
        client.detect("board", picture(64, 64, 100 + seed))
    assert (corner == expected_mask(pictures[0])[:8, :8]).all()
    assert len(of_clients()) == 7, "the released ones served again"


def test_segments_grow(folder):
    packages.classifier(folder / "models" / "part")
    with serving(folder / "models", any_image_size=True) as agent, EdgeAgentClient(str(agent.socket)) as client:
        agent.run_model("part")
        for side in (64, 640, 65, 2048, 64):
            image = np.full((side, side, 3), 51, np.uint8)
            assert client.detect("part", image).anomaly_score == pytest.approx(0.2, abs=1e-3)
        assert len(of_clients()) <= 2


def test_mode_and_group_are_the_agents(client, agent):
    before = os.umask(0o077)
    try:
        client.detect("part", picture(64, 64))
    finally:
        os.umask(before)
    for name in of_clients():
        info = Path("/dev/shm", name).stat()
        assert stat.S_IMODE(info.st_mode) == 0o660
        assert info.st_gid == agent.socket.stat().st_gid


def test_two_clients_and_many_threads_in_one_process(agent):
    with EdgeAgentClient(str(agent.socket)) as first, EdgeAgentClient(str(agent.socket)) as second:
        wrong = []

        def judge(seed: int) -> None:
            mine = first if seed % 2 else second
            for index in range(25):
                pixels = picture(64, 64, 1000 * seed + index)
                if not (mine.detect("board", pixels).mask == expected_mask(pixels)).all():
                    wrong.append(seed)

        threads = [threading.Thread(target=judge, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        assert len(of_clients()) <= 2 * 8


ERRORS = [
    ("board", (65, 64), library.ImageRejected, grpc.StatusCode.INVALID_ARGUMENT),
    ("nobody", (64, 64), library.ModelNotFound, grpc.StatusCode.NOT_FOUND),
    ("stopped", (64, 64), library.ModelNotRunning, grpc.StatusCode.FAILED_PRECONDITION),
]


@pytest.mark.parametrize(("model", "size", "error", "code"), ERRORS)
def test_errors_of_detect(client, model, size, error, code):
    with pytest.raises(error) as caught:
        client.detect(model, picture(*size))
    assert caught.value.code is code
    assert str(caught.value)


def test_errors_of_the_other_calls(client):
    for call, name, error in (
        (client.describe_model, "a b", library.NameRejected),
        (client.describe_model, "nobody", library.ModelNotFound),
        (client.start_model, "board", library.ModelNotStartable),
        (client.stop_model, "stopped", library.ModelNotRunning),
        (client.start_and_wait, "broken", library.ModelFailed),
    ):
        with pytest.raises(error):
            call(name)


def test_start_and_wait_tells_progress(client):
    client.stop_model("part")
    told = []
    info = client.start_and_wait("part", progress=told.append)
    assert info.status == told[-1].status == "RUNNING"
    assert client.start_and_wait("part").status == "RUNNING", "it ran already"


def test_timeouts(folder):
    packages.write(folder / "models" / "slow", packages.manifest(), packages.slow(10**7))
    with (
        serving(folder / "models", call_timeout=600) as agent,
        EdgeAgentClient(str(agent.socket)) as client,
        pytest.raises(TimeoutError, match="not RUNNING within 0.1 s"),
    ):
        client.start_and_wait("slow", timeout=0.1)


def test_an_agent_that_does_not_answer_is_not_waited_for_longer(folder):
    packages.segmenter(folder / "models" / "board")
    with serving(folder / "models") as agent, EdgeAgentClient(str(agent.socket)) as client:
        client.list_models()
        os.kill(agent.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(1) as pool:
                waits = pool.submit(client.start_and_wait, "board", timeout=0.2)
                done, _ = wait([waits], timeout=10)  # ten times what it takes
                if not done:
                    os.kill(agent.pid, signal.SIGCONT)
                assert done, "it waits on"
            with pytest.raises(TimeoutError, match=r"not RUNNING within 0\.2 s: the agent did not answer"):
                waits.result()
            calls = (client.list_models, partial(client.describe_model, "board"), partial(client.start_model, "board"))
            for call in (*calls, partial(client.stop_model, "board")):
                with pytest.raises(library.CallTimedOut):
                    call(timeout=0.1)
        finally:
            os.kill(agent.pid, signal.SIGCONT)
        assert client.start_and_wait("board", timeout=60).status == "RUNNING"


@pytest.mark.parametrize(("timeout", "least", "most"), [(0, 1, 1), (60, 59, 60), (None, None, None)])
def test_each_call_of_a_wait_has_what_is_left_of_it_and_a_second_at_least(monkeypatch, timeout, least, most):
    given = []

    def start(name: str, timeout: float | None) -> None:
        given.append(timeout)

    def describe(name: str, timeout: float | None) -> library.ModelInfo:
        given.append(timeout)
        return library.ModelInfo(name, "", "RUNNING", "")

    with EdgeAgentClient("/tmp/no-agent-is-here.sock") as client:
        monkeypatch.setattr(client, "start_model", start)
        monkeypatch.setattr(client, "describe_model", describe)
        client.start_and_wait("board", timeout)
    assert len(given) == 2
    assert all(one is None if least is None else least <= one <= most for one in given)


def test_one_that_is_being_stopped_is_waited_for_and_started(folder):
    packages.segmenter(folder / "models" / "board")
    with serving(folder / "models") as agent, EdgeAgentClient(str(agent.socket)) as client:
        client.start_and_wait("board")
        (worker,) = agent.workers()
        os.kill(worker, signal.SIGSTOP)
        stopping = threading.Thread(target=client.stop_model, args=("board",))
        stopping.start()
        until(lambda: agent.state("board") == "STOPPING", "it is being stopped")
        told = []
        assert client.start_and_wait("board", progress=told.append).status == "RUNNING"
        stopping.join(30)
        assert told[0].status == "STOPPING"
        assert agent.workers() != [worker]


@pytest.mark.parametrize(
    ("said", "starts", "refused"),
    [
        (["STARTING", "RUNNING"], 1, 0),
        (["STOPPED", "STARTING", "RUNNING"], 2, 1),  # it ran when it was to be started, and was stopped
        (["STOPPING", "STOPPING", "STOPPED", "STARTING", "RUNNING"], 2, 1),
        (["STOPPED", "STOPPED", "STARTING", "RUNNING"], 3, 2),
        (["STARTING", "FAILED"], 1, 0),
        (["STARTING", "FAILED"], 1, 1),  # somebody else has started it
        (["STARTING", "STOPPING", "STOPPED"], 1, 0),  # and somebody has stopped what was started here
    ],
)
def test_what_comes_between_is_waited_for(monkeypatch, said, starts, refused):
    with EdgeAgentClient("/tmp/no-agent-is-here.sock") as client:
        begun = []

        def start(name: str, timeout: float | None) -> None:
            begun.append(name)
            if len(begun) <= refused:
                raise library.ModelNotStartable(grpc.StatusCode.FAILED_PRECONDITION, "")

        states = iter(said)
        monkeypatch.setattr(client, "start_model", start)
        monkeypatch.setattr(
            client, "describe_model", lambda name, timeout: library.ModelInfo(name, "", next(states), "why")
        )
        if said[-1] == "RUNNING":
            assert client.start_and_wait("board").status == "RUNNING"
        else:
            with pytest.raises(library.ModelFailed, match=f"The model is {said[-1]}: why"):
                client.start_and_wait("board")
        assert (begun, next(states, None)) == (["board"] * starts, None)


def test_no_agent(tmp_path):
    with (
        EdgeAgentClient(str(tmp_path / "nowhere")) as client,
        pytest.raises(library.AgentUnavailable, match="No agent answers"),
    ):
        client.list_models()


def test_the_agent_is_found_again_after_a_restart(folder):
    packages.segmenter(folder / "models" / "board")
    agent = Agent(folder / "models")
    try:
        agent.start()
        with EdgeAgentClient(str(agent.socket)) as client:
            client.start_and_wait("board")
            agent.stop(signal.SIGKILL)
            with pytest.raises(library.AgentUnavailable):
                client.detect("board", picture(64, 64))
            agent.start()

            def answers() -> bool:
                try:
                    return client.describe_model("board").status == "RUNNING"
                except library.AgentUnavailable:
                    return False

            until(answers, "the same client works again")
            assert client.detect("board", picture(64, 64)).mask is not None
    finally:
        agent.close()


def test_full_shared_memory_is_an_error_and_no_crash(client, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(segments.SharedMemoryFull) as caught:
            client.detect("part", picture(64, 64))
    assert str(caught.value).startswith("/dev/shm has no room for a frame of 12288 bytes")
    assert caught.value.errno == 28
    client.detect("part", picture(64, 64))


def test_shared_memory_that_cannot_be_used_is_an_error_with_a_way_out(client, monkeypatch):
    def refuse(*_, **__):
        raise posix_ipc.PermissionsError("No permission to create the segment")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    with pytest.raises(
        OSError, match=r"^no segment can be made in /dev/shm: No permission .*; send the images inline$"
    ):
        client.detect("part", picture(64, 64))
    assert client.detect("part", picture(64, 64), shm=False).anomaly_score > 0


def test_a_segment_whose_making_is_interrupted_is_not_left_behind(monkeypatch):
    def interrupt(*_):
        raise SystemExit(143)

    monkeypatch.setattr(os, "fchmod", interrupt)
    with pytest.raises(SystemExit):
        segments.Segment(100, None)
    assert of_clients() == set()


PROGRAM = """
import sys
import numpy as np
from edge_agent import segments
from edge_agent.client import EdgeAgentClient
segments.PREFIX = sys.argv[2]
client = EdgeAgentClient(sys.argv[1])
held = client.detect("board", np.zeros((64, 64, 3), np.uint8)).mask
{end}
"""


def run(agent, end: str) -> subprocess.Popen:
    script = PROGRAM.format(end=end)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(agent.socket), segments.PREFIX], env=environment(), stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("end", ["", "client.close()", "raise SystemExit(3)", "raise ValueError", "del client"])
def test_a_client_that_ends_leaves_nothing(agent, end):
    process = run(agent, end)
    process.communicate(timeout=60)
    assert of_clients() == set()


def test_a_client_that_was_killed_in_a_call_is_cleaned_up_by_the_next(folder, agent):
    packages.write(folder / "models" / "slow", packages.manifest(), packages.slow(10**6))
    with serving(folder / "models", call_timeout=600) as slow:
        slow.run_model("slow")
        (worker,) = slow.workers()
        before = cpu_ticks(worker)
        script = PROGRAM.replace('"board"', '"slow"').format(end="")
        process = subprocess.Popen([sys.executable, "-c", script, str(slow.socket), segments.PREFIX], env=environment())
        until(lambda: computes(worker, before), "it is in the call")
        assert len(of_clients()) == 2
        assert segments.sweep() == 0, "a living client's segments are not swept"
        process.kill()
        process.wait()
        left = of_clients()
        assert len(left) == 2
    with EdgeAgentClient(str(agent.socket)) as client:
        client.detect("part", picture(64, 64))
        assert not of_clients() & left, "swept by the next client"


@pytest.mark.two_uids
@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to act as two users")
def test_what_a_killed_client_left_is_removed_by_the_next_of_the_same_user(monkeypatch):
    """/dev/shm is sticky: nobody else but root may remove it, though its mode lets the group write it."""
    if agent_user() == MYSELF:
        pytest.skip("no unprivileged user can run this Python")
    left = Path("/dev/shm", f"{segments.PREFIX}left")
    left.touch()
    left.chmod(0o666)
    os.chown(left, OTHER.uid, OTHER.gid)
    script = "import sys; from edge_agent import segments; segments.PREFIX = sys.argv[1]; print(segments.sweep())"
    for user, removed in ((agent_user(), "0\n"), (OTHER, "1\n")):
        done = subprocess.run(
            [sys.executable, "-c", script, segments.PREFIX],
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            **user.popen(),
        )
        assert done.stdout == removed, done.stderr


def test_other_peoples_segments_are_left_alone(segment):
    name = segment(100)
    link = Path("/dev/shm", f"{segments.PREFIX}link")
    link.symlink_to(f"/dev/shm{name}")
    try:
        segments.sweep()
        assert link.is_symlink()
        assert Path(f"/dev/shm{name}").exists()
    finally:
        link.unlink()


def test_a_forked_child_does_not_remove_its_parents_segments(agent):
    end = """
import os
child = os.fork()
if child == 0:
    raise SystemExit(0)
os.waitpid(child, 0)
from pathlib import Path
print(len(list(Path("/dev/shm").glob(f"{segments.PREFIX}*"))))
"""
    process = run(agent, end)
    out, _ = process.communicate(timeout=60)
    assert out.split() == [b"2"]


def test_a_thousand_clients_one_after_the_other(agent):
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(1000):
        with EdgeAgentClient(str(agent.socket)) as client:
            client.detect("part", picture(64, 64, seed))
    assert of_clients() == set()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before + 5, "the descriptors are given back")


def test_swept_in_the_instant_of_creation(monkeypatch):
    """A sweeper that comes between a segment's creation and its lock: another segment is made."""
    real = posix_ipc.SharedMemory
    names = []

    def create(name, *args, **kwargs):
        made = real(name, *args, **kwargs)
        names.append(name)
        if len(names) == 1:
            assert segments.sweep() == 1
        return made

    monkeypatch.setattr(posix_ipc, "SharedMemory", create)
    segment = segments.Segment(100, None)
    assert (len(names), segment.name) == (2, names[1])
    segment.unlink()


def test_an_answer_without_a_verdict_is_none():
    """Nothing in it reads as normal, which nobody has said of the part."""
    with pytest.raises(library.CallFailed, match="without a verdict"):
        library._detection(pb2.DetectAnomaliesResponse(), None, (64, 64))


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(64, 64, 5), (0, 0, 0), (-1, -64, 192), (2**31 - 1, 2**31 - 1, 12), (64, 65, 3 * 64 * 65), (65, 64, 3 * 64 * 64)],
)
def test_a_mask_that_is_none(width, height, size):
    answer = pb2.DetectAnomaliesResponse()
    answer.detect_anomaly_result.anomaly_mask.width = width
    answer.detect_anomaly_result.anomaly_mask.height = height
    told = f"^The agent answered with a mask of {width}x{height} pixels in {size} bytes for an image of 64x64.$"
    with pytest.raises(library.CallFailed, match=told):
        library._detection(answer, np.zeros(size, np.uint8), (64, 64))
    answer.detect_anomaly_result.anomaly_mask.byte_data = bytes(size)
    with pytest.raises(library.CallFailed, match=told):
        library._detection(answer, None, (64, 64))


def test_an_image_that_no_message_can_carry(client):
    """In the words of gRPC the agent could not keep up, which sending it later would not help."""
    with pytest.raises(
        library.ImageRejected, match=r"^bitmap.width is 5000; it must be 64 to 4096 pixels. Scale the image"
    ):
        client.detect("board", np.zeros((4600, 5000, 3), np.uint8), shm=False)


def test_a_status_of_a_newer_agent_is_its_number():
    assert library._status_name(2) == "RUNNING"
    assert library._status_name(77) == "STATUS_77"
