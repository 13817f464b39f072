"""Where it comes from: a migration stream in a file, or the store of a running secondary."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from colo.errors import ColoError, PeerError, ShortRead
from colo.inspection.pages import Pages, Statistics, statistics
from colo.migration.buffer import ReceiveBuffer
from colo.migration.fields import DeviceState, decode
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, MigrationReader

__all__ = ["Fetch", "Inspected", "load_source", "load_stream"]

_PIECE: Final = 4 << 20
_LIMITS: Final = Limits(ram_bytes=16 << 40)

#: Yields the last checkpoint of a state folder's store, as a migration stream.
Fetch = Callable[[Path], Iterable[bytes]]


@dataclass(frozen=True)
class Inspected:
    """A stream that was read whole.

    ``size``: its bytes, ``followed_by`` so many more; ``pages_sent``: how many pages are in it,
    those that come again too; ``memory``: by the names of the blocks.
    """

    name: str
    size: int
    followed_by: int
    header: Header
    pages_sent: int
    memory: dict[str, Pages]
    statistics: dict[str, Statistics]
    devices: tuple[DeviceState, ...]


def load_source(path: Path, fetch: Fetch) -> Inspected:
    """Read a migration file, or the store of the state folder ``path`` by ``fetch``.

    Raises ColoError.
    """
    try:
        is_folder = path.is_dir()
        has_status = is_folder and (path / "status.json").exists()
    except OSError as error:  # it may not be entered, or no file can have such a name
        raise ColoError(f"{path}: {error.strerror}") from error
    if is_folder and not has_status:
        raise ColoError(f"{path} is no state folder of colo: no status.json")
    return load_stream(str(path), fetch(path) if is_folder else _pieces(path))


def load_stream(name: str, pieces: Iterable[bytes]) -> Inspected:
    """Read a migration stream that comes in pieces; ``name`` is for error texts.

    Raises ColoError unless it is whole.
    """
    room = _PIECE + _LIMITS.device_bytes + _LIMITS.description_bytes
    reading = _Reading(ReceiveBuffer(memoryview(mmap.mmap(-1, room)), name))
    try:
        for piece in _cut(pieces):
            reading.feed(piece)
        reading.reader.close()
        migration = reading.reader.migration
        assert migration is not None
        devices = tuple(decode(migration.description, migration.device_state))
    except ShortRead as error:
        raise ColoError(
            f"{name} is not whole: it ends inside the migration, after {reading.received:,} bytes"
            if reading.received
            else f"{name} is empty"
        ) from error
    except PeerError as error:
        raise ColoError(f"{name}: {error}") from error
    return Inspected(
        name=name,
        size=reading.buffer.position,
        followed_by=reading.received - reading.buffer.position,
        header=migration.header,
        pages_sent=reading.pages_sent,
        memory=reading.memory,
        statistics=statistics(reading.memory),
        devices=devices,
    )


class _Reading:
    def __init__(self, buffer: ReceiveBuffer) -> None:
        self.buffer = buffer
        self.memory: dict[str, Pages] = {}
        self.pages_sent = 0
        self.received = 0
        self.reader = MigrationReader(
            buffer,
            _LIMITS,
            self._on_blocks,
            self._on_pages,
            lambda command, value: None,
            plain=True,
        )

    def feed(self, data: memoryview) -> None:
        """Read on, as far as the migration goes.  Raises PeerError."""
        self.received += len(data)
        if not self.reader.done:
            self.buffer.append(data)
            self.reader.advance()
            self.buffer.rewind()

    def _on_blocks(self, header: Header, blocks: tuple[RamBlock, ...]) -> None:
        total = sum(block.pages for block in blocks)
        self.memory = {block.name: Pages(block, total) for block in blocks}

    def _on_pages(self, run: PageRun) -> None:
        self.memory[run.block.name].write(run)
        self.pages_sent += len(run)


def _cut(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    """Cut what is larger than there is room for."""
    for piece in pieces:
        for at in range(0, len(piece), _PIECE):
            yield memoryview(piece)[at : at + _PIECE]


def _pieces(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise ColoError(f"{path}: {error.strerror}") from error
