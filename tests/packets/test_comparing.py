"""The output rule: what it lets out, and that a takeover at that instant never contradicts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.packets.comparing import OutputRule
from colo.packets.frames import ACK, FIN, RST, SYN, Datagram, Segment, look_into
from tests.packets.two_vms import contradiction, tcp, udp


@pytest.fixture
def rule() -> OutputRule:
    rule = OutputRule(1 << 20)
    rule.primary(tcp(1000, 500, b"before"), 0.0)
    rule.cover()
    assert rule.live(0.0) == 0
    return rule


def test_the_same_bytes_leave_however_they_are_cut(rule: OutputRule) -> None:
    said = tcp(1006, 500, b"abcdef")
    assert rule.primary(said, 1.0) == 0
    assert rule.secondary(tcp(1006, 500, b"abc"), 1.0) == 0
    assert rule.secondary(tcp(1009, 500, b"defgh"), 1.0) == len(said)


def test_other_bytes_differ_and_wait(rule: OutputRule) -> None:
    rule.primary(tcp(1006, 500, b"abcdef"), 1.0)
    assert rule.secondary(tcp(1006, 500, b"abX"), 1.0) == 0
    assert rule.differs == "tcp"
    assert rule.counts.differed == {"tcp": 1}


def test_an_acknowledgement_waits_for_the_secondary_to_have_the_data(rule: OutputRule) -> None:
    said = tcp(1006, 900)
    assert rule.primary(said, 1.0) == 0
    assert rule.secondary(tcp(1006, 899), 1.0) == 0
    assert rule.secondary(tcp(1006, 900), 1.0) == len(said)


def test_what_the_checkpoint_covers_may_be_repeated(rule: OutputRule) -> None:
    again = tcp(1000, 500, b"before")
    assert rule.primary(again, 1.0) == len(again)


def test_nothing_leaves_before_a_secondary_vm_runs(rule: OutputRule) -> None:
    rule.cover()
    again = tcp(1000, 500, b"before")
    assert rule.primary(again, 1.0) == 0
    assert rule.live(1.0) == len(again)


def test_a_new_connection_waits_for_its_checkpoint(rule: OutputRule) -> None:
    rule.primary(tcp(77, 1, flags=SYN | ACK, port=81), 1.0)
    assert rule.differs == "tcp"
    assert rule.counts.differed == {"connection": 1}
    rule.cover()
    rule.live(2.0)
    again, data = tcp(77, 1, flags=SYN | ACK, port=81), tcp(78, 5, b"hello", port=81)
    assert rule.primary(again, 2.0) == len(again)
    assert rule.primary(data, 2.0) == 0
    assert rule.secondary(data, 2.0) == len(data)


def test_the_end_of_a_stream_stands_at_the_same_place(rule: OutputRule) -> None:
    end = tcp(1006, 500, b"bye", ACK | FIN)
    assert rule.primary(end, 1.0) == 0
    assert rule.secondary(tcp(1006, 500, b"bye"), 1.0) == 0
    assert rule.secondary(tcp(1009, 500, b"", ACK | FIN), 1.0) == len(end)
    assert rule.primary(end, 1.0) == len(end)  # and may be repeated


def test_another_end_differs(rule: OutputRule) -> None:
    rule.primary(tcp(1006, 500, b"bye", ACK | FIN), 1.0)
    rule.secondary(tcp(1006, 500, b"bye more", ACK | FIN), 1.0)
    assert rule.differs == "tcp"


def test_a_reset_has_to_be_said_too(rule: OutputRule) -> None:
    reset = tcp(1006, 500, flags=RST | ACK)
    assert rule.primary(reset, 1.0) == 0
    assert rule.secondary(reset, 1.0) == len(reset)


def test_order_is_the_primarys(rule: OutputRule) -> None:
    first, second = udp(b"one", 53), udp(b"two", 54)
    assert rule.primary(first + second, 1.0) == 0
    assert rule.secondary(second, 1.0) == 0
    assert rule.secondary(first, 1.0) == len(first + second)


def test_datagrams_are_the_same_but_for_what_says_nothing(rule: OutputRule) -> None:
    said = udp(b"answer", ident=7, checksum=99)
    rule.primary(said, 1.0)
    assert rule.secondary(udp(b"answer", ident=8), 1.0) == len(said)


def test_a_datagram_with_another_content_differs(rule: OutputRule) -> None:
    rule.primary(udp(b"it is 12:00:01"), 1.0)
    rule.secondary(udp(b"it is 12:00:02"), 1.0)
    assert rule.differs == "udp"
    rule.cover()
    assert rule.differs is None


def test_a_datagram_of_the_secondarys_alone_holds_up_for_a_moment_what_counts_as_heard(
    rule: OutputRule,
) -> None:
    """Its own gratuitous ARP, say: what both said behind that is not to be said again for long."""
    lone, both = udp(b"nobody else says it", port=9), udp(b"both say it")
    rule.secondary(lone, 1.0)
    rule.primary(both, 1.0)
    assert rule.secondary(both, 1.0) == len(both)
    assert rule.heard(1.1) == 0
    assert rule.heard(1.3) == len(lone) + len(both)


def test_what_came_before_the_secondarys_first_word_is_not_taken_for_the_same() -> None:
    """Of a stream that no checkpoint is known to cover."""
    rule = OutputRule(1 << 20)
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
    rule = OutputRule(1 << 20)
    start = (1 << 32) - 3
    rule.primary(tcp(start, 5, b""), 0.0)
    rule.cover()
    rule.live(0.0)
    said = tcp(start, 5, b"abcdef")
    rule.primary(said, 1.0)
    assert rule.secondary(tcp(start, 5, b"abcd"), 1.0) == 0
    assert rule.secondary(tcp(1, 5, b"ef"), 1.0) == len(said)


def test_a_secondary_that_is_too_far_ahead_asks_for_a_checkpoint() -> None:
    rule = OutputRule(1000)
    rule.cover()
    rule.live(0.0)
    for at in range(0, 2000, 500):
        rule.secondary(tcp(at, 1, bytes(500)), 1.0)
    assert rule.differs == "too far ahead"


@given(st.binary(max_size=200))
def test_any_frame_can_be_looked_into(frame: bytes) -> None:
    look_into(memoryview(frame))
    for kind in (b"\x08\x00", b"\x86\xdd", b"\x08\x06"):
        look_into(memoryview(bytes(12) + kind + frame))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_what_left_is_never_contradicted(seed: int) -> None:
    assert contradiction(seed, OutputRule(1 << 20)) is None


def _patched(**changes: Callable[[Any, Segment], bool | None]) -> Callable[[], OutputRule]:
    def make() -> OutputRule:
        rule = OutputRule(1 << 20)
        before = rule._same

        def same(said: Segment | Datagram, now: float) -> bool | None:
            for change in changes.values():
                if isinstance(said, Segment) and (found := change(rule, said)) is not None:
                    return found
            return before(said, now)

        rule._same = same  # type: ignore[method-assign]
        return rule

    return make


def _without(flags: int) -> Callable[[Any, Segment], bool | None]:
    """The rule for a segment without these flags."""

    def changed(rule: Any, said: Segment) -> bool | None:
        other = said._replace(flags=said.flags & ~flags)
        return bool(rule._stream(said.flow).same(other)) or None

    return changed


def _any_bytes(rule: Any, said: Segment) -> bool | None:
    stream = rule._stream(said.flow)
    enough = stream.clear_to is not None and said.end <= stream.clear_to + len(stream._said)
    return enough or None


#: The rule, broken; what left is contradicted then, by some dice.
MUTANTS: dict[str, Callable[[], OutputRule]] = {
    "an acknowledgement is not looked at": _patched(it=_without(ACK)),
    "an end is not looked at": _patched(it=_without(FIN)),
    "bytes are only counted": _patched(it=_any_bytes),
    "a connection leaves at once": _patched(it=lambda _, said: bool(said.flags & SYN) or None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_rule_that_is_broken_is_found_out(mutant: str) -> None:
    assert any(contradiction(seed, MUTANTS[mutant]()) for seed in range(3000))


def test_what_the_secondary_vm_of_another_epoch_says_has_to_be_kept_away() -> None:
    """So the number that comes with it is not there for nothing."""
    found = (contradiction(seed, OutputRule(1 << 20), by_epoch=False) for seed in range(3000))
    assert any(found)
