"""The pixels of large messages: found where they are in a request's bytes, and put into an answer's.

Parsed and read as a field, 48 MB of pixels are copied twice, into pages that the system has to find each time; set as a
field and written, once more twice. So they are taken out of a message before it is parsed, and added to one after it
is written; the encoding is https://protobuf.dev/programming-guides/encoding/.
"""

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.bitmaps import Pixels

# Below this, parsing is faster than looking.
LARGE = 1 << 16
# An ordinary request has seven; one with many more is parsed as it is.
MOST_FIELDS = 32
BITMAP = pb2.DetectAnomaliesRequest.BITMAP_FIELD_NUMBER
BYTE_DATA = pb2.Bitmap.BYTE_DATA_FIELD_NUMBER
MASK = pb2.DetectAnomalyResult.ANOMALY_MASK_FIELD_NUMBER
RESULT = pb2.DetectAnomaliesResponse.DETECT_ANOMALY_RESULT_FIELD_NUMBER
HANDLE = pb2.Bitmap.SHARED_MEMORY_HANDLE_FIELD_NUMBER
VARINT, FIXED_64, LENGTH_DELIMITED, FIXED_32 = 0, 1, 2, 5


class _Unusual(Exception):
    """The bytes are not as every client writes them; protobuf has the word on what they mean."""


def parse(data: bytes) -> tuple[pb2.DetectAnomaliesRequest, Pixels | None]:
    """Return a request and the pixels that it brings inline, None if it brings none; raise DecodeError.

    The pixels of a large request are a view of `data`, and `bitmap.byte_data` is not set then.
    """
    if len(data) >= LARGE:
        try:
            rest, pixels = _taken_apart(data)
        except _Unusual:
            pass
        else:
            return pb2.DetectAnomaliesRequest.FromString(rest), pixels
    request = pb2.DetectAnomaliesRequest.FromString(data)
    inline = request.bitmap.WhichOneof("data") == "byte_data"
    return request, request.bitmap.byte_data if inline else None


def answer(result: pb2.DetectAnomalyResult, mask: pb2.Bitmap, pixels: Pixels) -> bytes:
    """Return the bytes of the response with a result that has no mask yet, and with its mask of these pixels."""
    parts: list[Pixels] = [pixels]
    for number, before in ((BYTE_DATA, mask.SerializeToString()), (MASK, result.SerializeToString()), (RESULT, b"")):
        size = sum(map(len, parts))
        parts.insert(0, before + bytes([number << 3 | LENGTH_DELIMITED]) + _varint_bytes(size))
    return b"".join(parts)


def _taken_apart(data: bytes) -> tuple[bytes, memoryview]:
    """Return the message without its pixels, and those."""
    view = memoryview(data)
    field, begin, end = _the_only(data, 0, len(data), BITMAP)
    pixels_field, pixels_begin, pixels_end = _the_only(data, begin, end, BYTE_DATA, but_not=HANDLE)
    bitmap = b"".join((view[begin:pixels_field], view[pixels_end:end]))
    tag = BITMAP << 3 | LENGTH_DELIMITED
    rest = b"".join((view[:field], bytes([tag]), _varint_bytes(len(bitmap)), bitmap, view[end:]))
    return rest, view[pixels_begin:pixels_end]


def _the_only(data: bytes, at: int, end: int, wanted: int, but_not: int = 0) -> tuple[int, int, int]:
    """Return where the field is that stands once between `at` and `end`, and where its content begins and ends.

    Fields that stand twice are merged or replace each other, and one of a oneof the other, which is not done here.
    """
    found = None
    for _ in range(MOST_FIELDS):
        if at == end:
            break
        field = at
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        begin = at
        if kind == LENGTH_DELIMITED:
            size, begin = _varint(data, at, end)
            at = begin + size
        elif kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind in {FIXED_32, FIXED_64}:
            at += 4 if kind == FIXED_32 else 8
        else:
            raise _Unusual
        if at > end or not number or number == but_not:
            raise _Unusual
        if number == wanted:
            if found or kind != LENGTH_DELIMITED:
                raise _Unusual
            found = field, begin, at
    if at != end or not found:
        raise _Unusual
    return found


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends."""
    number = 0
    for shift in range(0, 35, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _Unusual


def _varint_bytes(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
