"""The `package` block that our packager adds to a manifest: what the package is, for which device, and from which bytes."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_agent.errors import PackageRefused
from edge_agent.keys import Keys, mapping

NAME = re.compile(r"[a-zA-Z0-9\-_.]{1,128}")
VERSION = re.compile(r"[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}")
ARN = re.compile(r"[!-~]{1,2048}")
FORMAT = 1
LONGEST_OPTION = 200
KEYS = {
    "format",
    "component",
    "model_arn",
    "manifest_sha256",
    "files",
    "classes",
    "any_image_size",
    "target",
    "graph",
    "precision",
    "peak_memory_bytes",
    "warm_up_seconds",
    "parity",
    "made_from",
}
# What a compiled graph has inside it. There are no partly compiled ones.
COMPILED = {"input": "uint8 NHWC", "normalisation": True, "argmax": True, "score": True}
SELF_DIGEST = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"')
COMPONENT = re.compile(rf'"component": {{\s*"name": "({NAME.pattern})",\s*"version": "({VERSION.pattern})"'.encode())


@dataclass(frozen=True)
class Digest:
    """What a listed file has to be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Target:
    """The device that a package was compiled for.

    `arch` is X86_64 or ARM64, `accelerator` NVIDIA or empty, `device` the name of a target device or empty; `cpu_flags`
    are the processor's flags that it needs, as /proc/cpuinfo names them; `options` are the compiler options of the job.
    """

    arch: str
    accelerator: str = ""
    device: str = ""
    cpu_flags: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """The block as it was read; `compiled` graphs take the packed uint8 bitmap and give class map and score."""

    name: str
    version: str
    arn: str
    files: Mapping[str, Digest]
    hex_colors: Mapping[int, str]
    any_image_size: bool
    peak_memory: int | None
    target: Target | None = None
    compiled: bool = False
    class_names: tuple[str, ...] = ()


def default_arn(name: str, version: str) -> str:
    """Return the model ARN of a package that states none."""
    return f"arn:aws:lookoutvision:local:000000000000:model/{name}/{version.partition('.')[0]}"


def read_block(keys: Keys) -> Block:
    """Return the block; raise PackageRefused, naming the key, when it is not one that this agent knows."""
    if keys.values.get("format") != FORMAT:
        raise PackageRefused(
            f"manifest.json: its package block has format {keys.values.get('format')!r:.80}; this agent reads {FORMAT}."
        )
    unknown = sorted(set(keys.values) - KEYS)
    if unknown:
        raise PackageRefused(
            f"manifest.json: its package block has keys that this agent does not know: {', '.join(unknown)!r:.200}."
        )
    component = Keys(mapping(keys.take("component", dict), "package.component"), "package.component")
    name, version = component.text("name"), component.text("version")
    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
        raise PackageRefused(
            f"package.component is {name!r:.140} {version!r:.80}; it needs a name of [a-zA-Z0-9-_.] and a version x.y.z."
        )
    class_names, hex_colors = _classes(keys)
    return Block(
        name=name,
        version=version,
        arn=_arn(keys) if keys.has("model_arn") else default_arn(name, version),
        files=_files(keys),
        hex_colors=hex_colors,
        any_image_size=keys.flag("any_image_size"),
        peak_memory=_peak_memory(keys) if keys.has("peak_memory_bytes") else None,
        target=_target(keys) if keys.has("target") else None,
        compiled=_compiled(keys),
        class_names=class_names,
    )


def claimed(manifest: bytes) -> tuple[str, str] | None:
    """Return the name and version that stand in a manifest's block, also where damage has made it no JSON any more."""
    found = COMPONENT.search(manifest)
    return (found[1].decode(), found[2].decode()) if found else None


def is_one(package: object) -> bool:
    """Return whether what stands at the key `package` of some manifest is a block, and not another's use of that key."""
    return isinstance(package, dict) and "format" in package


def is_signed(manifest: bytes) -> bool:
    """Return whether a manifest has a digest of itself, also where damage has taken the name of its block."""
    return bool(SELF_DIGEST.search(manifest))


def sign(manifest: bytes) -> bytes:
    """Return a manifest's bytes with the digest of themselves in `manifest_sha256`, which must be there once."""
    begin, end = _digest_span(manifest)
    return manifest[:begin] + _digest(manifest, begin, end) + manifest[end:]


