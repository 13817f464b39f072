"""What others wrote, on our terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.terminal import console, plain, printable


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", ""),
        ("«web1» – 7.2 µs", "«web1» – 7.2 µs"),
        ("a\nb\x1b[2Jc\udcff", r"a\nb\x1b[2Jc\udcff"),
        ("\u202eright to left", r"\u202eright to left"),
    ],
)
def test_only_what_can_be_printed_is(text: str, seen: str) -> None:
    assert printable(text) == seen


@given(st.text() | st.sampled_from(["tcp:b:9000", "[/]", "[red]x", "x\\"]))
def test_no_text_does_anything_to_a_terminal(text: str) -> None:
    out = io.StringIO()
    console(file=out).print(f"[bold]{plain(text)}[/bold]")
    assert out.getvalue() == f"{printable(text)}\n"
    assert printable(text).isprintable()
