"""The hybrid link's words: whatever way they are cut, and whatever else comes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.errors import LimitExceeded, PeerError
from colo.packets.hybrid_words import Kind, Said, WordReader, encode

CARDS = 3
WORDS = st.builds(
    Said,
    st.sampled_from(Kind),
    st.integers(0, CARDS - 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=50),
)


@given(st.lists(WORDS, max_size=8), st.lists(st.integers(1, 40), min_size=1))
def test_words_come_back_in_pieces_of_any_size(words: list[Said], sizes: list[int]) -> None:
    data = b"".join(map(encode, words))
    reader, at, turn = WordReader(CARDS), 0, 0
    found: list[Said] = []
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == words


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 16,
        b"\x09" + b"\x00" * 15,
        b"\x01\x01" + b"\x00" * 14,
        b"\x01\x00\x00\x03" + b"\x00" * 12,
    ],
    ids=["no kind", "an unknown kind", "not zero", "no such card"],
)
def test_what_is_no_word_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="hybrid link says"):
        list(WordReader(CARDS).feed(data))


def test_a_word_has_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        list(WordReader(CARDS).feed(b"\x01\x00\x00\x00\xff\xff\xff\xff" + bytes(8)))


@given(st.binary(max_size=100))
def test_any_bytes_are_words_or_an_error(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        list(WordReader(CARDS).feed(data))
