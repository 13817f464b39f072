"""Keys as terminals send them, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.top.terminal import Key, Keys

CASES = [
    (b"q", [Key.QUIT]),
    (b"\x1b[A\x1b[B", [Key.UP, Key.DOWN]),
    (b"\x1bOA\x1bOB", [Key.UP, Key.DOWN]),
    (b"kjgG", [Key.UP, Key.DOWN, Key.FIRST, Key.LAST]),
    (b"\x1b[H\x1b[F\x1b[1~\x1b[4~", [Key.FIRST, Key.LAST, Key.FIRST, Key.LAST]),
    (b"sy", [Key.SWITCHOVER, Key.YES]),
    (b"sn", [Key.SWITCHOVER, Key.NO]),
    (b"s\x1b", [Key.SWITCHOVER, Key.NO]),
    (b"\x1b[1;5A", [Key.UP]),
    (b"\x1b[5~\x1b[Z", []),
    (b"Y", []),
    (b"xz\xff\0\r\n ", []),
]


@pytest.mark.parametrize(("data", "keys"), CASES)
def test_keys(data: bytes, keys: list[Key]) -> None:
    assert Keys().take(data) == keys


@pytest.mark.parametrize("cut", [2, 3])
def test_a_key_that_comes_in_pieces(cut: int) -> None:
    keys = Keys()
    assert keys.take(b"\x1b[1;5A"[:cut]) == []
    assert keys.take(b"\x1b[1;5A"[cut:]) == [Key.UP]


@given(st.lists(st.binary(max_size=40)))
def test_anything_may_be_sent_and_nothing_is_kept_for_long(pieces: list[bytes]) -> None:
    keys = Keys()
    for piece in pieces:
        keys.take(piece)
        assert len(keys._begun) < 20
