"""The gate: what passes, when, and in which order."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LocalProtocolError
from colo.packets.gate import Gate, GateState

LIMIT = 10_000


def frame(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def holding() -> Gate:
    gate = Gate(LIMIT)
    gate.hold()
    return gate


def released(gate: Gate, now: float) -> bytes:
    """A checkpoint covers all that is held, and is safe."""
    gate.cover()
    return gate.release(now)


def test_an_open_gate_lets_whole_frames_pass_at_once() -> None:
    gate = Gate(LIMIT)
    assert gate.take(frame(b"one") + frame(b"two")[:3], 0) == frame(b"one")
    assert gate.take(frame(b"two")[3:], 0) == frame(b"two")
    assert gate.stats.frames == 2


def test_a_holding_gate_lets_nothing_pass_before_its_release() -> None:
    gate = holding()
    assert gate.take(frame(b"answer"), 1.0) == b""
    assert (gate.held_bytes, gate.held_since) == (10, 1.0)
    assert gate.release(1.2) == b"", "no checkpoint covers it"
    assert released(gate, 1.5) == frame(b"answer")
    assert (gate.held_bytes, gate.held_since) == (0, None)
    assert list(gate.stats.held_s) == [0.5]
    assert released(gate, 2.0) == b""


def test_what_comes_after_a_release_waits_for_the_next() -> None:
    gate = holding()
    gate.take(frame(b"first"), 0)
    assert released(gate, 1) == frame(b"first")
    assert gate.take(frame(b"second"), 1) == b""
    assert released(gate, 2) == frame(b"second")


def test_what_comes_after_the_checkpoint_waits_for_the_next_one() -> None:
    """The VM runs on while the other host still receives."""
    gate = holding()
    gate.take(frame(b"first") + frame(b"second")[:3], 0)
    gate.cover()
    gate.take(frame(b"second")[3:] + frame(b"third"), 1)
    assert gate.release(2) == frame(b"first")
    assert gate.release(3) == b"", "it was released"
    assert (gate.held_bytes, gate.held_since) == (len(frame(b"second") + frame(b"third")), 1)
    assert released(gate, 4) == frame(b"second") + frame(b"third")


def test_what_is_of_no_checkpoint_yet_leaves_too_when_the_vm_runs_alone() -> None:
    gate = holding()
    gate.take(frame(b"first"), 0)
    gate.cover()
    gate.take(frame(b"second"), 1)
    assert gate.open(2) == frame(b"first") + frame(b"second")


def test_nothing_that_was_covered_is_left_in_a_gate_that_was_shut() -> None:
    gate = holding()
    gate.take(frame(b"first"), 0)
    gate.cover()
    gate.shut()
    assert gate.release(1) == b""


def test_an_incomplete_frame_is_never_released() -> None:
    gate = holding()
    gate.take(frame(b"whole") + frame(b"incomplete")[:-1], 0)
    assert released(gate, 1) == frame(b"whole")
    gate.take(frame(b"incomplete")[-1:], 1)
    assert released(gate, 2) == frame(b"incomplete")


def test_opening_releases_what_is_held_and_lets_the_rest_pass() -> None:
    gate = holding()
    gate.take(frame(b"held"), 0)
    assert gate.open(1) == frame(b"held")
    assert gate.take(frame(b"next"), 1) == frame(b"next")


def test_a_shut_gate_forgets_and_drops_for_good() -> None:
    gate = holding()
    gate.take(frame(b"held"), 0)
    gate.shut()
    assert gate.take(frame(b"late"), 1) == b""
    assert gate.release(2) == b""
    assert gate.stats.dropped == 1


def test_a_shut_gate_is_neither_opened_nor_held_again() -> None:
    gate = holding()
    gate.shut()
    gate.hold()
    assert gate.state is GateState.SHUT
    with pytest.raises(LocalProtocolError):
        gate.open(1)
    assert gate.take(frame(b"late"), 1) == b""


def test_beyond_its_limit_it_drops_whole_frames_and_keeps_the_order() -> None:
    gate = holding()
    for number in range(100):
        gate.take(frame(bytes([number]) * 996), 0)
    assert gate.held_bytes <= LIMIT
    assert gate.stats.dropped == 90
    assert [content[0] for content in frames(released(gate, 1))] == list(range(10))


@given(st.lists(st.binary(max_size=40), max_size=30), st.data())
def test_bytes_in_any_pieces_come_out_as_they_came(
    contents: list[bytes], data: st.DataObject
) -> None:
    stream, gate, out, at, covered = b"".join(map(frame, contents)), holding(), b"", 0, 0
    while at < len(stream):
        size = data.draw(st.integers(1, 50))
        assert gate.take(stream[at : at + size], float(at)) == b""
        at += size
        if data.draw(st.booleans()):
            out += gate.release(float(at))
            assert len(out) == covered
        if data.draw(st.booleans()):
            gate.cover()
            covered = len(out) + gate.held_bytes
    out += gate.release(float(at)) + released(gate, float(at))
    assert out == stream
    assert gate.stats.frames == len(contents)


@pytest.mark.parametrize("state", list(GateState))
def test_each_state_says_what_it_means(state: GateState) -> None:
    assert state.value
