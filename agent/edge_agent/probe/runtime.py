"""What ONNX Runtime really runs on: the providers that it lists are those it was built with, whatever the device has.

Only a session tells the truth (https://onnxruntime.ai/docs/execution-providers/): one that was opened for a provider that
cannot be used runs on the CPU instead, without an error. So a tiny model is opened on each, and run.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edge_agent.errors import extra, printable

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TRIED = (CPU, CUDA, TENSORRT)
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
LONGEST = 300
MOST = 1 << 20
# The runtime's severity of errors, by number.
ERRORS = 3
# An ONNX model of one node: y = Identity(x), float32 of shape (1); IR version 8, opset 17.
TINY = (
    b'\x08\x08::\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x04tinyZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


@dataclass(frozen=True)
class Runtime:
    """The runtime: its version, the providers it lists, and for each that was tried why it is not used, "" where it is."""

    version: str = ""
    listed: tuple[str, ...] = ()
    tried: Mapping[str, str] = field(default_factory=dict)
    distributions: tuple[str, ...] = ()
    absent: str = ""

    @property
    def serves(self) -> bool:
        """Whether a model runs on the CPU."""
        return self.tried.get(CPU) == ""


def distributions() -> tuple[str, ...]:
    """Return the distributions of the runtime that are installed, with their versions."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return tuple(found)


def told(lines: Sequence[Mapping[str, Any]], failed: str) -> Runtime:
    """Return what the process that was asked said, and what it left unsaid because it `failed`."""
    installed = distributions()
    if not lines:
        why = failed or "it said nothing"
        return Runtime(absent=f"ONNX Runtime was loaded to try it, and {why}.", distributions=installed)
    first, *trials = lines
    if first.get("absent"):
        return Runtime(absent=first["absent"], distributions=installed)
    listed = tuple(first["listed"])
    tried = {one["provider"]: one["reason"] for one in trials}
    for provider in TRIED:
        if provider in listed and provider not in tried:
            tried[provider] = f"a session was opened, and {failed or 'nothing came of it'}"
            break  # those after it were not reached
    return Runtime(first["version"], listed, tried, installed)


def answers() -> Iterator[Mapping[str, Any]]:
    """Yield version and providers, then how a session on each came out; called in a process of its own."""
    try:
        # It switches off the telemetry of what is imported next.
        ours = import_module("edge_agent.backends.onnxruntime")
        import onnxruntime as ort

        ours.preload(ort)  # so that it looks where a worker does
    except Exception as error:  # noqa: BLE001  (a broken installation raises what it likes)
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            yield {"absent": f"ONNX Runtime is not installed; {extra('cpu')}."}
        else:
            yield {"absent": f"ONNX Runtime cannot be imported: {_said(error)}."}
        return
    listed = [str(one) for one in ort.get_available_providers()]
    yield {"version": str(ort.__version__), "listed": listed}
    for provider in TRIED:
        if provider in listed:
            yield {"provider": provider, "reason": _trial(ort, provider)}


def _trial(ort: Any, provider: str) -> str:
    """Return why a session does not run on a provider, "" where it does; the runtime's own words where it has any."""
    log = os.memfd_create("edge-agent-trial", os.MFD_CLOEXEC)
    before = os.dup(2)
    os.dup2(log, 2)
    try:
        reason = _used(ort, provider)
    except Exception as error:  # noqa: BLE001  (the runtime raises many classes that share no base)
        reason = _said(error)
    finally:
        os.dup2(before, 2)
        os.close(before)
    said = os.pread(log, MOST, 0).decode(errors="replace")
    os.close(log)
    return reason and (_cause(said) or reason)


def _used(ort: Any, provider: str) -> str:
    """Open a session on a provider and run it; return why it does not run there, "" where it does."""
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = ERRORS
    session = ort.InferenceSession(TINY, options, providers=list(dict.fromkeys((provider, CPU))), enable_fallback=0)
    used = session.get_providers()[0]
    if used != provider:
        return f"a session that was opened for it runs on {used}"
    given = np.array([1.5], np.float32)
    if session.run(None, {"x": given})[0].tolist() != given.tolist():
        return "a model that returns its input returned something else"
    return ""


def _cause(log: str) -> str:
    """Return what the runtime wrote of why it did not use a provider, as one line without its own places."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in log.splitlines()]
    told = next((line for line in lines if "with error: " in line), "")
    return printable(told.rpartition("with error: ")[2].strip().rstrip("."))[:LONGEST]


def _said(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: "))[:LONGEST]
