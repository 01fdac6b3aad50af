"""The agent's settings: frozen, from defaults < YAML file < EDGE_AGENT_* environment < flags, refused before start."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from edge_agent import address, settings_file
from edge_agent.accelerators import Wanted
from edge_agent.errors import AgentRefused, printable
from edge_agent.exporter import address as loopback
from edge_agent.jobs import Precision
from edge_agent.kinds import (
    LARGEST_ID,
    Fallback,
    Folders,
    GpuNumber,
    Mode,
    Names,
    Number,
    PositiveSize,
    Processors,
    QueueLimit,
    Size,
    Slots,
    Threads,
    Timeout,
    Uids,
    Whole,
    check_texts,
)
from edge_agent.log import LogSettings
from edge_agent.packages import Rules

PREFIX = "EDGE_AGENT_"
# Variables of ours that are no settings: where the tests look for the shared data.
OTHER_VARIABLES = {"EDGE_AGENT_SHARED"}
# An empty variable counts as none, but for this one, where empty has a meaning of its own.
MAY_BE_EMPTY = "socket_group"


class ModelSettings(BaseModel):
    """What one model may have of its own; None takes the agent's setting of the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: Threads | None = None
    slots: Slots | None = None
    spinning: bool | None = None
    cpus: Processors | None = None
    queue_limit: QueueLimit | None = None
    call_timeout: Timeout | None = None
    memory: Size | None = None
    memory_limit: Size | None = None
    accelerator: Wanted | None = None
    fallback: Fallback | None = None
    gpu: GpuNumber | None = None
    precision: Precision | None = None
    gpu_memory: Size | None = None
    gpu_memory_limit: PositiveSize | None = None


@dataclass(frozen=True)
class Sources:
    """Where settings come from besides the environment: the file's name, what it held, and the flags, by key."""

    file: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)


