"""A TOML table becomes the dataclass that it is checked against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colo.config.tables import read_table
from colo.errors import UsageError


@dataclass(frozen=True)
class Inner:
    whole: int = 3
    part: float = 0.5


@dataclass(frozen=True)
class Outer:
    needed: str
    folder: Path = Path("/")
    texts: tuple[str, ...] = ()
    perhaps: int | None = None
    inner: Inner = Inner()
    absent: Inner | None = None
    several: tuple[Inner, ...] = ()


def test_what_is_left_out_is_as_the_dataclass_says() -> None:
    assert read_table(Outer, {"needed": "x"}) == Outer("x")


def test_each_value_gets_the_type_of_its_field() -> None:
    table: dict[str, Any] = {
        "needed": "x",
        "folder": "/tmp",
        "texts": ["a", "b"],
        "perhaps": 0,
        "inner": {"part": 2},
        "absent": {},
        "several": [{"whole": 1}, {}],
    }
    found = read_table(Outer, table)
    assert found == Outer(
        "x", Path("/tmp"), ("a", "b"), 0, Inner(part=2.0), Inner(), (Inner(1), Inner())
    )
    assert isinstance(found.inner.part, float)
    assert table["inner"] == {"part": 2}, "what was given is as it was"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "needed is missing"),
        ({"needed": 1}, "needed = 1: it has to be text"),
        ({"needed": "x", "folder": 1}, "folder = 1: it has to be text"),
        ({"needed": "x", "texts": "a"}, "texts: a list of texts, one for each argument"),
        ({"needed": "x", "texts": ["a", 1]}, "texts: a list of texts, one for each argument"),
        ({"needed": "x", "perhaps": 1.5}, "perhaps = 1.5: it has to be a whole number"),
        ({"needed": "x", "perhaps": True}, "perhaps = True: it has to be a whole number"),
        ({"needed": "x", "inner": 1}, "[inner] has to be a table"),
        ({"needed": "x", "absent": []}, "[absent] has to be a table"),
        ({"needed": "x", "inner": {"part": "1"}}, "inner.part = '1': it has to be a number"),
        ({"needed": "x", "inner": {"whole": 1.0}}, "inner.whole = 1.0: it has to be a whole"),
        ({"needed": "x", "inner": {"more": 1}}, "inner.more: there is no such key"),
        ({"needed": "x", "several": {}}, "[[several]] has to be a table, one for each"),
        ({"needed": "x", "several": [1]}, "[[several]] has to be a table, one for each"),
        ({"needed": "x", "several": [{"whole": "1"}]}, "several.whole = '1': it has to be a whole"),
        ({"needed": "x", "more": {}}, "more: there is no such key"),
    ],
)
def test_what_does_not_fit_is_told_with_its_key(table: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_table(Outer, table)
    assert str(caught.value).startswith(told)
