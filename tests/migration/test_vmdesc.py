"""Walking device sections by their description: it fits byte by byte, or it is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from colo.errors import PeerError, StreamError
from colo.migration.vmdesc import Device, parse_description, walk
from tests.streams import (
    DESCRIPTION_11,
    DESCRIPTION_72,
    DEVICES_11,
    DEVICES_72,
    Part,
    array,
    device,
    devices,
    plain,
    struct,
    subsection,
)

NESTED = struct(
    "outer",
    plain("a", b"\1\2"),
    struct("inner", array("b", 2, b"123456"), subsection("inner/more", 1, plain("c", b"\3"))),
    subsection("outer/more", 2, plain("d", b"\4\5"), subsection("outer/more/yet", 0)),
)
CASES: dict[str, tuple[Part, ...]] = {
    "no device": (),
    "no field": (device(0, "empty", 1),),
    "fields": (device(1, "clock", 2, plain("now", b"12345678"), plain("nothing", b"")),),
    "an array": (device(1, "irq", 1, array("count", 4, bytes(range(16)))),),
    "an array of none": (device(1, "irq", 1, array("count", 4, b"")),),
    "nested structs": (device(1, "nested", 3, NESTED, plain("last", b"\6")),),
    "an array of structs": (device(1, "many", 1, struct("one", NESTED, count=5)),),
    "an array of no structs": (device(1, "many", 1, struct("one", NESTED, count=0)),),
    "structs of no size": (device(1, "void", 1, struct("one", count=1_000_000)),),
    "subsections": (
        device(
            1, "fw_cfg", 2, plain("entry", b"\1\2"),
            subsection("fw_cfg/dma", 0, plain("addr", bytes(8))),
            subsection("fw_cfg/acpi", 1, plain("size", bytes(8)), NESTED),
        ),
    ),
    "several": (
        device(4, "dma", 1, plain("x", b"\0")),
        device(5, "dma", 1, plain("x", b"\1"), instance=1),
        device(1 << 31, "0000:00:01.3/piix4_pm", 0xFFFFFFFF, NESTED, instance=0xFFFFFFFF),
    ),
    "a long name": (device(1, "d" * 255, 1),),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def walked(case: tuple[Part, ...]) -> list[Device]:
    data, description = devices(*case)
    return walk(description, memoryview(data))


@each_case
def test_sections_are_walked_as_described(case: tuple[Part, ...]) -> None:
    found = walked(case)
    at = 0
    for part, each in zip(case, found, strict=True):
        assert (each.name, each.instance) == (part.described["name"], part.described["instance_id"])
        assert each.version == part.described["version"]
        assert (each.start, each.end) == (at, at + len(part.data))
        at = each.end


@pytest.mark.parametrize(
    ("data", "described", "names"),
    [
        (DEVICES_72, DESCRIPTION_72, ["timer", "pckbd", "globalstate"]),
        (DEVICES_11, DESCRIPTION_11, ["PCIBUS", "pckbd", "globalstate"]),
    ],
)
def test_what_qemu_sends_is_walked(data: bytes, described: bytes, names: list[str]) -> None:
    description = parse_description(described)
    assert description is not None
    found = walk(description, memoryview(data))
    assert [each.name for each in found] == names
    assert data[found[1].start : found[1].end].count(b"pckbd/extended_state") == 1


@each_case
def test_a_byte_more_or_less_does_not_fit(case: tuple[Part, ...]) -> None:
    data, description = devices(*case)
    with pytest.raises(StreamError, match="1 bytes after the last device"):
        walk(description, memoryview(data + b"\0"))
    for cut in range(len(data)):
        with pytest.raises(StreamError):
            walk(description, memoryview(data[:cut]))


def test_the_frame_of_a_section_has_to_be_as_described() -> None:
    data, description = devices(*CASES["subsections"])
    free = set()  # bytes that may have any value
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x40
        try:
            walk(description, memoryview(changed))
        except StreamError:
            continue
        free.add(at)
    fields = [data[at : at + 1] for at in sorted(free)]
    assert b"".join(fields) == b"\1\2" + bytes(8) + bytes(8) + b"\1\2" + b"123456\3\4\5"


WRONG: list[tuple[str, list[Any], Any, str]] = [
    # the case, the way to a key, the wrong value, what is said
    ("fields", ["devices", 0, "name"], "click", "the name click is not where"),
    ("fields", ["devices", 0, "instance_id"], 1, "instance 1 of device clock is not where"),
    ("fields", ["devices", 0, "version"], 3, "version 2 of device clock, described 3"),
    ("fields", ["devices", 0, "fields", 0, "size"], 7, "the footer of device clock is not where"),
    ("fields", ["devices", 0, "fields", 0, "size"], 9, "the footer of device clock is not where"),
    ("fields", ["devices", 0, "fields", 0, "size"], 99, "the device sections end inside clock.now"),
    ("fields", ["devices", 0, "fields", 0, "size"], -1, "clock.now: size -1, array_len 1"),
    ("an array", ["devices", 0, "fields", 0, "array_len"], 3, "the footer of device irq"),
    ("an array", ["devices", 0, "fields", 0, "array_len"], -4, "size 4, array_len -4"),
    ("an array", ["devices", 0, "fields", 0, "array_len"], 1 << 90, "end inside irq.count"),
    (
        "nested structs",
        ["devices", 0, "fields", 0, "size"],
        60,
        "nested.outer: 60 bytes described, its parts end at",
    ),
    (
        "an array of structs",
        ["devices", 0, "fields", 0, "array_len"],
        6,
        "the device sections end inside many.one",
    ),
    (
        "subsections",
        ["devices", 0, "subsections", 0, "vmsd_name"],
        "fw_cfg/dmb",
        "the name fw_cfg/dmb is not where",
    ),
    (
        "subsections",
        ["devices", 0, "subsections", 1, "version"],
        2,
        "the version of subsection fw_cfg/acpi is not where",
    ),
    ("fields", ["page_size"], 65536, "pages of 65536 bytes, not 4096"),
]


@pytest.mark.parametrize(("case", "way", "value", "text"), WRONG)
def test_a_description_that_does_not_fit_is_refused(
    case: str, way: list[Any], value: object, text: str
) -> None:
    data, description = devices(*CASES[case])
    with pytest.raises(StreamError) as caught:
        walk(put(description, way, value), memoryview(data), 1000)
    assert text in str(caught.value)
    assert 1000 <= caught.value.position <= 1000 + len(data)


def put(description: dict[str, Any], way: list[Any], value: object) -> dict[str, Any]:
    changed: Any = copy.deepcopy(description)
    at = changed
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = value
    return dict(changed)


def keys_of(value: Any, way: list[Any]) -> Iterator[list[Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield [*way, key]
            yield from keys_of(inner, [*way, key])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield [*way, index]
            yield from keys_of(inner, [*way, index])


NUMBERS = [True, -1, 1 << 70, 1.5, float("nan"), float("inf")]
TEXTS = ["", "x" * 300, "é", "\ud800"]
ODD: list[object] = [None, *NUMBERS, *TEXTS, [], [None], [[]], {}, {"fields": 1}]


@pytest.mark.parametrize("case", ["several", "subsections", "an array of structs"])
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_description_with_odd_types_is_the_peers_error(case: str, odd: object) -> None:
    data, description = devices(*CASES[case])
    refused = 0
    for way in keys_of(description, []):
        changed = put(description, way, odd)
        if way == ["devices"] and not isinstance(odd, list):
            assert parse_description(json.dumps(changed).encode()) is None
            continue
        try:
            walk(changed, memoryview(data))
        except StreamError:
            refused += 1
    assert refused


@pytest.mark.parametrize("case", ["several", "subsections"])
def test_a_description_that_lacks_a_key_is_the_peers_error(case: str) -> None:
    data, description = devices(*CASES[case])
    needed = set()
    for way in keys_of(description, []):
        changed: Any = copy.deepcopy(description)
        at = changed
        for key in way[:-1]:
            at = at[key]
        if way == ["devices"] or isinstance(way[-1], int):
            continue
        del at[way[-1]]
        try:
            walk(changed, memoryview(data))
        except StreamError:
            needed.add(way[-1])
    assert needed >= {"name", "instance_id", "size", "fields"}


@pytest.mark.parametrize("levels", [64, 65, 300])
def test_structs_may_be_nested_only_so_deep(levels: int) -> None:
    part = plain("x", b"\1")
    for _ in range(levels):
        part = struct("s", part)
    case = (device(1, "deep", 1, part),)
    if levels <= 64:
        assert len(walked(case)) == 1
    else:
        with pytest.raises(StreamError, match="described over 64 levels deep"):
            walked(case)


class Counted(dict[str, Any]):
    """A field that counts how often it is looked at."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        if key == "size":
            Counted.looks += 1
            assert Counted.looks <= 500_000, "the steps are not bounded"
        return super().__getitem__(key)


def test_a_small_description_cannot_ask_for_endless_steps() -> None:
    """Fields of no size cost no bytes, and a struct that holds them may be repeated."""
    data, description = devices(
        device(1, "d", 1, struct("s", *[plain("z", b"")] * 1000, plain("x", b"\1"), count=5000))
    )
    fields = description["devices"][0]["fields"][0]["struct"]["fields"]
    fields[:] = [Counted(field) for field in fields]
    Counted.looks = 0
    with pytest.raises(PeerError):
        walk(description, memoryview(data))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"devices": {}}',
        b'{"devices": null}',
        b'{"devices": []} ]',
        b'{"devices": [\xff]}',
        b"\xff\xfe",
        b'{"devices": ' + b"[" * 100_000,
        b'{"devices": [' + b"1" * 5000 + b"]}",
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_description_is_none(text: bytes) -> None:
    assert parse_description(text) is None


def test_a_description_may_say_more_than_colo_reads() -> None:
    text = b'{"configuration": {}, "page_size": 4096, "devices": [], "new": 1}'
    found = parse_description(text)
    assert found is not None
    assert walk(found, memoryview(b"\0")) == []