class Settings(BaseSettings):
    """Every setting of the agent, with its default."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)
    sources: ClassVar[Sources] = Sources()

    socket: str = Field(address.DEFAULT, description="Address to serve on: unix:///path, unix:path or a path.")
    socket_mode: Mode = Field(
        0o660, validate_default=False, description="Mode of the socket, in octal; in the file in quotes."
    )
    socket_group: str = Field(
        "ggc_group",
        description="Group of the socket (name or number); empty: the agent's own. A missing group is a warning.",
    )
    models: Folders = Field((), description="Folders in which model packages are looked for.")
    scan_interval: Number = Field(
        1.0,
        ge=0.05,
        le=3600,
        description="Seconds between two looks at the models folders; a change counts when two agree.",
    )
    registry: Path | None = Field(
        None, description="Folder in which model components register their packages; it is made where it is missing."
    )
    registry_roots: Folders = Field(
        (),
        description="Folders below which registered packages must be; default: `packages` of the Greengrass root, where "
        "the registry is `<root>/work/<component>/<folder>`.",
    )
    scan: Path | None = Field(
        None,
        description="Folder that is searched for packages last, as Greengrass's `packages/artifacts-unarchived`.",
    )
    trusted_uids: Uids = Field(
        (), description="Users besides root and the agent's own that may own model packages and register them."
    )
    target: Literal["advisory", "strict"] = Field(
        "advisory",
        description="What becomes of a package compiled for another GPU or TensorRT: it runs and says so (`advisory`), or is "
        "refused (`strict`).",
    )
    accelerator: Wanted = Field(
        "auto",
        description="What models run on: `cpu`, `cuda`, `tensorrt`, or `auto`: the GPU for packages made for one and, by CUDA, "
        "for those made for nothing in particular, else the CPU.",
    )
    fallback: Fallback = Field(
        "never",
        description="Whether a model that was made for a GPU, or set to one, and cannot run on it is FAILED (`never`), or runs "
        "on the CPU and says so (`allowed`).",
    )
    gpu: GpuNumber = Field(0, description="GPU that models run on, by its number in nvidia-smi.")
    precision: Precision = Field(
        "package",
        description="What TensorRT computes with: what the package says, or `fp16` or `int8` where it can build that.",
    )
    gpu_memory_limit: PositiveSize | None = Field(
        None, description="GPU memory that the runtime of a model may take at most; default: any."
    )
    gpu_memory_reserve: Size = Field(
        ByteSize(256 << 20), description="GPU memory that must remain free after a model is loaded."
    )
    cuda_graphs: bool = Field(
        True, description="Record what a call launches on the GPU once, and replay it (CUDA graphs)."
    )
    build_timeout: Timeout = Field(
        1800.0,
        description="Seconds a model may take to load when a TensorRT engine is built for it; load_timeout is for all else.",
    )
    engine_cache_size: Size = Field(
        ByteSize(4 << 30),
        description="Bytes of built TensorRT engines kept in the state folder; the least used go first.",
    )
    any_image_size: bool = Field(
        False, description="Classification packages without a `package` block accept any image size."
    )
    state_dir: Path | None = Field(
        None,
        description="Folder for what outlives the agent: its lock, the models to start again, tuned settings, built engines, "
        "and its status; default: $STATE_DIRECTORY, $XDG_STATE_HOME/edge-agent or ~/.local/state/edge-agent.",
    )
    autostart: Names = Field((), description="Models to start with the agent.")
    restore: bool = Field(True, description="Start again the models that were started when the agent ended.")
    allow_root: bool = Field(False, description="Allow the agent to run as uid 0.")
    max_calls: Whole = Field(
        64,
        ge=1,
        le=4096,
        description="Detections in hand over all models, one place being kept for each loaded model that has none; one more is "
        "refused.",
    )
    queue_limit: QueueLimit = Field(16, description="Detections of one model that may wait; one more is refused.")
    call_timeout: Timeout | None = Field(
        None,
        description="Seconds a model may take for one image; default: the larger of 10 s and 20 times its warm-up.",
    )
    load_timeout: Timeout = Field(300.0, description="Seconds a model may take to load.")
    restart: Literal["on-failure", "never"] = Field(
        "on-failure",
        description="What happens when a model's process dies: another takes its place while the model stays RUNNING "
        "(`on-failure`), or the model is FAILED (`never`).",
    )
    orphans: Literal["keep", "stop"] = Field(
        "keep",
        description="What becomes of a RUNNING model that is in no source any more while its files are still there: it goes on "
        "(`keep`), or is stopped (`stop`).",
    )
    drain_timeout: Number = Field(
        4.0, ge=0, le=3600, description="Seconds that accepted calls get to finish when a model or the agent stops."
    )
    threads: Threads = Field(0, description="CPU threads of a model's runtime; 0: one for each core.")
    spinning: bool = Field(False, description="Let the runtime's threads spin: faster on an idle machine only.")
    slots: Slots = Field(
        1,
        description="Images of a model that are judged at once, by threads of its process; more take more memory.",
    )
    cpus: Processors = Field(
        (), description="Processors, by number, that a model's process keeps to (pinning); none: all of them."
    )
    memory_factor: Number = Field(
        4.0,
        gt=0,
        le=1000,
        description="Memory of a model that does not state it: this factor times its file, plus 96 MiB.",
    )
    message_memory: Literal["return", "keep"] = Field(
        "return",
        description="What becomes of the memory of inline images above 32 MiB: the system gets it back (`return`), or up to 400 "
        "MB are kept for the next ones, which are faster then (`keep`).",
    )
    memory_reserve: Size = Field(
        ByteSize(128 << 20), description="Memory that must remain available after a model is loaded."
    )
    memory_limit: Size | None = Field(
        None,
        description="Memory that a model's process may take at most, which has no limit where it uses a GPU; default: what is "
        "free when it is started.",
    )
    inline_mask_limit: Size | None = Field(
        None, description="Leave out an inline mask above this many bytes (for clients with gRPC's 4 MiB limit)."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line written: `debug`, `info`, `warning` or `error`."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of the log lines on stdout: `text` or `json`."
    )
    log_file: Path | None = Field(
        None, description="File that log lines are also written to; at its size it is renamed to `<file>.1`."
    )
    log_file_size: PositiveSize = Field(
        ByteSize(10 << 20),
        description="Bytes after which the log file is renamed; there are never more than two.",
    )
    metrics_address: str | None = Field(
        None,
        description="Address that metrics for Prometheus are served on, as 127.0.0.1:9464: of this machine only, to any of its "
        "users. Needs the extra `metrics`.",
    )
    metrics_file: Path | None = Field(
        None,
        description="File that the same metrics are written to every 15 s, for node_exporter, which reads names that end in "
        "`.prom`. Needs the extra `metrics`.",
    )
    model_settings: dict[str, ModelSettings] = Field(
        {},
        description="Settings of single models by name: threads, slots, spinning, cpus, queue_limit, call_timeout, memory, "
        "memory_limit, accelerator, fallback, gpu, precision, gpu_memory, gpu_memory_limit.",
    )

    @field_validator("socket")
    @classmethod
    def _socket_has_a_path(cls, value: str) -> str:
        address.socket_path(value)
        return value

    @field_validator("metrics_address")
    @classmethod
    def _metrics_stay_here(cls, value: str | None) -> str | None:
        return None if value is None else str(loopback.parse(value))

    @field_validator("socket_group")
    @classmethod
    def _group_is_a_number_the_system_knows(cls, value: str) -> str:
        if value.isdecimal() and int(value) > LARGEST_ID:
            raise ValueError(f"a group's number is at most {LARGEST_ID}")
        return value

    @model_validator(mode="after")
    def _registry_has_roots(self) -> "Settings":
        if self.registry and not self.registry_roots and not _greengrass_root(self.registry):
            raise ValueError(
                "the registry needs registry_roots, the folders below which registered packages must be; only for a "
                "registry at <root>/work/<component>/<folder> they are known"
            )
        return self

    @field_validator(
        "models", "registry_roots", "registry", "scan", "state_dir", "log_file", "metrics_file", mode="before"
    )
    @classmethod
    def _folders_have_names(cls, value: object) -> object:
        if value == "" or (isinstance(value, list | tuple) and "" in value):
            raise ValueError("an empty path is no folder; leave it out instead")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _texts_can_be_names(cls, value: object) -> object:
        """Refuse NUL and half surrogate pairs, which no path and no name can have."""
        check_texts(value)
        return value

    @property
    def socket_path(self) -> Path:
        """The absolute path of the socket."""
        return address.socket_path(self.socket)

    @property
    def package_rules(self) -> Rules:
        """What model packages must fulfil on this device."""
        return Rules(self.trusted_uids, self.target == "strict")

    @property
    def allowed_roots(self) -> tuple[Path, ...]:
        """The folders below which registered packages must be."""
        root = _greengrass_root(self.registry) if self.registry else None
        return self.registry_roots or ((root / "packages",) if root else ())

    @property
    def log_as(self) -> LogSettings:
        """How log lines are written."""
        return LogSettings(self.log_level, self.log_format, self.log_file, int(self.log_file_size))

    def anew(self, environment: Mapping[str, str]) -> "Settings":
        """Return what the same file and the same flags give in another environment; AgentRefused as `load`."""
        return _load(self.sources, environment)

    def of_model(self, name: str, key: str) -> Any:
        """Return a model's own value of `key`, or the agent's."""
        own = getattr(self.model_settings.get(name), key, None)
        return getattr(self, key, None) if own is None else own

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (the library's signature)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give flags the first word, then the environment; `load` adds the file."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = _that_count(env_settings.env_vars)
        return init_settings, env_settings


def _that_count(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the variables without the empty ones, their names in lower case, as the library has them."""
    may_be_empty = f"{PREFIX}{MAY_BE_EMPTY}".lower()
    lower = {name.lower(): value for name, value in variables.items()}
    return {name: value for name, value in lower.items() if value or name == may_be_empty}


