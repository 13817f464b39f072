"""The receive buffer, and parsers that can be cut at every byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, StreamError
from colo.migration.buffer import Parser, ReceiveBuffer, name, need, u8, u16, u32, u64


def result(parser: Parser[Any]) -> Any:
    """What a parser comes to, given that all is there."""
    with pytest.raises(StopIteration) as stop:
        next(parser)
    return stop.value.value


NUMBERS = [
    (u8, "81", 0x81),
    (u16, "8102", 0x8102),
    (u32, "81020304", 0x81020304),
    (u64, "8102030405060708", 0x8102030405060708),
    (name, "00", ""),
    (name, "03616263", "abc"),
    (name, "ff" + "78" * 255, "x" * 255),
]


@pytest.mark.parametrize("wire", ["04612f80ff", "02610a", "031b5b32", "0100"])
def test_a_name_is_printable_ascii_or_an_error_on_one_line(wire: str) -> None:
    buffer = ReceiveBuffer(bytearray(300))
    buffer.append(bytes.fromhex(wire))
    with pytest.raises(StreamError, match="is no name") as caught:
        next(name(buffer))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("read", "wire", "expected"), NUMBERS)
def test_a_value_is_read_whole_or_not_at_all(read: Any, wire: str, expected: object) -> None:
    data = bytes.fromhex(wire)
    buffer = ReceiveBuffer(bytearray(300))
    parser = read(buffer)
    for index in range(len(data)):
        next(parser)  # it waits
        buffer.append(data[index : index + 1])
    buffer.append(b"\xaa")
    assert result(parser) == expected
    assert (buffer.available, buffer.position) == (1, len(data))


def test_need_waits_for_as_many_bytes_and_uses_none_up() -> None:
    buffer = ReceiveBuffer(bytearray(8))
    parser = need(buffer, 5)
    buffer.append(b"1234")
    next(parser)
    buffer.append(b"5")
    assert result(parser) is None
    assert (buffer.start, buffer.available) == (0, 5)


def test_bytes_are_received_into_the_memory_itself() -> None:
    memory = bytearray(8)
    buffer = ReceiveBuffer(memory)
    window = buffer.writable(3)
    assert len(window) == 3
    window[:2] = b"ab"
    buffer.wrote(2)
    assert (bytes(memory), buffer.available) == (b"ab" + bytes(6), 2)
    assert len(buffer.writable(100)) == 6
    assert bytes(buffer.take(1)) == b"a"
    assert (buffer.start, buffer.position) == (1, 1)


def test_a_full_buffer_is_the_peers_error_and_says_whose_limit() -> None:
    buffer = ReceiveBuffer(bytearray(4), "a checkpoint")
    buffer.append(b"1234")
    with pytest.raises(LimitExceeded, match="a checkpoint: 5 bytes, over the limit of 4"):
        buffer.writable(1)
    with pytest.raises(LimitExceeded, match="a checkpoint: 6 bytes, over the limit of 4"):
        buffer.append(b"56")
    assert bytes(buffer.take(4)) == b"1234"
    buffer.rewind()
    assert len(buffer.writable(9)) == 4


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 9), st.booleans())))
def test_what_goes_in_comes_out(steps: list[tuple[bytes, int, bool]]) -> None:
    buffer, received, taken = ReceiveBuffer(bytearray(24)), b"", b""
    for data, count, rewinds in steps:
        if buffer.end + len(data) <= 24:
            buffer.append(data)
            received += data
        taken += bytes(buffer.take(min(count, buffer.available)))
        if rewinds:
            buffer.rewind()
            assert buffer.start == 0
        assert buffer.position == len(taken)
        assert taken + bytes(buffer.data[buffer.start : buffer.end]) == received
