"""What a packaging job is asked to do: StartModelPackagingJob's request, from flags or from its JSON document.

Lengths and patterns are those of the original service's model (lookoutvision/2020-11-20), where not said otherwise.
"""

import json
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.block import NAME, VERSION
from edge_agent.errors import shown
from model_packager import targets
from model_packager.errors import PackagingRefused
from model_packager.targets import Target

# The component that serves models; a model of that name would replace it on every device.
AGENT_COMPONENT = "aws.iot.lookoutvision.EdgeAgent"
S3 = "s3://"
MOST_TAGS, LONGEST_KEY, LONGEST_VALUE = 200, 128, 256
LONGEST_JOB_NAME = 64

_DESCRIPTION = (
    re.compile(r"[a-zA-Z0-9\-_. ()':,;?]{1,256}"),
    "1 to 256 letters, digits, spaces and characters of -_.()':,;?",
)
_RULES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "project_name": (
        re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_\-]{0,254}"),
        "1 to 255 letters, digits and characters of _-, beginning with a letter or a digit",
    ),
    "model_version": (re.compile("[1-9][0-9]{0,9}"), "a number from 1 on with at most 10 digits"),
    "job_name": (re.compile(f"[a-zA-Z0-9-]{{1,{LONGEST_JOB_NAME}}}"), "1 to 64 letters, digits and hyphens"),
    "description": _DESCRIPTION,
    "component_name": (NAME, "1 to 128 letters, digits and characters of -_."),
    "component_version": (VERSION, "three numbers x.y.z of at most 6 digits each"),
    "component_description": _DESCRIPTION,
    # S3's rule for new buckets, which is narrower than the original's.
    "bucket": (
        re.compile(
            r"(?!xn--|sthree-|amzn-s3-demo-)(?![0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\Z)(?!.*\.\.)"
            r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?<!-s3alias)(?<!--ol-s3)(?<!\.mrap)(?<!--x-s3)(?<!--table-s3)"
        ),
        "a bucket's name as S3 allows it: 3 to 63 lower-case letters, digits, dots and hyphens",
    ),
    "prefix": (
        re.compile(r"(?!(.*/)?\.\.(/|\Z))([a-zA-Z0-9!_.*'()-][/a-zA-Z0-9!_.*'()-]{0,1023})?"),
        "at most 1,024 letters, digits and characters of !_.*'()-/, without a slash at the beginning and without `..`",
    ),
}
# What looks like an address and not like a folder: gs://bucket, S3://bucket, s3:bucket.
_OTHER_STORE = re.compile("[a-zA-Z][a-zA-Z0-9+.-]*:/|[sS]3:")
_PLATFORM = {"os": targets.SYSTEMS, "arch": targets.ARCHITECTURES, "accelerator": targets.ACCELERATORS}


@dataclass(frozen=True)
class JobRequest:
    """A request that was accepted: every default is written out.

    `output` is an absolute folder or s3://bucket/prefix without a slash at the end; `tags` are for the `tags` of
    Greengrass's CreateComponentVersion.
    """

    project_name: str
    model_version: str
    job_name: str
    description: str
    component_name: str
    component_version: str
    component_description: str
    tags: tuple[tuple[str, str], ...]
    target: Target
    compiler_options: Mapping[str, str]
    output: str


@dataclass(frozen=True)
class _Given:
    """What the caller gave: values by setting, and how the caller writes the name of a setting.

    `tags` are (key, value, name of the key, name of the value).
    """

    values: Mapping[str, str]
    platform: Mapping[str, str] | None
    tags: Sequence[tuple[str, str, str, str]]
    output: str
    name: Callable[[str], str]


