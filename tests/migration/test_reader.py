"""Reading a first migration and the RAM of checkpoints: whole, cut, refused."""

from __future__ import annotations

import contextlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import (
    LimitExceeded,
    PeerError,
    ShortRead,
    StoreError,
    StreamError,
    UnsupportedFeature,
)
from colo.migration.buffer import ReceiveBuffer
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, MigrationReader
from colo.migration.writer import description
from tests.streams import (
    LIMITS,
    QEMU_11,
    QEMU_72,
    RAM,
    RSDP,
    SMALL_DESCRIPTION,
    SMALL_DEVICES,
    SMALL_STREAMS,
    STREAMS,
    Checkpoint,
    Page,
    Reading,
    Stream,
    blank,
    content,
    device,
    devices,
    fill,
    full,
    naive,
    pages_of,
    paint,
    pieces,
    plain,
)

hexed = bytes.fromhex
each_stream = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.title)
each_small_stream = pytest.mark.parametrize(
    "stream", SMALL_STREAMS, ids=lambda stream: stream.title
)


def check(reading: Reading, stream: Stream) -> None:
    """All of the first migration is here, and just that."""
    assert reading.reader.done
    assert reading.header == stream.header
    assert reading.blocks == stream.blocks
    assert reading.pages == stream.pages
    assert reading.commands == list(stream.commands)
    migration = reading.reader.migration
    assert migration is not None
    assert migration.header == stream.header
    assert migration.blocks == stream.blocks
    assert migration.ram_section == stream.section
    assert migration.device_state == stream.devices
    assert migration.description == stream.description
    assert [(device.name, device.instance, device.version) for device in migration.devices] == [
        (d["name"], d["instance_id"], d["version"]) for d in stream.description["devices"]
    ]
    assert [device.start for device in migration.devices][:1] == [0]
    assert migration.devices[-1].end == len(stream.devices) - 1


# Whole, with more behind it, in pieces, cut


@each_stream
def test_a_stream_is_read_whole(stream: Stream) -> None:
    data = stream.data
    reading = Reading(room=len(data))
    assert reading.feed(data)
    check(reading, stream)
    assert (reading.buffer.available, reading.buffer.position) == (0, len(data))
    reading.reader.close()
    assert reading.reader.stalled() is None


@each_stream
def test_what_comes_behind_a_stream_stays_in_the_buffer(stream: Stream) -> None:
    data = stream.data
    reading = Reading(room=len(data) + 99, rewinds=False)
    assert reading.feed(data + b"\0\0\0\1")
    check(reading, stream)
    assert bytes(reading.buffer.take(4)) == b"\0\0\0\1"


@each_small_stream
def test_a_stream_comes_byte_by_byte_and_may_end_at_any(stream: Stream) -> None:
    data = stream.data
    reading = Reading()
    for at in range(len(data)):
        assert not reading.reader.done
        with pytest.raises((ShortRead, UnsupportedFeature)):
            reading.reader.close()
        assert reading.feed(data[at : at + 1]) == (at + 1 == len(data))
    check(reading, stream)


@pytest.mark.parametrize("stream", [s for s in STREAMS if len(s.data) < 500], ids=lambda s: s.title)
def test_a_stream_comes_in_two_pieces_cut_at_any_byte(stream: Stream) -> None:
    for cut in range(len(stream.data)):
        reading = Reading(room=2000)
        assert not reading.feed(stream.data[:cut])
        assert reading.feed(stream.data[cut:])
        check(reading, stream)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STREAMS), st.lists(st.integers(1, 20_000), min_size=1), st.booleans())
def test_a_stream_comes_in_pieces_of_any_size(
    stream: Stream, sizes: list[int], rewinds: bool
) -> None:
    data = stream.data
    reading = Reading(room=len(data), rewinds=rewinds)
    for piece in pieces(data, sizes):
        reading.feed(piece)
    check(reading, stream)


@each_stream
def test_the_memory_equals_what_a_plain_reader_makes_of_it(stream: Stream) -> None:
    found = naive(stream.data)
    images = blank(stream.blocks)
    reading = Reading(room=len(stream.data))
    reading.feed(stream.data)
    paint(images, reading.pages)
    assert images == found.images
    assert reading.pages == found.pages


