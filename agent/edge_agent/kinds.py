"""The kinds of values that settings have, and how they are read from YAML, the environment and flags."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field
from pydantic_settings import NoDecode

# Each has 96 MiB of address space for inline images and masks, and a thread.
MOST_SLOTS = 64
LARGEST_GPU = 63
# (uid_t) -1 means "leave as it is" to chown(2).
LARGEST_ID = 2**32 - 2
# A week, in seconds: poll(2) takes less than 25 days.
LONGEST_TIMEOUT = 604_800


def _folders(value: object) -> object:
    return [one for one in value.split(":") if one] if isinstance(value, str) else value


def _listed(value: object) -> object:
    """Take lists apart that are written with commas, be they items of a list: a flag that is repeated gives one."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = [one for one in items if isinstance(one, str)]
    return [part for one in texts for part in one.split(",") if part] if len(texts) == len(items) else value


def check_texts(value: object) -> None:
    """Raise ValueError for NUL and half surrogate pairs, which no path and no name can have."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= one <= "\udfff" for one in value):
            raise ValueError("it has a character that no name can have")
    elif isinstance(value, Mapping):
        for one in value.items():
            check_texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            check_texts(one)


def _mode(value: object) -> int:
    """Read a file mode written in octal, as everybody writes modes.

    A number is refused: YAML has read it by then, and 0660 in octal and 432 in decimal are the same to us.
    """
    if not isinstance(value, str):
        raise ValueError('write the mode in quotes, in octal, as in "0660"')  # noqa: TRY004  (what pydantic tells of)
    if not re.fullmatch("(0o)?0?[0-7]{1,3}", value):
        raise ValueError('write the mode in octal, at most 0777, as in "0660"')
    return int(value, 8)


def _number(value: object) -> object:
    """Refuse what YAML reads of true, yes and on, and the same of false, which would count as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("write a number; true and false are none")  # noqa: TRY004  (what pydantic tells of)
    return value


Whole = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Size = Annotated[ByteSize, BeforeValidator(_number)]
PositiveSize = Annotated[Size, Field(gt=0)]
Folders = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Uids = Annotated[tuple[Annotated[Whole, Field(ge=0, le=LARGEST_ID)], ...], NoDecode, BeforeValidator(_listed)]
Processors = Annotated[tuple[Annotated[Whole, Field(ge=0, le=4095)], ...], NoDecode, BeforeValidator(_listed)]
Mode = Annotated[int, BeforeValidator(_mode)]
GpuNumber = Annotated[Whole, Field(ge=0, le=LARGEST_GPU)]
Fallback = Literal["never", "allowed"]
Slots = Annotated[Whole, Field(ge=1, le=MOST_SLOTS)]
Threads = Annotated[Whole, Field(ge=0, le=1024)]
QueueLimit = Annotated[Whole, Field(ge=0, le=100_000)]
Timeout = Annotated[Number, Field(gt=0, le=LONGEST_TIMEOUT)]