def from_flags(
    *,
    project_name: str,
    model_version: str,
    component_name: str,
    output: str,
    job_name: str = "",
    description: str = "",
    component_version: str = "",
    component_description: str = "",
    target_device: str = "",
    target_platform: str = "",
    compiler_options: str = "",
    tags: str = "",
) -> JobRequest:
    """Return the request that the flags of `edge-agent package start` make; "" is a flag that was not given.

    `output` is a folder or s3://bucket/prefix, `target_platform` as in os=LINUX,arch=X86_64,accelerator=NVIDIA,
    `compiler_options` a JSON object and `tags` as in key=value,key2=value2. No tag can have a comma; a key that has an
    equals sign can only be written in a document.

    Raises:
        PackagingRefused: a setting cannot be used; the text names its flag.

    """
    values = {
        "project_name": project_name,
        "model_version": model_version,
        "job_name": job_name,
        "description": description,
        "component_name": component_name,
        "component_version": component_version,
        "component_description": component_description,
        "target_device": target_device,
        "compiler_options": compiler_options,
    }
    platform = _pairs("--target-platform", target_platform, "os=LINUX,arch=X86_64") if target_platform else None
    _refuse_unknown(dict(platform or ()), tuple(_PLATFORM), "--target-platform")
    if platform is not None and len(dict(platform)) != len(platform):
        raise PackagingRefused(f"--target-platform is {shown(target_platform)}; it must give each key once.")
    named = [
        (key, value, f"--tags: the key of tag {number}", f"--tags: the value of tag {number}")
        for number, (key, value) in enumerate(_pairs("--tags", tags, "line=3,site=Ulm") if tags else (), 1)
    ]
    given = _Given(
        {key: value for key, value in values.items() if value},
        None if platform is None else dict(platform),
        named,
        output,
        _flag,
    )
    return _accept(given)


def from_document(document: Mapping[str, Any], output: str = "") -> JobRequest:
    """Return the request of a JSON document in StartModelPackagingJob's own spelling.

    `Greengrass` may also stand at the top, without `Configuration` around it. `output` wins over S3OutputLocation.

    Raises:
        PackagingRefused: a setting cannot be used; the text names its key in the document.

    """
    place = "Greengrass" if "Greengrass" in _object(document, "The document") else "Configuration.Greengrass"
    top = _object(document, "The document", *_TOP, place.partition(".")[0])
    if place != "Greengrass":
        top = {**top, **_object(top.get("Configuration"), "Configuration", "Greengrass")}
    greengrass = _object(top.get("Greengrass"), place, *_GREENGRASS, "TargetPlatform", "S3OutputLocation", "Tags")
    values = {
        **{setting: _text(top[key], key) for key, setting in _TOP.items() if setting and key in top},
        **{
            setting: _text(greengrass[key], f"{place}.{key}")
            for key, setting in _GREENGRASS.items()
            if key in greengrass
        },
    }
    platform = None
    if "TargetPlatform" in greengrass:
        at = f"{place}.TargetPlatform"
        platform = {
            key.lower(): _text(value, f"{at}.{key}")
            for key, value in _object(greengrass["TargetPlatform"], at, "Os", "Arch", "Accelerator").items()
        }
    if "S3OutputLocation" in greengrass:
        at = f"{place}.S3OutputLocation"
        location = _object(greengrass["S3OutputLocation"], at, "Bucket", "Prefix")
        values.update({key.lower(): _text(value, f"{at}.{key}") for key, value in location.items()})
    return _accept(_Given(values, platform, _tags(greengrass.get("Tags", []), f"{place}.Tags"), output, _key(place)))


def to_document(request: JobRequest) -> dict[str, Any]:
    """Return the request in StartModelPackagingJob's spelling; from_document reads it back, given a folder as `output`."""
    target = request.target
    platform = {"Os": target.os, "Arch": target.arch, "Accelerator": target.accelerator}
    bucket, _, prefix = request.output.removeprefix(S3).partition("/")
    location = {"Bucket": bucket, **({"Prefix": prefix} if prefix else {})}
    greengrass = {
        # A device has its own options.
        "CompilerOptions": ""
        if target.device or not request.compiler_options
        else json.dumps(request.compiler_options),
        "TargetDevice": target.device,
        "TargetPlatform": None if target.device else {key: value for key, value in platform.items() if value},
        "S3OutputLocation": location if request.output.startswith(S3) else None,
        "ComponentName": request.component_name,
        "ComponentVersion": request.component_version,
        "ComponentDescription": request.component_description,
        "Tags": [{"Key": key, "Value": value} for key, value in request.tags],
    }
    document = {
        "ProjectName": request.project_name,
        "ModelVersion": request.model_version,
        "JobName": request.job_name,
        "Description": request.description,
        "Configuration": {"Greengrass": {key: value for key, value in greengrass.items() if value}},
    }
    return {key: value for key, value in document.items() if value}


_TOP = {
    "ProjectName": "project_name",
    "ModelVersion": "model_version",
    "JobName": "job_name",
    "Description": "description",
    # It made one of repeated calls; here the job's name does.
    "ClientToken": "",
}
_GREENGRASS = {
    "ComponentName": "component_name",
    "ComponentVersion": "component_version",
    "ComponentDescription": "component_description",
    "TargetDevice": "target_device",
    "CompilerOptions": "compiler_options",
}


