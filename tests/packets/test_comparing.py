"""The output rule: what it lets out, and that a takeover at that instant never contradicts it."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.packets.comparing import Comparing
from colo.packets.frames import ACK, FIN, HEAD, RST, SYN, Segment, frames, look_into

_MAC = bytes(12)
_CLIENT, _SERVER = bytes([10, 0, 0, 9]), bytes([10, 0, 0, 1])
_VNET = 12


def framed(frame: bytes) -> bytes:
    return HEAD.pack(_VNET + len(frame), _VNET) + bytes(_VNET) + frame


def ipv4(protocol: int, payload: bytes, ident: int = 0) -> bytes:
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, 0x4000, 64, protocol, ident,
        _SERVER, _CLIENT,
    )  # fmt: skip
    return framed((_MAC + b"\x08\x00" + head + payload).ljust(60, b"\0"))


def tcp(
    seq: int, ack: int, data: bytes = b"", flags: int = ACK, port: int = 80, window: int = 500
) -> bytes:
    mod = 1 << 32
    head = struct.pack(
        ">HHIIBBHHH", port, 4000, seq % mod, ack % mod, 5 << 4, flags, window, 0, 0
    )  # fmt: skip
    return ipv4(6, head + data)


def udp(data: bytes, port: int = 53, ident: int = 0, checksum: int = 0) -> bytes:
    head = struct.pack(">HHHH", port, 4000, 8 + len(data), checksum)
    return ipv4(17, head + data, ident)


@pytest.fixture
def rule() -> Comparing:
    rule = Comparing(1 << 20)
    rule.primary(tcp(1000, 500, b"before"), 0.0)
    rule.cover()
    assert rule.live(0.0) == 0
    return rule


def test_the_same_bytes_leave_however_they_are_cut(rule: Comparing) -> None:
    said = tcp(1006, 500, b"abcdef")
    assert rule.primary(said, 1.0) == 0
    assert rule.secondary(tcp(1006, 500, b"abc"), 1.0) == 0
    assert rule.secondary(tcp(1009, 500, b"defgh"), 1.0) == len(said)


def test_other_bytes_differ_and_wait(rule: Comparing) -> None:
    rule.primary(tcp(1006, 500, b"abcdef"), 1.0)
    assert rule.secondary(tcp(1006, 500, b"abX"), 1.0) == 0
    assert rule.differs == "tcp"
    assert rule.counts.differed == {"tcp": 1}


def test_an_acknowledgement_waits_for_the_secondary_to_have_the_data(rule: Comparing) -> None:
    said = tcp(1006, 900)
    assert rule.primary(said, 1.0) == 0
    assert rule.secondary(tcp(1006, 899), 1.0) == 0
    assert rule.secondary(tcp(1006, 900), 1.0) == len(said)


def test_what_the_checkpoint_covers_may_be_repeated(rule: Comparing) -> None:
    again = tcp(1000, 500, b"before")
    assert rule.primary(again, 1.0) == len(again)


def test_nothing_leaves_before_a_secondary_vm_runs(rule: Comparing) -> None:
    rule.cover()
    again = tcp(1000, 500, b"before")
    assert rule.primary(again, 1.0) == 0
    assert rule.live(1.0) == len(again)


def test_a_new_connection_waits_for_its_checkpoint(rule: Comparing) -> None:
    rule.primary(tcp(77, 1, flags=SYN | ACK, port=81), 1.0)
    assert rule.differs == "tcp"
    assert rule.counts.differed == {"connection": 1}
    rule.cover()
    rule.live(2.0)
    again, data = tcp(77, 1, flags=SYN | ACK, port=81), tcp(78, 5, b"hello", port=81)
    assert rule.primary(again, 2.0) == len(again)
    assert rule.primary(data, 2.0) == 0
    assert rule.secondary(data, 2.0) == len(data)


def test_the_end_of_a_stream_stands_at_the_same_place(rule: Comparing) -> None:
    end = tcp(1006, 500, b"bye", ACK | FIN)
    assert rule.primary(end, 1.0) == 0
    assert rule.secondary(tcp(1006, 500, b"bye"), 1.0) == 0
    assert rule.secondary(tcp(1009, 500, b"", ACK | FIN), 1.0) == len(end)
    assert rule.primary(end, 1.0) == len(end)  # and may be repeated


def test_another_end_differs(rule: Comparing) -> None:
    rule.primary(tcp(1006, 500, b"bye", ACK | FIN), 1.0)
    rule.secondary(tcp(1006, 500, b"bye more", ACK | FIN), 1.0)
    assert rule.differs == "tcp"


def test_a_reset_has_to_be_said_too(rule: Comparing) -> None:
    reset = tcp(1006, 500, flags=RST | ACK)
    assert rule.primary(reset, 1.0) == 0
    assert rule.secondary(reset, 1.0) == len(reset)


def test_order_is_the_primarys(rule: Comparing) -> None:
    first, second = udp(b"one", 53), udp(b"two", 54)
    assert rule.primary(first + second, 1.0) == 0
    assert rule.secondary(second, 1.0) == 0
    assert rule.secondary(first, 1.0) == len(first + second)


def test_datagrams_are_the_same_but_for_what_says_nothing(rule: Comparing) -> None:
    said = udp(b"answer", ident=7, checksum=99)
    rule.primary(said, 1.0)
    assert rule.secondary(udp(b"answer", ident=8), 1.0) == len(said)


def test_a_datagram_with_another_content_differs(rule: Comparing) -> None:
    rule.primary(udp(b"it is 12:00:01"), 1.0)
    rule.secondary(udp(b"it is 12:00:02"), 1.0)
    assert rule.differs == "udp"
    rule.cover()
    assert rule.differs is None


def test_what_came_before_the_secondarys_first_word_is_not_taken_for_the_same() -> None:
    """Of a stream that no checkpoint is known to cover."""
    rule = Comparing(1 << 20)
    rule.cover()
    rule.live(0.0)
    first, second = tcp(1000, 5, b"one"), tcp(1003, 5, b"two")
    rule.primary(first, 1.0)
    assert rule.secondary(second, 1.0) == 0
    assert rule.primary(second, 1.0) == 0
    rule.cover()
    rule.live(2.0)
    assert rule.primary(second, 2.0) == len(second)  # which the checkpoint covers


def test_sequence_numbers_wrap() -> None:
    rule = Comparing(1 << 20)
    start = (1 << 32) - 3
    rule.primary(tcp(start, 5, b""), 0.0)
    rule.cover()
    rule.live(0.0)
    said = tcp(start, 5, b"abcdef")
    rule.primary(said, 1.0)
    assert rule.secondary(tcp(start, 5, b"abcd"), 1.0) == 0
    assert rule.secondary(tcp(1, 5, b"ef"), 1.0) == len(said)


def test_a_secondary_that_is_too_far_ahead_asks_for_a_checkpoint() -> None:
    rule = Comparing(1000)
    rule.cover()
    rule.live(0.0)
    for at in range(0, 2000, 500):
        rule.secondary(tcp(at, 1, bytes(500)), 1.0)
    assert rule.differs == "too far ahead"


@given(st.binary(max_size=200))
def test_any_frame_can_be_looked_into(frame: bytes) -> None:
    look_into(memoryview(frame))
    for kind in (b"\x08\x00", b"\x86\xdd", b"\x08\x06"):
        look_into(memoryview(_MAC + kind + frame))


class _Vm:
    """A guest that sends one stream, takes another, and answers datagrams."""

    def __init__(self, stream: bytes, dice: random.Random) -> None:
        self.stream, self.dice = stream, dice
        self.sent = self.got = 0

    def say(self, has: int) -> bytes:
        """Send some, acknowledge some of the ``has`` bytes that came, or repeat something."""
        self.got = self.dice.randint(self.got, has)
        begin = self.sent if self.dice.random() < 0.8 else self.dice.randint(0, self.sent)
        end = min(begin + self.dice.randint(0, 9), len(self.stream))
        self.sent = max(self.sent, end)
        return tcp(5000 + begin, 100 + self.got, self.stream[begin:end])


@settings(max_examples=300)
@given(st.integers(0, 1 << 32), st.booleans())
def test_what_left_is_never_contradicted(seed: int, is_other: bool) -> None:
    """After any release, what a client heard the secondary VM or the checkpoint has."""
    dice = random.Random(seed)
    stream = dice.randbytes(120)
    other = bytearray(stream)
    if is_other:
        other[dice.randrange(120)] ^= 1
    primary, secondary = _Vm(stream, dice), _Vm(bytes(other), dice)
    rule = Comparing(1 << 20)
    has = covered_sent = covered_got = 0
    held = bytearray()
    is_safe = False
    for _ in range(120):
        has += dice.randint(0, 5)
        left = 0
        match dice.randrange(8):
            case 0 | 1 | 2:
                said = primary.say(has)
                held += said
                left = rule.primary(said, 0.0)
            case 3 | 4 | 5 if is_safe:
                left = rule.secondary(secondary.say(has), 0.0)
            case 6 if is_safe:
                rule.cover()
                held.clear()
                covered_sent, covered_got, is_safe = primary.sent, primary.got, False
            case 7 if not is_safe:
                left, is_safe = rule.live(0.0), True
                secondary = _Vm(bytes(other), dice)
                other[:covered_sent] = stream[:covered_sent]
                secondary.stream = bytes(other)
                secondary.sent, secondary.got = covered_sent, covered_got
        for frame, _ in frames(bytes(held[:left])):
            heard = look_into(frame)
            assert isinstance(heard, Segment)
            begin, end = heard.seq - 5000, heard.seq - 5000 + len(heard.data)
            assert end <= max(covered_sent, secondary.sent)
            assert secondary.stream[begin:end] == stream[begin:end]
            assert heard.ack - 100 <= max(covered_got, secondary.got)
        del held[:left]
