"""Images in and masks out: the rules of their numbers, and the only code that touches /dev/shm.

A client's segment is never mapped, only read and written by position: a client that truncates it while it is mapped
would kill the reader with SIGBUS, while `preadv` merely reads less.
"""

import errno
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import InvalidArgument, NotEnoughMemory, shown

# The bytes of an inline image.
Pixels = bytes | memoryview

CHANNELS = 3
SHORTEST_SIDE = 64
LONGEST_SIDE = 4096
LARGEST_IMAGE = LONGEST_SIDE * LONGEST_SIDE * CHANNELS
MOST_OFFSET = 2**63
SEGMENTS = Path("/dev/shm")
OPEN_FLAGS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Segment:
    """A range of bytes in a client's shared memory segment; the name is without its leading slash."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Image:
    """An image whose numbers are in order: where its rows are and how long each is, padding included, in bytes.

    `segment` is None for an image that came inline.
    """

    width: int
    height: int
    stride: int
    segment: Segment | None

    @property
    def row(self) -> int:
        """Bytes of a row without padding."""
        return CHANNELS * self.width

    @property
    def packed_size(self) -> int:
        """Bytes of the image without padding: 3 * width * height."""
        return self.row * self.height


def describe(width: int, height: int, segment: Segment | None, size: int) -> Image:
    """Return the image that `size` bytes hold; raise InvalidArgument when the numbers do not fit. Opens nothing."""
    for side, value in (("width", width), ("height", height)):
        if not SHORTEST_SIDE <= value <= LONGEST_SIDE:
            raise InvalidArgument(
                f"bitmap.{side} is {value}; it must be {SHORTEST_SIDE} to {LONGEST_SIDE} pixels. Scale the image first."
            )
    packed = CHANNELS * width
    padded = packed + -packed % 4
    for stride in (packed, padded):
        if size == stride * height:
            return Image(width, height, stride, segment)
    field = "bitmap.shared_memory_handle.size" if segment else "bitmap.byte_data"
    hint = (
        "That is the size of RGBA: convert the image to RGB." if size == 4 * width * height else "Send packed RGB888."
    )
    raise InvalidArgument(
        f"{field} has {size} bytes; an RGB image of {width}x{height} has {packed * height}"
        f"{f' (or {padded * height} with rows padded to 4 bytes)' if padded != packed else ''}. {hint}"
    )


def check_size(image: Image, expected: tuple[int, int]) -> None:
    """Raise InvalidArgument unless the image has the size (width, height) that its model was trained with."""
    if (image.width, image.height) != expected:
        raise InvalidArgument(
            f"bitmap is {image.width}x{image.height}; this model needs its training image size, "
            f"{expected[0]}x{expected[1]}. Scale the image to that."
        )


def segment(field: str, name: str, offset: int, size: int) -> Segment:
    """Return the range that a handle names; raise InvalidArgument, naming `field`, when it can be none. Opens nothing."""
    plain = name.removeprefix("/")
    encoded = plain.encode(errors="surrogatepass")
    if not 1 <= len(encoded) <= 255 or "/" in plain or "\0" in plain or plain in {".", ".."}:
        raise InvalidArgument(
            f"{field}.name is {shown(name)}; it must be a name as for shm_open, 1 to 255 bytes without a further slash."
        )
    if plain.startswith("sem."):
        raise InvalidArgument(
            f"{field}.name is {shown(name)}; names from sem. on belong to semaphores. Use another name."
        )
    check_range(field, offset, size)
    return Segment(plain, offset, size)


def check_range(field: str, offset: int, size: int) -> None:
    """Raise InvalidArgument, naming `field`, when no segment can have a handle's bytes, whatever its name."""
    if offset + size >= MOST_OFFSET:
        raise InvalidArgument(
            f"{field} ends at offset {offset} + size {size}, beyond any segment. Correct them: offset counts bytes from the "
            "segment's start, and size those of the image or mask from there."
        )


def check_mask(mask: Segment, image: Image) -> None:
    """Raise InvalidArgument when the mask of `image` does not fit its handle or would overwrite the image itself."""
    if mask.size < image.packed_size:
        raise InvalidArgument(
            f"anomaly_mask_params.shared_memory_handle.size is {mask.size}; the mask of a {image.width}x{image.height} "
            f"image needs {image.packed_size} bytes. Make the segment that large."
        )
    source = image.segment
    if source and source.name == mask.name:
        _check_apart(source, mask, image.packed_size)


