"""Runs of pages: as long as the flags agree, however they are looked at, and never out of range."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from colo.errors import StreamError
from colo.migration.buffer import ReceiveBuffer
from colo.migration.ram import PageRun, RamBlock, RamReader
from tests.streams import LIMITS, RAM, content, fill, full, pages_of, paint

BLOCK = RamBlock("pc.ram", 4000 * 4096)
END = bytes.fromhex("0000000000000010")


def wire(numbers: Iterable[int], data: bytes, named: bool = False) -> bytes:
    """Pages by hand: all with ``data``, the first with its block's name if ``named``."""
    flags, written = (0x02 if len(data) == 1 else 0x08), b""
    for number in numbers:
        if named:
            written += (number * 4096 | flags).to_bytes(8, "big") + b"\x06pc.ram" + data
            named = False
        else:
            written += (number * 4096 | flags | 0x20).to_bytes(8, "big") + data
    return written


def read(data: bytes, piece: int) -> list[PageRun]:
    """Read pages that come in pieces; the runs are copies."""
    buffer, runs = ReceiveBuffer(bytearray(len(data))), []
    reader = RamReader(buffer, LIMITS)
    reader.blocks[BLOCK.name] = BLOCK

    def keep(run: PageRun) -> None:
        runs.append(PageRun(run.block, run.offsets.copy(), run.content.copy()))

    parser = reader.read_pages(keep)
    ended = False
    for at in range(0, len(data), piece):
        assert not ended
        buffer.append(data[at : at + piece])
        ended = next(parser, "ended") == "ended"
    assert ended
    return runs


#: Lengths around the steps in which a run is looked along.
LENGTHS = [1, 2, 16, 17, 63, 64, 65, 66, 319, 320, 321, 322, 1023, 1024, 1025, 1344, 1346, 3500]


@pytest.mark.parametrize("count", LENGTHS)
def test_a_run_that_is_all_here_is_handed_on_as_one(count: int) -> None:
    data = wire([0], b"\1", named=True) + wire(range(1, 1 + count), b"\0")
    data += wire(range(count), b"\0", named=True) + END
    runs = read(data, 1 << 30)
    assert [len(run) for run in runs] == [1, count, *([1, count - 1] if count > 1 else [1])]
    assert np.concatenate([run.offsets for run in runs]).tolist() == [
        number * 4096 for number in (*range(1 + count), *range(count))
    ]


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 70])
@pytest.mark.parametrize("piece", [1000, 4103, 4104, 4105, 8300, 1 << 30])
def test_full_pages_come_through_in_pieces_of_any_size(count: int, piece: int) -> None:
    data = wire([0], content(1), named=True) + wire(range(1, count), content(2)) + END
    assert pages_of(read(data, piece)) == [
        ("pc.ram", number * 4096, content(2 if number else 1)) for number in range(count)
    ]


@pytest.mark.parametrize("first", [1, 3, 16, 63, 64, 65, 66, 321])
@pytest.mark.parametrize("second", [1, 15, 64, 66])
@pytest.mark.parametrize("piece", [9, 4113, 1 << 30])
def test_a_run_ends_where_the_kind_changes(first: int, second: int, piece: int) -> None:
    data = wire([0], b"\7", named=True) + wire(range(first), b"\0")
    data += wire(range(second), content(3)) + wire(range(first), b"\5")
    data += wire([5], content(4), named=True) + END
    expected = [("pc.ram", 0, b"\7")]
    expected += [("pc.ram", number * 4096, b"\0") for number in range(first)]
    expected += [("pc.ram", number * 4096, content(3)) for number in range(second)]
    expected += [("pc.ram", number * 4096, b"\5") for number in range(first)]
    expected += [("pc.ram", 5 * 4096, content(4))]
    runs = read(data, piece)
    assert pages_of(runs) == expected
    assert all(run.is_fill == (run.content.shape[1] == 1) for run in runs)


def test_content_that_looks_like_headers_is_content() -> None:
    trap = (0x1000 | 0x28).to_bytes(8, "big") * 512
    data = wire([0], trap, named=True) + wire(range(1, 40), trap) + END
    assert pages_of(read(data, 1 << 30)) == [("pc.ram", n * 4096, trap) for n in range(40)]


@pytest.mark.parametrize("bad", [0, 1, 7, 14])
@pytest.mark.parametrize("offset", [4000 * 4096, 1 << 40, 1 << 63, (1 << 64) - 4096])
def test_a_run_with_one_page_out_of_range_is_refused_as_a_whole(bad: int, offset: int) -> None:
    data = wire([0], b"\0", named=True)
    for index in range(15):
        data += ((offset if index == bad else 4096) | 0x22).to_bytes(8, "big") + b"\0"
    runs: list[PageRun] = []
    buffer = ReceiveBuffer(bytearray(data))
    buffer.wrote(len(data))
    reader = RamReader(buffer, LIMITS)
    reader.blocks[BLOCK.name] = BLOCK
    with pytest.raises(StreamError, match=rf"a page at {offset:#x} in block pc\.ram"):
        next(reader.read_pages(runs.append))
    assert [len(run) for run in runs] == [1]


def test_a_run_points_into_the_buffer() -> None:
    data = bytearray(wire([0, 1], content(1), named=True) + END)
    buffer = ReceiveBuffer(data)
    buffer.wrote(len(data))
    runs: list[PageRun] = []
    reader = RamReader(buffer, LIMITS)
    reader.blocks[BLOCK.name] = BLOCK
    with pytest.raises(StopIteration):
        next(reader.read_pages(runs.append))
    at = data.index(content(1))
    data[at] ^= 0xFF
    assert runs[0].content[0, 0] == data[at], "it is not a copy"


def test_a_run_knows_its_size_and_kind() -> None:
    assert (len(full(RAM, [3, 4])), full(RAM, [3]).is_fill) == (2, False)
    assert (len(fill(RAM, [3])), fill(RAM, [3]).is_fill) == (1, True)
    assert (RAM.pages, BLOCK.pages) == (16, 4000)
    image = {"pc.ram": bytearray(RAM.length)}
    paint(image, pages_of([fill(RAM, [1], 7)]))
    assert image["pc.ram"] == bytes(4096) + b"\7" * 4096 + bytes(14 * 4096)