def _flag(setting: str) -> str:
    if setting in _PLATFORM:
        return f"--target-platform: {setting}"
    return f"--{setting.replace('_', '-')}"


def _key(place: str) -> Callable[[str], str]:
    """Return what names a setting of a document whose `Greengrass` is at `place`."""
    names = {setting: key for key, setting in _TOP.items()}
    names.update({setting: f"{place}.{key}" for key, setting in _GREENGRASS.items()})
    names.update({setting: f"{place}.TargetPlatform.{setting.title()}" for setting in _PLATFORM})
    names.update({setting: f"{place}.S3OutputLocation.{setting.title()}" for setting in ("bucket", "prefix")})
    names.update(target_platform=f"{place}.TargetPlatform", tags=f"{place}.Tags")
    names.update(output=f"{place}.S3OutputLocation")
    return names.__getitem__


def _pairs(name: str, text: str, example: str) -> list[tuple[str, str]]:
    """Return the pairs in key=value,key=value."""
    pairs = [one.partition("=") for one in text.split(",")]
    if not all(key and equals for key, equals, _ in pairs):
        raise PackagingRefused(
            f"{name} is {shown(text)}; it must be pairs key=value joined by commas, as in {example}, and neither key nor "
            "value can have a comma."
        )
    return [(key, value) for key, _, value in pairs]


