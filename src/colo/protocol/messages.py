"""The seven messages of the COLO protocol, and their form on the wire.

A message is a big-endian u32.  ``VMSTATE_SIZE`` alone is followed by a value, a big-endian
u64 that counts the bytes of device state after it.  Names and values are those of
``COLOMessage`` in QEMU's ``qapi/migration.json``; ``migration/colo.c`` sends and receives
them.  This is who says what, and when::

          primary                                    secondary
             │        (the first, full migration)        │
             │ ════════════════════════════════════════▶ │
             │ ◀─────────────────────── CHECKPOINT_READY │  once
             │                                           │
      ┌───── │ CHECKPOINT_REQUEST ─────────────────────▶ │      the VM still runs
      │      │ ◀─────────────────────── CHECKPOINT_REPLY │
      │ stop │                                           │
      │      │ VMSTATE_SEND ───────────────────────────▶ │
      │      │ RAM: the pages dirtied since the last ══▶ │      staged
      │      │ VMSTATE_SIZE n, n bytes of devices ═════▶ │      whole: committed
      │      │ ◀──────────────────────── VMSTATE_RECEIVED│      held packets may go
      │      │ ◀────────────────────────── VMSTATE_LOADED│
      │  run │                                           │      staged pages are applied
      └────▶ │                                           │

The VM is stopped from CHECKPOINT_REPLY to VMSTATE_LOADED.  Whoever watches only the
secondary's direction therefore knows when the VM is stopped and when a checkpoint is safe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from colo.errors import InvalidMessage, LocalProtocolError, ShortRead

__all__ = ["COLOMessage", "Message", "MessageDecoder", "encode", "parse_message"]


class COLOMessage(IntEnum):
    """The messages with their wire values."""

    CHECKPOINT_READY = 0
    CHECKPOINT_REQUEST = 1
    CHECKPOINT_REPLY = 2
    VMSTATE_SEND = 3
    VMSTATE_SIZE = 4
    VMSTATE_RECEIVED = 5
    VMSTATE_LOADED = 6

    __hash__ = int.__hash__  # looked up at every step, and Enum's own is not so quick

    @property
    def wire_name(self) -> str:
        """The name as QEMU's schema and traces spell it: ``checkpoint-ready``."""
        return self.name.lower().replace("_", "-")


_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


@dataclass(frozen=True)
class Message:
    """One message; ``value`` is the size in bytes that goes with VMSTATE_SIZE, else None."""

    kind: COLOMessage
    value: int | None = None

    def __str__(self) -> str:
        return self.kind.wire_name if self.value is None else f"{self.kind.wire_name} {self.value}"


_PLAIN: Final = {kind.value: Message(kind) for kind in COLOMessage}


def encode(message: Message) -> bytes:
    """Return the message's bytes on the wire: 4, or 12 for VMSTATE_SIZE."""
    if (message.kind is COLOMessage.VMSTATE_SIZE) != (message.value is not None):
        raise LocalProtocolError(f"{message.kind.wire_name} with value {message.value}")
    if message.value is None:
        return _U32.pack(message.kind)
    return _U32.pack(message.kind) + _U64.pack(message.value)


def parse_message(
    data: bytes | bytearray | memoryview, start: int, end: int
) -> tuple[Message, int] | None:
    """Read the message at ``data[start:end]``; return it and its length, or None if short.

    Raises InvalidMessage as soon as the first four bytes are there.
    """
    if end - start < _U32.size:
        return None
    (number,) = _U32.unpack_from(data, start)
    message = _PLAIN.get(number)
    if message is None:
        raise InvalidMessage(number)
    if message.kind is not COLOMessage.VMSTATE_SIZE:
        return message, _U32.size
    if end - start < _U32.size + _U64.size:
        return None
    (value,) = _U64.unpack_from(data, start + _U32.size)
    return Message(message.kind, value), _U32.size + _U64.size


class MessageDecoder:
    """Turns bytes, in pieces of any size, into messages.

    For a direction that carries nothing else: from the secondary to the primary.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Take more bytes; yield each message that they complete.

        Raises InvalidMessage; the bytes from the offending value on are kept.
        """
        self._data += data
        while (parsed := parse_message(self._data, 0, len(self._data))) is not None:
            message, length = parsed
            del self._data[:length]
            yield message

    def close(self) -> None:
        """Say that the channel has ended.  Raises ShortRead inside a message."""
        if self._data:
            raise ShortRead("a COLO message", len(self._data))
