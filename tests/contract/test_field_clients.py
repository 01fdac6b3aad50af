"""The clients of the field, unchanged: the developer guide's Python client, and stubs beside our own client."""

import json

import pytest
from PIL import Image

from support import packages, shared, stubs
from support.agent import PLENTY, serving
from support.calls import picture, request

# As the developer guide's client works: stubs of the stock command, an insecure channel to the Unix socket, no
# deadlines; describe, start, describe at once, poll each second; PIL to RGB, byte_data; errors printed.
GUIDE = """
import sys
import time

import grpc
from PIL import Image

import edge_agent_pb2 as pb2
import edge_agent_pb2_grpc as pb2_grpc

socket, model, *paths = sys.argv[1:]


def status(stub):
    description = stub.DescribeModel(pb2.DescribeModelRequest(model_component=model)).model_description
    print("status", pb2.ModelStatus.Name(description.status), flush=True)
    return description.status


def detect(stub, path):
    image = Image.open(path).convert("RGB")
    bitmap = pb2.Bitmap(width=image.size[0], height=image.size[1], byte_data=bytes(image.tobytes()))
    try:
        response = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component=model, bitmap=bitmap))
        result = response.detect_anomaly_result
        print("verdict", result.is_anomalous, round(result.confidence, 4), len(result.anomaly_mask.byte_data), flush=True)
    except grpc.RpcError as error:
        print(f"Error code: {error.code()}, Status: {error.details()}", flush=True)


with grpc.insecure_channel(socket) as channel:
    stub = pb2_grpc.EdgeAgentStub(channel)
    for listed in stub.ListModels(pb2.ListModelsRequest()).models:
        print("listed", listed.model_component, listed.lookout_vision_model_arn, pb2.ModelStatus.Name(listed.status))
    detect(stub, paths[0])
    current = status(stub)
    while current != pb2.RUNNING:
        if current == pb2.STOPPED:
            print("starting", stub.StartModel(pb2.StartModelRequest(model_component=model)).status == pb2.STARTING)
            current = status(stub)
            if current == pb2.STOPPED:
                sys.exit("started twice: the guide's client dies here")
            continue
        if current == pb2.FAILED:
            sys.exit("failed")
        time.sleep(1)
        current = status(stub)
    for path in paths:
        detect(stub, path)
    print("stopped", stub.StopModel(pb2.StopModelRequest(model_component=model)).status == pb2.STOPPED)
    detect(stub, paths[0])
"""
NOT_RUNNING = "Error code: StatusCode.FAILED_PRECONDITION, Status: The model is STOPPED; DetectAnomalies needs RUNNING."


