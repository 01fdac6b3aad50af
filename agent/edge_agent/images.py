"""Images as the clients of the field read them: 8-bit RGB, by Pillow; of files only regular ones, never waited for."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from edge_agent.errors import printable

Pixels = NDArray[np.uint8]

# Pillow's modes of 8 bits and less, which its own conversion keeps.
EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"}
# Formats whose 16-bit grey Pillow gives as 32-bit integers, some since ever, some in its older versions.
SIXTEEN_BIT_AS_INTEGERS = {"PNG", "PPM"}
WHITE_IS_ZERO = 0


class NotAnImage(ValueError):
    """What was given is no image, or none that 8-bit RGB can be made of; the text names it, `reason` does not."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)} {reason}")
        self.reason = reason


def pixels_of(image: object) -> Pixels:
    """Return an image's pixels, height x width x 3 (uint8), RGB; raise NotAnImage.

    `image` is such an array already, a Pillow image, or the path of a file, both of which are read as `read_image` does.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        with _refusing("image"):
            return _to_rgb(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise NotAnImage(
            "image", f"is {kind}; give a path, a Pillow image, or a NumPy array, height x width x 3, uint8."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        shape = "x".join(map(str, image.shape))
        raise NotAnImage("image", f"is {image.dtype} {shape}; it must be uint8, height x width x 3.")
    return image


def read_image(path: "str | os.PathLike[str]") -> Pixels:
    """Return a file's pixels, height x width x 3 (uint8), RGB; raise NotAnImage.

    They are those of Pillow's `convert("RGB")`, as the clients of the field send them: the first frame, alpha dropped,
    and not turned by an EXIF orientation, so that an image is judged as its pixels are stored. Only grey of 16 bit,
    which that conversion clips to white, is scaled to 8; what has no 8-bit form, such as floating point, is refused.
    """
    name = os.fsdecode(path)
    with _refusing(name), open(_open(name), "rb") as file, Image.open(file) as image:
        return _to_rgb(image)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with an image into NotAnImage."""
    try:
        yield
    except NotAnImage as refusal:
        raise NotAnImage(name, refusal.reason) from None
    except UnidentifiedImageError:
        raise NotAnImage(name, "is not an image that Pillow can read") from None
    except FileNotFoundError:
        raise NotAnImage(name, "does not exist") from None
    except UnicodeEncodeError:
        raise NotAnImage(name, "is a name that no file can have") from None
    except Exception as error:  # noqa: BLE001  (Pillow's decoders raise whatever a damaged file makes them stumble over)
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NotAnImage(name, f"cannot be read: {told}") from None


def _open(name: str) -> int:
    """Open a regular file; a FIFO, whose writer may never come, is not waited for."""
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotAnImage(name, "is not a regular file")
    return fd


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey(image)
    if image.mode not in EIGHT_BIT:
        raise NotAnImage("", f"has pixels of Pillow's mode {image.mode}, which has no 8-bit form; save it as 8-bit RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # which Pillow wants as the step between, and warns where it is missing
    return np.asarray(image.convert("RGB"))


def _grey(image: Image.Image) -> Pixels:
    """Return grey of up to 16 bit as 8 bit in three channels, rounded: of 16 bit that is value / 257."""
    bits, inverted = 16, False
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (bits,))[0]
        inverted = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    if image.mode == "I" and image.format not in SIXTEEN_BIT_AS_INTEGERS:
        raise NotAnImage("", "has grey of signed or 32-bit integers, whose white is unknown; save it with 8 or 16 bit")
    white = (1 << bits) - 1
    levels = (np.asarray(image).astype(np.uint32) * 510 + white) // (2 * white)
    grey = levels.astype(np.uint8)
    return np.repeat((255 - grey if inverted else grey)[:, :, None], 3, axis=2)
