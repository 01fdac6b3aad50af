"""Judge the images of a folder with a model of the Edge Agent: one JSON line for each on stdout.

The recipe hands its configuration over in variables of the environment; an empty one means the default.
"""

import fnmatch
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edge_agent import address, overlay
from edge_agent.client import (
    AgentBusy,
    AgentError,
    AgentUnavailable,
    CallFailed,
    Detection,
    EdgeAgentClient,
    ImageRejected,
    ModelInfo,
    ModelNotRunning,
)
from edge_agent.images import NotAnImage, Pixels, read_image

A_DAY = 86_400.0
PATTERN = "*.png,*.jpg,*.jpeg,*.bmp,*.tif,*.tiff,*.webp"
# What passes by itself, as when the agent is updated; a look that comes later finds the images again.
PASSING = (AgentUnavailable, AgentBusy, ModelNotRunning)

Stamp = tuple[int, int, int]


class Refused(Exception):
    """The configuration asks for what cannot be done; the text names its key and what to do."""


class Ended(BaseException):
    """SIGTERM came."""


@dataclass(frozen=True)
class Settings:
    """The recipe's configuration; `results` is None where no results are kept."""

    socket: str
    model: str
    images: Path
    patterns: tuple[str, ...]
    interval: float
    minimal_confidence: float
    results: Path | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings in the environment's variables; raise Refused."""
        model, images = environment.get("MODEL_COMPONENT"), environment.get("IMAGES")
        if not model:
            raise Refused("ModelComponent is empty; name the model component that judges.")
        if not images:
            raise Refused("Images is empty; name the folder whose images are to be judged.")
        keep = environment.get("RESULTS") or "false"
        if keep.lower() not in {"true", "false"}:
            raise Refused(f"Results is {keep!a}; write true or false.")
        return cls(
            socket=environment.get("SOCKET") or address.DEFAULT,
            model=model,
            images=Path(images),
            patterns=tuple(one.strip().lower() for one in (environment.get("PATTERN") or PATTERN).split(",")),
            interval=_number(environment, "INTERVAL", "Interval", A_DAY, "the seconds between two looks, or 0 for one"),
            minimal_confidence=_number(environment, "MINIMAL_CONFIDENCE", "MinimalConfidence", 1, "0 to 1"),
            results=Path(environment["RESULTS_FOLDER"]) if keep.lower() == "true" else None,
        )


def _number(environment: Mapping[str, str], name: str, key: str, most: float, told: str) -> float:
    """Return a number from 0 to `most`, 0 where nothing is said; raise Refused."""
    text = environment.get(name) or "0"
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise Refused(f"{key} is {text!a}; write {told}.")
    return number


def main() -> int:
    """Judge what the environment says; return the exit code."""
    signal.signal(signal.SIGTERM, _end)
    try:
        settings = Settings.read(os.environ)
        with EdgeAgentClient(settings.socket) as client:
            if settings.interval:
                watch(client, settings)
            judge_all(client, settings)
    except Ended:
        # The shared memory is given back; what the nucleus sees is that the signal ended the process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    except (Refused, CallFailed, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end(*_: object) -> NoReturn:
    raise Ended


def judge_all(client: EdgeAgentClient, settings: Settings) -> None:
    """Judge what is in the folder now; raise Refused when there is nothing, or not all of it could be judged."""
    paths = sorted(look(settings))
    if not paths:
        raise Refused(f"Images: no file in {settings.images} matches Pattern {','.join(settings.patterns)}.")
    client.start_and_wait(settings.model, progress=_progress)
    failed = ["error" in tell(judge(client, path, settings)) for path in paths]
    if any(failed):
        raise Refused(f"{sum(failed)} of {len(failed)} images had an error, which their lines tell.")


def watch(client: EdgeAgentClient, settings: Settings) -> NoReturn:
    """Judge what comes into the folder, for ever; wait while the agent is away."""
    seen: dict[Path, Stamp] = {}
    judged: dict[Path, Stamp] = {}
    ready = False
    said = ""
    while True:
        there = look(settings)
        # What has changed since the last look may still be half of it.
        due = [path for path in sorted(there) if seen.get(path) == there[path] != judged.get(path)]
        try:
            if not ready:
                client.start_and_wait(settings.model, progress=_progress)
                ready, said = True, ""
            for path in due:
                tell(judge(client, path, settings))
                judged[path] = there[path]
        except PASSING as error:
            ready = False
            if str(error) != said:
                said = str(error)
                print(f"{said} Waiting.", file=sys.stderr, flush=True)
        seen = there
        judged = {path: stamp for path, stamp in judged.items() if path in there}
        time.sleep(settings.interval)


def look(settings: Settings) -> dict[Path, Stamp]:
    """Return the files of the folder that match, each with what changes when it does; raise Refused."""
    found = {}
    try:
        for path in settings.images.iterdir():
            if path.name.startswith(".") or not any(
                fnmatch.fnmatchcase(path.name.lower(), pattern) for pattern in settings.patterns
            ):
                continue
            try:
                info = path.stat()
            except FileNotFoundError:  # removed since it was listed
                continue
            found[path] = (info.st_ino, info.st_mtime_ns, info.st_size)
    except OSError as error:
        raise Refused(f"Images: {settings.images} cannot be read as a folder: {error.strerror}.") from None
    return found


def judge(client: EdgeAgentClient, path: Path, settings: Settings) -> dict[str, Any]:
    """Return what is told of an image: its verdict, an `error`, or both when its results could not be kept."""
    try:
        pixels = read_image(path)
        detection = client.detect(settings.model, pixels)
    except NotAnImage as error:
        return {"file": str(path), "error": error.reason}
    except (ImageRejected, AgentError, OSError) as error:
        return {"file": str(path), "error": str(error)}
    told = {
        "file": str(path),
        "verdict": verdict(detection, settings.minimal_confidence),
        "confidence": detection.confidence,
        "anomalies": [
            {"name": one.name, "total_percentage_area": one.total_percentage_area, "hex_color": one.hex_color}
            for one in detection.anomalies
        ],
    }
    if settings.results:
        try:
            keep(settings.results, path.name, told, pixels, detection)
        except OSError as error:
            told["error"] = f"the results cannot be written into {settings.results}: {error.strerror}"
    return told


def verdict(detection: Detection, minimal_confidence: float) -> str:
    """Return `anomalous` or `normal`; `uncertain` where the model is less sure than is asked for."""
    if detection.confidence < minimal_confidence:
        return "uncertain"
    return "anomalous" if detection.is_anomalous else "normal"


def keep(folder: Path, name: str, told: dict[str, Any], pixels: Pixels, detection: Detection) -> None:
    """Write an image's line and overlay into the folder, whole at once; they replace those of the same name."""
    folder.mkdir(exist_ok=True)
    beside = folder / ".new"
    overlay.draw(pixels, detection, name).save(beside, "PNG")
    beside.replace(folder / f"{name}.png")
    beside.write_text(json.dumps(told) + "\n")
    beside.replace(folder / f"{name}.json")


def tell(told: dict[str, Any]) -> dict[str, Any]:
    """Print what is told of an image as a line of JSON, and return it."""
    print(json.dumps(told), flush=True)
    return told


def _progress(info: ModelInfo) -> None:
    print(f"{info.name} is {info.status}. {info.status_message}".rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
