"""Migration streams for tests.

Two of them are written out byte by byte, as QEMU 7.2 and 11.1 send them (recorded, and cut down
to two small blocks and a few devices), so that our reader and our writer cannot share a mistake.
The others are described once, as a ``Stream``, and written by our writer.  ``naive`` reads
either kind page by page, from the format's description alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np

from colo.migration import writer
from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import PAGE_SIZE, Command, Section
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, LiveStateReader, MigrationReader
from colo.migration.writer import RamWriter

LIMITS = Limits(ram_bytes=16 << 20, device_bytes=64 << 10, description_bytes=64 << 10)

RAM = RamBlock("pc.ram", 0x10000)
RSDP = RamBlock("/rom@etc/acpi/rsdp", 0x1000)

#: One page: its block, its offset, and its content: 4096 bytes, or the one that fills it.
Page = tuple[str, int, bytes]
Commands = tuple[tuple[Command, int | None], ...]


# -- pages --------------------------------------------------------------------------------


def content(seed: int) -> bytes:
    """The content of a page, a different one for each seed."""
    return np.random.default_rng(seed).bytes(PAGE_SIZE)


def full(block: RamBlock, numbers: Iterable[int], seed: int = 1) -> PageRun:
    """Pages in full, by their numbers in the block."""
    offsets = np.fromiter((number * PAGE_SIZE for number in numbers), np.int64)
    data = b"".join(content(seed + int(offset)) for offset in offsets)
    return PageRun(block, offsets, np.frombuffer(data, np.uint8).reshape(-1, PAGE_SIZE))


def fill(block: RamBlock, numbers: Iterable[int], value: int = 0) -> PageRun:
    """Pages of one repeated byte, by their numbers in the block."""
    offsets = np.fromiter((number * PAGE_SIZE for number in numbers), np.int64)
    return PageRun(block, offsets, np.full((len(offsets), 1), value, np.uint8))


def pages_of(runs: Iterable[PageRun]) -> list[Page]:
    """The pages of some runs, one by one."""
    return [
        (run.block.name, int(offset), page.tobytes())
        for run in runs
        for offset, page in zip(run.offsets, run.content, strict=True)
    ]


def paint(images: dict[str, bytearray], pages: Iterable[Page]) -> None:
    """Write pages into images, the plain way."""
    for name, offset, data in pages:
        size = PAGE_SIZE // len(data)
        images[name][offset : offset + PAGE_SIZE] = data * size


def blank(blocks: Iterable[RamBlock]) -> dict[str, bytearray]:
    """Images of zeros."""
    return {block.name: bytearray(block.length) for block in blocks}


# -- devices ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Some bytes of a device section and what the description says about them."""

    data: bytes
    described: dict[str, Any]
    is_subsection: bool = False


def _described(parts: tuple[Part, ...]) -> dict[str, Any]:
    described: dict[str, Any] = {"fields": [p.described for p in parts if not p.is_subsection]}
    subsections = [part.described for part in parts if part.is_subsection]
    return described | ({"subsections": subsections} if subsections else {})


def _data(parts: tuple[Part, ...]) -> bytes:
    return b"".join(part.data for part in parts)


def plain(name: str, data: bytes) -> Part:
    """A field."""
    return Part(data, {"name": name, "type": "buffer", "size": len(data)})


def array(name: str, size: int, data: bytes) -> Part:
    """An array of elements of ``size`` bytes."""
    count = len(data) // size
    return Part(data, {"name": name, "array_len": count, "type": "uint", "size": size})


def struct(name: str, *parts: Part, count: int | None = None) -> Part:
    """A struct, or an array of ``count`` equal ones."""
    data = _data(parts)
    described: dict[str, Any] = {"name": name} | ({} if count is None else {"array_len": count})
    described |= {"type": "struct", "struct": {"vmsd_name": name, "version": 1}}
    described["struct"] |= _described(parts)
    described["size"] = len(data)
    return Part(data * (1 if count is None else count), described)


def subsection(name: str, version: int, *parts: Part) -> Part:
    """A subsection of a device or of a struct."""
    data = b"\x05" + bytes([len(name)]) + name.encode() + version.to_bytes(4, "big") + _data(parts)
    return Part(data, {"vmsd_name": name, "version": version} | _described(parts), True)