@st.composite
def random_runs(draw: st.DrawFn) -> tuple[PageRun, ...]:
    runs = []
    for _ in range(draw(st.integers(0, 12))):
        block = draw(st.sampled_from([RAM, RSDP]))
        numbers = draw(st.lists(st.integers(0, block.pages - 1), min_size=1, max_size=40))
        value = draw(st.sampled_from([0, 1, 0xFF, None]))
        runs.append(full(block, numbers) if value is None else fill(block, numbers, value))
    return tuple(runs)


@settings(max_examples=60, deadline=None)
@given(st.lists(random_runs(), max_size=3), random_runs(), st.integers(1, 30_000))
def test_any_runs_come_through(
    parts: list[tuple[PageRun, ...]], last: tuple[PageRun, ...], size: int
) -> None:
    stream = Stream("drawn", parts=tuple(parts), end=last)
    data = stream.data
    assert naive(data).pages == stream.pages
    reading = Reading(room=len(data))
    for piece in pieces(data, itertools.repeat(size)):
        reading.feed(piece)
    check(reading, stream)


# Checkpoints


def after_migration(stream: Stream) -> Reading:
    reading = Reading(room=2 << 20)
    assert reading.feed(stream.data)
    return reading


WITH_CHECKPOINTS = [stream for stream in STREAMS if stream.checkpoints]
each_with_checkpoints = pytest.mark.parametrize(
    "stream", WITH_CHECKPOINTS, ids=lambda stream: stream.title
)


@each_with_checkpoints
@pytest.mark.parametrize("size", [1, 4103, 4104, 1 << 20])
def test_the_ram_of_checkpoints_comes_in_pieces(stream: Stream, size: int) -> None:
    reading = after_migration(stream)
    for data, expected in zip(stream.wire[1], stream.checkpoints, strict=True):
        if size == 1 and len(data) > 20_000:
            size = 997
        live = reading.checkpoint(stream.section)
        *pieced, last = pieces(data, itertools.repeat(size))
        for piece in pieced:
            reading.buffer.append(piece)
            assert not live.advance()
        reading.buffer.append(last + b"\0\0\0\4")
        assert live.advance() and live.done
        assert reading.pages == expected.pages
        assert bytes(reading.buffer.take(4)) == b"\0\0\0\4"
        reading.buffer.rewind()


LIVE_REFUSED = [
    ("04 00000002", StreamError, "item type 0x04 in a checkpoint's RAM"),
    ("01 00000002 03", StreamError, "item type 0x01 in a checkpoint's RAM"),
    ("08 0002 0004 00000001", StreamError, "item type 0x08 in a checkpoint's RAM"),
    ("03 00000003", StreamError, "section 3 in a checkpoint's RAM, not the ram section"),
    ("02 00000002 0000000000000010 7f", StreamError, "no footer after the ram section"),
    ("02 00000002 0000000000000010 7e 00000003", StreamError, "the footer of section 3, not 2"),
    ("02 00000002 0000000000000060", UnsupportedFeature, "XBZRLE"),
    ("02 00000002 0000000000020022 00", StreamError, "a page at 0x20000 in block pc.ram"),
]


@pytest.mark.parametrize(("wire", "error", "text"), LIVE_REFUSED)
def test_a_checkpoint_that_is_not_ram_is_refused(
    wire: str, error: type[PeerError], text: str
) -> None:
    reading = after_migration(Stream("small", parts=((fill(RAM, [0]),),)))
    live = reading.checkpoint(2)
    reading.buffer.append(hexed(wire))
    with pytest.raises(error, match=text):
        while not live.advance():
            reading.buffer.append(bytes(4096))


# What is refused, and by which name

HEADER = b"QEVM" + hexed("00000003 07 0000000d") + b"pc-i440fx-7.2"
COLO = hexed("08 0008 0000")
START = (
    hexed("01 00000002 03") + b"ram" + hexed("00000000 00000004 0000000000011004 06")
    + b"pc.ram" + hexed("0000000000010000 12") + b"/rom@etc/acpi/rsdp"
    + hexed("0000000000001000 0000000000000010 7e 00000002")
)  # fmt: skip
PART = hexed("02 00000002")
NAMED = hexed("0000000000000002 06") + b"pc.ram\0"
END = hexed("03 00000002 0000000000000010 7e 00000002")


