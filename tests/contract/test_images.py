"""Images in and masks out over a real socket: inline, padded, in shared memory; and every bad one refused by name."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import posix_ipc
import pytest
from onnx import TensorProto, helper

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import serving
from support.calls import (
    EXHAUSTED,
    INVALID,
    NOT_FOUND,
    OK,
    PRECONDITION,
    expected_mask,
    outcome,
    padded,
    picture,
    request,
)
from support.users import I_AM_ROOT, agent_user
from support.waiting import until

WIDTH, HEIGHT = 70, 66  # 210 bytes a row: two bytes of padding
PIXELS = picture(WIDTH, HEIGHT)
SIZE = 3 * WIDTH * HEIGHT
EMPTY = ("", 0)


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.segmenter(module_folder / "models" / "board", (WIDTH, HEIGHT))
    packages.classifier(module_folder / "models" / "part", (WIDTH, HEIGHT))
    packages.classifier(module_folder / "models" / "stopped", (WIDTH, HEIGHT))
    with serving(module_folder / "models") as running:
        running.run_model("board")
        running.run_model("part")
        yield running


@pytest.fixture(scope="module")
def detect(agent):
    stub = agent.stub()
    return lambda *args, **fields: outcome(stub.DetectAnomalies, request(*args, **fields))


def good(answer) -> pb2.DetectAnomalyResult:
    code, details, response = answer
    assert code == OK, details
    return response.detect_anomaly_result


def check_verdict(result: pb2.DetectAnomalyResult) -> None:
    """The score is the mean of the picture, so it shows that every pixel was read, and no padding."""
    assert result.anomaly_score == pytest.approx((PIXELS / 255).mean(), abs=1e-5)


def check_inline_mask(result: pb2.DetectAnomalyResult) -> None:
    mask = np.frombuffer(result.anomaly_mask.byte_data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert (mask == expected_mask(PIXELS)).all()


def test_inline(detect):
    result = good(detect("board", WIDTH, HEIGHT, PIXELS.tobytes()))
    check_verdict(result)
    check_inline_mask(result)
    share = (expected_mask(PIXELS)[:, :, 0] == 0x23).mean()
    assert [one.name for one in result.anomalies] == ["background", "bright"]
    assert result.anomalies[1].pixel_anomaly.total_percentage_area == pytest.approx(share, abs=1e-7)
    assert result.anomalies[1].pixel_anomaly.hex_color == "#23A436"


def test_inline_rows_padded_to_4_bytes(detect):
    result = good(detect("board", WIDTH, HEIGHT, padded(PIXELS)))
    check_verdict(result)
    check_inline_mask(result)


def test_mask_parameters_without_a_handle_ask_for_an_inline_mask(agent):
    asked = request("board", WIDTH, HEIGHT, PIXELS.tobytes())
    asked.anomaly_mask_params.SetInParent()
    assert asked.HasField("anomaly_mask_params")
    result = good(outcome(agent.stub().DetectAnomalies, asked))
    assert result.anomaly_mask.WhichOneof("data") == "byte_data"
    check_inline_mask(result)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("offset", [0, 1, 4096, 10_001])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_shared_memory(detect, segment, slash, offset, layout):
    content = PIXELS.tobytes() if layout == "packed" else padded(PIXELS)
    name = segment(offset + len(content) + 7, os.urandom(offset) + content)
    result = good(detect("board", WIDTH, HEIGHT, handle=(slash + name.lstrip("/"), len(content), offset)))
    check_verdict(result)
    check_inline_mask(result)


@pytest.mark.parametrize("field", ["mask", "legacy_mask"])
@pytest.mark.parametrize("inline", [True, False])
def test_mask_through_a_handle(detect, segment, field, inline):
    guard = 100
    source = segment(SIZE, PIXELS.tobytes())
    target = segment(SIZE + 2 * guard, b"\x77" * (SIZE + 2 * guard))
    image = {"pixels": PIXELS.tobytes()} if inline else {"handle": (source, SIZE)}
    result = good(detect("board", WIDTH, HEIGHT, **image, **{field: (target, SIZE, guard)}))
    echoed = result.anomaly_mask
    assert (echoed.width, echoed.height, echoed.WhichOneof("data")) == (WIDTH, HEIGHT, "shared_memory_handle")
    assert (echoed.shared_memory_handle.name, echoed.shared_memory_handle.size, echoed.shared_memory_handle.offset) == (
        target,
        SIZE,
        guard,
    )
    written = Path("/dev/shm", target.lstrip("/")).read_bytes()
    assert written[:guard] == written[-guard:] == b"\x77" * guard
    assert (np.frombuffer(written[guard:-guard], np.uint8).reshape(HEIGHT, WIDTH, 3) == expected_mask(PIXELS)).all()


def test_field_2_wins_over_the_legacy_one(detect, segment):
    first, second = segment(SIZE), segment(SIZE)
    good(detect("board", WIDTH, HEIGHT, PIXELS.tobytes(), mask=(first, SIZE), legacy_mask=(second, SIZE)))
    assert any(Path("/dev/shm", first.lstrip("/")).read_bytes())
    assert not any(Path("/dev/shm", second.lstrip("/")).read_bytes())


@pytest.mark.parametrize("empty", ["mask", "legacy_mask"])
def test_an_empty_handle_does_not_hide_the_other(detect, segment, empty):
    target = segment(SIZE)
    fields = {"mask": (target, SIZE), "legacy_mask": (target, SIZE), empty: EMPTY}
    result = good(detect("board", WIDTH, HEIGHT, PIXELS.tobytes(), **fields))
    assert result.anomaly_mask.shared_memory_handle.name == target
    assert Path("/dev/shm", target.lstrip("/")).read_bytes() == expected_mask(PIXELS).tobytes()


@pytest.mark.parametrize("fields", [("mask",), ("legacy_mask",), ("mask", "legacy_mask")], ids="+".join)
def test_an_empty_handle_alone_names_nothing(detect, fields):
    """It asks for a mask in a segment, so that an inline one would not be what the caller wants."""
    code, details, _ = detect("board", WIDTH, HEIGHT, PIXELS.tobytes(), **dict.fromkeys(fields, EMPTY))
    assert (code, "anomaly_mask_params.shared_memory_handle.name is ''" in details) == (INVALID, True)


def test_one_segment_for_image_and_mask(detect, segment):
    name = segment(2 * SIZE, PIXELS.tobytes())
    good(detect("board", WIDTH, HEIGHT, handle=(name, SIZE), mask=(name, SIZE, SIZE)))
    written = Path("/dev/shm", name.lstrip("/")).read_bytes()
    assert written[:SIZE] == PIXELS.tobytes()
    assert written[SIZE:] == expected_mask(PIXELS).tobytes()


def test_classification_ignores_a_mask_handle(detect, segment):
    untouched = segment(SIZE)
    result = good(detect("part", WIDTH, HEIGHT, PIXELS.tobytes(), mask=(untouched, SIZE)))
    assert not result.HasField("anomaly_mask")
    assert not result.anomalies
    assert not any(Path("/dev/shm", untouched.lstrip("/")).read_bytes())
    good(detect("part", WIDTH, HEIGHT, PIXELS.tobytes(), mask=("/no-such-segment", SIZE)))
    for size in (0, 1, SIZE - 1):
        good(detect("part", WIDTH, HEIGHT, PIXELS.tobytes(), mask=("/no-such-segment", size)))
    for name in NAMES:
        good(detect("part", WIDTH, HEIGHT, PIXELS.tobytes(), mask=(name, SIZE)))
    good(detect("part", WIDTH, HEIGHT, PIXELS.tobytes(), mask=EMPTY, legacy_mask=EMPTY))
    image = segment(SIZE, PIXELS.tobytes())
    good(detect("part", WIDTH, HEIGHT, handle=(image, SIZE), mask=(image, SIZE)))
    assert Path("/dev/shm", image.lstrip("/")).read_bytes() == PIXELS.tobytes()


BAD = {
    # what is wrong: (arguments of request(), words that the answer must have)
    "no pixels": (("board", WIDTH, HEIGHT), {}, ["byte_data", "shared_memory_handle"]),
    "no bytes": (("board", WIDTH, HEIGHT, b""), {}, ["byte_data has 0 bytes", str(SIZE)]),
    "one byte short": (("board", WIDTH, HEIGHT, bytes(SIZE - 1)), {}, [str(SIZE - 1), str(SIZE)]),
    "one byte long": (("board", WIDTH, HEIGHT, bytes(SIZE + 1)), {}, [str(SIZE + 1), str(SIZE)]),
    "RGBA": (("board", WIDTH, HEIGHT, bytes(4 * WIDTH * HEIGHT)), {}, [str(4 * WIDTH * HEIGHT), str(SIZE), "RGBA"]),
    "too narrow": (("board", 63, 64, bytes(3 * 63 * 64)), {}, ["bitmap.width is 63", "64 to 4096"]),
    "too flat": (("board", 64, 63, bytes(3 * 63 * 64)), {}, ["bitmap.height is 63", "64 to 4096"]),
    "too wide": (("board", 4097, 64, bytes(3 * 4097 * 64)), {}, ["bitmap.width is 4097"]),
    "width 0": (("board", 0, 64, b""), {}, ["bitmap.width is 0"]),
    "negative": (("board", -1, -1, bytes(3)), {}, ["bitmap.width is -1"]),
    "width 2^31-1": (("board", 2**31 - 1, 2**31 - 1, bytes(3)), {}, ["bitmap.width"]),
    "another size": (("board", 64, 64, bytes(3 * 64 * 64)), {}, ["64x64", f"{WIDTH}x{HEIGHT}"]),
    "another size, classification": (("part", 64, 64, bytes(3 * 64 * 64)), {}, ["64x64", f"{WIDTH}x{HEIGHT}"]),
    "handle size": (
        ("board", WIDTH, HEIGHT),
        {"handle": ("/x", SIZE - 1)},
        ["shared_memory_handle.size", str(SIZE - 1)],
    ),
    "handle size 2^64-1": (("board", WIDTH, HEIGHT), {"handle": ("/x", 2**64 - 1)}, ["shared_memory_handle"]),
    "offset 2^63": (("board", WIDTH, HEIGHT), {"handle": ("/x", SIZE, 2**63)}, ["offset", "Correct"]),
    "offset 2^64-1": (("board", WIDTH, HEIGHT), {"handle": ("/x", SIZE, 2**64 - 1)}, ["offset"]),
    "offset + size over 2^63": (("board", WIDTH, HEIGHT), {"handle": ("/x", SIZE, 2**63 - 1)}, ["offset"]),
    "missing segment": (
        ("board", WIDTH, HEIGHT),
        {"handle": ("/no-such-segment", SIZE)},
        ["does not exist", "0660", "container"],
    ),
    "mask size": (
        ("board", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"mask": ("/x", SIZE - 1)},
        ["anomaly_mask_params", str(SIZE)],
    ),
    "mask offset": (
        ("board", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"mask": ("/x", SIZE, 2**63)},
        ["anomaly_mask_params", "offset"],
    ),
    "mask name": (("board", WIDTH, HEIGHT, PIXELS.tobytes()), {"mask": ("a/b", SIZE)}, ["anomaly_mask_params", "name"]),
    "mask offset, classification": (
        ("part", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"mask": ("/x", SIZE, 2**63)},
        ["offset"],
    ),
    "legacy mask size": (
        ("board", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"legacy_mask": ("/x", SIZE - 1)},
        ["anomaly_mask_params", str(SIZE)],
    ),
    "legacy mask offset": (
        ("board", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"legacy_mask": ("/x", SIZE, 2**63)},
        ["anomaly_mask_params", "offset"],
    ),
    "legacy mask offset, classification": (
        ("part", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"legacy_mask": ("/x", SIZE, 2**63)},
        ["offset"],
    ),
    "missing mask segment": (
        ("board", WIDTH, HEIGHT, PIXELS.tobytes()),
        {"mask": ("/no-such-segment", SIZE)},
        ["does not exist"],
    ),
    "overlap": (("board", WIDTH, HEIGHT), {"handle": ("x", SIZE), "mask": ("/x", SIZE, SIZE - 1)}, ["overlaps"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_request(detect, what):
    arguments, fields, words = BAD[what]
    code, details, _ = detect(*arguments, **fields)
    assert code == INVALID, details
    for word in words:
        assert word in details
    assert "Traceback" not in details
    assert "/dev/shm/" not in details


NAMES = [
    "",
    "/",
    ".",
    "..",
    "/.",
    "/..",
    "a/b",
    "//a",
    "../etc/passwd",
    "a\0b",
    "x" * 256,
    "é" * 128,
    "sem.x",
    "/sem.lock",
    "sem.",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("field", ["handle", "mask"])
def test_bad_segment_name(detect, name, field):
    pixels = None if field == "handle" else PIXELS.tobytes()
    code, details, _ = detect("board", WIDTH, HEIGHT, pixels, **{field: (name, SIZE)})
    assert code == INVALID
    assert ".name is " in details
    assert details.isprintable()
    assert len(details) < 500


def test_name_of_255_bytes_is_a_name(detect):
    code, details, _ = detect("board", WIDTH, HEIGHT, handle=("x" * 255, SIZE))
    assert code == INVALID
    assert "does not exist" in details


def test_missing_bitmap(agent):
    code, details, _ = outcome(agent.stub().DetectAnomalies, pb2.DetectAnomaliesRequest(model_component="board"))
    assert (code, details.split(";")[0]) == (INVALID, "bitmap is missing")


@pytest.mark.parametrize("field", ["handle", "mask"])
def test_segment_too_short(detect, segment, field):
    name = segment(SIZE + 9)
    pixels = None if field == "handle" else PIXELS.tobytes()
    code, details, _ = detect("board", WIDTH, HEIGHT, pixels, **{field: (name, SIZE, 10)})
    assert code == INVALID
    assert str(SIZE + 9) in details
    assert "offset 10" in details


@pytest.mark.parametrize("field", ["handle", "mask"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink", "device"])
def test_what_is_no_segment(detect, segment, field, kind):
    path = Path("/dev/shm", f"edge-agent-test-{os.urandom(6).hex()}")
    if kind == "fifo":
        os.mkfifo(path, 0o666)
        path.chmod(0o666)
    elif kind == "directory":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "symlink":
        path.symlink_to(segment(SIZE).replace("/", "/dev/shm/"))
    elif not I_AM_ROOT:
        pytest.skip("only root can make a device")
    else:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero
        path.chmod(0o666)
    try:
        pixels = None if field == "handle" else PIXELS.tobytes()
        code, details, _ = detect("board", WIDTH, HEIGHT, pixels, **{field: (path.name, SIZE)})
    finally:
        path.rmdir() if kind == "directory" else path.unlink()
    assert code == INVALID, details
    assert ("is not a shared memory segment" in details) != ("does not exist or the agent may not" in details), details


@pytest.mark.two_uids
@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to make a segment that belongs to another user")
@pytest.mark.parametrize("field", ["handle", "mask"])
def test_unreadable_segment_reads_like_a_missing_one(detect, segment, field):
    if agent_user().uid == 0:
        pytest.skip("the agent runs as root, which may read everything")
    pixels = None if field == "handle" else PIXELS.tobytes()
    private = segment(SIZE, mode=0o600)
    code, details, _ = detect("board", WIDTH, HEIGHT, pixels, **{field: (private, SIZE)})
    missing = detect("board", WIDTH, HEIGHT, pixels, **{field: ("/no-such-segment", SIZE)})
    assert code == INVALID
    assert "0600" in details
    assert details.replace(private, "") == missing[1].replace("/no-such-segment", "").replace(
        "no-such-segment", private[1:]
    )


def test_checks_come_in_the_order_of_the_contract(agent):
    stub = agent.stub()
    bad_numbers = {"width": 64, "height": 64, "pixels": b""}
    for name, code in (("a b", INVALID), ("nobody", NOT_FOUND), ("stopped", PRECONDITION), ("board", INVALID)):
        assert outcome(stub.DetectAnomalies, request(name, **bad_numbers))[0] == code


def test_queue_slot_comes_after_numbers_and_before_contents(folder):
    packages.segmenter(folder / "models" / "board", (WIDTH, HEIGHT))
    with serving(folder / "models", max_calls=1) as agent:
        agent.run_model("board")
        worker = agent.workers()[0]
        stub = agent.stub()
        marked = os.urandom(SIZE)
        os.kill(worker, signal.SIGSTOP)
        busy = stub.DetectAnomalies.future(request("board", WIDTH, HEIGHT, marked))
        until(lambda: agent.inbox_holds(marked), "the only slot is taken")
        wrong_numbers = outcome(stub.DetectAnomalies, request("board", WIDTH, HEIGHT, b""))
        wrong_contents = outcome(
            stub.DetectAnomalies, request("board", WIDTH, HEIGHT, handle=("/no-such-segment", SIZE))
        )
        os.kill(worker, signal.SIGCONT)
        busy.result(30)
        freed = outcome(stub.DetectAnomalies, request("board", WIDTH, HEIGHT, handle=("/no-such-segment", SIZE)))
    assert (wrong_numbers[0], wrong_contents[0], freed[0]) == (INVALID, EXHAUSTED, INVALID)
    assert "max_calls" in wrong_contents[1]


def test_any_size_where_it_is_allowed(folder):
    packages.classifier(folder / "models" / "part", (64, 64))
    packages.segmenter(folder / "models" / "board", (64, 64))
    with serving(folder / "models", any_image_size=True) as agent:
        for name in ("part", "board"):
            agent.run_model(name)
        stub = agent.stub()
        image = np.full((480, 640, 3), 51, np.uint8).tobytes()
        assert good(outcome(stub.DetectAnomalies, request("part", 640, 480, image))).anomaly_score == pytest.approx(
            0.2, abs=1e-6
        )
        assert outcome(stub.DetectAnomalies, request("board", 640, 480, image))[0] == INVALID


def test_inline_mask_above_the_limit_is_left_out(folder, segment):
    packages.segmenter(folder / "models" / "board", (WIDTH, HEIGHT))
    with serving(folder / "models", inline_mask_limit=SIZE - 1) as agent:
        agent.run_model("board")
        stub = agent.stub()
        result = good(outcome(stub.DetectAnomalies, request("board", WIDTH, HEIGHT, PIXELS.tobytes())))
        assert not result.HasField("anomaly_mask")
        assert len(result.anomalies) == 2
        target = segment(SIZE)
        result = good(
            outcome(stub.DetectAnomalies, request("board", WIDTH, HEIGHT, PIXELS.tobytes(), mask=(target, SIZE)))
        )
        assert result.anomaly_mask.WhichOneof("data") == "shared_memory_handle"


def test_largest_image(folder, segment):
    packages.classifier(folder / "models" / "part", (64, 64))
    with serving(folder / "models", any_image_size=True) as agent:
        agent.run_model("part")
        stub = agent.stub()
        size = 3 * 4096 * 4096
        image = b"\x66" * size
        assert good(outcome(stub.DetectAnomalies, request("part", 4096, 4096, image))).anomaly_score == pytest.approx(
            0.4, abs=1e-6
        )
        name = segment(size, image)
        result = good(outcome(stub.DetectAnomalies, request("part", 4096, 4096, handle=(name, size))))
        assert result.anomaly_score == pytest.approx(0.4, abs=1e-6)
        code, details, _ = outcome(stub.DetectAnomalies, request("part", 4096, 4096, bytes(4 * 4096 * 4096)))
        assert (code, "RGBA" in details) == (INVALID, True)


def test_segment_truncated_during_the_call(folder, segment):
    """A thread cuts and restores a live segment all the time, as the GStreamer client of the field does."""
    packages.classifier(folder / "models" / "part", (64, 64), interpolation=0)
    size = 3 * 2048 * 2048
    name = segment(size)
    memory = posix_ipc.SharedMemory(name)
    ended = threading.Event()

    def cut_and_restore() -> None:
        while not ended.is_set():
            os.ftruncate(memory.fd, size // 2)
            os.ftruncate(memory.fd, size)

    outcomes: Counter = Counter()
    with serving(folder / "models", any_image_size=True) as agent:
        agent.run_model("part")
        workers = agent.workers()
        stub = agent.stub()
        cutting = threading.Thread(target=cut_and_restore)
        cutting.start()
        try:
            while sum(outcomes.values()) < 3000 and not outcomes["cut while it was read"]:
                code, details, _ = outcome(stub.DetectAnomalies, request("part", 2048, 2048, handle=(name, size)))
                outcomes["cut while it was read" if "was shortened" in details else code] += 1
        finally:
            ended.set()
            cutting.join()
            memory.close_fd()
        assert agent.workers() == workers
        assert agent.state("part") == "RUNNING"
    assert outcomes["cut while it was read"], outcomes
    assert set(outcomes) <= {OK, INVALID, "cut while it was read"}


def test_what_a_model_calls_its_parts_does_not_reach_the_log_as_it_is(folder):
    """The runtime prints what fails to stderr, which is where the log is, too."""
    name = "node\n2026-01-31T12:00:00.000Z ERROR forged \x1b[2J"
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "five"], ["index_as_float"]),
        helper.make_node("Cast", ["index_as_float"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["scores"], name=name),
    ]
    constants = {
        "zero": np.float32(0).reshape(()),
        "five": np.float32(5).reshape(()),
        "table": np.zeros((2, 1, 2), np.float32),
    }
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])
    model = packages.model(nodes, constants, (1, 3, 64, 64), [scores])
    packages.write(folder / "models" / "board", packages.manifest(), model)
    with serving(folder / "models") as agent:
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it has failed")
        told = agent.describe("board").status_message
        assert "Gather" in told
        assert told.isprintable()
        assert all(line[:2] in {"20", "  "} and line.isprintable() for line in agent.log().split("\n") if line)
        assert not any("ERROR forged" in line and "board" not in line for line in agent.log().split("\n"))