def _object(value: object, place: str, *known: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        problem = "is missing" if value is None else f"is {value!a:.80}"
        raise PackagingRefused(f"{place} {problem}; it must be an object.")
    if known:
        _refuse_unknown(value, known, place)
    return value


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in values:
        if key not in known:
            raise PackagingRefused(
                f"{place} has {shown(str(key))}, which is not known; it can have {', '.join(known)}."
            )


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise PackagingRefused(f"{place} is {value!a:.80}; it must be text.")
    return value


def _tags(value: object, place: str) -> list[tuple[str, str, str, str]]:
    if not isinstance(value, list | tuple):
        raise PackagingRefused(f"{place} is {value!a:.80}; it must be a list of objects with Key and Value.")
    named = []
    for index, one in enumerate(value):
        at = f"{place}[{index}]"
        tag = _object(one, at, "Key", "Value")
        key, text = (_text(tag.get(part), f"{at}.{part}") for part in ("Key", "Value"))
        named.append((key, text, f"{at}.Key", f"{at}.Value"))
    return named


def _accept(given: _Given) -> JobRequest:
    """Return the request, or refuse the first setting that breaks a rule."""
    version = given.values.get("model_version")
    if version == "latest":
        raise PackagingRefused(
            f"{given.name('model_version')} is 'latest'; a file has no latest version, so give the model's number."
        )
    model_version = _checked(given, "model_version")
    component_name = _component_name(given)
    target = _target(given)
    options = targets.read_options(given.values.get("compiler_options"), target, given.name("compiler_options"))
    return JobRequest(
        project_name=_checked(given, "project_name"),
        model_version=model_version,
        job_name=_checked(given, "job_name", _job_name(component_name)),
        description=_checked(given, "description", ""),
        component_name=component_name,
        component_version=_component_version(given, model_version),
        component_description=_checked(given, "component_description", ""),
        tags=_checked_tags(given),
        target=target,
        compiler_options=options,
        output=_output(given),
    )


def _checked(given: _Given, setting: str, default: str | None = None) -> str:
    """Return a setting that keeps its rule, or the default where it was not given and need not be."""
    rule, words = _RULES[setting]
    value = given.values.get(setting, default)
    if value is None:
        raise PackagingRefused(f"{given.name(setting)} is missing; it must be {words}.")
    if setting in given.values and not rule.fullmatch(value):
        raise PackagingRefused(f"{given.name(setting)} is {shown(value)}; it must be {words}.")
    return value


def _component_name(given: _Given) -> str:
    value = _checked(given, "component_name")
    # It is the name of a folder on the device.
    if value in {".", ".."}:
        raise PackagingRefused(f"{given.name('component_name')} is {shown(value)}; it must be more than dots.")
    if value == AGENT_COMPONENT:
        raise PackagingRefused(
            f"{given.name('component_name')} is {shown(value)}; it must be another name: that one is the agent's own."
        )
    return value


def _component_version(given: _Given, model_version: str) -> str:
    default = f"{model_version}.0.0"
    if "component_version" not in given.values and not VERSION.fullmatch(default):
        raise PackagingRefused(
            f"{given.name('component_version')} is missing; it must be given, because the default {default} has a "
            "number of more than 6 digits."
        )
    return _checked(given, "component_version", default)


def _job_name(component_name: str) -> str:
    """Return a name that a person recognises and no other job has: the component, the time (UTC) and chance."""
    end = f"-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
    start = re.sub("[^a-zA-Z0-9]+", "-", component_name).strip("-")[: LONGEST_JOB_NAME - len(end)]
    return f"{start.strip('-') or 'job'}{end}"


def _target(given: _Given) -> Target:
    device, platform = given.values.get("target_device"), given.platform
    names = given.name("target_device"), given.name("target_platform")
    if device is not None and platform is not None:
        raise PackagingRefused(f"{names[0]} and {names[1]} are both given; only one of them can be.")
    if device is not None:
        _refuse_other(device, tuple(targets.DEVICES), names[0])
        return Target("LINUX", targets.DEVICES[device].arch, "NVIDIA", device)
    if platform is None:
        raise PackagingRefused(f"{names[0]} and {names[1]} are missing; one of them must be given.")
    for setting, known in _PLATFORM.items():
        if setting in platform:
            _refuse_other(platform[setting], known, given.name(setting))
        elif setting != "accelerator":
            raise PackagingRefused(f"{given.name(setting)} is missing; it must be {' or '.join(known)}.")
    return Target(**platform)


def _refuse_other(value: str, known: Sequence[str], name: str) -> None:
    if value not in known:
        words = f"one of {', '.join(known)}" if len(known) > 1 else known[0]
        raise PackagingRefused(f"{name} is {shown(value)}; it must be {words}.")


def _checked_tags(given: _Given) -> tuple[tuple[str, str], ...]:
    if len(given.tags) > MOST_TAGS:
        raise PackagingRefused(f"{given.name('tags')} has {len(given.tags)} tags; it must have at most {MOST_TAGS}.")
    accepted: dict[str, str] = {}
    for key, value, key_name, value_name in given.tags:
        if not 1 <= len(key) <= LONGEST_KEY or not _taggable(key) or key.lower().startswith("aws:"):
            raise PackagingRefused(
                f"{key_name} is {shown(key)}; it must be 1 to {LONGEST_KEY} letters, digits, spaces and characters of "
                "_.:/=+-@, and not begin with aws:, which is Amazon's."
            )
        if len(value) > LONGEST_VALUE or not _taggable(value):
            raise PackagingRefused(
                f"{value_name} is {shown(value)}; it must be at most {LONGEST_VALUE} letters, digits, spaces and "
                "characters of _.:/=+-@."
            )
        if key in accepted:
            raise PackagingRefused(f"{key_name} is {shown(key)}, which another tag has; each key must be there once.")
        accepted[key] = value
    return tuple(accepted.items())


def _taggable(text: str) -> bool:
    # The original's [\p{L}\p{Z}\p{N}_.:/=+\-@]*, which Python's expressions cannot say.
    return all(one in "_.:/=+-@" or unicodedata.category(one)[0] in "LZN" for one in text)


def _output(given: _Given) -> str:
    """Return where the component goes: what --output says, else the document's S3OutputLocation."""
    if given.output.startswith(S3):
        bucket, _, prefix = given.output.removeprefix(S3).partition("/")
        parts = {"bucket": bucket, "prefix": prefix}
        return _s3(_Given(parts, None, (), "", lambda part: f"The {part} in --output"))
    if given.output:
        if _OTHER_STORE.match(given.output) or not given.output.isprintable():
            raise PackagingRefused(f"--output is {shown(given.output)}; it must be a folder or s3://bucket/prefix.")
        return str(Path(given.output).absolute())
    if "bucket" in given.values or "prefix" in given.values:
        return _s3(given)
    names = " or ".join(dict.fromkeys(("--output", given.name("output"))))
    raise PackagingRefused(f"{names} is missing; it must say where the component goes: a folder or an S3 location.")


def _s3(given: _Given) -> str:
    return f"{S3}{_checked(given, 'bucket')}/{_checked(given, 'prefix', '')}".rstrip("/")
