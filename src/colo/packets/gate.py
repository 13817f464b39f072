"""The output gate of one network card.

*A packet leaves only when the secondary has the checkpoint that covers it*, or when the VM runs
alone by an arbiter's grant.

QEMU writes each frame as a big-endian u32 length and as many bytes, and takes frames back in the
same form; so bytes go back as they came, in bulk.  The gate only looks at the lengths, to keep
frames whole and to count them.

While the VM is stopped for a checkpoint, all that it sent before is in the socket: drained to its
end, that is exactly what the checkpoint covers.  So one mark, set then, tells it from what comes
after; more than one checkpoint is never on its way.

It always takes what it is given: a gate that did not read would block QEMU.  Beyond its limit it
drops whole frames, as a full queue does on any network.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from colo.errors import LocalProtocolError
from colo.status.figures import Times

__all__ = ["Gate", "GateState", "GateStats", "Rule", "WholeFrames"]

_LENGTH: Final = struct.Struct(">I")
#: What QEMU puts before a frame: its length; where it tells of them, that of its virtio-net header.
_HEAD: Final = 4
_HEAD_WITH_VNET: Final = 8

#: An output rule: it gets whole frames that are held from now on, and when they came, and returns
#: how many bytes of all that is held may leave at once, the oldest first.
Rule: TypeAlias = Callable[[bytes, float], int]


class WholeFrames:
    """Cuts what comes from QEMU at the ends of frames.  ``vnet``: see Gate."""

    def __init__(self, vnet: bool) -> None:
        self._head = _HEAD_WITH_VNET if vnet else _HEAD
        self._partial = b""

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Keep an incomplete frame at the end for later; return the whole ones and their count."""
        if self._partial:
            data = self._partial + data
        end, frames, size = 0, 0, len(data)
        while end + self._head <= size:
            after = end + self._head + _LENGTH.unpack_from(data, end)[0]
            if after > size:
                break
            end, frames = after, frames + 1
        self._partial = data[end:]
        return (data[:end] if self._partial else data), frames


class GateState(Enum):
    """What happens to packets of the guest."""

    OPEN = "they pass: the VM runs alone"
    HOLDING = "they are held until their checkpoint is safe"
    SHUT = "they are dropped: the VM may not be heard"


@dataclass
class GateStats:
    """Counts since the start, and for how long bytes were held."""

    frames: int = 0
    bytes: int = 0
    dropped: int = 0
    held_max_bytes: int = 0
    held_s: Times = field(default_factory=Times)


class Gate:
    """Holds frames; ``limit`` is the most that it holds, in bytes.

    ``vnet``: QEMU tells of virtio-net headers.
    """

    def __init__(self, limit: int, vnet: bool = False) -> None:
        self._limit = limit
        self._frames = WholeFrames(vnet)
        self.rule: Rule | None = None
        self._state = GateState.OPEN
        self._held: list[tuple[float, bytes]] = []
        self._covered = 0  # so many of them, from the first on
        self.held_bytes = 0
        self.stats = GateStats()

    @property
    def state(self) -> GateState:
        """What the gate does."""
        return self._state

    @property
    def held_since(self) -> float | None:
        """When the oldest held bytes came, or None."""
        return self._held[0][0] if self._held else None

    def take(self, data: bytes, now: float) -> bytes:
        """Take bytes from QEMU; return those that may go out at once."""
        whole, frames = self._frames.feed(data)
        if not frames:
            return b""
        if self._state is GateState.SHUT or self.held_bytes + len(whole) > self._limit:
            self.stats.dropped += frames
            return b""
        self.stats.frames += frames
        self.stats.bytes += len(whole)
        if self._state is GateState.OPEN:
            return whole
        self._held.append((now, whole))
        self.held_bytes += len(whole)
        self.stats.held_max_bytes = max(self.stats.held_max_bytes, self.held_bytes)
        if self.rule is None:
            return b""
        return self.release_first(self.rule(whole, now), now)

    def cover(self) -> None:
        """The VM is stopped: its checkpoint covers what is held, and not what comes from now on."""
        self._covered = len(self._held)

    def release(self, now: float) -> bytes:
        """That checkpoint is safe: return what it covers, in order."""
        out, self._held = self._held[: self._covered], self._held[self._covered :]
        self._covered = 0
        data = b"".join(chunk for _, chunk in out)
        self.stats.held_s.extend(now - came for came, _ in out)
        self.held_bytes -= len(data)
        return data

    def release_first(self, count: int, now: float) -> bytes:
        """So many bytes of what is held may leave, by the output rule: return them.

        They are whole frames, and of no checkpoint that is on its way.
        """
        if not count:
            return b""
        if self._covered or count > self.held_bytes:
            raise LocalProtocolError("gate: what a checkpoint covers leaves with it")
        out, left = [], count
        while left:
            came, chunk = self._held.pop(0)
            if len(chunk) > left:
                self._held.insert(0, (came, chunk[left:]))
                chunk = chunk[:left]
            out.append(chunk)
            left -= len(chunk)
            self.stats.held_s.append(now - came)
        self.held_bytes -= count
        return b"".join(out)

    def hold(self) -> None:
        """From now on packets are held; a shut gate stays shut."""
        if self._state is not GateState.SHUT:
            self._state = GateState.HOLDING

    def open(self, now: float) -> bytes:
        """The VM runs alone by a grant: packets pass.  Returns what was held.

        Raises LocalProtocolError where it is shut: who was fenced has no grant.
        """
        if self._state is GateState.SHUT:
            raise LocalProtocolError("gate: a shut one is not opened any more")
        self._state = GateState.OPEN
        self.cover()
        return self.release(now)

    def shut(self) -> None:
        """The VM may not be heard any more: forget what is held, drop what comes."""
        self._state = GateState.SHUT
        self._held.clear()
        self._covered = self.held_bytes = 0
