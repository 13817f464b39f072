"""QEMU's command line, into options and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colo.importing.shell import command_words
from colo.qemu.options import (
    Option,
    changed,
    escape,
    is_off,
    is_on,
    machine_keys,
    options,
    read_keys,
    words_of,
)

SAMPLES = sorted((Path(__file__).parents[1] / "importing" / "samples").glob("*.txt"))


def test_a_comma_in_a_value_is_doubled() -> None:
    assert escape("a,b,,c") == "a,,b,,,,c"


def test_options_have_a_value_or_none() -> None:
    words = [
        "-S",
        "--m",
        "512",
        "disk.img",
        "-append",
        "-x",
        "-enable-kvm",
        "-new",
        "-usb",
        "-other",
        "v",
    ]
    assert options(words) == [
        Option("S"), Option("m", "512"), Option("", "disk.img"), Option("append", "-x"),
        Option("enable-kvm"), Option("new"), Option("usb"), Option("other", "v"),
    ]  # fmt: skip
    assert options(["-m"]) == [Option("m")]


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.stem)
def test_a_real_command_line_is_the_same_again(file: Path) -> None:
    words = command_words(file.read_text())[1:]
    again = words_of(options(words))
    assert again == ["-" + word[2:] if word.startswith("--") else word for word in words]


CHANGES = [
    ("tap,id=n0,vhost=on", {"vhost": False}, "tap,id=n0,vhost=off"),
    ("tap,id=n0,fd=3", {"fd": None, "ifname": "t,0"}, "tap,id=n0,ifname=t,,0"),
    ("type=tap,queues=4,id=a", {"queues": None}, "type=tap,id=a"),
    ("tap,vhost=on,vhost=on", {"vhost": "off"}, "tap,vhost=off"),
    ("tap", {"type": "user"}, "user"),
    ("", {"pflash1": "vars"}, "pflash1=vars"),
    ('{"type":"tap","vhost":true}', {"vhost": False}, '{"type":"tap","vhost":false}'),
    ('{"type":"tap","fd":"3"}', {"fd": None, "ifname": "t"}, '{"type":"tap","ifname":"t"}'),
]


@pytest.mark.parametrize(("value", "changes", "expected"), CHANGES)
def test_keys_are_changed_in_the_form_in_which_they_came(
    value: str, changes: dict[str, str | bool | None], expected: str
) -> None:
    assert changed(value, "type", changes) == expected


PARTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(PARTS)
@example("a,,b,=,x=,,")
@example('{"a": [1, {"b": null}]}')
def test_what_is_not_changed_stays_byte_for_byte(value: str) -> None:
    assert changed(value, "type", {}) == value


@given(st.dictionaries(st.from_regex(r"[a-z][a-z.-]{0,8}", fullmatch=True), PARTS, min_size=1))
def test_keys_written_are_read_again(keys: dict[str, str]) -> None:
    written = changed("", "", dict(keys))
    assert read_keys(written, "") == keys
    as_json = json.dumps(keys)
    assert read_keys(changed(as_json, "", {"new": "v"}), "") == {**keys, "new": "v"}


@given(st.lists(st.text()))
@example(["-device", "{" * 5000])
@example(["-device", '{"driver":' * 5000])
def test_any_words_are_options_and_no_word_is_lost(words: list[str]) -> None:
    found = options(words)
    again = words_of(found)
    assert len(again) == len(words)
    assert [word.lstrip("-") for word in again] == [word.lstrip("-") for word in words]
    for each in found:
        _ = each.keys, str(each)


def test_the_machine_is_all_that_is_said_of_it() -> None:
    args = ["-machine", "q35,smm=on", "-M", "type=pc", "-m", "1"]
    assert machine_keys(args) == {"type": "pc", "smm": "on"}
    assert machine_keys([]) == {}


def test_yes_and_no_are_said_in_many_ways() -> None:
    assert all(map(is_on, ("on", "yes", "true", True))) and not is_on("off")
    assert all(map(is_off, ("off", "no", "false", False))) and not is_off(None)
