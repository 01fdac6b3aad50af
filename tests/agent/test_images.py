"""Image files: what 8-bit RGB is made of them, what is refused, and that no file is waited for."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from edge_agent.images import NotAnImage, pixels_of, read_image
from support.calls import picture

# (16 bit, 8 bit): value / 257, rounded.
LEVELS = (
    (0, 0),
    (128, 0),
    (129, 1),
    (257, 1),
    (1000, 4),
    (0x1234, 18),
    (32768, 128),
    (65406, 254),
    (65407, 255),
    (65535, 255),
)
DEEP = np.array([[deep for deep, _ in LEVELS]] * 3, np.uint16)
FLAT = np.repeat(np.array([[flat for _, flat in LEVELS]] * 3, np.uint8)[:, :, None], 3, axis=2)
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262


def with_tag(path, tag: int, value: int) -> None:
    """Change a tag of a little-endian TIFF."""
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    entries = [first + 2 + 12 * number for number in range(count)]
    entry = next(one for one in entries if struct.unpack_from("<H", data, one) == (tag,))
    struct.pack_into("<H", data, entry + 8, value)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bit(tmp_path, name):
    Image.fromarray(DEEP).save(tmp_path / name)
    assert (read_image(tmp_path / name) == FLAT).all()


def test_grey_of_16_bit_as_older_pillows_read_it(tmp_path):
    """Mode I, 32-bit integers, for the 16 bits of a PNG."""
    Image.fromarray(DEEP).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        older = opened.convert("I")
        older.format = "PNG"
    assert older.mode == "I"
    assert (pixels_of(older) == FLAT).all()


def test_pillow_image_of_16_bit_in_either_byte_order():
    for kind in ("<u2", ">u2"):
        mode = {"<u2": "I;16", ">u2": "I;16B"}[kind]
        image = Image.frombytes(mode, (len(LEVELS), 3), DEEP.astype(kind).tobytes())
        assert (pixels_of(image) == FLAT).all()


def test_grey_whose_white_is_zero(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "a.tif")
    with_tag(tmp_path / "a.tif", PHOTOMETRIC, 0)
    assert (read_image(tmp_path / "a.tif") == 255 - FLAT).all()


def test_grey_of_12_bit(tmp_path):
    deep = [0x000, 0x010, 0x7FF, 0xFFF]  # two in three bytes
    packed = bytes([0x00, 0x00, 0x10, 0x7F, 0xFF, 0xFF])
    Image.fromarray(np.frombuffer(packed + bytes(2), np.uint16)[None]).save(tmp_path / "a.tif")
    with_tag(tmp_path / "a.tif", BITS_PER_SAMPLE, 12)
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [round(one / 4095 * 255) for one in deep]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (DEEP.astype(np.float32), "mode F, which has no 8-bit form"),
        (DEEP.astype(np.int32), "32-bit integers, whose white is unknown"),
    ],
)
def test_what_cannot_be_converted_faithfully_is_refused(tmp_path, pixels, words):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(NotAnImage, match=words) as caught:
        read_image(tmp_path / "a.tif")
    assert str(caught.value).startswith(f"{tmp_path / 'a.tif'} has ")
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_everything_of_8_bit_is_as_pillow_converts_it(mode):
    image = Image.fromarray(picture(64, 64)).convert(mode)
    assert (pixels_of(image) == np.asarray(image.convert("RGB"))).all()


def test_alpha_is_dropped_as_the_clients_of_the_field_drop_it(tmp_path):
    pixels = np.dstack([picture(64, 64), np.full((64, 64), 7, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == pixels[:, :, :3]).all()


def test_a_palette_with_transparent_colours_is_no_reason_to_warn(tmp_path):
    image = Image.new("P", (64, 64), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=bytes([255, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read_image(tmp_path / "a.png") == [40, 50, 60]).all()


def test_an_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture(80, 64)).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png") == picture(80, 64)).all()


def test_the_first_frame_counts(tmp_path):
    frames = [Image.fromarray(picture(64, 64, seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.tif") == picture(64, 64, 1)).all()


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(NotAnImage, match="is not a regular file"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.png", "does not exist"),
        ("\ud800.png", "is a name that no file can have"),
        ("a\0b", "cannot be read: "),
    ],
)
def test_a_name_of_no_file_is_named(tmp_path, name, reason):
    with pytest.raises(NotAnImage) as caught:
        read_image(str(tmp_path / name))
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"{tmp_path}/{name[:1] if name[:1].isprintable() else ascii(name[0])[1:-1]}")
    assert caught.value.reason.startswith(reason)


def test_a_file_that_is_cut_off(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(whole, "PNG")
    (tmp_path / "a.png").write_bytes(whole.getvalue()[:1000])
    with pytest.raises(NotAnImage, match="a.png cannot be read: "):
        read_image(tmp_path / "a.png")