def start(content: str) -> bytes:
    """A ram START with another content."""
    return hexed("01 00000002 03") + b"ram" + hexed("00000000 00000004" + content)


def capabilities(*names: str) -> bytes:
    listed = b"".join(bytes([len(name)]) + name.encode() for name in names)
    head = b"\5\x1aconfiguration/capabilities\0\0\0\1" + len(names).to_bytes(4, "big")
    return HEADER + head + listed


def section(name: bytes, version: str = "00000004") -> bytes:
    return hexed("01 00000002") + bytes([len(name)]) + name + hexed("00000000" + version)


REFUSED: list[tuple[str, bytes, type[PeerError], str]] = [
    # the header
    ("no stream", b"GET / HTTP/1.1\r\n", StreamError, "it begins with 0x47455420"),
    ("multifd channel", hexed("11223344 00000001"), UnsupportedFeature, "multifd"),
    ("version 2", b"QEVM" + hexed("00000002"), StreamError, "version 2, not 3"),
    ("no configuration", b"QEVM" + hexed("00000003 01"), StreamError, "send-configuration=off"),
    ("name too long", b"QEVM" + hexed("00000003 07 00001001"), LimitExceeded, "4097 bytes"),
    ("subsection", HEADER + b"\5\3abc" + bytes(4), StreamError, "'abc' is unknown to colo"),
    (
        "too many capabilities",
        HEADER + b"\5\x1aconfiguration/capabilities" + hexed("00000001 00001001"),
        LimitExceeded,
        "capabilities: 4097 names",
    ),
    ("ignore-shared", capabilities("x-ignore-shared"), UnsupportedFeature, "x-ignore-shared"),
    ("mapped-ram", capabilities("x-colo", "mapped-ram"), UnsupportedFeature, "mapped-ram"),
    ("multifd", capabilities("multifd"), UnsupportedFeature, "multifd"),
    ("postcopy-ram", capabilities("postcopy-ram"), UnsupportedFeature, "postcopy-ram"),
    # commands
    *(
        (f"command {n}", HEADER + hexed(f"08 00{n:02x} 0000"), UnsupportedFeature, "postcopy")
        for n in (3, 4, 5, 6, 7, 9, 10)
    ),
    ("command 0", HEADER + hexed("08 0000 0000"), StreamError, "command 0 is unknown"),
    ("command 12", HEADER + hexed("08 000c 0000"), StreamError, "command 12 is unknown"),
    ("ping of 8", HEADER + hexed("08 0002 0008"), StreamError, "PING with 8 bytes of data"),
    ("COLO with data", HEADER + hexed("08 0008 0001"), StreamError, "ENABLE_COLO with 1 bytes"),
    # sections
    ("block", HEADER + COLO + section(b"block"), UnsupportedFeature, "block migration"),
    ("bitmap", HEADER + COLO + section(b"dirty-bitmap"), UnsupportedFeature, "dirty bitmap"),
    ("another", HEADER + COLO + section(b"s390-x"), UnsupportedFeature, "the section 's390-x'"),
    ("old ram", HEADER + COLO + section(b"ram", "00000003"), StreamError, "of version 3, not 4"),
    ("plain migration", HEADER + START, UnsupportedFeature, "plain migration without COLO"),
    ("ping alone", HEADER + hexed("08 0002 0004 00000001") + START, UnsupportedFeature, "plain"),
    ("ram twice", HEADER + COLO + START + START, StreamError, "a second ram section"),
    ("EOF first", HEADER + COLO + b"\0", StreamError, "item type 0x00 before the end"),
    ("FULL first", HEADER + COLO + START + b"\4", StreamError, "item type 0x04 before the end"),
    ("part first", HEADER + COLO + PART, StreamError, "section 2, which was never started"),
    ("wrong part", HEADER + COLO + START + hexed("0200000003"), StreamError, "section 3, which"),
    ("no footer", HEADER + COLO + START[:-5] + b"\2", StreamError, "send-section-footer=off"),
    ("wrong footer", HEADER + COLO + START[:-1] + b"\3", StreamError, "section 3, not 2"),
    # blocks
    (
        "too much memory",
        HEADER + COLO + start("0000000001001004"),
        LimitExceeded,
        "guest memory, all blocks: 16781312 bytes, over the limit of 16777216",
    ),
    ("no size", HEADER + COLO + start("0000000000001000"), StreamError, "flags 0x0"),
    ("empty", HEADER + COLO + start("0000000000001004 0161") + bytes(8), StreamError, "a with 0"),
    (
        "half a page",
        HEADER + COLO + start("0000000000001004 0161 0000000000000800"),
        StreamError,
        "block a with 2048 bytes, 4096 are left",
    ),
    (
        "over the sum",
        HEADER + COLO + start("0000000000001004 0161 0000000000002000"),
        StreamError,
        "block a with 8192 bytes, 4096 are left",
    ),
    (
        "listed twice",
        HEADER + COLO + start("0000000000002004" + "0161 0000000000001000" * 2),
        StreamError,
        "block a is listed twice",
    ),
    (
        "not ended",
        HEADER + COLO + start("0000000000001004 0161 0000000000001000 0000000000001002"),
        StreamError,
        "flags 0x2 in the ram section",
    ),
    # pages
    *(
        (feature, HEADER + COLO + START + PART + hexed(f"0000000000000{flags}"), error, feature)
        for feature, flags, error in (
            ("XBZRLE", "040", UnsupportedFeature),
            ("XBZRLE", "060", UnsupportedFeature),
            ("RDMA", "080", UnsupportedFeature),
            ("compressed", "100", UnsupportedFeature),
            ("compressed", "120", UnsupportedFeature),
            ("multifd", "200", UnsupportedFeature),
            ("flags 0x0 ", "000", StreamError),
            ("flags 0x20 ", "020", StreamError),
            ("flags 0xa ", "00a", StreamError),
            ("flags 0x4 ", "004", StreamError),
            ("flags 0x30 ", "030", StreamError),
            ("flags 0xc00 ", "c00", StreamError),
        )
    ),
    (
        "CONTINUE first",
        HEADER + COLO + START + PART + hexed("0000000000000022 00"),
        StreamError,
        "continues a block before any was named",
    ),
    (
        "unknown block",
        HEADER + COLO + START + PART + hexed("0000000000000002 03") + b"vga\0",
        StreamError,
        "a page of block 'vga', which was never listed",
    ),
    *(
        (
            f"page {what} the end",
            HEADER + COLO + START + PART + NAMED + hexed(f"{offset | 0x22:016x} 00"),
            StreamError,
            f"a page at {offset:#x} in block pc.ram of 65536 bytes",
        )
        for what, offset in (("at", 0x10000), ("after", 0x11000), ("far from", 2**64 - 4096))
    ),
    (
        "named page at the end",
        HEADER + COLO + START + PART + hexed("0000000000001002 12") + b"/rom@etc/acpi/rsdp\0",
        StreamError,
        "a page at 0x1000 in block /rom@etc/acpi/rsdp of 4096 bytes",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "error", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_what_cannot_be_carried_is_refused_by_name(
    data: bytes, error: type[PeerError], text: str, size: int
) -> None:
    reading = Reading()
    with pytest.raises(error) as caught:
        for piece in pieces(data, itertools.repeat(size)):
            reading.feed(piece)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_refused_is_not_whole_when_more_comes() -> None:
    for _, data, error, _ in REFUSED:
        reading = Reading()
        with pytest.raises(error):
            reading.feed(data)
        with contextlib.suppress(PeerError):
            reading.feed(b"\0")
        assert reading.reader.migration is None
        assert not reading.reader.done


def test_a_stream_that_the_store_could_not_take_is_not_whole_either() -> None:
    """An error of ours, from a callback: no room for a block, say."""

    def refuse(header: Header, blocks: tuple[RamBlock, ...]) -> None:
        raise StoreError("no room")

    buffer = ReceiveBuffer(bytearray(20_000))
    reader = MigrationReader(buffer, LIMITS, refuse, lambda run: None, lambda command, value: None)
    buffer.append(QEMU_72.data)
    with pytest.raises(StoreError):
        reader.advance()
    with contextlib.suppress(PeerError, StoreError):
        reader.advance()
    assert not reader.done
    assert reader.migration is None


def test_every_refusal_says_what_to_change() -> None:
    for _, data, error, _ in REFUSED:
        if error is UnsupportedFeature:
            with pytest.raises(UnsupportedFeature) as caught:
                Reading().feed(data)
            assert caught.value.advice and caught.value.advice in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        HEADER + COLO + start("0000000000001004 03") + b"a\nb" + bytes(8),
        HEADER + COLO + start("0000000000001004 04") + b"\x1b[2J" + bytes(8),
        HEADER + COLO + section(b"\r\n\x1b[31m"),
        HEADER + b"\5\1\n" + bytes(4),
    ],
    ids=["a newline", "an escape sequence", "a section", "a subsection"],
)
def test_an_error_is_one_line_whatever_names_the_peer_sends(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        Reading().feed(data)
    assert str(caught.value).isprintable()


def test_an_error_says_where_in_the_stream_it_is() -> None:
    reading = Reading()
    reading.feed(HEADER + COLO)
    reading.feed(START)
    with pytest.raises(StreamError) as caught:
        reading.feed(PART + hexed("0000000000000022 00"))
    assert caught.value.position == len(HEADER + COLO + START + PART)


# The limits


def test_one_block_more_than_agreed_is_refused() -> None:
    names = tuple(RamBlock(f"{n}", 4096) for n in range(LIMITS.blocks + 1))
    with pytest.raises(LimitExceeded, match="memory blocks: 257 blocks, over the limit of 256"):
        Reading().feed(Stream("many", blocks=names).data)


def test_just_as_much_memory_as_agreed_is_taken() -> None:
    stream = Stream("full", blocks=(RamBlock("pc.ram", LIMITS.ram_bytes),))
    assert Reading().feed(stream.data)


def test_device_state_without_end_is_refused_at_its_limit() -> None:
    reading = Reading(Limits(ram_bytes=1 << 20, device_bytes=1000, description_bytes=500))
    reading.feed(HEADER + COLO + START + END + bytes(1500))
    with pytest.raises(LimitExceeded, match="device state: 1501 bytes, over the limit of 1500"):
        reading.feed(b"\0")


def test_a_description_over_its_limit_is_none() -> None:
    stream = Stream("long")
    text = description(stream.description)
    allowed = len(text) - 5
    for limit, done in ((allowed, True), (allowed - 1, False)):
        limits = Limits(ram_bytes=1 << 20, device_bytes=1000, description_bytes=limit)
        assert Reading(limits).feed(stream.data) is done


# The devices and their description


def test_a_primary_without_description_is_named_once_it_is_silent() -> None:
    stream = QEMU_72
    end = stream.data.index(stream.devices) + len(stream.devices)
    for cut in range(end - 30, end):
        reading = Reading()
        reading.feed(stream.data[:cut])
        assert reading.reader.stalled() is None, cut
    reading = Reading()
    assert not reading.feed(stream.data[:end])
    found = reading.reader.stalled()
    assert isinstance(found, UnsupportedFeature)
    assert "suppress-vmdesc=on" in str(found)
    with pytest.raises(UnsupportedFeature, match="suppress-vmdesc"):
        reading.reader.close()
    assert reading.feed(stream.data[end:]), "it was only slow"
    assert reading.reader.stalled() is None


def test_a_description_of_other_devices_is_told_once_the_primary_is_silent() -> None:
    reading = Reading()
    wrong = Stream("wrong", description=QEMU_72.description)
    assert not reading.feed(wrong.data)
    found = reading.reader.stalled()
    assert isinstance(found, StreamError)
    assert "is not where the description has it" in str(found)
    with pytest.raises(StreamError):
        reading.reader.close()


def test_silence_before_the_devices_tells_nothing() -> None:
    reading = Reading()
    reading.feed(HEADER + COLO + START + PART + NAMED)
    assert reading.reader.stalled() is None
    with pytest.raises(ShortRead, match="The channel ended inside the first migration") as caught:
        reading.reader.close()
    assert caught.value.got == len(HEADER + COLO + START + PART + NAMED)


def lure(length: int, text: bytes = b'{"devices": []}') -> bytes:
    """What a description begins with, in the midst of a device."""
    return b"\0\6" + length.to_bytes(4, "big") + text


LURES = {
    "a whole description": lure(15),
    "another beside it": lure(15) * 2,
    "no JSON": lure(15, b'{"devices": []]'),
    "JSON of another kind": lure(14, b'{"device": []}'),
    "no list": lure(17, b'{"devices": "no"}'),
    "half a description": lure(9),
    "longer than the limit": lure(LIMITS.description_bytes + 1),
    "ends beyond the stream": lure(30_000),
    "ends within the description": lure(120),
    "one that overlaps another": b"\0\6" + lure(0x7B22, b"{"),
    "one in the bytes of another's length": b"\0\6\0\6" + hexed("00007b22") + b'{"',
    "deep nesting": lure(20_000, b'{"devices": ' + b"[" * 19_988),
    "bytes that are no text": lure(12, b'{"\xff\xfe\x80\x80\x80\x80\x80\x80\x80\x80'),
    "a number without end": lure(9_014, b'{"devices": [' + b"1" * 9_000 + b"]"),
}


@pytest.mark.parametrize("within", LURES.values(), ids=LURES)
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_a_device_that_looks_like_a_description_is_passed_over(within: bytes, size: int) -> None:
    data, described = devices(device(7, "nvram", 1, plain("a", b"\0" + within), plain("b", b"\1")))
    stream = Stream("lured", devices=data, description=described)
    reading = Reading()
    for piece in pieces(stream.data, itertools.repeat(size)):
        reading.feed(piece)
    check(reading, stream)


def test_a_description_may_begin_with_what_looks_like_its_length() -> None:
    """The last device has section 6, and the description is just as long as to say {" twice."""
    data, described = devices(device(6, "clock", 1, plain("now", b"\1\2")))
    described["pad"] = ""
    described["pad"] = " " * (0x7B22 - len(json.dumps(described)))
    stream = Stream("overlap", devices=data, description=described)
    reading = Reading()
    assert reading.feed(stream.data)
    check(reading, stream)


def test_a_migration_without_any_device_is_read() -> None:
    data, described = devices()
    stream = Stream("bare", devices=data, description=described)
    reading = Reading()
    assert reading.feed(stream.data)
    assert reading.reader.migration is not None
    assert reading.reader.migration.devices == ()


def test_the_literal_streams_hold_what_they_were_written_to_hold() -> None:
    first = {"pc.ram": 16, RSDP.name: 1}
    for stream in (QEMU_72, QEMU_11):
        images = naive(stream.data).images
        assert {name: len(image) // 4096 for name, image in images.items()} == first
        assert images[RSDP.name][:8] == b"RSD PTR "
    assert naive(QEMU_72.data).images["pc.ram"][0x3000:0x3004] == hexed("53ff00f0")
    assert naive(QEMU_11.data).commands == [(1, b""), (2, b"\0\0\0\1"), (11, b"")]
    assert naive(QEMU_72.data).commands == [(8, b"")]


def test_the_cases_have_every_form_of_page() -> None:
    pages: list[Page] = [page for stream in STREAMS for page in stream.pages]
    assert {len(data) for _, _, data in pages} == {1, 4096}
    assert {data for _, _, data in pages if len(data) == 1} >= {b"\0", b"\1", b"\x5a", b"\xff"}
    assert content(1) != content(2)
    assert Checkpoint().pages == []
    assert SMALL_DEVICES.endswith(b"\x7e\0\0\0\7\0") and SMALL_DESCRIPTION["devices"]


def test_a_plain_migration_is_read_where_that_is_wanted() -> None:
    stream = Stream("plain", before=(), parts=((full(RAM, [1]),),))
    buffer, pages = ReceiveBuffer(bytearray(1 << 20)), list[Page]()
    reader = MigrationReader(
        buffer,
        LIMITS,
        lambda header, blocks: None,
        lambda run: pages.extend(pages_of([run])),
        lambda command, value: None,
        plain=True,
    )
    buffer.append(stream.data)
    assert reader.advance()
    assert pages == stream.pages
