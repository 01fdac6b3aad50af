"""What of the settings can change while the agent runs, and how: by the configuration that its component has now."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from edge_agent.config import PREFIX, ModelSettings, Settings
from edge_agent.errors import AgentRefused, printable, shown

logger = logging.getLogger(__name__)

# What of each is meant by "from now on" is said where it is logged.
AT_ONCE = "it counts from now on"
WITH_THE_NEXT_MODEL = "it counts for each model that is started from now on"
WITH_THE_NEXT_WORKER = "it counts for each process of a model that is started from now on"
LIVE = {
    "log_level": "it counts from now on, but for processes of models that run already",
    "queue_limit": AT_ONCE,
    "restart": AT_ONCE,
    "memory_reserve": WITH_THE_NEXT_MODEL,
    "gpu_memory_reserve": WITH_THE_NEXT_MODEL,
    "memory_factor": WITH_THE_NEXT_MODEL,
    "call_timeout": WITH_THE_NEXT_WORKER,
    "load_timeout": WITH_THE_NEXT_WORKER,
    "model_settings": "queue_limit counts from now on; call_timeout, memory and gpu_memory when a model's process is started",
}
LIVE_OF_A_MODEL = ("queue_limit", "call_timeout", "memory", "gpu_memory")
LATER = "it takes effect when the component starts again"
# Of why a value is refused, which may name keys of any length, and any number of them.
LONGEST_REASON = 600
# Keys of the component that are no settings of the agent: its install and startup steps read them.
OF_THE_STEPS = ("Python", "Variant", "ScanArtifacts")
# Settings that the startup step makes of where the component is.
NO_KEYS = {"state_dir", "scan"}


def key_of(setting: str) -> str:
    """Return the key of the component's configuration for a setting, QueueLimit for queue_limit."""
    return "".join(part.capitalize() for part in setting.split("_"))


SETTINGS = {key_of(name): name for name in Settings.model_fields if name not in NO_KEYS}


class Live:
    """The settings as they are now. One thread at a time may use it."""

    def __init__(
        self, settings: Settings, adopt: Callable[[Settings], None], environment: Mapping[str, str] = os.environ
    ) -> None:
        """Begin with the settings that the agent started with, in the environment that the nucleus made for it.

        `adopt` is given new ones, of which only such differ as can change while the agent runs.
        """
        self.settings = settings
        self._adopt = adopt
        self._environment = dict(environment)
        self._seen: dict[str, str] | None = None

    def take(self, configuration: Mapping[str, Any]) -> None:
        """Take over what has changed in the component's configuration, key by key; what makes no sense is refused."""
        known = {key: _text(value) for key, value in configuration.items() if key in SETTINGS or key in OF_THE_STEPS}
        first, before = self._seen is None, self._seen or self._at_start(known)
        # Before anything is done with them, so that each is tried once.
        self._seen = known
        for key in sorted(before.keys() | known.keys()):
            text = known.get(key, "")
            if text == before.get(key, ""):
                continue
            if key in OF_THE_STEPS:
                logger.info("%s is %s now; %s.", key, shown(text), LATER)
            elif not first or SETTINGS[key] in LIVE:
                self._change(key, text)

    def _at_start(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return what the agent was started with, of which the nucleus made the environment.

        Of what cannot change now, the startup step may have made something else of it.
        """
        variables = {name.upper(): value for name, value in self._environment.items()}
        return {
            key: variables.get(_variable(SETTINGS[key]), "") if key in SETTINGS and SETTINGS[key] in LIVE else text
            for key, text in known.items()
        }

    def _change(self, key: str, text: str) -> None:
        name = SETTINGS[key]
        variable = _variable(name)
        environment = {one: value for one, value in self._environment.items() if one.upper() != variable}
        environment[variable] = text
        try:
            new = self.settings.anew(environment)
        except AgentRefused as refusal:
            reason = "; ".join(str(refusal).splitlines()).replace(variable, key).rstrip(".")
            logger.warning(
                "%s cannot be %s, and stays as it was: %s. Correct it: with this one the agent does not start again.",
                key,
                shown(text),
                printable(reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} and so on"),
            )
            return
        self._environment = environment
        if name not in LIVE:
            logger.info("%s is %s now; %s.", key, _told(text), LATER)
            return
        changed = self._merged(name, new)
        if changed == self.settings:
            logger.info("%s is %s now, which changes nothing while the agent runs.", key, _told(text))
            return
        logger.info("%s is %s now; %s.", key, _told(text), LIVE[name])
        self.settings = changed
        self._adopt(changed)

    def _merged(self, name: str, new: Settings) -> Settings:
        """Return the settings of now with one of the new ones, and of those of single models with what can change."""
        value = getattr(new, name)
        if name == "model_settings":
            value = _models_merged(self.settings.model_settings, value)
        return self.settings.model_copy(update={name: value})


def _models_merged(old: Mapping[str, ModelSettings], new: Mapping[str, ModelSettings]) -> dict[str, ModelSettings]:
    none = ModelSettings()
    merged = {}
    for name in sorted(old.keys() | new.keys()):
        fresh = new.get(name, none)
        own = old.get(name, none).model_copy(update={key: getattr(fresh, key) for key in LIVE_OF_A_MODEL})
        if own != none:
            merged[name] = own
    return merged


def _variable(name: str) -> str:
    return f"{PREFIX}{name}".upper()


def _text(value: object) -> str:
    """Return a value of the configuration as the nucleus writes it into the environment: what is no text as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _told(text: str) -> str:
    return shown(text) if text else "its default"
