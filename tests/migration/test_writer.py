"""Writing the stream: the literal ones exactly, and any that a plain reader reads back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.migration.format import Command, Section
from colo.migration.ram import PageRun, RamBlock
from colo.migration.reader import Header
from colo.migration.writer import (
    RamWriter,
    command,
    description,
    end_of_items,
    header,
    page_runs,
    pong,
    ram_section,
    shut,
)
from tests.streams import (
    QEMU_11,
    QEMU_72,
    RAM,
    RSDP,
    STREAMS,
    Stream,
    content,
    fill,
    full,
    naive,
    pages_of,
)

hexed = bytes.fromhex


@pytest.mark.parametrize("stream", [QEMU_72, QEMU_11], ids=lambda stream: stream.title)
def test_a_stream_is_written_as_qemu_does(stream: Stream) -> None:
    assert stream.written() == (stream.literal, stream.literal_checkpoints)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.title)
def test_a_plain_reader_reads_what_is_written(stream: Stream) -> None:
    found = naive(stream.written()[0])
    assert found.blocks == stream.blocks
    assert found.pages == stream.pages
    assert found.tail.startswith(stream.devices + b"\6")
    assert [number for number, _ in found.commands] == [int(c) for c, _ in stream.commands]


ITEMS = [
    (header(Header("q35")), b"QEVM\0\0\0\3\7\0\0\0\3q35"),
    (
        header(Header("q35", ("x-ignore-shared",))),
        b"QEVM\0\0\0\3\7\0\0\0\3q35\5\x1aconfiguration/capabilities"
        b"\0\0\0\1\0\0\0\1\x0fx-ignore-shared",
    ),
    (command(Command.ENABLE_COLO), hexed("08 0008 0000")),
    (command(Command.PING, 1), hexed("08 0002 0004 00000001")),
    (command(Command.SWITCHOVER_START), hexed("08 000b 0000")),
    (ram_section(Section.PART, 2, b"abc"), hexed("02 00000002 616263 7e 00000002")),
    (
        ram_section(Section.START, 0x01020304, b""),
        hexed("01 01020304 03 72616d 00000000 00000004 7e 01020304"),
    ),
    (description({"devices": []}), b'\6\0\0\0\x0f{"devices": []}'),
    (end_of_items(), b"\0"),
    (pong(1), hexed("0002 0004 00000001")),
    (pong(0xFFFFFFFF), hexed("0002 0004 ffffffff")),
    (shut(), hexed("0001 0004 00000000")),
    (shut(1), hexed("0001 0004 00000001")),
]


@pytest.mark.parametrize(("written", "expected"), ITEMS)
def test_an_item_is_written(written: bytes, expected: bytes) -> None:
    assert written == expected


def test_blocks_have_addresses_only_where_they_are_given() -> None:
    blocks = (RAM, RSDP)
    listed = hexed("0000000000011004 06") + b"pc.ram" + hexed("0000000000010000")
    other = b"\x12/rom@etc/acpi/rsdp" + hexed("0000000000001000")
    assert RamWriter().blocks(blocks) == listed + other + hexed("0000000000000010")
    assert RamWriter({RSDP.name: 0xF0000}).blocks(blocks) == (
        listed + bytes(8) + other + hexed("00000000000f0000 0000000000000010")
    )


def test_a_block_is_named_when_it_changes_and_not_again() -> None:
    ram = RamWriter()
    name = b"\x06pc.ram"
    assert ram.pages(fill(RAM, [])) == b""
    assert ram.pages(fill(RAM, [2, 1], 5)) == (
        hexed("0000000000002002") + name + hexed("05 0000000000001022 05")
    )
    assert ram.pages(full(RAM, [3], 1)) == hexed("0000000000003028") + content(1 + 0x3000)
    assert ram.pages(fill(RSDP, [0])) == hexed("0000000000000002 12") + RSDP.name.encode() + b"\0"
    assert ram.pages(fill(RSDP, [])) == b""
    assert ram.pages(full(RAM, [1], 1)) == hexed("0000000000001008") + name + content(1 + 0x1000)
    assert ram.end() == hexed("0000000000000010")


def test_a_page_offset_may_be_beyond_four_gigabytes() -> None:
    huge = RamBlock("pc.ram", 1 << 40)
    run = PageRun(huge, np.array([0, (1 << 40) - 4096]), np.zeros((2, 1), np.uint8))
    written = RamWriter().pages(run)
    assert written[-9:] == hexed("000000fffffff022 00")


@given(st.lists(st.sampled_from([b"\0", b"\1", b"\xff"]), min_size=1, max_size=600))
def test_a_block_is_cut_into_zero_pages_and_the_others(kinds: list[bytes]) -> None:
    block = RamBlock("pc.ram", len(kinds) * 4096)
    image = np.zeros((len(kinds), 4096), np.uint8)
    for page, kind in zip(image, kinds, strict=True):
        page[-1] = kind[0]
    runs = list(page_runs(block, image))
    zeros = [run for run in runs if run.is_fill]
    assert not any(run.content.any() for run in zeros)
    assert [offset // 4096 for run in zeros for offset in run.offsets] == [
        number for number, kind in enumerate(kinds) if kind == b"\0"
    ]
    assert pages_of(run for run in runs if not run.is_fill) == [
        ("pc.ram", number * 4096, bytes(4095) + kind)
        for number, kind in enumerate(kinds)
        if kind != b"\0"
    ]
    assert all(0 < len(run) <= 256 for run in runs)
