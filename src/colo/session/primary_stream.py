"""All that a COLO primary sends, for who brings it on to the secondary: where each part ends.

::

    the first copy, then again and again:
    CHECKPOINT_REQUEST  VMSTATE_SEND  RAM  VMSTATE_SIZE n  n bytes of devices

The bytes stay where they were received.  Pages need not be all here at once, nor do devices: a
checkpoint may be larger than the memory that it goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from enum import Enum
from typing import Final, TypeAlias

from colo.errors import LimitExceeded, UnexpectedMessage
from colo.migration.buffer import ReceiveBuffer
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import LiveStateReader, MigrationReader
from colo.protocol.messages import COLOMessage, Message, parse_message

__all__ = ["Came", "PrimaryReader"]

#: Who takes the copy judges its size.
_ANY_SIZE: Final = (1 << 64) - 1


class Came(Enum):
    """What has come by, to its last byte."""

    COPY = "the first copy"
    REQUEST = "the request of a checkpoint"
    BEGINNING = "VMSTATE_SEND: the VM is stopped"
    SAVED = "VMSTATE_SIZE: its devices' state is saved"
    CHECKPOINT = "a checkpoint"


_Parts: TypeAlias = Generator[Came | None, None, None]


class PrimaryReader:
    """Reads from ``buffer``.

    ``on_pages`` gets each run of a checkpoint's pages, as a reader's, and how many bytes up to the
    buffer's start it is, where each of its pages continues a block; else 0.
    """

    def __init__(
        self,
        buffer: ReceiveBuffer,
        limits: Limits,
        on_pages: Callable[[PageRun, int], None] = lambda run, size: None,
    ) -> None:
        self._buffer = buffer
        self._limits = limits
        self._on_pages = on_pages
        self._first = MigrationReader(
            buffer,
            replace(limits, ram_bytes=_ANY_SIZE),
            lambda header, blocks: None,
            lambda run: None,
            lambda command, value: None,
        )
        self._parts = self._read()
        #: How many bytes of devices the checkpoint has that came last, and how many are to come.
        self.device_bytes = self.devices_left = 0

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The memory's blocks, in the order of the stream's list; empty before that."""
        return tuple(self._first.ram.blocks.values())

    def advance(self) -> Came | None:
        """Read on to the end of the next part; None where that is not here yet.

        Raises PeerError of some kind; then this reader is of no more use.
        """
        return next(self._parts)

    def _read(self) -> _Parts:
        while not self._first.advance():
            yield None
        yield Came.COPY
        migration = self._first.migration
        assert migration is not None
        while True:
            yield from self._message(COLOMessage.CHECKPOINT_REQUEST, "READY")
            yield Came.REQUEST
            yield from self._message(COLOMessage.VMSTATE_SEND, "REPLIED")
            yield Came.BEGINNING
            live = LiveStateReader(
                self._buffer, self._first.ram, migration.ram_section, self._tell_pages
            )
            while not live.advance():
                yield None
            size = (yield from self._message(COLOMessage.VMSTATE_SIZE, "AWAITING_SIZE")).value or 0
            if size > self._limits.device_bytes:
                raise LimitExceeded("device state", size, self._limits.device_bytes)
            yield Came.SAVED
            yield from self._devices(size)
            yield Came.CHECKPOINT

    def _tell_pages(self, run: PageRun) -> None:
        self._on_pages(run, self._first.ram.run_bytes)

    def _devices(self, size: int) -> _Parts:
        self.device_bytes = self.devices_left = size
        while self.devices_left:
            count = min(self.devices_left, self._buffer.available)
            self._buffer.start += count
            self.devices_left -= count
            if self.devices_left:
                yield None

    def _message(self, expected: COLOMessage, state: str) -> Generator[Came | None, None, Message]:
        """Read a message.  ``state`` is the secondary's that it is for."""
        buffer = self._buffer
        while (parsed := parse_message(buffer.data, buffer.start, buffer.end)) is None:
            yield None
        message, length = parsed
        if message.kind is not expected:
            raise UnexpectedMessage(message.kind, expected, state)
        buffer.start += length
        return message
