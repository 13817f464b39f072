"""Progress is for a person who looks, and changes nothing of what is done."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from colo.errors import StoreError
from colo.progress import bar, shown

PIECES = [b"a" * 1_000_000, b"b" * 500_000]


def test_a_terminal_sees_how_much_is_done_and_a_file_sees_nothing() -> None:
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=80)
        assert list(shown(PIECES, "copying", console)) == PIECES
        text = out.getvalue()
        assert ("copying" in text and "1.5" in text and "MB" in text) is is_terminal
        assert bool(text) is is_terminal


def test_an_error_goes_through() -> None:
    def broken() -> Iterator[bytes]:
        yield PIECES[0]
        raise StoreError("no more")

    with pytest.raises(StoreError, match="no more"):
        list(shown(broken(), "copying", Console(file=io.StringIO(), force_terminal=True)))


def test_a_bar_is_for_a_terminal() -> None:
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=100)
        with bar("copying", 3_000_000, console) as show:
            show(1_500_000)
        assert ("copying" in out.getvalue() and "1.5/3.0 MB" in out.getvalue()) is is_terminal
        assert bool(out.getvalue()) is is_terminal
