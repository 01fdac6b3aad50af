"""Which packages are installed, and which of them the agent will run: looked at by its own code, or told by itself."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent import device, packages, state
from edge_agent.accelerators import WORDS, Here
from edge_agent.block import Target
from edge_agent.catalog import Catalog
from edge_agent.config import Settings
from edge_agent.device import Device
from edge_agent.doctor.report import Finding
from edge_agent.doctor.users import named
from edge_agent.errors import PackageRefused, printable
from edge_agent.gpus import Gpus
from edge_agent.jobs import Accelerator
from edge_agent.packages import Found, Rules
from edge_agent.probe.answering import Answering
from edge_agent.registry import Registry
from edge_agent.state import StateFolder
from edge_agent.ways import Ways

SECTION = "packages"
LONGEST = 64 << 20
# Bytes of models whose digests are checked, all together: some seconds of a slow disk.
MOST_READ = 1 << 30
LOADED = {"STARTING", "RUNNING"}


@dataclass(frozen=True)
class Installed:
    """A model: whether it will run, on what, and why not; `found` is its package, None where only the agent knows it."""

    name: str
    version: str
    will_run: bool
    reason: str = ""
    state: str = ""
    notes: tuple[str, ...] = ()
    found: Found | None = None
    accelerator: Accelerator | None = None

    def data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "version": self.version or None,
            "will_run": self.will_run,
            "reason": self.reason or None,
            "accelerator": self.accelerator,
            "state": self.state or None,
            "folder": str(self.found.folder) if self.found else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Models:
    """All models, by name; `warnings` is what was said of their folders, `sources` whether any folder is named."""

    models: tuple[Installed, ...]
    warnings: tuple[str, ...] = ()
    sources: bool = True


def look(settings: Settings, answers: Answering, folder: StateFolder | None, agent: int, here: Here) -> Models:
    """Look at the packages where the agent would, and where a living agent says that they are."""
    ways = Ways(settings, Gpus(known=here))
    rules = replace(ways.rules(), trusted_uids={*settings.trusted_uids, agent})
    told = _status(folder) if answers.state == "serving" and folder else {}
    with _warnings() as warnings, tempfile.TemporaryDirectory(prefix="edge-agent-doctor-") as unpacked:
        by_name = {name: found[0] for name, found in _in_sources(settings, rules, Path(unpacked)).items()}
        for name, place in told.items():
            if name not in by_name and (found := _where_it_says(name, place, rules)):
                by_name[name] = found
        left = MOST_READ
        models = []
        for name in sorted(by_name.keys() | answers.models.keys()):
            one = _with_agents_word(_installed(name, by_name.get(name), settings, agent), answers)
            if one.will_run and one.found and one.found.package:
                left -= packages.model_size(one.found.package)
                one = _read(one) if left >= 0 else _with_note(one, "Too large to check its digests here.")
            models.append(_with_accelerator(one, ways, told.get(name, {})))
    sources = bool(settings.models or settings.registry or settings.scan)
    return Models(tuple(models), tuple(warnings), sources or bool(models))


def _in_sources(settings: Settings, rules: Rules, unpacked: Path) -> Mapping[str, list[Found]]:
    registry = None
    if settings.registry and settings.registry.is_dir():
        folder = settings.registry.absolute()
        registry = Registry(folder, settings.socket_group, settings.allowed_roots, rules.trusted_uids, unpacked)
    return Catalog(settings.models, rules, registry, settings.scan).look()


def _status(folder: StateFolder) -> dict[str, Mapping[str, Any]]:
    """Return what the living agent's status file says of its models; nothing where we may not read it."""
    try:
        told = json.loads(state.read_plain(folder.status_file(), LONGEST))
        return {str(one["model"]): dict(one) for one in told["models"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _where_it_says(name: str, told: Mapping[str, Any], rules: Rules) -> Found | None:
    try:
        folder, version = Path(told["package"]), str(told["version"])
        return packages.look(folder, folder.parent, rules, (name, version))
    except (LookupError, TypeError, OSError):
        return None  # an older agent, which does not tell, or a folder that is not ours to read


def _installed(name: str, found: Found | None, settings: Settings, agent: int) -> Installed:
    if found is None:
        return Installed(name, "", will_run=True)  # unless the agent says otherwise
    if found.package is None:
        return Installed(name, found.version, will_run=False, reason=found.refusal, found=found)
    ours = os.geteuid()
    if ours not in {0, agent, *settings.trusted_uids} and any(entry[2] == ours for entry in found.signature):
        # Whoever looks at a package trusts themselves; the agent is another.
        reason = f"It belongs to {named(ours)}; only root, the agent's user and trusted_uids may own packages."
        return Installed(name, found.version, will_run=False, reason=reason, found=found)
    return Installed(name, found.version, will_run=True, notes=found.package.notes, found=found)


def _read(one: Installed) -> Installed:
    """Return a model whose files have been read, and found to be those that its package lists, or not."""
    assert one.found is not None
    assert one.found.package is not None
    try:
        packages.read_model(one.found.package)
    except PackageRefused as refusal:
        loaded = "It runs, and its next start will be refused. " if one.state in LOADED else ""
        return replace(one, will_run=False, reason=f"{loaded}{refusal}")
    return one


def _with_agents_word(one: Installed, answers: Answering) -> Installed:
    """Return a model with what the agent that serves says of it, which knows best."""
    if answers.state != "serving":
        return one
    told = answers.models.get(one.name)
    if told is None:
        return _with_note(one, "The agent that serves does not list it.")
    if told.status == "FAILED":
        return replace(one, will_run=False, reason=printable(told.message), state=told.status)
    return replace(one, will_run=True, reason="", state=told.status)


def _with_accelerator(one: Installed, ways: Ways, told: Mapping[str, Any]) -> Installed:
    """Return a model that will run with what it is tried on first, or runs on as the agent tells."""
    runs_on = told.get("accelerator")
    if one.state == "RUNNING" and runs_on in WORDS:
        return replace(one, accelerator=runs_on)
    if not one.will_run or one.found is None or one.found.package is None:
        return one
    try:
        return replace(one, accelerator=ways.choose(one.name, one.found).first)
    except PackageRefused:  # by our settings, which the agent that serves has not
        return one


def _with_note(one: Installed, note: str) -> Installed:
    return replace(one, notes=(*one.notes, note))


def judge(found: Models, here: Device) -> list[Finding]:
    """Say of each package whether it will run; that none will is what prevents serving."""
    findings = []
    serving = any(one.will_run for one in found.models)
    for one in found.models:
        label, version = printable(one.name), printable(f"{one.version} " if one.version else "")
        now = f" ({one.state} now)" if one.state else ""
        if one.will_run:
            notes = "".join(f"; {note.removesuffix('.')}" for note in one.notes)
            where = f" on {WORDS[one.accelerator]}" if one.accelerator else ""
            findings.append(Finding(SECTION, label, "ok", f"{version}will run{where}{now}{notes}"))
        else:
            text = f"{version}will not run{now}: {one.reason}{_misfits(one, here)}"
            cure = f"Deploy a package that this device can run{'' if serving else ': now there is none'}."
            findings.append(Finding(SECTION, label, "warn" if serving else "problem", text, cure))
    findings += [Finding(SECTION, "folders", "warn", one, _cure(one)) for one in found.warnings]
    if not found.models:
        where = "none is deployed" if found.sources else "none is known; name their folders with --models or --config"
        findings.append(Finding(SECTION, "packages", "none", where))
    return findings


def _cure(warning: str) -> str:
    if "cannot be looked at" in warning:
        return "Let the agent's user read the folder, or name another."
    return "Take away what is not wanted, or correct it."


def _misfits(one: Installed, here: Device) -> str:
    """Return what of the target that a package was compiled for is not here, as sentences."""
    target = _target(one.found)
    if target is None or not target.accelerator:
        return ""
    other = [
        f"{kind} {wanted} (here: {now or 'none'})" for kind, wanted, now in device.accelerator_misfits(target, here)
    ]
    return f" It was made for {' and '.join(other)}." if other else ""


def _target(found: Found | None) -> Target | None:
    """Return a package's target, also of one that was refused for it."""
    if found is None:
        return None
    try:
        again = packages.look(
            found.folder, found.root, Rules(any_target=True, trusted_uids=_owners(found)), found.called
        )
    except OSError:
        return None
    return again.package.manifest.block.target if again.package and again.package.manifest.block else None


def _owners(found: Found) -> set[int]:
    return {entry[2] for entry in found.signature}


class _Heard(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(printable(record.getMessage()))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the agent's code logs while it looks, instead of having it printed."""
    said: list[str] = []
    ours, handler = logging.getLogger("edge_agent"), _Heard(said)
    ours.addHandler(handler)  # with one of its own, nothing is printed
    try:
        yield said
    finally:
        ours.removeHandler(handler)