def copy_in(image: Image, target: memoryview, mask: "MaskTarget | None" = None) -> None:
    """Fill `target`, `stride * height` bytes, from the image's segment; `mask` is where the mask is to go, if anywhere.

    Raises:
        InvalidArgument: the segment is missing, not readable or too short, or the mask would overwrite the image.

    """
    source = image.segment
    assert source is not None  # an inline image never comes here
    fd = _open("bitmap.shared_memory_handle", source.name, os.O_RDONLY)
    try:
        opened = os.fstat(fd)
        _check_bounds("bitmap.shared_memory_handle", source, source.size, opened.st_size)
        if mask:
            mask.check_apart(source, opened)
        done = 0
        while done < len(target):
            count = os.preadv(fd, [target[done:]], source.offset + done)
            if count == 0:  # the client shortened the segment after the check
                raise InvalidArgument(
                    f"The segment {shown(source.name)} of bitmap.shared_memory_handle was shortened during the call; "
                    "keep it as it is until the answer."
                )
            done += count
    finally:
        os.close(fd)


def frames_that_fit() -> float:
    """Return how many images of the largest size there is room for in /dev/shm, inf where it has no limit of its own.

    Raises:
        OSError: there is no /dev/shm.

    """
    there = os.statvfs(SEGMENTS)
    return there.f_bavail * there.f_frsize // LARGEST_IMAGE if there.f_blocks else math.inf


class MaskTarget:
    """A client's segment, opened and checked before the work is done, to write a mask into."""

    def __init__(self, mask: Segment, size: int) -> None:
        """Open the segment for `size` bytes; raise InvalidArgument when it is missing, not writable or too short."""
        self._field = "anomaly_mask_params.shared_memory_handle"
        self._mask = mask
        self._size = size
        self._fd = _open(self._field, mask.name, os.O_RDWR)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def check_apart(self, source: Segment, opened: os.stat_result) -> None:
        """Raise InvalidArgument when the mask would overwrite the image in `source`, which was `opened`.

        One segment may have many names: hard links.
        """
        if os.path.samestat(opened, os.fstat(self._fd)):
            _check_apart(source, self._mask, self._size)

    def write(self, pixels: memoryview) -> None:
        """Write the mask's bytes at the handle's offset.

        Raises:
            InvalidArgument: the segment was shortened meanwhile.
            NotEnoughMemory: /dev/shm is full.

        """
        self._check()
        done = 0
        try:
            while done < len(pixels):
                done += os.pwrite(self._fd, pixels[done:], self._mask.offset + done)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}:
                raise NotEnoughMemory(
                    f"/dev/shm is full: the mask cannot be written into the segment {shown(self._mask.name)} of "
                    f"{self._field}. Free shared memory or make /dev/shm larger."
                ) from None
            raise InvalidArgument(
                f"The segment {shown(self._mask.name)} of {self._field} cannot be written: {error.strerror}. Make another one "
                "with shm_open, and send its name."
            ) from None

    def close(self) -> None:
        """Close the segment."""
        os.close(self._fd)

    def _check(self) -> None:
        _check_bounds(self._field, self._mask, self._size, os.fstat(self._fd).st_size)


def _open(field: str, name: str, access: int) -> int:
    """Open a segment, never blocking, following or creating; only a regular file counts as one."""
    try:
        # As bytes: in UTF-8, as the API has it, whatever the locale of the agent.
        fd = os.open(os.fsencode(SEGMENTS) + b"/" + name.encode(), access | OPEN_FLAGS)
    except (OSError, ValueError):
        # One sentence for all causes: a caller learns nothing of files it may not see.
        raise InvalidArgument(
            f"The segment {shown(name)} of {field} does not exist or the agent may not "
            f"{'write' if access == os.O_RDWR else 'read'} it. Usual causes: the client runs in a container without the "
            "host's /dev/shm, or created the segment with mode 0600 as another user; create it with mode 0660 and a "
            "group that the agent belongs to."
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{field}.name {shown(name)} is not a shared memory segment; create one with shm_open.")
    return fd


def _check_apart(source: Segment, mask: Segment, written: int) -> None:
    """Raise InvalidArgument unless the `written` bytes of a mask are apart from the image in the same segment."""
    if mask.offset < source.offset + source.size and source.offset < mask.offset + written:
        raise InvalidArgument(
            "anomaly_mask_params.shared_memory_handle overlaps bitmap.shared_memory_handle; give the mask a range of its own."
        )


def _check_bounds(field: str, where: Segment, needed: int, there: int) -> None:
    if where.offset + needed > there:
        raise InvalidArgument(
            f"{field} asks for {needed} bytes from offset {where.offset}; the segment {shown(where.name)} has {there}. "
            "Make the segment larger, or correct size and offset."
        )