def device(section: int, name: str, version: int, *parts: Part, instance: int = 0) -> Part:
    """A device section with its footer."""
    data = b"\x04" + section.to_bytes(4, "big") + bytes([len(name)]) + name.encode()
    data += instance.to_bytes(4, "big") + version.to_bytes(4, "big") + _data(parts)
    data += b"\x7e" + section.to_bytes(4, "big")
    described = {"name": name, "instance_id": instance, "vmsd_name": name, "version": version}
    return Part(data, described | _described(parts))


def devices(*parts: Part) -> tuple[bytes, dict[str, Any]]:
    """The device sections and their EOF byte, and their description."""
    return _data(parts) + b"\0", {"page_size": 4096, "devices": [p.described for p in parts]}


SMALL_DEVICES, SMALL_DESCRIPTION = devices(device(7, "clock", 1, plain("now", b"\x01\x02")))


def later_devices(number: int) -> bytes:
    """The device state of a later checkpoint; it has no description."""
    return device(7, "clock", 1, plain("now", number.to_bytes(2, "big"))).data + b"\0"


# -- streams ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint sends: one END item with these pages, unless there are PARTs before."""

    end: tuple[PageRun, ...] = ()
    parts: tuple[tuple[PageRun, ...], ...] = ()
    devices: bytes = SMALL_DEVICES

    @property
    def pages(self) -> list[Page]:
        return pages_of(run for runs in (*self.parts, self.end) for run in runs)


