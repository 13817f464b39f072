"""Writes what ``reader`` reads: the same items, as bytes.

Pages are laid out by array operations: a run of n pages becomes one (n, 4104) array.  A
RamWriter lives as long as the stream, because CONTINUE refers to the last block named in it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from colo.migration.format import (
    CAPABILITIES_SUBSECTION,
    FILE_MAGIC,
    FILE_VERSION,
    PAGE_SIZE,
    RAM_SECTION,
    RAM_VERSION,
    Command,
    RamFlag,
    ReturnPath,
    Section,
)
from colo.migration.ram import PageRun, RamBlock
from colo.migration.reader import Header

__all__ = [
    "RamWriter",
    "command",
    "description",
    "end_of_items",
    "header",
    "page_runs",
    "pong",
    "ram_section",
    "shut",
]

_RUN_PAGES: Final = 256


def header(content: Header) -> bytes:
    """The magic, the version and the configuration section."""
    machine = content.machine.encode()
    data = struct.pack(">IIBI", FILE_MAGIC, FILE_VERSION, Section.CONFIGURATION, len(machine))
    data += machine
    if content.capabilities:
        data += bytes([Section.SUBSECTION]) + _name(CAPABILITIES_SUBSECTION)
        data += struct.pack(">II", 1, len(content.capabilities))
        data += b"".join(_name(capability) for capability in content.capabilities)
    return data


def command(number: Command, value: int | None = None) -> bytes:
    """A command, with a u32 of data where ``value`` is given."""
    data = b"" if value is None else struct.pack(">I", value)
    return struct.pack(">BHH", Section.COMMAND, number, len(data)) + data


def ram_section(item: Section, section_id: int, content: bytes) -> bytes:
    """A START, PART or END item of the ram section, with its footer."""
    data = struct.pack(">BI", item, section_id)
    if item is Section.START:
        data += _name(RAM_SECTION) + struct.pack(">II", 0, RAM_VERSION)
    return data + content + struct.pack(">BI", Section.FOOTER, section_id)


def description(content: dict[str, object]) -> bytes:
    """The description that ends a full migration, after the EOF of the devices."""
    data = json.dumps(content).encode()
    return struct.pack(">BI", Section.DESCRIPTION, len(data)) + data


def end_of_items() -> bytes:
    """The EOF item."""
    return bytes([Section.EOF])


def pong(value: int) -> bytes:
    """The return path's answer to a ping."""
    return struct.pack(">HHI", ReturnPath.PONG, 4, value)


def shut(error: int = 0) -> bytes:
    """The return path's last word; ``error`` is 0 when the migration is loaded."""
    return struct.pack(">HHI", ReturnPath.SHUT, 4, error)


class RamWriter:
    """The content of the ram section's items."""

    def __init__(self) -> None:
        self._current: RamBlock | None = None

    def blocks(self, blocks: Iterable[RamBlock], addresses: dict[str, int] | None = None) -> bytes:
        """The content of START: the block list.

        With x-ignore-shared each block has its guest-physical address too: from ``addresses``,
        where a block that is not there has address 0.  QEMU checks it for shared blocks only.
        """
        listed = list(blocks)
        data = struct.pack(">Q", sum(b.length for b in listed) | RamFlag.MEM_SIZE)
        for block in listed:
            data += _name(block.name) + struct.pack(">Q", block.length)
            if addresses is not None:
                data += struct.pack(">Q", addresses.get(block.name, 0))
        return data + self.end()

    def pages(self, run: PageRun) -> bytes:
        """The pages of a run; empty for an empty run."""
        if not len(run):
            return b""
        kind = RamFlag.ZERO if run.is_fill else RamFlag.PAGE
        first = b""
        if run.block != self._current:
            self._current = run.block
            first = struct.pack(">Q", int(run.offsets[0]) | kind)
            first += _name(run.block.name) + run.content[0].tobytes()
            run = PageRun(run.block, run.offsets[1:], run.content[1:])
        size = run.content.shape[1]
        records = np.empty((len(run), 8 + size), np.uint8)
        headers = (run.offsets.astype(np.uint64) | np.uint64(kind | RamFlag.CONTINUE)).astype(">u8")
        records[:, :8] = headers.view(np.uint8).reshape(-1, 8)
        records[:, 8:] = run.content
        return first + records.tobytes()

    def end(self) -> bytes:
        """The mark that ends an item's content."""
        return struct.pack(">Q", RamFlag.EOS)


def page_runs(block: RamBlock, image: NDArray[np.uint8]) -> Iterator[PageRun]:
    """Cut a whole block, ``image`` of shape (length,), into zero pages and then the others."""
    pages = image.reshape(-1, PAGE_SIZE)
    filled = pages.view(np.uint64).any(axis=1)
    zero = np.flatnonzero(~filled).astype(np.int64) * PAGE_SIZE
    yield PageRun(block, zero, np.zeros((len(zero), 1), np.uint8))
    numbers = np.flatnonzero(filled)
    for start in range(0, len(numbers), _RUN_PAGES):
        some = numbers[start : start + _RUN_PAGES]
        yield PageRun(block, some.astype(np.int64) * PAGE_SIZE, pages[some])


def _name(name: str) -> bytes:
    data = name.encode("ascii")
    return bytes([len(data)]) + data
