"""The proto is the contract's, the generated code is current, and stock stubs speak the same wire."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto import edge_agent_pb2_grpc
from support import stubs

ROOT = Path(__file__).resolve().parents[2]
TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_BYTES: "bytes",
}
DESCRIPTION = (
    "model_component 1 string, lookout_vision_model_arn 2 string, status 3 ModelStatus, status_message 4 string"
)
CONTRACT = {
    "Bitmap": "width 1 int32, height 2 int32, byte_data 3 bytes, shared_memory_handle 4 SharedMemoryHandle",
    "SharedMemoryHandle": "name 1 string, size 2 uint64, offset 3 uint64",
    "AnomalyMaskParams": "shared_memory_handle 2 SharedMemoryHandle, legacy_shared_memory_handle 3 SharedMemoryHandle",
    "DetectAnomaliesRequest": "model_component 1 string, bitmap 2 Bitmap, anomaly_mask_params 3 AnomalyMaskParams",
    "DetectAnomalyResult": "is_anomalous 1 bool, confidence 2 float, anomaly_mask 3 Bitmap, anomalies 4 repeated Anomaly, "
    "anomaly_score 5 float, anomaly_threshold 6 float",
    "Anomaly": "name 1 string, pixel_anomaly 2 PixelAnomaly",
    "PixelAnomaly": "total_percentage_area 1 float, hex_color 2 string",
    "DetectAnomaliesResponse": "detect_anomaly_result 1 DetectAnomalyResult",
    "DescribeModelRequest": "model_component 1 string",
    "StartModelRequest": "model_component 1 string",
    "StopModelRequest": "model_component 1 string",
    "ModelDescription": DESCRIPTION,
    "ModelMetadata": DESCRIPTION,
    "DescribeModelResponse": "model_description 1 ModelDescription",
    "ListModelsRequest": "",
    "ListModelsResponse": "models 1 repeated ModelMetadata",
    "StartModelResponse": "status 1 ModelStatus",
    "StopModelResponse": "status 1 ModelStatus",
}


def fields(message) -> str:
    listed = []
    for field in message.fields:
        kind = TYPES.get(field.type) or (field.message_type or field.enum_type).name
        many = "repeated " if field.is_repeated else ""
        listed.append(f"{field.name} {field.number} {many}{kind}")
    return ", ".join(listed)


def test_messages_are_the_contracts():
    assert {name: fields(message) for name, message in pb2.DESCRIPTOR.message_types_by_name.items()} == CONTRACT
    assert pb2.DESCRIPTOR.package == "AWS.LookoutVision"
    oneof = pb2.Bitmap.DESCRIPTOR.oneofs_by_name["data"]
    assert [field.name for field in oneof.fields] == ["byte_data", "shared_memory_handle"]


def test_status_values_at_module_level():
    assert [pb2.STOPPED, pb2.STARTING, pb2.RUNNING, pb2.FAILED, pb2.STOPPING] == [0, 1, 2, 3, 4]
    assert pb2.ModelStatus.Name(pb2.RUNNING) == "RUNNING"


def test_service_is_the_contracts():
    assert edge_agent_pb2_grpc.SERVICE == "AWS.LookoutVision.EdgeAgent"
    assert set(edge_agent_pb2_grpc.METHODS) == {
        "DetectAnomalies",
        "StartModel",
        "StopModel",
        "ListModels",
        "DescribeModel",
    }
    for rpc, (request, response) in edge_agent_pb2_grpc.METHODS.items():
        assert (request.DESCRIPTOR.name, response.DESCRIPTOR.name) == (f"{rpc}Request", f"{rpc}Response")


def test_own_descriptor_pool():
    assert pb2.DESCRIPTOR.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("AWS.LookoutVision.Bitmap")


def run_generator(cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_generated_code_is_current():
    done = run_generator(ROOT)
    assert (done.returncode, done.stdout) == (0, "current\n"), done.stderr


@pytest.mark.parametrize("touched", ["proto/edge-agent.proto", "agent/edge_agent/_proto/edge_agent_pb2.py"])
def test_stale_code_is_noticed(tmp_path, touched):
    """Negative control of the test above."""
    for folder in ("proto", "agent/edge_agent/_proto"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert run_generator(tmp_path).returncode == 0
    path = tmp_path / touched
    path.write_text(path.read_text().replace("anomaly_threshold", "anomaly_threshhold"))
    assert run_generator(tmp_path).returncode == 1


def test_stock_command_gives_the_names_that_clients_import(tmp_path):
    stubs.generate(tmp_path)
    script = (
        "import edge_agent_pb2 as p, edge_agent_pb2_grpc as g; print(g.EdgeAgentStub.__name__, p.RUNNING, p.STOPPED)"
    )
    done = stubs.run(script, tmp_path)
    assert done.stdout == "EdgeAgentStub 2 0\n", done.stderr
