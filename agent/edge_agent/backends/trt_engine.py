"""A model's TensorRT engine: the one that was kept, or else a new one, which is kept."""

import logging
from pathlib import Path
from typing import Any

from edge_agent.backends import Tell, engines, trt_build
from edge_agent.backends.engines import EngineCache, EngineKey
from edge_agent.backends.trt_reports import Log
from edge_agent.backends.trt_sdk import Sdk
from edge_agent.errors import AcceleratorFailed
from edge_agent.jobs import GpuOptions
from edge_agent.packages import ModelFiles

logger = logging.getLogger(__name__)

# Another number for another way of building: what was kept by the one before is not used then.
WAY = "1"


def open_engine(sdk: Sdk, log: Log, model: ModelFiles, gpu: GpuOptions, tell: Tell) -> Any:
    """Return the model's ICudaEngine; errors as those of trt_build.build."""
    sdk.trt.init_libnvinfer_plugins(log.own, "")
    runtime = trt_build.made(log, lambda: sdk.trt.Runtime(log.own))
    cache = EngineCache(Path(gpu.engines), gpu.engines_size if gpu.engines else 0)
    key = _key(sdk, model, gpu)
    if (plan := cache.read(key)) is not None:
        if (engine := _load(runtime, log, plan)) is not None:
            return engine
        logger.warning("TensorRT cannot load the engine that was kept of the model; it is built once more.")
    built = trt_build.build(sdk, log, model, gpu, cache.read_timing(key), tell)
    cache.write(key, built.plan)
    cache.write_timing(key, built.timing)
    engine = _load(runtime, log, built.plan)
    if engine is None:
        raise log.failure("TensorRT cannot load the engine that it built of the model")
    return engine


def _load(runtime: Any, log: Log, plan: bytes) -> Any:
    """Return the engine; None where TensorRT cannot load it, and another one might do."""
    log.begin()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        failure = log.failure("TensorRT cannot load the model's engine")
        if isinstance(failure, AcceleratorFailed):
            raise failure
    return engine


def _key(sdk: Sdk, model: ModelFiles, gpu: GpuOptions) -> EngineKey:
    options = {"way": WAY, "precision": gpu.precision, "workspace": str(gpu.memory_limit)}
    return EngineKey(engines.digest_of(model), gpu.name, gpu.code, sdk.version, gpu.driver, options)
