"""A decoder against what no encoder says: noticed, in one sentence, and nothing of it is used."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import zstandard

from colo.errors import LimitExceeded, PeerError, ShortRead, StreamError
from colo.migration.format import PAGE_SIZE
from colo.wire.choice import Way
from colo.wire.decoder import Decoder
from colo.wire.frames import FRAME_HEADER_SIZE, MAX_DECODED, Flag, FrameHeader, Kind
from tests.wire.hosts import BLOCKS, HostB, Pair, content, pages

NO_FLAG = Flag(0)
STATE = content(10)[:300].tobytes()
NEXT_STATE = STATE[:100] + b"changed" + STATE[107:]


def frame(kind: Kind, body: bytes, decoded: bytes, flags: Flag = NO_FLAG, block: int = 0) -> bytes:
    crc = 0 if kind is Kind.PLAIN and not flags else zlib.crc32(decoded)
    return FrameHeader(kind, flags, block, len(body), len(decoded), crc).pack() + body


def zstd(data: bytes, content_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size).compress(data)


def prepared() -> HostB:
    """A host B that has two pages and a device state."""
    pair = Pair()
    pair.pages(pages([0, 1], [10, 20]))
    pair.devices(STATE)
    pair.checkpoint()
    return pair.b


def said(kind: str) -> bytes:
    """What host A says to a prepared host B."""
    pair = Pair()
    pair.pages(pages([0, 1], [10, 20]))
    pair.devices(STATE)
    pair.checkpoint()
    calls = {
        "plain": lambda: pair.plain(b"twelve bytes"),
        "compressed": lambda: pair.plain(b"all work and no play " * 60),
        "pages": lambda: pair.pages(pages([0, 1], [11, 21])),
        "devices": lambda: pair.devices(NEXT_STATE),
        "whole": lambda: pair.devices(STATE[:40]),
        "packed pages": lambda: pair.pages(pages([0, 1], [12, 22])),
    }
    if kind in ("compressed", "packed pages"):
        way = Way.ZSTD if kind == "compressed" else Way.BOTH
        pair.encoder.choices = Pair(way).encoder.choices
    calls[kind]()
    return pair.wire


#: Where a flipped bit is not noticed: in bytes of which nothing is computed.
UNGUARDED = {"plain": range(FRAME_HEADER_SIZE, FRAME_HEADER_SIZE + 12)}
KINDS = ["plain", "compressed", "pages", "devices", "whole", "packed pages"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(kind: str) -> None:
    wire = said(kind)
    host = prepared()
    devices = host.decoder._devices
    expected = host.hear(wire)
    for at in range(len(wire)):
        for bit in range(8):
            host.connect()
            host.decoder._devices = devices
            broken = bytearray(wire)
            broken[at] ^= 1 << bit
            try:
                got = host.hear(bytes(broken))
                host.decoder.end()
            except PeerError as error:
                assert "\n" not in str(error)
                assert not host.buffer.available or at < FRAME_HEADER_SIZE
                continue
            if at in UNGUARDED.get(kind, ()):
                assert got != expected and len(got) == len(expected)
            else:
                assert got == expected, (at, bit)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_that_is_cut_short_is_noticed_at_the_end(kind: str) -> None:
    wire = said(kind)
    for size in range(1, len(wire)):
        host = prepared()
        host.hear(wire[:size])
        with pytest.raises(ShortRead, match=f"inside a frame between the hosts, {size} bytes"):
            host.decoder.end()


def test_between_frames_the_connection_may_end() -> None:
    host = prepared()
    host.decoder.end()
    host.hear(frame(Kind.PLAIN, b"abc", b"abc"))
    host.decoder.end()


def page_body(numbers: list[int], flags: int = 0x28) -> bytes:
    """Pages that are as they were."""
    heads = b"".join((number * PAGE_SIZE | flags).to_bytes(8, "big") for number in numbers)
    return len(numbers).to_bytes(4, "big") + heads + bytes(64 * len(numbers))


ONE = bytes(8 + PAGE_SIZE)
TEXT = b"all work and no play " * 60
#: What is said, and the sentence about it.
WRONG = {
    "a crc": (frame(Kind.PAGES, page_body([0]), ONE), "its crc differs"),
    "zstd that is none": (
        frame(Kind.PLAIN, b"garbage", TEXT, Flag.COMPRESSED),
        "it cannot be decompressed|compressed bytes for",
    ),
    "zstd cut short": (
        frame(Kind.PLAIN, zstd(TEXT)[:-3], TEXT, Flag.COMPRESSED),
        "it cannot be decompressed",
    ),
    "zstd and more": (
        frame(Kind.PLAIN, zstd(TEXT) + b"x", TEXT, Flag.COMPRESSED),
        "it cannot be decompressed",
    ),
    "zstd of another size": (
        frame(Kind.PLAIN, zstd(TEXT[:-1]), TEXT, Flag.COMPRESSED),
        "1259 bytes where 1260 belong",
    ),
    "zstd of a larger size": (
        frame(Kind.PLAIN, zstd(TEXT + b"x"), TEXT, Flag.COMPRESSED),
        "1261 compressed bytes for 1260",
    ),
    "zstd of an unknown size": (
        frame(Kind.PLAIN, zstd(TEXT, False), TEXT, Flag.COMPRESSED),
        "-1 compressed bytes for 1260",
    ),
    "a block that there is none": (
        frame(Kind.PAGES, page_body([0]), ONE, block=2),
        "block 2, of 2",
    ),
    "a page that there is none": (
        frame(Kind.PAGES, page_body([8]), ONE, block=1),
        "page 8 in block vga.vram of 8 pages",
    ),
    "a page far out": (
        frame(Kind.PAGES, page_body([(1 << 52) - 1]), ONE),
        "page 4503599627370495 in block pc.ram of 16 pages",
    ),
    "a page of another kind": (
        frame(Kind.PAGES, page_body([0], 0x22), ONE),
        "a page that is not one which continues a block",
    ),
    "fewer pages": (
        frame(Kind.PAGES, page_body([0]) + bytes(100), ONE * 2),
        "1 pages where 2 belong",
    ),
    "a state of another size": (
        frame(Kind.DEVICES, bytes(10), bytes(301)),
        "it differs from a state of 301 bytes, there is one of 300 bytes",
    ),
    "a state with words too few": (
        frame(Kind.DEVICES, b"\1" + bytes(4), bytes(300)),
        "0 bytes where 1 words belong",
    ),
    "a whole state of another size": (
        frame(Kind.DEVICES, bytes(299), bytes(300), Flag.WHOLE),
        "299 bytes where 300 belong",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused(what: str) -> None:
    wire, text = WRONG[what]
    host = prepared()
    at = host.decoder._position
    with pytest.raises(StreamError, match=text) as caught:
        host.hear(wire)
    assert caught.value.position == at
    assert not host.buffer.available


def test_a_difference_before_there_is_anything() -> None:
    host = prepared()
    host.decoder = Decoder(host.buffer, host.bases)
    with pytest.raises(StreamError, match=r"block 0, of 0"):
        host.hear(frame(Kind.PAGES, page_body([0]), ONE))
    host.connect()
    with pytest.raises(StreamError, match=r"there is none"):
        host.hear(frame(Kind.DEVICES, bytes(10), bytes(300)))


def test_a_stale_base_is_noticed() -> None:
    host = prepared()
    host.images[0][1, 100] ^= 1
    with pytest.raises(StreamError, match="its crc differs"):
        host.hear(said("pages"))


# -- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pages", "compressed"])
def test_a_frame_for_which_there_is_no_room_is_refused(kind: str) -> None:
    host = prepared()
    host.room = 1000
    host.connect()
    with pytest.raises(LimitExceeded):
        host.hear(said(kind))
    assert not host.buffer.available


def test_the_stream_s_bytes_fill_the_room_that_there_is() -> None:
    host = HostB(room=10)
    host.connect()
    with pytest.raises(LimitExceeded):
        host.hear(frame(Kind.PLAIN, b"twelve bytes", b"twelve bytes"))
    assert bytes(host.buffer.take(10)) == b"twelve byt"


def test_a_long_plain_body_is_received_where_it_is_used() -> None:
    host = prepared()
    data = np.random.default_rng(1).bytes(MAX_DECODED)
    wire = frame(Kind.PLAIN, data, data)
    window = host.decoder.writable(FRAME_HEADER_SIZE)
    window[:] = wire[:FRAME_HEADER_SIZE]
    host.decoder.received(FRAME_HEADER_SIZE)
    window = host.decoder.writable(1 << 30)
    assert len(window) == MAX_DECODED
    assert window.obj is host.buffer.data.obj
    window[:1000] = data[:1000]
    host.decoder.received(1000)
    assert bytes(host.buffer.take(1000)) == data[:1000], "it is there before the rest is"
    assert len(host.decoder.writable(1 << 30)) == MAX_DECODED - 1000
    with pytest.raises(ShortRead, match="1016 bytes into it"):
        host.decoder.end()


def test_memory_is_given_back_after_a_large_frame() -> None:
    host = prepared()
    usual = len(host.decoder._memory)
    state = np.random.default_rng(1).bytes(MAX_DECODED)
    wire = frame(Kind.DEVICES, state, state, Flag.WHOLE) + frame(Kind.PLAIN, b"abc", b"abc")
    host.hear(wire[:1000])
    assert len(host.decoder._memory) == FRAME_HEADER_SIZE + MAX_DECODED
    assert host.hear(wire[1000:]) == state + b"abc"
    assert len(host.decoder._memory) == usual


def test_blocks_are_found_by_their_place_in_the_list() -> None:
    pair = Pair()
    pair.pages(pages([0], [10], BLOCKS[1]))
    pair.checkpoint()
    pair.pages(pages([0], [11], BLOCKS[1]))
    assert pair.b.asked == [(1, [0])]
