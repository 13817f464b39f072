"""What two VMs say, in a form in which it can be compared: Ethernet frames, looked into.

Of TCP a stream counts and not how it is cut, so a segment's parts are taken apart.  Everything else
is compared whole, but for what two VMs may well choose differently: an IPv4 header's
identification and checksum, an IPv6 header's flow label, a checksum of UDP, which says no more.

QEMU's filters put a big-endian u32 before each frame, the length of what follows; where
``vnet_hdr_support`` is on, as it is for cards here that have one, a second one says how much of
that is a virtio-net header.

Source: RFC 791, RFC 8200, RFC 9293; ``net/filter-mirror.c`` in QEMU for the two numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

__all__ = [
    "ACK",
    "FIN",
    "HEAD",
    "RST",
    "SYN",
    "URG",
    "Datagram",
    "Flow",
    "Frame",
    "Segment",
    "frames",
    "look_into",
]

#: Before each frame: its length, and that of the virtio-net header in it; or just the first.
HEAD: Final = struct.Struct(">II")
LENGTH: Final = struct.Struct(">I")
_MODULUS: Final = 1 << 32

_ETHERNET: Final = 14
_IPV4: Final = 0x0800
_ARP: Final = 0x0806
_IPV6: Final = 0x86DD
_ICMP: Final = 1
_TCP: Final = 6
_UDP: Final = 17
_ICMPV6: Final = 58
_IPV4_LEAST: Final = 20
_IPV6_HEADER: Final = 40
_TCP_LEAST: Final = 20
_UDP_HEADER: Final = 8
_FRAGMENT: Final = 0x3FFF
_U16: Final = struct.Struct(">H")
_SEGMENT: Final = struct.Struct(">IIBB")
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10
URG: Final = 0x20

#: What belongs together: the protocol, then addresses and ports, as bytes.
Flow: TypeAlias = tuple[str, bytes]


class Segment(NamedTuple):
    """A TCP segment: sequence numbers modulo 2**32, ``data`` without headers or padding."""

    flow: Flow
    seq: int
    ack: int
    flags: int
    data: memoryview

    @property
    def end(self) -> int:
        """The sequence number after it; SYN and FIN count."""
        control = bool(self.flags & SYN) + bool(self.flags & FIN)
        return (self.seq + len(self.data) + control) % _MODULUS


class Datagram(NamedTuple):
    """Anything else: ``content`` is what has to be the same."""

    flow: Flow
    content: bytes


Frame: TypeAlias = Segment | Datagram


def frames(data: bytes, vnet: bool = True) -> Iterator[tuple[memoryview, int]]:
    """Yield each whole frame in ``data``, and its size with all that QEMU puts before it, bytes.

    What is yielded begins with the Ethernet header.  ``vnet``: its virtio-net header is told of.
    """
    view = memoryview(data)
    at, size = 0, len(data)
    head = HEAD.size if vnet else LENGTH.size
    while at + head <= size:
        length, skipped = (
            HEAD.unpack_from(data, at) if vnet else (LENGTH.unpack_from(data, at)[0], 0)
        )
        after = at + head + length
        yield view[min(at + head + skipped, after) : after], after - at
        at = after


def look_into(frame: memoryview) -> Frame:
    """Return what is to be compared of a frame, however broken it is."""
    if len(frame) >= _ETHERNET:
        kind = _U16.unpack_from(frame, _ETHERNET - 2)[0]
        if kind == _IPV4:
            return _ipv4(frame)
        if kind == _IPV6:
            return _ipv6(frame)
        if kind == _ARP:
            return Datagram(("arp", bytes(frame[20:22])), bytes(frame))
    return Datagram(("ethernet", bytes(frame[12:14])), bytes(frame))


def _ipv4(frame: memoryview) -> Frame:
    whole = Datagram(("ipv4", bytes(frame[23:34])), bytes(frame))
    if len(frame) < _ETHERNET + _IPV4_LEAST:
        return whole
    header = (frame[_ETHERNET] & 15) * 4
    total = _U16.unpack_from(frame, _ETHERNET + 2)[0]
    start, end = _ETHERNET + header, _ETHERNET + total
    if header < _IPV4_LEAST or not start <= end <= len(frame):
        return whole
    protocol, addresses = frame[23], bytes(frame[26:34])
    is_part = _U16.unpack_from(frame, _ETHERNET + 6)[0] & _FRAGMENT
    rest = frame[start:end]
    if protocol == _TCP and not is_part and (segment := _tcp(addresses, rest)) is not None:
        return segment
    head = bytes(frame[:18]) + bytes(frame[20:24]) + bytes(frame[26:start])
    return _datagram("ipv4", addresses, protocol, bool(is_part), head, rest)


def _ipv6(frame: memoryview) -> Frame:
    whole = Datagram(("ipv6", bytes(frame[20:21])), bytes(frame))
    start = _ETHERNET + _IPV6_HEADER
    if len(frame) < start:
        return whole
    end = start + _U16.unpack_from(frame, _ETHERNET + 4)[0]
    if end > len(frame):
        return whole
    protocol, addresses = frame[20], bytes(frame[22:54])
    rest = frame[start:end]
    if protocol == _TCP and (segment := _tcp(addresses, rest)) is not None:
        return segment
    head = bytes(frame[:15]) + bytes(frame[18:start])
    return _datagram("ipv6", addresses, protocol, False, head, rest)


def _tcp(addresses: bytes, rest: memoryview) -> Segment | None:
    if len(rest) < _TCP_LEAST:
        return None
    seq, ack, offset, flags = _SEGMENT.unpack_from(rest, 4)
    header = (offset >> 4) * 4
    if not _TCP_LEAST <= header <= len(rest):
        return None
    return Segment(("tcp", addresses + bytes(rest[:4])), seq, ack, flags, rest[header:])


def _datagram(
    version: str, addresses: bytes, protocol: int, is_part: bool, head: bytes, rest: memoryview
) -> Datagram:
    if is_part:
        name, ends = f"{version} fragment", bytes([protocol])
    elif protocol == _UDP and len(rest) >= _UDP_HEADER:
        content = head + bytes(rest[:6]) + bytes(rest[8:])
        return Datagram(("udp", addresses + bytes(rest[:4])), content)
    elif protocol in (_ICMP, _ICMPV6):
        name, ends = "icmp", bytes(rest[:1]) + bytes(rest[4:6])
    else:
        name, ends = version, bytes([protocol])
    return Datagram((name, addresses + ends), head + bytes(rest))
