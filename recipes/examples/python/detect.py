"""Detect on an image with nothing but the proto: python detect.py SOCKET MODEL IMAGE.

Before, in this folder, with grpcio-tools and pillow installed:

    python3 -m grpc_tools.protoc --proto_path=../../../proto --python_out=. --grpc_python_out=. edge-agent.proto
"""

import sys
import time

import edge_agent_pb2 as pb2
import edge_agent_pb2_grpc as pb2_grpc
import grpc
from PIL import Image


def main() -> int:
    """Judge the image that the arguments name; return the exit code."""
    if len(sys.argv) != 4:
        print("usage: python detect.py SOCKET MODEL IMAGE", file=sys.stderr)
        return 2
    try:
        return detect(*sys.argv[1:])
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    except OSError as error:
        print(f"{sys.argv[3]}: {error.strerror or 'is not an image that Pillow can read'}", file=sys.stderr)
    return 1


def detect(socket: str, model: str, path: str) -> int:
    """Start the model if it is not running, and print its verdict on the image."""
    image = Image.open(path).convert("RGB")
    # Without this, gRPC refuses answers above 4 MiB: an inline mask of a 1920x1080 image has 5.9 MiB.
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix://{socket}", options) as channel:
        stub = pb2_grpc.EdgeAgentStub(channel)
        description = stub.DescribeModel(pb2.DescribeModelRequest(model_component=model)).model_description
        if description.status in {pb2.STOPPED, pb2.FAILED}:
            stub.StartModel(pb2.StartModelRequest(model_component=model))
        while True:
            description = stub.DescribeModel(pb2.DescribeModelRequest(model_component=model)).model_description
            if description.status == pb2.RUNNING:
                break
            if description.status == pb2.FAILED:
                print(description.status_message, file=sys.stderr)
                return 1
            time.sleep(0.2)
        bitmap = pb2.Bitmap(width=image.width, height=image.height, byte_data=image.tobytes())
        response = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component=model, bitmap=bitmap))
        result = response.detect_anomaly_result
        print("anomalous" if result.is_anomalous else "normal", f"{result.confidence:.4f}")
        for anomaly in result.anomalies:
            print(
                f"  {anomaly.name} {anomaly.pixel_anomaly.total_percentage_area:.4f} {anomaly.pixel_anomaly.hex_color}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