def _greengrass_root(registry: Path) -> Path | None:
    """Return the root folder of Greengrass, where a registry is in the work folder of a component."""
    parents = registry.absolute().parents
    return parents[2] if len(parents) > 2 and parents[1].name == "work" else None


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the effective settings.

    Args:
        file: a YAML file of settings, or None.
        flags: the settings given on the command line, by key.

    Raises:
        AgentRefused: a setting is unknown or makes no sense; the text names each key and where it was set.

    """
    content = {} if file is None else settings_file.read(file)
    return _load(Sources(file, content, dict(flags or {})), os.environ)


def _load(given: Sources, environment: Mapping[str, str]) -> Settings:
    class Loaded(Settings):
        sources: ClassVar[Sources] = given

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **more: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags, variables = super().settings_customise_sources(settings_cls, *sources, **more)
            assert isinstance(variables, EnvSettingsSource)
            variables.env_vars = _that_count(environment)
            return flags, variables, InitSettingsSource(settings_cls, dict(given.content))

    Loaded.__name__ = "Settings"
    try:
        settings = Loaded(**given.flags)
    except SettingsError as error:  # the library's word for a variable that is not JSON where it must be
        raise AgentRefused(f"{error}; write it as JSON, or use --config.") from None
    except ValidationError as error:
        told = error.errors(include_url=False)
        lines = [printable(f"{_where(one['loc'], given, environment)}: {_what(one)}") for one in told]
        raise AgentRefused("\n".join(lines)) from None
    return settings


def strange_variables() -> list[str]:
    """Return a sentence for each variable of the environment that looks like a setting and is none.

    They are no reason to refuse: Kubernetes sets EDGE_AGENT_PORT and others for a service called edge-agent.
    """
    known = [key.upper() for key in Settings.model_fields]
    told = []
    for name in sorted(os.environ):
        key = name.upper().removeprefix(PREFIX)
        if key == name.upper() or key in known or name in OTHER_VARIABLES:
            continue
        near = difflib.get_close_matches(key, known, 1)
        told.append(f"{printable(name)} is no setting and is ignored{f'; {PREFIX}{near[0]} is one' if near else ''}.")
    return told


def _where(location: tuple[int | str, ...], given: Sources, environment: Mapping[str, str]) -> str:
    """Name a setting by the place that set it."""
    key = str(location[0]) if location else "registry"  # of all that is checked of several, what there is to correct
    inner = "".join(f".{part}" for part in location[1:])
    if key in given.flags:
        return f"--{key.replace('_', '-')}{inner}"
    if f"{PREFIX}{key}".upper() in (name.upper() for name in environment):
        return f"{PREFIX}{key.upper()}{inner}"
    return f"{key}{inner} in {given.file}" if given.file else f"{key}{inner}"


def _what(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "no such setting; `edge-agent config` prints those that there are"
    if error["type"] in {"byte_size", "byte_size_unit"}:
        return "write a size in bytes or with a unit, as in 256MiB"
    return str(error["msg"]).removeprefix("Value error, ")