@dataclass(frozen=True)
class Stream:
    """A first migration and the RAM parts of the checkpoints after it, item by item.

    ``literal`` and ``literal_checkpoints``, where given, are the bytes as QEMU sends them.
    """

    title: str
    blocks: tuple[RamBlock, ...] = (RAM, RSDP)
    parts: tuple[tuple[PageRun, ...], ...] = ()
    end: tuple[PageRun, ...] = ()
    header: Header = field(default_factory=lambda: Header("pc-i440fx-7.2"))
    before: Commands = ((Command.ENABLE_COLO, None),)
    before_end: Commands = ()
    after_end: Commands = ()
    devices: bytes = SMALL_DEVICES
    description: dict[str, Any] = field(default_factory=lambda: SMALL_DESCRIPTION)
    section: int = 2
    checkpoints: tuple[Checkpoint, ...] = ()
    literal: bytes = b""
    literal_checkpoints: tuple[bytes, ...] = ()

    def written(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The stream by our writer: the migration, and the RAM part of each checkpoint."""
        ram = RamWriter()
        data = writer.header(self.header) + _commands(self.before)
        data += writer.ram_section(Section.START, self.section, ram.blocks(self.blocks))
        for runs in self.parts:
            data += self._item(Section.PART, ram, runs)
        data += _commands(self.before_end)
        data += self._item(Section.END, ram, self.end)
        data += _commands(self.after_end)
        data += self.devices + writer.description(self.description)
        checkpoints = []
        for checkpoint in self.checkpoints:
            items = [self._item(Section.PART, ram, runs) for runs in checkpoint.parts]
            items.append(self._item(Section.END, ram, checkpoint.end) + writer.end_of_items())
            checkpoints.append(b"".join(items))
        return data, tuple(checkpoints)

    def _item(self, item: Section, ram: RamWriter, runs: Iterable[PageRun]) -> bytes:
        pages = b"".join(ram.pages(run) for run in runs)
        return writer.ram_section(item, self.section, pages + ram.end())

    @property
    def wire(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The stream as it comes: the literal one where there is one."""
        return (self.literal, self.literal_checkpoints) if self.literal else self.written()

    @property
    def data(self) -> bytes:
        """The first migration as it comes."""
        return self.wire[0]

    @property
    def pages(self) -> list[Page]:
        """The pages of the first migration."""
        return pages_of(run for runs in (*self.parts, self.end) for run in runs)

    @property
    def commands(self) -> Commands:
        return self.before + self.before_end + self.after_end


def _commands(commands: Commands) -> bytes:
    return b"".join(writer.command(number, value) for number, value in commands)


# -- the two streams written out ----------------------------------------------------------

_HEX = bytes.fromhex
_PAGE = b"\x53\xff\x00\xf0" * 1024  # the first page of a PC's memory begins like this
_PAGE_2 = bytes(range(256)) * 16
_RSDP = b"RSD PTR " + bytes(4088)

_PCKBD_JSON = (
    b'{"name": "pckbd", "instance_id": 0, "vmsd_name": "pckbd", "version": 3, "fields": '
    b'[{"name": "kbd", "type": "struct", "struct": {"vmsd_name": "pckbd", "version": 3, '
    b'"fields": [{"name": "write_cmd", "type": "uint8", "size": 1}, {"name": "status", '
    b'"type": "uint8", "size": 1}, {"name": "mode", "type": "uint8", "size": 1}, '
    b'{"name": "pending_tmp", "type": "uint8", "size": 1}], "subsections": '
    b'[{"vmsd_name": "pckbd/extended_state", "version": 0, "fields": [{"name": '
    b'"migration_flags", "type": "uint32", "size": 4}, {"name": "obsrc", "type": "uint32", '
    b'"size": 4}, {"name": "obdata", "type": "uint8", "size": 1}, {"name": "cbdata", '
    b'"type": "uint8", "size": 1}]}]}, "size": 40}]}'
)
_PCIBUS_JSON = (
    b'{"name": "PCIBUS", "instance_id": 0, "vmsd_name": "PCIBUS", "version": 1, "fields": '
    b'[{"name": "nirq", "type": "int32 equal", "size": 4}, {"name": "irq_count", '
    b'"array_len": 4, "type": "int32", "size": 4}]}'
)

DEVICES_72 = b"".join(
    (
        _HEX("04 00000000 05"), b"timer", _HEX("00000000 00000002"), bytes(24),
        _HEX("7e 00000000"),
        _HEX("04 00000019 05"), b"pckbd", _HEX("00000000 00000003"), _HEX("00 18 03 00"),
        _HEX("05 14"), b"pckbd/extended_state", _HEX("00000000 00000000 00000000 00 00"),
        _HEX("7e 00000019"),
        _HEX("04 00000028 0b"), b"globalstate", _HEX("00000000 00000001 0000000a"),
        b"prelaunch", bytes(91),
        _HEX("7e 00000028"),
        _HEX("00"),
    )
)  # fmt: skip
DESCRIPTION_72 = (
    b'{"page_size": 4096, "devices": [{"name": "timer", "instance_id": 0, "vmsd_name": '
    b'"timer", "version": 2, "fields": [{"name": "cpu_ticks_offset", "type": "int64", '
    b'"size": 8}, {"name": "unused", "type": "unused_buffer", "size": 8}, {"name": '
    b'"cpu_clock_offset", "type": "int64", "size": 8}]}, ' + _PCKBD_JSON + b", "
    b'{"name": "globalstate", "instance_id": 0, "vmsd_name": "globalstate", "version": 1, '
    b'"fields": [{"name": "size", "type": "uint32", "size": 4}, {"name": "runstate", '
    b'"type": "buffer", "size": 100}]}]}'
)
QEMU_72 = Stream(
    title="as QEMU 7.2 sends it",
    parts=(
        (
            fill(RAM, range(3)),
            PageRun(RAM, np.array([0x3000]), np.frombuffer(_PAGE, np.uint8).reshape(1, -1)),
            fill(RAM, range(4, 16)),
            PageRun(RSDP, np.array([0]), np.frombuffer(_RSDP, np.uint8).reshape(1, -1)),
        ),
    ),
    devices=DEVICES_72,
    description=json.loads(DESCRIPTION_72),
    checkpoints=(
        Checkpoint(
            (PageRun(RAM, np.array([0]), np.frombuffer(_PAGE_2, np.uint8).reshape(1, -1)),),
            devices=DEVICES_72,
        ),
        Checkpoint(
            (
                PageRun(RAM, np.array([0x2000]), np.frombuffer(_PAGE, np.uint8).reshape(1, -1)),
                fill(RAM, [0, 15]),
            ),
            devices=DEVICES_72,
        ),
    ),
    literal=b"".join(
        (
            b"QEVM", _HEX("00000003 07 0000000d"), b"pc-i440fx-7.2",
            _HEX("08 0008 0000"),  # COLO is on
            _HEX("01 00000002 03"), b"ram", _HEX("00000000 00000004 0000000000011004"),
            _HEX("06"), b"pc.ram", _HEX("0000000000010000"),
            _HEX("12"), b"/rom@etc/acpi/rsdp", _HEX("0000000000001000"),
            _HEX("0000000000000010 7e 00000002"),
            _HEX("02 00000002"),
            _HEX("0000000000000002 06"), b"pc.ram", _HEX("00"),
            _HEX("0000000000001022 00 0000000000002022 00"),
            _HEX("0000000000003028"), _PAGE,
            _HEX("0000000000004022 00 0000000000005022 00 0000000000006022 00"),
            _HEX("0000000000007022 00 0000000000008022 00 0000000000009022 00"),
            _HEX("000000000000a022 00 000000000000b022 00 000000000000c022 00"),
            _HEX("000000000000d022 00 000000000000e022 00 000000000000f022 00"),
            _HEX("0000000000000008 12"), b"/rom@etc/acpi/rsdp", _RSDP,
            _HEX("0000000000000010 7e 00000002"),
            _HEX("03 00000002 0000000000000010 7e 00000002"),
            DEVICES_72,
            _HEX("06"), len(DESCRIPTION_72).to_bytes(4, "big"), DESCRIPTION_72,
        )
    ),
    literal_checkpoints=(
        b"".join(
            (
                _HEX("03 00000002 0000000000000008 06"), b"pc.ram", _PAGE_2,
                _HEX("0000000000000010 7e 00000002 00"),
            )
        ),
        b"".join(
            (
                _HEX("03 00000002 0000000000002028"), _PAGE,
                _HEX("0000000000000022 00 000000000000f022 00"),
                _HEX("0000000000000010 7e 00000002 00"),
            )
        ),
    ),
)  # fmt: skip

DEVICES_11 = b"".join(
    (
        _HEX("04 00000009 06"), b"PCIBUS", _HEX("00000000 00000001 00000004"), bytes(16),
        _HEX("7e 00000009"),
        _HEX("04 0000001c 05"), b"pckbd", _HEX("00000000 00000003"), _HEX("00 18 03 00"),
        _HEX("05 14"), b"pckbd/extended_state", _HEX("00000000 00000000 00000000 00 00"),
        _HEX("7e 0000001c"),
        _HEX("04 00000029 0b"), b"globalstate", _HEX("00000000 00000001 0000000a"),
        b"prelaunch", bytes(23), _HEX("01 00"), bytes(66),
        _HEX("7e 00000029"),
        _HEX("00"),
    )
)  # fmt: skip
DESCRIPTION_11 = (
    b'{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [{"name": '
    b'"len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 14}]}, '
    b'"page_size": 4096, "devices": [' + _PCIBUS_JSON + b", " + _PCKBD_JSON + b", "
    b'{"name": "globalstate", "instance_id": 0, "vmsd_name": "globalstate", "version": 1, '
    b'"fields": [{"name": "size", "type": "uint32", "size": 4}, {"name": "runstate", "type": '
    b'"buffer", "size": 32}, {"name": "has_vm_was_suspended", "type": "uint8", "size": 1}, '
    b'{"name": "vm_was_suspended", "type": "uint8", "size": 1}, {"name": "unused", "type": '
    b'"buffer", "size": 66}]}]}'
)
QEMU_11 = Stream(
    title="as QEMU 11.1 sends it",
    header=Header("pc-i440fx-11.1"),
    before=((Command.OPEN_RETURN_PATH, None), (Command.PING, 1)),
    section=1,
    parts=((fill(RAM, range(16)), fill(RSDP, [0])),),
    before_end=((Command.SWITCHOVER_START, None),),
    end=(PageRun(RSDP, np.array([0]), np.frombuffer(_RSDP, np.uint8).reshape(1, -1)),),
    devices=DEVICES_11,
    description=json.loads(DESCRIPTION_11),
    checkpoints=(
        Checkpoint(
            (PageRun(RAM, np.array([0]), np.frombuffer(_PAGE, np.uint8).reshape(1, -1)),),
            devices=DEVICES_11,
        ),
        Checkpoint(
            (PageRun(RAM, np.array([0]), np.frombuffer(_PAGE_2, np.uint8).reshape(1, -1)),),
            devices=DEVICES_11,
        ),
    ),
    literal=b"".join(
        (
            b"QEVM", _HEX("00000003 07 0000000e"), b"pc-i440fx-11.1",
            _HEX("08 0001 0000"),  # open the return path
            _HEX("08 0002 0004 00000001"),  # ping 1
            _HEX("01 00000001 03"), b"ram", _HEX("00000000 00000004 0000000000011004"),
            _HEX("06"), b"pc.ram", _HEX("0000000000010000"),
            _HEX("12"), b"/rom@etc/acpi/rsdp", _HEX("0000000000001000"),
            _HEX("0000000000000010 7e 00000001"),
            _HEX("02 00000001"),
            _HEX("0000000000000002 06"), b"pc.ram", _HEX("00"),
            _HEX("0000000000001022 00 0000000000002022 00 0000000000003022 00"),
            _HEX("0000000000004022 00 0000000000005022 00 0000000000006022 00"),
            _HEX("0000000000007022 00 0000000000008022 00 0000000000009022 00"),
            _HEX("000000000000a022 00 000000000000b022 00 000000000000c022 00"),
            _HEX("000000000000d022 00 000000000000e022 00 000000000000f022 00"),
            _HEX("0000000000000002 12"), b"/rom@etc/acpi/rsdp", _HEX("00"),
            _HEX("0000000000000010 7e 00000001"),
            _HEX("08 000b 0000"),  # switchover
            _HEX("03 00000001 0000000000000028"), _RSDP,
            _HEX("0000000000000010 7e 00000001"),
            DEVICES_11,
            _HEX("06"), len(DESCRIPTION_11).to_bytes(4, "big"), DESCRIPTION_11,
        )
    ),
    literal_checkpoints=(
        b"".join(
            (
                _HEX("03 00000001 0000000000000008 06"), b"pc.ram", _PAGE,
                _HEX("0000000000000010 7e 00000001 00"),
            )
        ),
        b"".join(
            (
                _HEX("03 00000001 0000000000000028"), _PAGE_2,
                _HEX("0000000000000010 7e 00000001 00"),
            )
        ),
    ),
)  # fmt: skip

_WIDE = RamBlock("pc.ram", 4096 * PAGE_SIZE - RSDP.length)
_ALTERNATING = tuple(
    full(RAM, [n]) if n % 2 else fill(RAM, [n], n % 3) for n in (*range(16), *range(16))
)

#: For reader and writer.
STREAMS = (
    QEMU_72,
    QEMU_11,
    Stream("no page at all"),
    Stream(
        "a fill byte other than zero",
        parts=((fill(RAM, [0, 1, 2], 0x5A), fill(RAM, [3]), fill(RAM, [4, 5], 0xFF)),),
    ),
    Stream(
        "CONTINUE across items and checkpoints",
        parts=((fill(RSDP, [0], 9),), (fill(RSDP, [0], 8),), (fill(RAM, [1], 7),)),
        end=(fill(RAM, [2], 6), full(RAM, [3])),
        checkpoints=(
            Checkpoint((fill(RAM, [4], 5),), ((fill(RAM, [5], 4), full(RAM, [6])), ())),
            Checkpoint(),
            Checkpoint((full(RAM, [7]), fill(RSDP, [0], 3))),
            Checkpoint((fill(RSDP, [0]),)),
        ),
    ),
    Stream("kinds in turn", parts=((_ALTERNATING),)),
    Stream(
        "offsets in no order, and twice",
        parts=((full(RAM, [9, 2, 14, 2, 0], 3), fill(RAM, [15, 1, 15, 8], 2)),),
        end=(full(RAM, [2], 5),),
    ),
    Stream(
        "commands before and after the end of the ram section",
        before=(
            (Command.OPEN_RETURN_PATH, None),
            (Command.PING, 0xFFFFFFFF),
            (Command.PING, 0),
            (Command.ENABLE_COLO, None),
        ),
        before_end=((Command.PING, 3),),
        after_end=((Command.SWITCHOVER_START, None), (Command.PING, 4)),
    ),
    Stream(
        "capabilities in the configuration",
        header=Header("q35", ("x-colo", "return-path")),
    ),
    Stream(
        "as many blocks as may be",
        blocks=tuple(RamBlock(f"block {n}", PAGE_SIZE) for n in range(LIMITS.blocks)),
        parts=(tuple(fill(RamBlock(f"block {n}", PAGE_SIZE), [0], n) for n in (255, 0, 7)),),
    ),
    Stream(
        "runs around the look-ahead",
        blocks=(_WIDE, RSDP),
        parts=(
            *(
                (fill(_WIDE, range(at, at + count), 1), full(_WIDE, range(count % 7)))
                for at, count in ((1, 1), (4, 15), (20, 16), (40, 17), (60, 48), (200, 49))
            ),
            (fill(_WIDE, range(3000)),),
            (full(_WIDE, range(15)), fill(RSDP, [0])),
            (full(_WIDE, range(17)), fill(RSDP, [0], 1)),
            (full(_WIDE, range(70)),),
        ),
        end=(fill(_WIDE, range(1040), 1),),
        checkpoints=(Checkpoint((full(_WIDE, range(49)), fill(_WIDE, range(2100, 4095)))),),
    ),
)
SMALL_STREAMS = tuple(stream for stream in STREAMS if len(stream.data) < 80_000)


# -- reading ------------------------------------------------------------------------------


class Reading:
    """A MigrationReader with its buffer, and all that it told."""

    def __init__(self, limits: Limits = LIMITS, room: int = 1 << 20, rewinds: bool = True) -> None:
        self.buffer = ReceiveBuffer(bytearray(room))
        self.header: Header | None = None
        self.blocks: tuple[RamBlock, ...] = ()
        self.pages: list[Page] = []
        self.calls = 0
        self.commands: list[tuple[Command, int | None]] = []
        self.reader = MigrationReader(
            self.buffer, limits, self._on_blocks, self._on_pages, self._on_command
        )
        self._rewinds = rewinds

    def feed(self, data: bytes) -> bool:
        """Receive some bytes; return whether the migration is whole."""
        self.buffer.append(data)
        done = self.reader.advance()
        if self._rewinds:
            self.buffer.rewind()
        return done

    def checkpoint(self, section: int) -> LiveStateReader:
        """A reader of the RAM part of a checkpoint that follows."""
        self.pages = []
        return LiveStateReader(self.buffer, self.reader.ram, section, self._on_pages)

    def _on_blocks(self, header: Header, blocks: tuple[RamBlock, ...]) -> None:
        assert self.header is None and not self.pages
        self.header, self.blocks = header, blocks

    def _on_pages(self, run: PageRun) -> None:
        assert len(run) and run.offsets.dtype == np.int64 and run.content.dtype == np.uint8
        assert run.content.shape == (len(run), 1 if run.is_fill else PAGE_SIZE)
        self.calls += 1
        self.pages += pages_of([run])

    def _on_command(self, command: Command, value: int | None) -> None:
        self.calls += 1
        self.commands.append((command, value))


@dataclass
class Naive:
    """What the plain reader found."""

    header: bytes = b""
    blocks: tuple[RamBlock, ...] = ()
    addresses: tuple[int, ...] = ()
    pages: list[Page] = field(default_factory=list)
    commands: list[tuple[int, bytes]] = field(default_factory=list)
    tail: bytes = b""  # the devices, their EOF, the description

    @property
    def images(self) -> dict[str, bytearray]:
        images = blank(self.blocks)
        paint(images, self.pages)
        return images


def naive(data: bytes, with_addresses: bool = False) -> Naive:
    """Read a whole first migration plainly: a page at a time, no checks beyond the format."""
    stream, found = BytesIO(data), Naive()
    number = _numbers(stream)
    machine = data[13 : 13 + int.from_bytes(data[9:13], "big")]
    stream.seek(13 + len(machine))
    if data[stream.tell()] == 5:  # the list of capabilities
        stream.seek(stream.tell() + 1)
        stream.read(number(1) + 4)
        for _ in range(number(4)):
            stream.read(number(1))
    found.header = data[: stream.tell()]
    current = ""
    while (item := number(1)) in (1, 2, 3, 8):
        if item == 8:
            command = number(2)
            found.commands.append((command, stream.read(number(2))))
            continue
        section = number(4)
        if item == 1:
            assert stream.read(number(1)) == b"ram" and (number(4), number(4)) == (0, 4)
            left = number(8) - 4
            blocks, addresses = [], []
            while left:
                block = RamBlock(stream.read(number(1)).decode(), number(8))
                addresses.append(number(8) if with_addresses else 0)
                blocks.append(block)
                left -= block.length
            found.blocks, found.addresses = tuple(blocks), tuple(addresses)
            assert number(8) == 0x10
        else:
            while (head := number(8)) != 0x10:
                if not head & 0x20:
                    current = stream.read(number(1)).decode()
                size = {0x02: 1, 0x08: PAGE_SIZE}[head & 0xFDF]
                found.pages.append((current, head & ~0xFFF, stream.read(size)))
        assert (number(1), number(4)) == (0x7E, section)
    found.tail = data[stream.tell() - 1 :]
    return found


def _numbers(stream: BytesIO) -> Any:
    return lambda size: int.from_bytes(stream.read(size), "big")


def pieces(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut ``data`` into pieces of these sizes, and what is left."""
    at = 0
    for size in sizes:
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size
    if at < len(data):
        yield data[at:]
