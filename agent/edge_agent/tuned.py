"""What `edge-agent tune` found best for a model on this device, kept in the agent's state folder."""

import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent import state
from edge_agent.files import replacing

logger = logging.getLogger(__name__)

LARGEST_FILE = 1 << 20
FILE = "tuned.json"


class Best(BaseModel):
    """The settings that were measured best for a model, on a device with so many processors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    threads: int = Field(ge=0, le=1024)
    slots: int = Field(ge=1, le=64)
    spinning: bool
    cores: int = Field(ge=1)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1]
    models: dict[str, Best] = {}


class Tuned:
    """The file; what is damaged, or was measured on a device with other processors, counts as not there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, name: str) -> Mapping[str, Any]:
        """Return what was measured best for a model: threads, slots and spinning; nothing where nothing was."""
        best = self._read().get(name)
        if best is None:
            return {}
        if best.cores != cores():
            logger.warning(
                "%s: it was tuned with %d processors, and there are %d; `edge-agent tune` measures again.",
                name,
                best.cores,
                cores(),
            )
            return {}
        return best.model_dump(exclude={"cores"})

    def write(self, name: str, *, threads: int, slots: int, spinning: bool) -> None:
        """Keep what is best for a model; the file is whole at any instant, and its folder's owner's. Raises OSError."""
        models = {**self._read(), name: Best(threads=threads, slots=slots, spinning=spinning, cores=cores())}
        content = {"version": 1, "models": {key: one.model_dump() for key, one in sorted(models.items())}}
        # A name of its own: others may be tuning at the same time.
        beside = self._path.with_name(f".{FILE}.{secrets.token_hex(4)}")
        with replacing(self._path, beside, sync=True) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
            owner = self._path.parent.stat()
            if owner.st_uid != os.geteuid():  # root tunes for the agent, which has to read it
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)

    def _read(self) -> dict[str, Best]:
        try:
            return _File.model_validate_json(state.read_plain(self._path, LARGEST_FILE)).models
        except FileNotFoundError:
            return {}
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            reason = str(error.errors(include_url=False)[0]["msg"])
        except ValueError as error:
            reason = str(error)
        logger.warning(
            "What was tuned is ignored, since %s is not as `edge-agent tune` writes it: %s.", self._path, reason
        )
        return {}


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