def check_signed(manifest: bytes) -> None:
    """Raise PackageRefused unless the bytes of a manifest with a block are those that its own digest was made of.

    The digest is the SHA-256 of the file with zeros in the digest's place. It finds damage, not malice.
    """
    begin, end = _digest_span(manifest)
    if manifest[begin:end] != _digest(manifest, begin, end):
        raise PackageRefused("manifest.json was changed: its SHA-256 is not the one in its package block.")


def _digest_span(manifest: bytes) -> tuple[int, int]:
    found = list(SELF_DIGEST.finditer(manifest))
    if len(found) != 1:
        raise PackageRefused("manifest.json was changed: its package block has no manifest_sha256 of itself.")
    return found[0].span(1)


def _digest(manifest: bytes, begin: int, end: int) -> bytes:
    return hashlib.sha256(manifest[:begin] + b"0" * (end - begin) + manifest[end:]).hexdigest().encode()


def _arn(keys: Keys) -> str:
    arn = keys.text("model_arn")
    if not ARN.fullmatch(arn):
        raise PackageRefused(
            f"package.model_arn is {arn!r:.80}; an ARN is 1 to 2048 printable characters without spaces."
        )
    return arn


def _peak_memory(keys: Keys) -> int:
    peak = keys.number("peak_memory_bytes")
    if peak < 0:
        raise PackageRefused(f"package.peak_memory_bytes is {peak:g}; it must not be negative.")
    return int(peak)


def _files(keys: Keys) -> Mapping[str, Digest]:
    digests = {}
    for path, value in keys.take("files", dict).items():
        entry = Keys(mapping(value, f"package.files[{path!r:.80}]"), f"package.files[{path!r:.80}]")
        sha256 = entry.text("sha256")
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise PackageRefused(f"{entry.place}.sha256 is not a SHA-256 in lower-case hexadecimal.")
        digests[path] = Digest(int(entry.number("size")), sha256)
    return digests


def _classes(keys: Keys) -> tuple[tuple[str, ...], Mapping[int, str]]:
    """Return the names of the mask's classes, and by index the colours of those that have one of their own."""
    names, colours = [], {}
    for index, value in enumerate(keys.take("classes", list) if keys.has("classes") else []):
        entry = Keys(mapping(value, f"package.classes[{index}]"), f"package.classes[{index}]")
        names.append(entry.text("name"))
        if entry.has("hex-color"):
            colour = entry.text("hex-color")
            if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
                raise PackageRefused(f"{entry.place}.hex-color is {colour!r:.80}; write it as #RRGGBB.")
            colours[index] = colour.upper()
    return tuple(names), colours


def _target(keys: Keys) -> Target:
    target = Keys(mapping(keys.take("target", dict), "package.target"), "package.target")
    if target.has("os") and target.text("os") != "LINUX":
        raise PackageRefused(f"The package is for {target.text('os')!r:.80}; this device runs LINUX.")
    read = Target(
        arch=target.text("arch"),
        accelerator=target.text("accelerator") if target.has("accelerator") else "",
        device=target.text("device") if target.has("device") else "",
        cpu_flags=_texts(target, "cpu_flags"),
        options={
            str(key): str(value)
            for key, value in (target.take("compiler_options", dict) if target.has("compiler_options") else {}).items()
        },
    )
    # They are told to operators where they do not fit the device.
    if any(len(text) > LONGEST_OPTION for text in (read.accelerator, read.device, *read.options.values())):
        raise PackageRefused(f"package.target has a text of more than {LONGEST_OPTION} characters.")
    return read


def _texts(keys: Keys, key: str) -> tuple[str, ...]:
    values = keys.take(key, list) if keys.has(key) else []
    if not all(isinstance(value, str) for value in values):
        raise PackageRefused(f"{keys.place}.{key} is {values!r:.80}; it must be a list of texts.")
    return tuple(values)


def _compiled(keys: Keys) -> bool:
    if not keys.has("graph"):
        return False
    graph = keys.take("graph", dict)
    if graph != COMPILED:
        raise PackageRefused(
            f"package.graph is {graph!r:.160}; this agent knows graphs with all of it inside: {COMPILED}."
        )
    return True
