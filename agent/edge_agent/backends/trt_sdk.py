"""TensorRT's Python package: which of it can be used, and all in which its versions differ.

Names and signatures: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/, those of 10.3 (JetPack 6.1
and later) in its archives, and the docstrings of the wheels tensorrt-cu12-bindings 10.3.0, tensorrt-cu13-bindings 10.16.1
and 11.4.0. What 11 took away: https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/, "Removed Python APIs".

| | 10 | 11 |
|---|---|---|
| networks whose types are the model's | NetworkDefinitionCreationFlag.STRONGLY_TYPED | all of them |
| BuilderFlag.FP16, BuilderFlag.INT8, int8_calibrator | for networks without that flag | gone |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from edge_agent.errors import AcceleratorMissing, extra, printable
from edge_agent.jobs import Precision

# The major versions that this is written for.
OLDEST, NEWEST = 10, 11
# The file beside the model with what TensorRT measured when it was calibrated for int8.
CALIBRATION = "calibration.cache"
LONGEST = 200


def installed() -> bool:
    """Return whether TensorRT's Python package is there; it is not loaded."""
    return find_spec("tensorrt") is not None


@dataclass(frozen=True)
class Sdk:
    """TensorRT as it is loaded: its module and its version, as 10.3.0."""

    trt: Any
    version: str

    @property
    def typed_only(self) -> bool:
        """Whether it computes in the model's own types and in no others."""
        return int(self.version.split(".")[0]) >= 11

    def check(self, precision: Precision, files: Mapping[str, bytes]) -> None:
        """Raise AcceleratorMissing where a model with these files beside it cannot be built with a precision."""
        if precision == "package":
            return
        if self.typed_only:
            raise AcceleratorMissing(
                f"TensorRT {self.version} computes in the model's own types only: package the model with --precision "
                f"{precision}, and set the agent's setting precision to package."
            )
        if precision == "int8" and CALIBRATION not in files:
            raise AcceleratorMissing(
                f"TensorRT needs the model's calibration for int8, a file {CALIBRATION} beside the model that "
                "package.files lists; add it, or package the model with --precision int8."
            )

    def network_flags(self, precision: Precision) -> int:
        """Return what create_network takes for a precision."""
        if self.typed_only or precision != "package":
            return 0
        return 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def set_precision(self, config: Any, precision: Precision, files: Mapping[str, bytes]) -> None:
        """Let a builder compute in a precision that was checked; TF32 is off, so that float32 is what it is on a CPU."""
        trt = self.trt
        config.clear_flag(trt.BuilderFlag.TF32)
        if precision == "package":
            return
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":  # with float16 for the layers that are none in int8
            config.set_flag(trt.BuilderFlag.INT8)
            config.int8_calibrator = _calibrator(trt, files[CALIBRATION])


def load() -> Sdk:
    """Return TensorRT; raise AcceleratorMissing, with the reason, where it is not there or another than we know."""
    if not installed():
        raise AcceleratorMissing(f"TensorRT is not installed; {extra('tensorrt')}.")
    try:
        trt = import_module("tensorrt")
        version = ".".join(str(trt.__version__).split(".")[:3])
        major = int(version.split(".")[0])
    except Exception as error:  # noqa: BLE001  (a broken installation raises what it likes)
        said = printable(str(error).strip().partition("\n")[0].rstrip("."))[:LONGEST]
        raise AcceleratorMissing(
            f"TensorRT's Python package cannot be loaded: {said or type(error).__name__}."
        ) from None
    if not OLDEST <= major <= NEWEST:
        raise AcceleratorMissing(
            f"TensorRT {printable(version)} is installed; this agent works with {OLDEST} and {NEWEST} (JetPack 6.1 and "
            "later)."
        )
    return Sdk(trt, version)


def _calibrator(trt: Any, kept: bytes) -> Any:
    """Return a calibrator that has no images, but what was measured with them."""

    class Calibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            """Return that there are no images, which TensorRT asks for where the measurements do not fit the model."""

        def read_calibration_cache(self) -> bytes:
            return kept

        def write_calibration_cache(self, cache: object) -> None:
            """Keep nothing: it is what it was given."""

    return Calibrator()
