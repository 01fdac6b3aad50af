"""Call the Edge Agent with nothing but its proto: list the models, start one, judge one image, print the answer.

`edge_agent_pb2` and `edge_agent_pb2_grpc` are what the stock protoc command makes of edge-agent.proto; install.sh runs it.
The recipe hands its configuration over in variables of the environment. Without an image the models are listed only: the
agent takes no image of another size than the model's, and tells nobody that size.
"""

import os
import sys
import time

import edge_agent_pb2 as pb2
import edge_agent_pb2_grpc as pb2_grpc
import grpc
from PIL import Image

SOCKET = os.environ.get("SOCKET") or "unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock"
MODEL = os.environ.get("MODEL_COMPONENT", "")
IMAGE = os.environ.get("IMAGE", "")


def main() -> int:
    """Do it all; return the exit code."""
    # Without this, gRPC refuses answers above 4 MiB: an inline mask of a 1920x1080 image has 5.9 MiB.
    options = [("grpc.max_receive_message_length", -1)]
    try:
        with grpc.insecure_channel(SOCKET, options) as channel:
            stub = pb2_grpc.EdgeAgentStub(channel)
            list_models(stub)
            if not IMAGE:
                print("Image is empty in the configuration: nothing is judged.")
                return 0
            image = Image.open(IMAGE).convert("RGB")
            if not start(stub):
                return 1
            detect(stub, image)
            return 0
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    except OSError as error:
        print(f"Image: {IMAGE}: {error.strerror or 'is not an image that Pillow can read'}.", file=sys.stderr)
    return 1


def list_models(stub: pb2_grpc.EdgeAgentStub) -> None:
    """Print every model that is deployed on the device."""
    for model in stub.ListModels(pb2.ListModelsRequest()).models:
        print(model.model_component, pb2.ModelStatus.Name(model.status), model.status_message, flush=True)


def start(stub: pb2_grpc.EdgeAgentStub) -> bool:
    """Start the model unless it runs, and wait until it does; return whether it does."""
    asked = False
    while True:
        model = stub.DescribeModel(pb2.DescribeModelRequest(model_component=MODEL)).model_description
        if model.status == pb2.RUNNING:
            return True
        if model.status == pb2.FAILED and asked:
            print(f"{MODEL} is FAILED: {model.status_message}", file=sys.stderr)
            return False
        if model.status in {pb2.STOPPED, pb2.FAILED}:
            try:
                stub.StartModel(pb2.StartModelRequest(model_component=MODEL))
            except grpc.RpcError as error:
                # Another client was quicker.
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
            asked = True
        time.sleep(0.2)


def detect(stub: pb2_grpc.EdgeAgentStub, image: Image.Image) -> None:
    """Print the verdict on an image."""
    bitmap = pb2.Bitmap(width=image.width, height=image.height, byte_data=image.tobytes())
    response = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component=MODEL, bitmap=bitmap))
    result = response.detect_anomaly_result
    print("anomalous" if result.is_anomalous else "normal", f"{result.confidence:.4f}")
    if result.HasField("anomaly_mask"):
        mask = result.anomaly_mask
        print(f"mask {mask.width}x{mask.height}, {len(mask.byte_data)} bytes")
        result.ClearField("anomaly_mask")  # whose bytes would fill the log
    print(response)


if __name__ == "__main__":
    sys.exit(main())
