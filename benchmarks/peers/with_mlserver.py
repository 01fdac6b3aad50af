"""MLServer: a custom runtime, `MLModel`, served by `mlserver start`; called over gRPC, which is its fastest.

By its documentation: a model folder with settings.json and model-settings.json, one worker process by default, none
with `parallel_workers` 0. A frame is a tensor of UINT8 in its raw form, or one element of type BYTES, which its
maintainers advise for images since it decodes tensors to Python lists of numbers.
"""

import json
import os
import struct
import sys
from pathlib import Path

import grpc
import turns
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.grpc import dataplane_pb2 as pb2
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from work import Task, Work

MODEL = "judge"
Tensor = pb2.ModelInferRequest.InferInputTensor


class Judge(MLModel):
    """The runtime."""

    async def load(self) -> bool:
        """Load the model in the worker process."""
        self._work = Work(Task.given())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Judge a frame."""
        frame = payload.inputs[0]
        pixels = frame.data.root[0] if frame.datatype == "BYTES" else NumpyCodec.decode_input(frame)
        score = ResponseOutput(name="score", datatype="FP32", shape=[1], data=[self._work.score(pixels)])
        return InferenceResponse(model_name=self.name, outputs=[score])


def serve(task: Task) -> None:
    """Become `mlserver start`."""
    folder = Path(task.folder)
    http, grpc_port, metrics = task.ports
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc_port, "metrics_port": metrics, "debug": False}
    settings |= {"parallel_workers": task.workers, "grpc_max_message_length": 1 << 26}
    model = {"name": MODEL, "implementation": "with_mlserver.Judge"}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.chdir(folder)
    os.execv(Path(sys.executable).with_name("mlserver"), ["mlserver", "start", str(folder)])


def call(task: Task) -> None:
    """Call as told."""
    frame = task.frame()
    channel = grpc.insecure_channel(f"127.0.0.1:{task.ports[1]}", [("grpc.max_send_message_length", -1)])
    stub = GRPCInferenceServiceStub(channel)

    def as_bytes() -> float:
        contents = pb2.InferTensorContents(bytes_contents=[frame])
        one = Tensor(name="frame", datatype="BYTES", shape=[1], contents=contents)
        answer = stub.ModelInfer(pb2.ModelInferRequest(model_name=MODEL, inputs=[one]))
        return float(answer.outputs[0].contents.fp32_contents[0])

    def as_tensor() -> float:
        one = Tensor(name="frame", datatype="UINT8", shape=[task.height, task.width, 3])
        answer = stub.ModelInfer(pb2.ModelInferRequest(model_name=MODEL, inputs=[one], raw_input_contents=[frame]))
        return float(struct.unpack("<f", answer.raw_output_contents[0])[0])

    # The slow way is told of once.
    turns.take({"gRPC, bytes": as_bytes} | ({"gRPC, tensor": as_tensor} if task.workers else {}))


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](Task.given())
