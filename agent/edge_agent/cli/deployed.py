"""Where a model is, for commands that work beside the agent: in its sources, or where a living agent says."""

import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent import heartbeat, packages, state
from edge_agent.catalog import Catalog
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused, printable, shown
from edge_agent.packages import Found, Rules
from edge_agent.registry import Registry
from edge_agent.state import StateFolder
from edge_agent.ways import Ways

LONGEST = 64 << 20


class NotDeployed(Exception):
    """There is no such model, or it cannot be run; the text says why and what to do."""


def state_path(settings: Settings, *, for_writing: bool) -> Path:
    """Return the agent's state folder, which is not made; raise AgentRefused where it is to be written and cannot be."""
    path = (settings.state_dir or state.default_folder()).absolute()
    if not for_writing:
        return path
    try:
        owner = path.stat().st_uid
    except OSError as error:
        raise AgentRefused(
            f"--state-dir {printable(str(path))} cannot be used: {error.strerror}. The agent makes its state folder at its first "
            "start: name that one, or only measure with --dry-run."
        ) from None
    if os.geteuid() not in (0, owner) or not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        raise AgentRefused(
            f"--state-dir {printable(str(path))} is not a folder that you may write; it belongs to uid {owner}. Run this as that user or as "
            "root, or only measure with --dry-run."
        )
    return path


def living(folder: StateFolder) -> Mapping[str, Mapping[str, Any]]:
    """Return what a living agent tells of its models, by name; nothing where none lives, or we may not know."""
    try:
        told = json.loads(state.read_plain(folder.status_file(), LONGEST))
        lives = heartbeat.life(told).lives
        return {str(one["model"]): dict(one) for one in told["models"]} if lives else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}


@contextmanager
def deployed(
    name: str, package: Path | None, settings: Settings, owner: int, told: Mapping[str, Mapping[str, Any]]
) -> Iterator[Found]:
    """Yield the package of a model, which is there until the end of the `with` statement; raise NotDeployed.

    Args:
        name: the model.
        package: its package, or a folder in which it is; None for where the agent would find it.
        settings: the agent's.
        owner: the agent's user, who is trusted as the agent trusts itself.
        told: what a living agent tells of its models, which counts where the settings name no source.

    """
    rules = replace(Ways(settings).rules(), trusted_uids={*settings.trusted_uids, owner})
    with tempfile.TemporaryDirectory(prefix="edge-agent-packages-") as unpacked:
        found, names = _in_sources(name, package, settings, rules, Path(unpacked))
        if found is None and package is None and name in told:
            found = _where_it_says(name, told[name], rules)
        if found is None:
            there = ", ".join(sorted({*names, *({} if package else told)}))
            what = f"there are: {there}" if there else "name it with --package, or its folder with --models or --config"
            raise NotDeployed(f"There is no model {shown(name)}; {what}.")
        if found.package is None:
            raise NotDeployed(f"{name} cannot be run: {found.refusal}")
        yield found


def _in_sources(
    name: str, package: Path | None, settings: Settings, rules: Rules, unpacked: Path
) -> tuple[Found | None, Collection[str]]:
    """Return the package as the agent would find it, and all names that are there."""
    if package:
        catalog = Catalog((package,), rules)
    else:
        catalog = Catalog(settings.models, rules, registry_of(settings, rules.trusted_uids, unpacked), settings.scan)
    by_name = catalog.look()
    return by_name[name][0] if name in by_name else None, by_name


def registry_of(settings: Settings, trusted_uids: Collection[int], unpacked: Path) -> Registry | None:
    """Return the registry, to look at; zips are unpacked into a folder of our own, since the agent uses its own."""
    if settings.registry is None or not settings.registry.is_dir():
        return None
    folder = settings.registry.absolute()
    return Registry(folder, settings.socket_group, settings.allowed_roots, trusted_uids, unpacked)


def _where_it_says(name: str, told: Mapping[str, Any], rules: Rules) -> Found | None:
    try:
        folder, version = Path(told["package"]), str(told["version"])
        return packages.look(folder, folder.parent, rules, (name, version))
    except (LookupError, TypeError):
        return None  # an older agent, which does not tell
    except OSError as error:
        raise NotDeployed(f"The package of {name} in {folder} cannot be read: {error.strerror}.") from None
