"""Two made-up VMs beside the output rule, and what a client would notice of a takeover.

Each VM sends one TCP stream, takes another in, ends its stream, begins connections and sends
datagrams: at times of its own and in pieces of its own.  The secondary VM begins from the primary's
last checkpoint, and its content may differ from there on.  ``contradiction`` looks at each packet
that leaves: is what it says also what the other host would go on from at this very moment?
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

from colo.packets.comparing import OutputRule
from colo.packets.frames import ACK, FIN, HEAD, SYN, Segment, frames, look_into

__all__ = ["contradiction", "ipv4", "tcp", "udp"]

_MAC = bytes(12)
_CLIENT, _SERVER = bytes([10, 0, 0, 9]), bytes([10, 0, 0, 1])
_VNET = 12
_LENGTH = 60
_STEPS = 100
_FIRST = 5000
_FIRST_IN = 100


def framed(frame: bytes) -> bytes:
    """As QEMU's filters have it, with a virtio-net header."""
    return HEAD.pack(_VNET + len(frame), _VNET) + bytes(_VNET) + frame


def ipv4(protocol: int, payload: bytes, ident: int = 0) -> bytes:
    """A frame with this in it, padded as Ethernet wants it."""
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, 0x4000, 64, protocol, ident,
        _SERVER, _CLIENT,
    )  # fmt: skip
    return framed((_MAC + b"\x08\x00" + head + payload).ljust(60, b"\0"))


def tcp(
    seq: int, ack: int, data: bytes = b"", flags: int = ACK, port: int = 80, window: int = 500
) -> bytes:
    """A frame with a segment; ``port``: the guest's."""
    mod = 1 << 32
    head = struct.pack(
        ">HHIIBBHHH", port, 4000, seq % mod, ack % mod, 5 << 4, flags, window, 0, 0
    )  # fmt: skip
    return ipv4(6, head + data)


def udp(data: bytes, port: int = 53, ident: int = 0, checksum: int = 0) -> bytes:
    """A frame with a datagram."""
    head = struct.pack(">HHHH", port, 4000, 8 + len(data), checksum)
    return ipv4(17, head + data, ident)


@dataclass
class _Vm:
    """What a VM is, as far as a client can tell; ``said`` are its datagrams and connections."""

    stream: bytes
    dice: random.Random
    sent: int = 0
    got: int = 0
    has_ended: bool = False
    said: set[bytes] = field(default_factory=set)

    def from_here(self, stream: bytes) -> _Vm:
        """Another one that goes on from what this one is, and will send this."""
        return _Vm(stream, self.dice, self.sent, self.got, self.has_ended, set(self.said))

    def say(self, has: int) -> bytes:
        """Say something; ``has``: so many bytes have come for it."""
        dice = self.dice
        kind = dice.random()
        if kind < 0.08:
            datagram = udp(bytes([dice.randrange(3)]), ident=dice.randrange(9))
            self.said.add(_content(datagram))
            return datagram
        if kind < 0.1:
            connection = tcp(dice.randrange(1 << 32), 1, flags=SYN | ACK, port=81)
            self.said.add(_content(connection))
            return connection
        if kind < 0.6:
            self.got = dice.randint(self.got, has)
        begin = self.sent if dice.random() < 0.8 else dice.randint(0, self.sent)
        end = min(begin + dice.randint(0, 9), len(self.stream))
        self.sent = max(self.sent, end)
        flags = ACK
        if end == len(self.stream) and dice.random() < 0.5:
            self.has_ended, flags = True, ACK | FIN
        return tcp(_FIRST + begin, _FIRST_IN + self.got, self.stream[begin:end], flags)


def _content(framed_: bytes) -> bytes:
    """What a client would compare of what is no stream."""
    (frame, _), *_ = frames(framed_)
    said = look_into(frame)
    if isinstance(said, Segment):
        return struct.pack(">II", said.flags, said.seq)
    return said.content


def contradiction(seed: int, rule: OutputRule, *, by_epoch: bool = True) -> str | None:
    """Play with these dice; return what left that the other host would contradict, or None.

    Not ``by_epoch``: what the secondary VM of the last checkpoint says is taken for the next one's.
    """
    dice = random.Random(seed)
    length = dice.choice((_LENGTH // 4, _LENGTH))
    stream = dice.randbytes(length)
    primary = _Vm(stream, dice)
    has = primary.sent = dice.randint(0, length // 4)  # nobody has seen it say so much
    primary.got = has
    checkpoint, coming, secondary = primary.from_here(stream), primary.from_here(stream), None
    held: list[bytes] = []
    covered = 0
    rule.cover()
    for _ in range(_STEPS):
        has += dice.randint(0, 5)
        size = 0
        match dice.randrange(8):
            case 0 | 1 | 2:
                held.append(primary.say(has))
                size = rule.primary(held[-1], 0.0)
            case 3 | 4 | 5 if secondary is not None and not (covered and by_epoch):
                size = rule.secondary(secondary.say(has), 0.0)
            case 6 if not covered:
                rule.cover()
                coming, covered = primary.from_here(stream), len(held) + 1
            case 7 if covered:
                checkpoint, held, covered, secondary = coming, held[covered - 1 :], 0, None
            case 7 if secondary is None:
                other = bytearray(stream)
                if dice.random() < 0.5 and checkpoint.sent < length:
                    other[dice.randrange(checkpoint.sent, length)] ^= 1
                secondary = checkpoint.from_here(bytes(other))
                size = rule.live(0.0)
        while size > 0:
            left = held.pop(0)
            size -= len(left)
            there = secondary or checkpoint
            if (why := _contradicts(left, there)) is not None:
                return why
    return None


def _contradicts(left: bytes, there: _Vm) -> str | None:
    (frame, _), *_ = frames(left)
    heard = look_into(frame)
    if not isinstance(heard, Segment) or heard.flags & SYN:
        return None if _content(left) in there.said else "something that was never said there"
    begin = heard.seq - _FIRST
    end = begin + len(heard.data)
    if heard.data and end > there.sent:
        return "bytes that were not sent there"
    if there.stream[begin:end] != bytes(heard.data):
        return "other bytes"
    if heard.ack - _FIRST_IN > there.got:
        return "an acknowledgement of what is not there"
    if heard.flags & FIN and not there.has_ended:
        return "an end that is none there"
    return None
