"""The first, full migration, from the magic to the description; and the RAM part of a checkpoint.

The order in which QEMU writes it, and in which it is read here::

    header, configuration        which machine, which capabilities
    commands                     7.2: «COLO is on»; 11: return path, pings
    ram: START PART* END         all pages, some more than once, while the VM runs
    FULL*                        the devices, of unknown length ...
    EOF, description             ... until this tells

After the description the primary falls silent and waits for CHECKPOINT_READY.

What this reader does not carry it refuses by name, as early as it shows: a primary that is
refused during its first migration goes on running.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from colo.errors import (
    ColoError,
    LimitExceeded,
    PeerError,
    ShortRead,
    StreamError,
    UnsupportedFeature,
)
from colo.migration.buffer import Parser, ReceiveBuffer, name, need, text, u8, u16, u32
from colo.migration.format import (
    CAPABILITIES_SUBSECTION,
    FILE_MAGIC,
    FILE_VERSION,
    IGNORE_SHARED,
    MULTIFD_MAGIC,
    RAM_SECTION,
    RAM_VERSION,
    Command,
    Section,
)
from colo.migration.ram import Limits, PageRun, RamBlock, RamReader
from colo.migration.vmdesc import Device, parse_description, walk

__all__ = ["Header", "LiveStateReader", "Migration", "MigrationReader"]

_COMMANDS_CARRIED: Final = {
    Command.OPEN_RETURN_PATH: 0,
    Command.PING: 4,
    Command.ENABLE_COLO: 0,
    Command.SWITCHOVER_START: 0,
}
_POSTCOPY: Final = ("postcopy", "switch the capability postcopy-ram off")
_COMMANDS_REFUSED: Final = {
    Command.POSTCOPY_ADVISE: _POSTCOPY,
    Command.POSTCOPY_LISTEN: _POSTCOPY,
    Command.POSTCOPY_RUN: _POSTCOPY,
    Command.POSTCOPY_RAM_DISCARD: _POSTCOPY,
    Command.PACKAGED: _POSTCOPY,
    Command.POSTCOPY_RESUME: _POSTCOPY,
    Command.RECV_BITMAP: _POSTCOPY,
}
_CAPABILITIES_REFUSED: Final = {
    IGNORE_SHARED: "switch the capability x-ignore-shared off",
    "mapped-ram": "switch the capability mapped-ram off",
    "multifd": "switch the capability multifd off",
    "postcopy-ram": "switch the capability postcopy-ram off",
}
_SECTIONS_REFUSED: Final = {
    "block": ("block migration", "switch the capability block off"),
    "dirty-bitmap": ("dirty bitmap migration", "switch the capability dirty-bitmaps off"),
}

_COUNTED_MAX: Final = 4096  # bytes of a machine name, or of a configuration subsection
#: EOF, DESCRIPTION, a length and the begin of JSON; looked ahead at, as they may overlap.
_DESCRIPTION: Final = re.compile(rb'(?=\x00\x06(....)\{")', re.DOTALL)
_DESCRIPTION_HEAD: Final = 8
_DESCRIPTIONS_MAX: Final = 1024


@dataclass(frozen=True)
class Header:
    """What the configuration section says."""

    machine: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Migration:
    """A first migration that arrived whole; its pages went their own way.

    ``device_state``: the device sections and their EOF byte, as QEMU's COLO checkpoints carry
    them.  ``devices``: its parts, as the description verified them.  ``return_path``: the primary
    speaks as QEMU 11 does, and not as 7.2.
    """

    header: Header
    ram_section: int
    blocks: tuple[RamBlock, ...]
    device_state: bytes
    devices: tuple[Device, ...]
    description: dict[str, Any]
    return_path: bool = False


class _Incremental:
    """A parser that is resumed whenever bytes have come."""

    def __init__(self, parser: Parser[None]) -> None:
        self._parser: Parser[None] | None = parser
        self._refused: ColoError | None = None

    @property
    def done(self) -> bool:
        """Whether all that this reader reads is here."""
        return self._parser is None

    def advance(self) -> bool:
        """Read as far as the buffer goes; return ``done``.

        Raises PeerError of some kind; what was refused once stays refused.
        """
        if self._refused is not None:
            raise self._refused
        if self._parser is not None:
            try:
                next(self._parser)
            except StopIteration:
                self._parser = None
            except ColoError as error:
                self._refused = error
                raise
        return self.done


class MigrationReader(_Incremental):
    """Reads a first migration from ``buffer``.

    ``on_blocks`` is called once with the block list, before any page; ``on_pages`` with each run
    of pages, whose arrays are valid only during the call; ``on_command`` with each command of
    the primary and, for a ping, its number.  A migration without COLO is read too if it may be
    ``plain``: a file is one.
    """

    def __init__(
        self,
        buffer: ReceiveBuffer,
        limits: Limits,
        on_blocks: Callable[[Header, tuple[RamBlock, ...]], None],
        on_pages: Callable[[PageRun], None],
        on_command: Callable[[Command, int | None], None],
        *,
        plain: bool = False,
    ) -> None:
        super().__init__(self._read())
        self._buffer = buffer
        self._limits = limits
        self._plain = plain
        self._on_blocks = on_blocks
        self._on_pages = on_pages
        self._on_command = on_command
        self._header = Header("")
        self._colo = False
        self._return_path = False
        self._section = 0
        self._in_devices = False
        self._mismatch: StreamError | None = None
        self.ram = RamReader(buffer, limits)
        self.migration: Migration | None = None

    def stalled(self) -> PeerError | None:
        """Say what is wrong when the primary has sent nothing for long, if that can be told."""
        if self._mismatch is not None:
            return self._mismatch
        buffer = self._buffer
        tail = bytes(buffer.data[max(buffer.start, buffer.end - 6) : buffer.end])
        if self._in_devices and tail[:1] == bytes([Section.FOOTER]) and tail[-1:] == b"\x00":
            return UnsupportedFeature(
                "suppress-vmdesc", "start the primary without -machine suppress-vmdesc=on"
            )
        return None

    def close(self) -> None:
        """Say that the channel has ended.  Raises what is wrong with that, unless all is here."""
        if not self.done:
            raise self.stalled() or ShortRead("the first migration", self._buffer.position)

    def _read(self) -> Parser[None]:
        self._header = yield from self._read_header()
        yield from self._read_ram()
        yield from self._read_devices()

    def _read_header(self) -> Parser[Header]:
        buffer = self._buffer
        magic = yield from u32(buffer)
        if magic == MULTIFD_MAGIC:
            raise UnsupportedFeature("multifd", "switch the capability multifd off")
        if magic != FILE_MAGIC:
            self._fail(f"it begins with {magic:#010x}, not with «QEVM»: this is no QEMU migration")
        version = yield from u32(buffer)
        if version != FILE_VERSION:
            self._fail(f"version {version}, not {FILE_VERSION}")
        if (yield from u8(buffer)) != Section.CONFIGURATION:
            self._fail("no configuration section: remove migration.send-configuration=off")
        length = yield from u32(buffer)
        if length > _COUNTED_MAX:
            raise LimitExceeded("the machine's name", length, _COUNTED_MAX)
        yield from need(buffer, length)
        machine = text(buffer, length)
        capabilities: tuple[str, ...] = ()
        while (yield from self._peek()) == Section.SUBSECTION:
            buffer.start += 1
            subsection = yield from name(buffer)
            yield from u32(buffer)
            if subsection != CAPABILITIES_SUBSECTION:
                self._fail(f"configuration subsection {subsection!r} is unknown to colo")
            capabilities = yield from self._read_capabilities()
        return Header(machine, capabilities)

    def _read_capabilities(self) -> Parser[tuple[str, ...]]:
        count = yield from u32(self._buffer)
        if count > _COUNTED_MAX:
            raise LimitExceeded("capabilities", count, _COUNTED_MAX, "names")
        names = []
        for _ in range(count):
            capability = yield from name(self._buffer)
            if capability in _CAPABILITIES_REFUSED:
                raise UnsupportedFeature(capability, _CAPABILITIES_REFUSED[capability])
            names.append(capability)
        return tuple(names)

    def _read_ram(self) -> Parser[None]:
        """Read commands and the ram section, to the end of the latter."""
        while True:
            section = yield from u8(self._buffer)
            if section == Section.COMMAND:
                yield from self._read_command()
            elif section == Section.START:
                yield from self._read_ram_start()
            elif section in (Section.PART, Section.END):
                self._check_section((yield from u32(self._buffer)))
                yield from self.ram.read_pages(self._on_pages)
                yield from _footer(self._buffer, self._section)
                if section == Section.END:
                    return
            else:
                self._fail(f"item type {section:#04x} before the end of the ram section")

    def _read_command(self) -> Parser[None]:
        number = yield from u16(self._buffer)
        length = yield from u16(self._buffer)
        try:
            command = Command(number)
        except ValueError:
            self._fail(f"command {number} is unknown to colo")
        if command in _COMMANDS_REFUSED:
            raise UnsupportedFeature(*_COMMANDS_REFUSED[command])
        if length != _COMMANDS_CARRIED[command]:
            self._fail(f"command {command.name} with {length} bytes of data")
        value = (yield from u32(self._buffer)) if length else None
        # 7.2 says that COLO is on; 11 does not, but there COLO cannot do without a return path.
        self._colo |= command in (Command.ENABLE_COLO, Command.OPEN_RETURN_PATH)
        self._return_path |= command is Command.OPEN_RETURN_PATH
        self._on_command(command, value)

    def _read_ram_start(self) -> Parser[None]:
        buffer = self._buffer
        section_id = yield from u32(buffer)
        section_name = yield from name(buffer)
        yield from u32(buffer)
        version = yield from u32(buffer)
        if section_name != RAM_SECTION:
            raise UnsupportedFeature(
                *_SECTIONS_REFUSED.get(
                    section_name, (f"the section {section_name!r}", "remove that device")
                )
            )
        if version != RAM_VERSION:
            self._fail(f"ram section of version {version}, not {RAM_VERSION}")
        if self.ram.blocks:
            self._fail("a second ram section")
        if not self._colo and not self._plain:
            raise UnsupportedFeature(
                "a plain migration without COLO",
                "switch on the capability x-colo and, from QEMU 11 on, return-path",
            )
        yield from self.ram.read_blocks()
        yield from _footer(buffer, section_id)
        self._section = section_id
        self._on_blocks(self._header, tuple(self.ram.blocks.values()))

    def _check_section(self, section_id: int) -> None:
        if not self.ram.blocks or section_id != self._section:
            self._fail(f"a part of section {section_id}, which was never started")

    def _read_devices(self) -> Parser[None]:
        """Gather device sections until a description fits them."""
        buffer = self._buffer
        while (yield from self._peek()) == Section.COMMAND:  # 11.x: SWITCHOVER_START may be here
            buffer.start += 1
            yield from self._read_command()
        self._in_devices = True
        searched, found = 0, 0
        candidates: list[tuple[int, int]] = []  # where the devices and the description would end
        while True:
            size = buffer.available
            limit = self._limits.device_bytes + self._limits.description_bytes
            if size > limit:
                raise LimitExceeded("device state", size, limit)
            data = buffer.data[buffer.start : buffer.end]
            for match in _DESCRIPTION.finditer(data, searched):
                length = int.from_bytes(match[1], "big")
                if length <= self._limits.description_bytes:
                    devices_end = match.start() + 1
                    candidates.append((devices_end, devices_end + 5 + length))
                    found += 1
            if found > _DESCRIPTIONS_MAX:
                raise LimitExceeded(
                    "what looks like a description", found, _DESCRIPTIONS_MAX, "times"
                )
            for devices_end, end in [each for each in candidates if each[1] <= size]:
                if self._take_devices(data, devices_end, end):
                    return
                candidates.remove((devices_end, end))
            searched = max(searched, size - _DESCRIPTION_HEAD + 1)
            while buffer.available == size:
                yield

    def _take_devices(self, data: memoryview, devices_end: int, end: int) -> bool:
        """Finish if ``data[:devices_end]`` are device sections and what follows describes them."""
        description = parse_description(bytes(data[devices_end + 5 : end]))
        if description is None:
            return False
        try:
            devices = walk(description, data[:devices_end], self._buffer.position)
        except StreamError as error:
            self._mismatch = error
            return False
        self.migration = Migration(
            self._header,
            self._section,
            tuple(self.ram.blocks.values()),
            bytes(data[:devices_end]),
            tuple(devices),
            description,
            self._return_path,
        )
        self._buffer.start += end
        return True

    def _peek(self) -> Parser[int]:
        yield from need(self._buffer, 1)
        return self._buffer.data[self._buffer.start]

    def _fail(self, text: str) -> NoReturn:
        raise StreamError(text, self._buffer.position)


class LiveStateReader(_Incremental):
    """Reads the RAM part of a checkpoint: PART and END items of the ram section, then EOF.

    ``ram`` is the reader of the first migration, because CONTINUE refers back to it.
    """

    def __init__(
        self,
        buffer: ReceiveBuffer,
        ram: RamReader,
        section: int,
        on_pages: Callable[[PageRun], None],
    ) -> None:
        super().__init__(self._read())
        self._buffer = buffer
        self._ram = ram
        self._section = section
        self._on_pages = on_pages

    def _read(self) -> Parser[None]:
        item = 0
        while True:
            before, item = item, (yield from u8(self._buffer))
            if item == Section.EOF and before == Section.END:
                return
            if item not in (Section.PART, Section.END):
                raise StreamError(
                    f"item type {item:#04x} in a checkpoint's RAM", self._buffer.position - 1
                )
            section_id = yield from u32(self._buffer)
            if section_id != self._section:
                raise StreamError(
                    f"section {section_id} in a checkpoint's RAM, not the ram section",
                    self._buffer.position - 4,
                )
            yield from self._ram.read_pages(self._on_pages)
            yield from _footer(self._buffer, self._section)


def _footer(buffer: ReceiveBuffer, section_id: int) -> Parser[None]:
    mark = yield from u8(buffer)
    if mark != Section.FOOTER:
        raise StreamError(
            "no footer after the ram section: remove migration.send-section-footer=off",
            buffer.position - 1,
        )
    found = yield from u32(buffer)
    if found != section_id:
        raise StreamError(f"the footer of section {found}, not {section_id}", buffer.position - 4)