def run_guide(agent, folder, model: str, *paths: str) -> list[str]:
    stubs.generate(folder)
    done = stubs.run(GUIDE, folder, f"unix://{agent.socket}", model, *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_guide_client(folder, tmp_path):
    packages.segmenter(folder / "models" / "board", (80, 64))
    for name, seed in (("one", 1), ("two", 2)):
        Image.fromarray(picture(80, 64, seed)).save(tmp_path / f"{name}.png")
    with serving(folder / "models") as agent:
        lines = run_guide(agent, tmp_path, "board", str(tmp_path / "one.png"), str(tmp_path / "two.png"))
    assert lines[0] == "listed board arn:aws:lookoutvision:local:000000000000:model/board/0 STOPPED"
    assert lines[1] == NOT_RUNNING
    assert lines[2:4] == ["status STOPPED", "starting True"]
    assert lines[4] in {"status STARTING", "status RUNNING"}
    verdicts = [line for line in lines if line.startswith("verdict")]
    assert [line.split()[-1] for line in verdicts] == [str(3 * 80 * 64)] * 2
    assert lines[-2:] == ["stopped True", NOT_RUNNING]


@shared.needed
def test_guide_client_on_photographs(shared_models, tmp_path):
    expected = json.loads((shared.FOLDER / "models/cookies-segmentation/expected.json").read_text())["images"]
    names = ["anomaly-1.jpg", "normal-1.jpg", "anomaly-20.jpg"]
    with serving(shared_models) as agent:
        lines = run_guide(agent, tmp_path, "cookies-segmentation", *(str(shared.PHOTOGRAPHS / name) for name in names))
    verdicts = [line.split() for line in lines if line.startswith("verdict")]
    assert [one[1] for one in verdicts] == [str(expected[name]["is_anomalous"]) for name in names]
    for one, name in zip(verdicts, names, strict=True):
        assert float(one[2]) == pytest.approx(expected[name]["confidence"], abs=2e-4)


def test_python_example(folder, tmp_path):
    packages.segmenter(folder / "models" / "board", (80, 64))
    Image.fromarray(picture(80, 64)).save(tmp_path / "one.png")
    stubs.generate(tmp_path)
    script = (stubs.PROTO.parents[1] / "recipes/examples/python/detect.py").read_text()
    with serving(folder / "models") as agent:
        done = stubs.run(script, tmp_path, str(agent.socket), "board", str(tmp_path / "one.png"))
    assert done.returncode == 0, done.stderr
    verdict, *areas = done.stdout.splitlines()
    assert verdict.split()[0] in {"normal", "anomalous"}
    assert [line.split()[0] for line in areas] == ["background", "bright"]


def test_python_example_tells_what_is_wrong_in_a_sentence(folder, tmp_path):
    packages.segmenter(folder / "models" / "board", (80, 64))
    image, text = tmp_path / "one.png", tmp_path / "text.png"
    Image.fromarray(picture(64, 64)).save(image)
    text.write_text("no image")
    stubs.generate(tmp_path)
    script = (stubs.PROTO.parents[1] / "recipes/examples/python/detect.py").read_text()
    with serving(folder / "models") as agent:
        agent.run_model("board")
        for arguments, code, told in (
            ([], 2, "usage: python detect.py SOCKET MODEL IMAGE"),
            ([str(agent.socket), "board"], 2, "usage: python detect.py SOCKET MODEL IMAGE"),
            ([str(agent.socket), "nobody", str(image)], 1, "NOT_FOUND: No model component 'nobody' is deployed"),
            ([str(agent.socket), "board", str(image)], 1, "INVALID_ARGUMENT: bitmap is 64x64"),
            ([str(agent.socket), "board", "nowhere.png"], 1, "nowhere.png: No such file or directory"),
            ([str(agent.socket), "board", str(text)], 1, f"{text}: is not an image that Pillow can read"),
            (["/tmp/no-agent-is-here.sock", "board", str(image)], 1, "UNAVAILABLE: "),
        ):
            done = stubs.run(script, tmp_path, *arguments)
            assert (done.returncode, done.stdout) == (code, "")
            assert done.stderr.startswith(told)
            assert len(done.stderr.splitlines()) == 1


BOTH = """
import sys
sys.path.insert(0, ".")
first, second = sys.argv[2:]
__import__(first)
__import__(second)
import edge_agent_pb2 as theirs
from edge_agent._proto import edge_agent_pb2 as ours
from edge_agent.client import EdgeAgentClient
assert theirs.DESCRIPTOR.pool is not ours.DESCRIPTOR.pool
message = theirs.StartModelRequest(model_component="board")
assert ours.StartModelRequest.FromString(message.SerializeToString()).model_component == "board"
import grpc, edge_agent_pb2_grpc
with grpc.insecure_channel("unix://" + sys.argv[1]) as channel:
    listed = edge_agent_pb2_grpc.EdgeAgentStub(channel).ListModels(theirs.ListModelsRequest()).models
with EdgeAgentClient(sys.argv[1]) as client:
    assert [one.model_component for one in listed] == [one.name for one in client.list_models()] == ["board"]
print("both work")
"""


@pytest.mark.parametrize("order", [("edge_agent_pb2", "edge_agent.client"), ("edge_agent.client", "edge_agent_pb2")])
def test_customers_stubs_beside_our_client(folder, tmp_path, order):
    packages.classifier(folder / "models" / "board")
    stubs.generate(tmp_path)
    with serving(folder / "models") as agent:
        done = stubs.run(BOTH, tmp_path, str(agent.socket), *order)
    assert done.stdout == "both work\n", done.stderr


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.classifier(module_folder / "models" / "board")
    with serving(module_folder / "models") as running:
        running.run_model("board")
        yield running


@pytest.mark.parametrize(
    "authority",
    [
        "localhost",
        "/tmp/aws.iot.lookoutvision.EdgeAgent.sock",
        "tmp%2Faws.iot.lookoutvision.EdgeAgent.sock",
        "tmp:",
        "[::1]:5",
        "user@host",
        "x" * 200,
    ],
    ids=lambda text: text[:20],
)
def test_no_authority_is_refused(agent, authority):
    """Clients derive `:authority` from the socket's path, each in its own way; it says nothing to the agent."""
    stub = agent.stub(("grpc.default_authority", authority))
    answer = stub.DetectAnomalies(request("board", 64, 64, picture(64, 64).tobytes()), timeout=PLENTY)
    assert answer.detect_anomaly_result.anomaly_threshold > 0
