"""Writes what ``reader`` reads: the same items, as bytes.

Pages are laid out by array operations: a run of n pages becomes one (n, 4104) array.  A
RamWriter lives as long as the stream, because CONTINUE refers to the last block named in it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from colo.migration.format import (
    CAPABILITIES_SUBSECTION,
    CONTINUE,
    FILE_MAGIC,
    FILE_VERSION,
    PAGE,
    PAGE_SIZE,
    RAM_SECTION,
    RAM_VERSION,
    ZERO,
    Command,
    RamFlag,
    ReturnPath,
    Section,
)
from colo.migration.ram import Bytes, Offsets, PageRun, RamBlock
from colo.migration.reader import Header

__all__ = [
    "RUN_PAGES",
    "Heads",
    "RamWriter",
    "after_pages",
    "before_pages",
    "by_kind",
    "command",
    "description",
    "device_state",
    "end_of_items",
    "footer",
    "header",
    "migration",
    "page_runs",
    "pong",
    "ram_item",
    "ram_section",
    "shut",
]

#: A run of so many pages stays in the processor's cache.
RUN_PAGES: Final = 256

#: Headers of pages, as they are on the wire: (n,) big-endian u64.
Heads: TypeAlias = NDArray[np.uint64]


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
    return ram_item(item, section_id) + content + footer(section_id)


def ram_item(item: Section, section_id: int) -> bytes:
    """The head of such an item."""
    data = struct.pack(">BI", item, section_id)
    if item is Section.START:
        data += _name(RAM_SECTION) + struct.pack(">II", 0, RAM_VERSION)
    return data


def footer(section_id: int) -> bytes:
    """What ends a section."""
    return struct.pack(">BI", Section.FOOTER, section_id)


def device_state(sections: Sequence[tuple[str, bytes]]) -> tuple[bytes, dict[str, Any]]:
    """Device sections, each a name and its bytes, and their EOF; and what describes them."""
    data, devices = b"", []
    for number, (name, content) in enumerate(sections, 1):
        data += struct.pack(">BI", Section.FULL, number) + _name(name)
        data += struct.pack(">II", 0, 1) + content + footer(number)
        whole = {"name": "data", "type": "buffer", "size": len(content)}
        devices.append({"name": name, "instance_id": 0, "version": 1, "fields": [whole]})
    return data + end_of_items(), {"page_size": PAGE_SIZE, "devices": devices}


def description(content: dict[str, Any]) -> bytes:
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
    """The content of the ram section's items.

    ``addresses``: with x-ignore-shared each block is listed with its address in the machine's
    memory, 0 where it is not named there.  QEMU checks that of shared blocks only.
    """

    def __init__(self, addresses: Mapping[str, int] | None = None) -> None:
        self._addresses = addresses
        self._current: RamBlock | None = None

    def blocks(self, blocks: Iterable[RamBlock]) -> bytes:
        """The content of START: the block list."""
        listed = list(blocks)
        data = struct.pack(">Q", sum(b.length for b in listed) | RamFlag.MEM_SIZE)
        for block in listed:
            data += _name(block.name) + struct.pack(">Q", block.length)
            if self._addresses is not None:
                data += struct.pack(">Q", self._addresses.get(block.name, 0))
        return data + self.end()

    def pages(self, run: PageRun) -> bytes:
        """The pages of a run; empty for an empty run."""
        if not len(run):
            return b""
        first, others = self.heads(run)
        content = run.content
        records = np.empty((len(others), 8 + content.shape[1]), np.uint8)
        records[:, :8] = others.view(np.uint8).reshape(-1, 8)
        records[:, 8:] = content[1:]
        return b"".join((first, content[0].tobytes(), records.tobytes()))

    def heads(self, run: PageRun) -> tuple[bytes, Heads]:
        """What stands before the content of a run's first page, and the others' headers."""
        kind = ZERO if run.is_fill else PAGE
        headers = (run.offsets | (kind | CONTINUE)).astype(">u8")
        if run.block == self._current:
            return headers[:1].tobytes(), headers[1:]
        self._current = run.block
        first = struct.pack(">Q", int(run.offsets[0]) | kind) + _name(run.block.name)
        return first, headers[1:]

    def end(self) -> bytes:
        """The mark that ends an item's content."""
        return struct.pack(">Q", RamFlag.EOS)


def migration(
    ram: RamWriter,
    content: Header,
    section_id: int,
    blocks: Sequence[RamBlock],
    runs: Iterable[PageRun],
    devices: tuple[bytes, dict[str, Any]],
) -> Iterator[bytes]:
    """Yield a full migration, from magic to description.

    ``devices``: the device sections with their EOF byte, and what describes them.
    """
    yield before_pages(ram, content, section_id, blocks)
    for run in runs:
        yield ram.pages(run)
    yield after_pages(ram, section_id, devices)


def before_pages(
    ram: RamWriter,
    content: Header,
    section_id: int,
    blocks: Sequence[RamBlock],
    commands: bytes = b"",
) -> bytes:
    """What of a full migration comes before its pages: from magic to the head of a PART item."""
    start = ram_section(Section.START, section_id, ram.blocks(blocks))
    return header(content) + commands + start + ram_item(Section.PART, section_id)


def after_pages(ram: RamWriter, section_id: int, devices: tuple[bytes, dict[str, Any]]) -> bytes:
    """What comes after its pages: from their end mark to the description."""
    data = ram.end() + footer(section_id) + ram_section(Section.END, section_id, ram.end())
    return data + devices[0] + description(devices[1])


def page_runs(block: RamBlock, image: NDArray[np.uint8]) -> Iterator[PageRun]:
    """Cut a whole block, ``image`` of shape (pages, 4096), into runs of one kind."""
    for start in range(0, len(image), RUN_PAGES):
        some = image[start : start + RUN_PAGES]
        yield from by_kind(block, np.arange(start, start + len(some)), some)


def by_kind(block: RamBlock, numbers: Offsets, content: Bytes) -> Iterator[PageRun]:
    """Cut pages, by their numbers in the block, into the zero ones and the others."""
    filled = content.view(np.uint64).any(axis=1)
    zero = numbers[~filled] * PAGE_SIZE
    if len(zero):
        yield PageRun(block, zero, np.zeros((len(zero), 1), np.uint8))
    if filled.all():
        yield PageRun(block, numbers * PAGE_SIZE, content)
    elif filled.any():
        yield PageRun(block, numbers[filled] * PAGE_SIZE, content[filled])


def _name(name: str) -> bytes:
    data = name.encode("ascii")
    return bytes([len(data)]) + data
