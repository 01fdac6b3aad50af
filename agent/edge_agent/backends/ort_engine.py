"""What the TensorRT provider builds an engine with: its folder, calibration and shapes, and word while it takes minutes.

The provider keeps its engines itself, in a folder, and does not look whose they are
(https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html, "TensorRT EP Caches"): that is left to
the engine cache, which gives a folder for all that an engine depends on.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.backends import Tell
from edge_agent.backends.engines import EngineCache, EngineKey, digest_of
from edge_agent.backends.ort_options import Engine, environment, providers
from edge_agent.errors import AcceleratorMissing
from edge_agent.jobs import Progress, SessionOptions
from edge_agent.packages import ModelFiles
from edge_agent.probe import libraries

# The file of a package, beside the model, with TensorRT's own calibration for INT8.
CALIBRATION = "calibration.cache"
EVERY = 5.0


@contextlib.contextmanager
def prepared(model: ModelFiles, options: SessionOptions, runtime: str, shape: str) -> Iterator[Engine]:
    """Provide what to open a session with; what it builds meanwhile is kept for the next start, unless that fails.

    `runtime` is ONNX Runtime's version, with which its files change; `shape` the input's where the model leaves it open.

    Raises:
        AcceleratorMissing: there is no room for the calibration.

    """
    calibration = model.external.get(CALIBRATION, b"") if options.gpu.precision == "int8" else b""
    plain = Engine(calibration=CALIBRATION if calibration else "", shape=shape)
    cache = EngineCache(Path(options.gpu.engines), options.gpu.engines_size) if options.gpu.engines else None
    key = _key(model, options, runtime, plain)
    folder = cache.folder(key) if cache else None
    with contextlib.ExitStack() as stack:
        place = folder
        if place is None and calibration:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-")))
        if place is None:
            yield plain
            return
        if calibration:
            try:
                (place / CALIBRATION).write_bytes(calibration)
            except OSError as error:
                raise AcceleratorMissing(f"The calibration for INT8 cannot be written: {error.strerror}.") from None
        yield Engine(str(place), folder is not None, plain.calibration, shape)
    if cache and folder:
        cache.seal(key)


def _key(model: ModelFiles, options: SessionOptions, runtime: str, engine: Engine) -> EngineKey:
    gpu = options.gpu
    told = {name: value for name, value in providers(options, engine)[0][1].items() if name != "device_id"}
    told |= environment(options)
    return EngineKey(
        digest_of(model), gpu.name, gpu.code, libraries.look().tensorrt, gpu.driver, {"onnxruntime": runtime, **told}
    )


@contextlib.contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Tell that an engine is being built, at once and every few seconds, until what is done here is over, however it ends.

    A runtime that holds Python's lock meanwhile, as ONNX Runtime 1.23 does, lets nothing through but the first.
    """
    what = "TensorRT prepares the model for this GPU, which takes minutes when it was not done before"
    begun, over = time.monotonic(), threading.Event()

    def go_on() -> None:
        while not over.wait(EVERY):
            with contextlib.suppress(OSError):  # the agent is gone, and this process ends with it
                tell(Progress(f"{what}: {time.monotonic() - begun:.0f} s so far.", building=True))

    tell(Progress(f"{what}.", building=True))
    thread = threading.Thread(target=go_on, name="building", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # so that nobody else writes into the agent's pipe from here on
