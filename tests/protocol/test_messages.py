"""The seven messages on the wire: one list of cases for the encoder and the decoder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import InvalidMessage, LocalProtocolError, ShortRead
from colo.protocol.messages import (
    COLOMessage,
    Message,
    MessageDecoder,
    encode,
    parse_message,
)

CASES = [
    (Message(COLOMessage.CHECKPOINT_READY), "00000000", "checkpoint-ready"),
    (Message(COLOMessage.CHECKPOINT_REQUEST), "00000001", "checkpoint-request"),
    (Message(COLOMessage.CHECKPOINT_REPLY), "00000002", "checkpoint-reply"),
    (Message(COLOMessage.VMSTATE_SEND), "00000003", "vmstate-send"),
    (Message(COLOMessage.VMSTATE_SIZE, 0), "00000004 0000000000000000", "vmstate-size 0"),
    (Message(COLOMessage.VMSTATE_SIZE, 12889), "00000004 0000000000003259", "vmstate-size 12889"),
    (
        Message(COLOMessage.VMSTATE_SIZE, (1 << 64) - 1),
        "00000004 ffffffffffffffff",
        "vmstate-size 18446744073709551615",
    ),
    (Message(COLOMessage.VMSTATE_RECEIVED), "00000005", "vmstate-received"),
    (Message(COLOMessage.VMSTATE_LOADED), "00000006", "vmstate-loaded"),
]
MESSAGES = [message for message, _, _ in CASES]
WIRE = b"".join(bytes.fromhex(wire) for _, wire, _ in CASES)
each_case = pytest.mark.parametrize(("message", "wire", "text"), CASES, ids=str)


def decode(*pieces: bytes) -> list[Message]:
    decoder = MessageDecoder()
    messages = [message for piece in pieces for message in decoder.feed(piece)]
    decoder.close()
    return messages


def test_all_messages_of_the_protocol_are_among_the_cases() -> None:
    assert {message.kind for message in MESSAGES} == set(COLOMessage)
    assert [int(kind) for kind in COLOMessage] == list(range(7))


@each_case
def test_a_message_is_encoded(message: Message, wire: str, text: str) -> None:
    assert encode(message) == bytes.fromhex(wire)
    assert str(message) == text


@each_case
def test_a_message_is_parsed_where_it_lies(message: Message, wire: str, text: str) -> None:
    data = bytes.fromhex(wire)
    surrounded = b"\xff" * 3 + data + b"\xff" * 9
    for view in (surrounded, bytearray(surrounded), memoryview(surrounded)):
        assert parse_message(view, 3, 3 + len(data)) == (message, len(data))
    assert parse_message(surrounded, 3, len(surrounded)) == (message, len(data))


@each_case
def test_a_message_that_is_short_never_parses(message: Message, wire: str, text: str) -> None:
    data = bytes.fromhex(wire)
    for cut in range(len(data)):
        assert parse_message(data, 0, cut) is None
        decoder = MessageDecoder()
        assert list(decoder.feed(data[:cut])) == []
        if cut:
            with pytest.raises(ShortRead) as caught:
                decoder.close()
            assert caught.value.got == cut


@pytest.mark.parametrize("cut", range(len(WIRE) + 1))
def test_a_conversation_can_be_cut_into_two_pieces_at_every_byte(cut: int) -> None:
    assert decode(WIRE[:cut], WIRE[cut:]) == MESSAGES


def test_a_conversation_can_come_byte_by_byte() -> None:
    assert decode(*(WIRE[i : i + 1] for i in range(len(WIRE)))) == MESSAGES


@given(st.lists(st.integers(0, len(WIRE))))
def test_a_conversation_can_come_in_pieces_of_any_size(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WIRE)]
    assert decode(*(WIRE[a:b] for a, b in itertools.pairwise(edges))) == MESSAGES


@pytest.mark.parametrize("number", [7, 8, 0x51455645, 0xFFFFFFFF])
def test_a_value_outside_the_enum_is_refused_as_soon_as_it_shows(number: int) -> None:
    decoder = MessageDecoder()
    data = number.to_bytes(4, "big")
    fed = decoder.feed(bytes.fromhex("00000005") + data)
    assert next(fed) == Message(COLOMessage.VMSTATE_RECEIVED)
    with pytest.raises(InvalidMessage, match=f"Invalid COLO message {number}:") as caught:
        next(fed)
    assert caught.value.value == number
    with pytest.raises(InvalidMessage):
        parse_message(data, 0, 4)


@pytest.mark.parametrize("kind", COLOMessage)
def test_a_value_goes_with_vmstate_size_and_with_nothing_else(kind: COLOMessage) -> None:
    wrong = Message(kind) if kind is COLOMessage.VMSTATE_SIZE else Message(kind, 5)
    with pytest.raises(LocalProtocolError, match=kind.wire_name):
        encode(wrong)


def test_the_end_between_two_messages_is_no_error() -> None:
    assert decode(b"") == []
    assert decode(bytes.fromhex("00000002")) == [Message(COLOMessage.CHECKPOINT_REPLY)]
