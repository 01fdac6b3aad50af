"""Generated from edge-agent.proto by proto/generate.py; do not edit."""

from typing import Any

from edge_agent._proto import edge_agent_pb2

SERVICE = "AWS.LookoutVision.EdgeAgent"
# RPC name -> (request class, response class); all unary.
METHODS = {
    "DetectAnomalies": (edge_agent_pb2.DetectAnomaliesRequest, edge_agent_pb2.DetectAnomaliesResponse),
    "StartModel": (edge_agent_pb2.StartModelRequest, edge_agent_pb2.StartModelResponse),
    "StopModel": (edge_agent_pb2.StopModelRequest, edge_agent_pb2.StopModelResponse),
    "ListModels": (edge_agent_pb2.ListModelsRequest, edge_agent_pb2.ListModelsResponse),
    "DescribeModel": (edge_agent_pb2.DescribeModelRequest, edge_agent_pb2.DescribeModelResponse),
}


class EdgeAgentStub:
    """The client's side: one callable per RPC."""

    def __init__(self, channel: Any) -> None:
        for rpc, (_, response) in METHODS.items():
            call = channel.unary_unary(
                f"/{SERVICE}/{rpc}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )
            setattr(self, rpc, call)
