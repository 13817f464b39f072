"""Frame headers: as they are written down, and all that is none is refused in a sentence."""

from __future__ import annotations

import struct

import pytest

from colo.errors import LimitExceeded, StreamError
from colo.wire.frames import FRAME_HEADER_SIZE, MAX_DECODED, Flag, FrameHeader, Kind, parse

CASES = [
    (FrameHeader(Kind.PLAIN, Flag(0), 0, 5, 5, 0), "01 00 0000 00000005 00000005 00000000"),
    (FrameHeader(Kind.PLAIN, Flag.COMPRESSED, 0, 4, 9, 7), "01 01 0000 00000004 00000009 00000007"),
    (FrameHeader(Kind.PAGES, Flag(0), 258, 76, 4104, 1), "02 00 0102 0000004c 00001008 00000001"),
    (
        FrameHeader(Kind.DEVICES, Flag.COMPRESSED | Flag.WHOLE, 0, 1, MAX_DECODED, 0xFFFFFFFF),
        "04 03 0000 00000001 00200000 ffffffff",
    ),
]


@pytest.mark.parametrize(("header", "data"), CASES)
def test_a_header_is_sixteen_bytes(header: FrameHeader, data: str) -> None:
    assert FRAME_HEADER_SIZE == 16
    assert header.pack() == bytes.fromhex(data)
    assert parse(bytes.fromhex(data), 0) == header


def test_kinds_differ_in_two_bits() -> None:
    for one in Kind:
        assert all((one ^ other).bit_count() >= 2 for other in Kind if other is not one)


REFUSED = [
    ((3, 0, 0, 5, 5, 0), "there is no frame of kind 3"),
    ((0, 0, 0, 5, 5, 0), "there is no frame of kind 0"),
    ((1, 2, 0, 5, 5, 0), "PLAIN with flags 0x2"),
    ((1, 4, 0, 5, 5, 0), "PLAIN with flags 0x4"),
    ((1, 0x81, 0, 5, 5, 0), "PLAIN with flags 0x81"),
    ((2, 2, 0, 76, 4104, 0), "PAGES with flags 0x2"),
    ((4, 4, 0, 5, 5, 0), "DEVICES with flags 0x4"),
    ((1, 0, 1, 5, 5, 0), "1 where 0 belongs"),
    ((4, 0, 1, 5, 5, 0), "1 where 0 belongs"),
    ((1, 0, 0, 0, 0, 0), "a body of 0 bytes for 0"),
    ((1, 1, 0, 6, 5, 0), "a body of 6 bytes for 5"),
    ((1, 0, 0, 4, 5, 0), "a body of 4 bytes for 5 and crc 0x0, though it is not compressed"),
    ((1, 0, 0, 5, 5, 9), "and crc 0x9"),
    ((2, 0, 0, 76, 4105, 0), "4105 bytes, no whole number of pages"),
]


@pytest.mark.parametrize(("fields", "text"), REFUSED)
def test_what_is_no_header_is_refused(fields: tuple[int, ...], text: str) -> None:
    with pytest.raises(StreamError, match=text) as caught:
        parse(struct.pack(">BBHIII", *fields), 77)
    assert caught.value.position == 77


@pytest.mark.parametrize("kind", [1, 4])
def test_a_frame_that_would_take_too_much_memory_is_refused(kind: int) -> None:
    with pytest.raises(LimitExceeded, match="2097153 bytes, over the limit of 2097152"):
        parse(struct.pack(">BBHIII", kind, 1, 0, 5, MAX_DECODED + 1, 0), 0)
