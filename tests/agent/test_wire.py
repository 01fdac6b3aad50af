"""Large requests taken apart: whatever the bytes, they say what protobuf says of them."""

import os
import random
import struct

import pytest
from google.protobuf.message import DecodeError

from edge_agent import wire
from edge_agent._proto import edge_agent_pb2 as pb2

PIXELS = os.urandom(3 * 200 * 200)
CASES = 4000


def request(**fields) -> pb2.DetectAnomaliesRequest:
    return pb2.DetectAnomaliesRequest(
        model_component="board", bitmap=pb2.Bitmap(width=200, height=200, byte_data=PIXELS), **fields
    )


def field(number: int, content: bytes) -> bytes:
    return wire._varint_bytes(number << 3 | 2) + wire._varint_bytes(len(content)) + content


def number(field: int, value: int) -> bytes:
    return wire._varint_bytes(field << 3) + wire._varint_bytes(value)


def as_protobuf_says(data: bytes) -> bytes | None:
    """Return the message in canonical bytes, None where it is none."""
    try:
        return pb2.DetectAnomaliesRequest.FromString(data).SerializeToString(deterministic=True)
    except DecodeError:
        return None


def as_we_say(data: bytes) -> bytes | None:
    try:
        found, pixels = wire.parse(data)
    except DecodeError:
        return None
    if pixels is not None:
        found.bitmap.byte_data = bytes(pixels)
    return found.SerializeToString(deterministic=True)


def is_a_view(data: bytes) -> bool:
    return isinstance(wire.parse(data)[1], memoryview)


def test_what_every_client_sends_is_not_copied():
    data = request().SerializeToString()
    found, pixels = wire.parse(data)
    assert isinstance(pixels, memoryview)
    assert pixels.obj is data
    assert pixels == PIXELS
    assert found == pb2.DetectAnomaliesRequest(model_component="board", bitmap=pb2.Bitmap(width=200, height=200))


def test_small_requests_are_parsed_as_they_are():
    small = pb2.DetectAnomaliesRequest(model_component="board", bitmap=pb2.Bitmap(width=64, byte_data=b"abc"))
    assert wire.parse(small.SerializeToString()) == (small, b"abc")


def test_no_pixels():
    handle = pb2.SharedMemoryHandle(name="frame", size=1)
    shared = pb2.DetectAnomaliesRequest(bitmap=pb2.Bitmap(width=64, shared_memory_handle=handle))
    assert wire.parse(shared.SerializeToString()) == (shared, None)
    assert wire.parse(b"")[1] is None


HANDLE = field(4, pb2.SharedMemoryHandle(name="frame", size=1).SerializeToString())
SIDES = number(1, 200) + number(2, 200)
# Name -> the message's bytes, and whether the pixels are found in them without protobuf.
MESSAGES = {
    "name last": (field(2, SIDES + field(3, PIXELS)) + field(1, b"board"), True),
    "pixels first": (field(2, field(3, PIXELS) + SIDES), True),
    "a mask's handle": (request(anomaly_mask_params=pb2.AnomalyMaskParams()).SerializeToString(), True),
    "unknown fields": (field(99, b"abc") + field(2, SIDES + field(3, PIXELS) + number(77, 5)) + number(98, 1), True),
    "unknown fixed fields": (struct.pack("<BI", 9 << 3 | 5, 7) + field(2, field(3, PIXELS)), True),
    "name twice": (field(1, b"a") + field(2, field(3, PIXELS)) + field(1, b"b"), True),
    "bitmap twice": (field(2, SIDES) + field(2, field(3, PIXELS)), False),
    "pixels twice": (field(2, field(3, PIXELS) + field(3, PIXELS[:9])), False),
    "a handle before": (field(2, HANDLE + field(3, PIXELS)), False),
    "a handle after": (field(2, field(3, PIXELS) + HANDLE), False),
    "many fields": (number(50, 1) * 100 + field(2, field(3, PIXELS)), False),
    "a group": (b"\x53\x54" + field(2, field(3, PIXELS)), False),
    "a long varint": (b"\x12\xff\xff\xff\xff\x7f" + PIXELS, False),
    "cut off": (request().SerializeToString()[:-1], False),
    "one more": (request().SerializeToString() + b"\x0a", False),
    "a field 0": (b"\x02\x00" + field(2, field(3, PIXELS)), False),
    "the name is no text": (field(1, b"\xff") + field(2, field(3, PIXELS)), True),
    "pixels as a number": (field(2, number(3, 5)) + field(9, PIXELS), False),
    "a bitmap as a number": (number(2, 5) + field(9, PIXELS), False),
    "a bitmap longer than the message": (b"\x12" + wire._varint_bytes(1 << 20) + PIXELS, False),
    "pixels longer than the bitmap": (field(2, b"\x1a" + wire._varint_bytes(1 << 20) + PIXELS), False),
    "an overlong key": (b"\x92\x00" + field(2, field(3, PIXELS))[1:], True),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_all_kinds_are_read_as_protobuf_reads_them(name):
    data, taken_apart = MESSAGES[name]
    assert as_we_say(data) == as_protobuf_says(data)
    if as_protobuf_says(data) is not None:
        assert is_a_view(data) == taken_apart


def test_no_mutation_is_read_otherwise():
    """Bytes of the structure are changed, inserted and removed at random."""
    dice = random.Random(5)
    plain = request(anomaly_mask_params=pb2.AnomalyMaskParams()).SerializeToString()
    seeds = [plain] * len(MESSAGES) + [data for data, _ in MESSAGES.values()]
    ran = taken = refused = 0
    for _ in range(CASES):
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 3)):
            # What stands before the pixels, or behind them.
            at = dice.choice([dice.randrange(40), len(data) - 1 - dice.randrange(40)])
            what = dice.randrange(3)
            if what == 0:
                data[at] = dice.randrange(256)
            elif what == 1:
                data[at:at] = bytes(dice.choices(b"\x0a\x12\x1a\x22\x08\x10\x18\x00\x80\xff\x01", k=dice.randint(1, 4)))
            else:
                del data[at : at + dice.randint(1, 3)]
        mutated = bytes(data)
        told = as_protobuf_says(mutated)
        assert as_we_say(mutated) == told, mutated[:60].hex()
        ran += 1
        refused += told is None
        taken += told is not None and is_a_view(mutated)
    assert ran == CASES
    assert taken > CASES / 10
    assert refused > CASES / 10


def test_the_comparison_notices_a_wrong_reading(monkeypatch):
    """Negative control: bitmaps that stand twice are not merged."""
    data, _ = MESSAGES["a handle after"]
    monkeypatch.setattr(wire, "HANDLE", 99)
    assert as_we_say(data) != as_protobuf_says(data)


@pytest.mark.parametrize("size", [1, 127, 128, len(PIXELS), 49_152_000])
def test_an_answer_says_what_protobuf_would_have_written(size):
    pixels = bytes(size)
    area = pb2.PixelAnomaly(total_percentage_area=0.25, hex_color="#23A436")
    result = pb2.DetectAnomalyResult(
        is_anomalous=True,
        confidence=0.75,
        anomalies=[pb2.Anomaly(name="crack", pixel_anomaly=area)],
        anomaly_score=0.75,
    )
    told = pb2.DetectAnomaliesResponse.FromString(wire.answer(result, pb2.Bitmap(width=640, height=480), pixels))
    result.anomaly_mask.CopyFrom(pb2.Bitmap(width=640, height=480, byte_data=pixels))
    assert told == pb2.DetectAnomaliesResponse(detect_anomaly_result=result)
