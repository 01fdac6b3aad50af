"""An ONNX model to a TensorRT engine, as bytes: parse, configure, build.

The order of the calls: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html, "The
Build Phase". A network's types are the model's own, unless another precision is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_agent.backends import Tell, onnx_graph
from edge_agent.backends.trt_reports import LONGEST, Building, Log
from edge_agent.backends.trt_sdk import Sdk
from edge_agent.errors import AcceleratorMissing, printable, shown
from edge_agent.jobs import GpuOptions
from edge_agent.packages import ModelFiles


@dataclass(frozen=True)
class Built:
    """An engine as bytes, and what was measured for it, which makes the next build shorter."""

    plan: bytes
    timing: bytes


def build(sdk: Sdk, log: Log, model: ModelFiles, gpu: GpuOptions, timing: bytes, tell: Tell) -> Built:
    """Build an engine with what earlier builds measured (b"" if nothing); `tell` is told how far it is.

    Raises:
        AcceleratorMissing: TensorRT cannot build it, with the reason.
        PackageRefused: the model is no ONNX model, or not whole.
        AcceleratorFailed: the GPU failed.

    """
    sdk.check(gpu.precision, model.external)
    trt = sdk.trt
    log.begin()
    builder = made(log, lambda: trt.Builder(log.own))
    network = builder.create_network(sdk.network_flags(gpu.precision))
    parser = trt.OnnxParser(network, log.own)
    if not parser.parse(onnx_graph.in_one_piece(model)):
        raise _refusal(parser)
    config = builder.create_builder_config()
    sdk.set_precision(config, gpu.precision, model.external)
    if gpu.memory_limit:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, gpu.memory_limit)
    _fix_batch(builder, network, config)
    measured = _attach_timing(config, timing)
    what = f"TensorRT {sdk.version} is building the model's engine for {gpu.name or 'the GPU'}"
    building = Building(trt, tell, what)
    config.progress_monitor = building.monitor
    with building:
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.failure("TensorRT cannot build an engine of the model")
    return Built(bytes(plan), bytes(measured.serialize()))


def made(log: Log, make: Callable[[], Any]) -> Any:
    """Return what a constructor makes; raise AcceleratorFailed where TensorRT makes nothing, which it says as TypeError."""
    try:
        return make()
    except TypeError:
        raise log.failure("TensorRT cannot be started on the GPU", fatal=True) from None


def _refusal(parser: Any) -> AcceleratorMissing:
    """Return why the model could not be parsed: the first error, in the parser's words."""
    if not parser.num_errors:
        return AcceleratorMissing("TensorRT cannot take the model, and its parser gives no reason.")
    error = parser.get_error(0)
    where = f"{error.node_operator()} {shown(error.node_name())}: " if error.node_operator() else ""
    said = printable(error.desc().strip().rstrip("."))[:LONGEST]
    return AcceleratorMissing(f"TensorRT cannot take the model: {where}{said}.")


def _fix_batch(builder: Any, network: Any, config: Any) -> None:
    """Set an input's open batch size to 1; raise where more of its shape is open, since an engine is built for one."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        fixed = (1, *shape[1:])
        if -1 in fixed:
            told = "x".join("?" if one == -1 else str(one) for one in shape)
            raise AcceleratorMissing(
                f"TensorRT builds engines for one image size, and the model's input {shown(tensor.name)} is {told}; "
                "export the model with its height and width fixed."
            )
        profile = profile or builder.create_optimization_profile()
        profile.set_shape(tensor.name, fixed, fixed, fixed)
    if profile is not None and config.add_optimization_profile(profile) < 0:
        raise AcceleratorMissing(
            "TensorRT cannot build the model for one image at a time; export it with batch size 1."
        )


def _attach_timing(config: Any, kept: bytes) -> Any:
    """Return the cache of measurements that a build uses and adds to: those kept, where they are of this GPU."""
    cache = config.create_timing_cache(kept)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache
