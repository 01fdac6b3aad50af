"""What is benchmarked: a model, the agent that serves it, and where its package is for a comparison."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import address, packages
from edge_agent.bench.status import AgentStatus
from edge_agent.bench.usage import served_by
from edge_agent.packages import Found, Rules

# Of how the agent runs a model, what the bare model is run with, too; it has one call at a time.
OPTIONS = ("threads", "spinning")
GPUS = {"cuda", "tensorrt"}


@dataclass(frozen=True)
class Beside:
    """The bare model to measure beside: its package, which `uid` may own too, and how it is run."""

    package: Path
    uid: int | None
    options: Mapping[str, Any]

    def image_size(self) -> tuple[int, int] | None:
        """Return the size (width, height) of the model's images, None where the package cannot be read."""
        try:
            found = look(self.package, self.uid).package
        except OSError:
            return None
        return found.manifest.image_size if found else None


@dataclass(frozen=True)
class Subject:
    """A model that is RUNNING, and the agent that serves it on `socket`; `agent` is its pid, 0 where it cannot be seen."""

    model: str
    socket: Path
    agent: int
    status: AgentStatus

    @classmethod
    def find(cls, model: str, socket: Path, state_dir: Path | None) -> "Subject":
        """Return the subject on a socket; what cannot be known of its agent stays unknown."""
        try:
            agent = served_by(socket)
        except OSError:
            agent = 0
        return cls(model, socket, agent, AgentStatus(socket, state_dir, model))

    @property
    def target(self) -> str:
        """The agent's address for gRPC."""
        return address.target(str(self.socket))

    def beside(self, package: Path | None) -> Beside | None:
        """Return the bare model, None where nobody says where it is, and for a model that is not run on the CPU.

        Whoever names a `package` vouches for it and its owner; of one that the agent names, only root and this user may
        be the owner: else a user could have another one load what he likes.
        """
        told = self.status.model()
        if told.get("accelerator") in GPUS:
            return None
        options = {key: value for key, value in (told.get("options") or {}).items() if key in OPTIONS}
        if package:
            return Beside(package.absolute(), package.stat().st_uid, options)
        return Beside(Path(told["package"]), None, options) if told.get("package") else None


def look(folder: Path, uid: int | None) -> Found:
    """Return what there is in a package's folder, which root, we, or the user `uid` may own; raise OSError."""
    return packages.look(folder, folder, Rules(trusted_uids=() if uid is None else (uid,)))


def unknown(subject: Subject, beside: Beside | None) -> Iterator[str]:
    """Yield what of a benchmark cannot be told, and why, in sentences."""
    if subject.status.why_not:
        yield f"The agent's own times of its stages are not known: {subject.status.why_not}."
    elif not subject.status.sums():
        yield "The agent's own times of its stages are not known: it does not tell them."
    if subject.status.model().get("accelerator") in GPUS:
        yield "There is no comparison with the bare model, which is made on the CPU only."
    elif not beside:
        yield "There is no comparison with the bare model, whose package is not known; name it with --package."
    if not subject.agent:
        yield "The agent's processes cannot be seen from here, so their processors and memory are not known."
