"""Device sections as named values."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from colo.errors import StreamError
from colo.migration.fields import Fields, decode
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

PCKBD = {
    "kbd": {
        "write_cmd": 0,
        "status": 0x18,
        "mode": 3,
        "pending_tmp": 0,
        "pckbd/extended_state": {"migration_flags": 0, "obsrc": 0, "obdata": 0, "cbdata": 0},
    }
}


def fields_of(*parts: Part) -> Fields:
    """The fields of one device that has these parts."""
    data, description = devices(device(1, "d", 1, *parts))
    (state,) = decode(description, data)
    return state.fields


def typed(name: str, kind: str, data: bytes, **more: Any) -> Part:
    """A field of some type."""
    return Part(data, {"name": name, "type": kind, "size": len(data)} | more)


def test_what_qemu_7_2_sends() -> None:
    found = decode(json.loads(DESCRIPTION_72), DEVICES_72)
    assert [(each.name, each.instance, each.version, each.size) for each in found] == [
        ("timer", 0, 2, 48),
        ("pckbd", 0, 3, 64),
        ("globalstate", 0, 1, 134),
    ]
    assert found[0].fields == {"cpu_ticks_offset": 0, "cpu_clock_offset": 0}
    assert found[1].fields == PCKBD
    assert found[2].fields == {"size": 10, "runstate": b"prelaunch" + bytes(91)}


def test_what_qemu_11_sends() -> None:
    found = {each.name: each.fields for each in decode(json.loads(DESCRIPTION_11), DEVICES_11)}
    assert found["PCIBUS"] == {"nirq": 4, "irq_count": [0, 0, 0, 0]}
    assert found["pckbd"] == PCKBD
    assert found["globalstate"]["has_vm_was_suspended"] == 1


@pytest.mark.parametrize(
    ("kind", "data", "value"),
    [
        ("uint8", b"\xff", 255),
        ("int8", b"\xff", -1),
        ("uint16", b"\1\2", 0x102),
        ("int16", b"\xff\xfe", -2),
        ("uint32", b"\xff\0\0\1", 0xFF000001),
        ("int32", b"\xff\xff\xff\xff", -1),
        ("int32 equal", b"\0\0\0\4", 4),
        ("int32 le", b"\0\0\0\2", 2),
        ("uint64", b"\xff" * 8, (1 << 64) - 1),
        ("int64 equal", b"\xff" * 8, -1),
        ("timer", b"\xff" * 8, -1),
        ("timer", bytes(7) + b"\5", 5),
        ("bool", b"\1", True),
        ("bool", b"\0", False),
        ("buffer", b"\1\2\3", b"\1\2\3"),
        ("pci config", b"\1\2\3\4", b"\1\2\3\4"),
        ("uint24", b"\1\2\3", b"\1\2\3"),
        ("uint32", b"\1\2\3", b"\1\2\3"),
        ("bool", b"\1\2", b"\1\2"),
        ("buffer", b"", b""),
        (None, b"\1", b"\1"),
        (["uint8"], b"\1", b"\1"),
    ],
)
def test_types(kind: Any, data: bytes, value: object) -> None:
    (found,) = fields_of(typed("x", kind, data)).values()
    assert found == value
    assert type(found) is type(value)


def test_unused_bytes_are_left_out() -> None:
    assert fields_of(typed("u", "unused_buffer", b"\1\2"), plain("x", b"\3")) == {"x": b"\3"}


def test_an_array_described_once() -> None:
    part = array("irq", 2, bytes(range(6)))
    assert fields_of(part) == {"irq": [b"\0\1", b"\2\3", b"\4\5"]}
    part = Part(part.data, part.described | {"type": "uint16"})
    assert fields_of(part) == {"irq": [1, 0x203, 0x405]}
    assert fields_of(array("irq", 2, b"")) == {"irq": []}


def test_an_array_described_element_by_element() -> None:
    """As 7.2 does it, with an index, and as 11 does it, without."""
    one, two = struct("drive", plain("x", b"\1")), struct("drive", plain("x", b"\2"))
    numbered = [Part(p.data, p.described | {"index": n}) for n, p in enumerate((one, two))]
    expected = {"drive": [{"x": b"\1"}, {"x": b"\2"}]}
    assert fields_of(*numbered) == fields_of(one, two) == expected
    assert fields_of(numbered[0]) == {"drive": [{"x": b"\1"}]}
    assert fields_of(one) == {"drive": {"x": b"\1"}}


def test_an_array_in_parts() -> None:
    """As QEMU describes an array of pointers where some are null."""
    assert fields_of(array("p", 1, b"\1\2"), array("p", 1, b"0"), plain("q", b"\3")) == {
        "p": [b"\1", b"\2", b"0"],
        "q": b"\3",
    }


def test_structs_and_subsections_are_nested() -> None:
    inner = struct("inner", array("b", 1, b"\1\2"), subsection("inner/more", 1, plain("c", b"\3")))
    tree = {"b": [b"\1", b"\2"], "inner/more": {"c": b"\3"}}
    assert fields_of(struct("outer", inner), subsection("d/x", 1, inner)) == {
        "outer": {"inner": tree},
        "d/x": {"inner": tree},
    }
    assert fields_of(struct("s", plain("a", b"\1"), count=3)) == {"s": [{"a": b"\1"}] * 3}


def test_parts_described_within_the_field_itself() -> None:
    def inline(*parts: Part, kind: str = "tmp") -> Part:
        described = [part.described for part in parts]
        data = b"".join(part.data for part in parts)
        return typed("tmp", kind, data, vmsd_name="v", version=0, fields=described)

    part = inline(typed("mant", "uint16", b"\0\7"), typed("exp", "uint8", b"\3"))
    assert fields_of(part) == {"tmp": {"mant": 7, "exp": 3}}
    assert fields_of(inline(plain("x", b"\1"), kind="vstruct")) == {"tmp": {"x": b"\1"}}
    wrong = Part(part.data + b"\0", part.described | {"size": 4})
    assert fields_of(wrong) == {"tmp": b"\0\7\3\0"}
    queue = Part(b"\1\0", part.described | {"type": "qtailq", "size": 2})
    assert fields_of(queue) == {"tmp": b"\1\0"}
    for _ in range(4):
        part = inline(part)
    assert fields_of(part) == {"tmp": {"tmp": {"tmp": b"\0\7\3"}}}


def test_what_does_not_fit_is_refused() -> None:
    data, description = devices(device(1, "d", 1, plain("x", b"\1")))
    changed = copy.deepcopy(description)
    changed["devices"][0]["fields"][0]["size"] = 2
    with pytest.raises(StreamError):
        decode(changed, data)


@pytest.mark.parametrize("size", [0, 1])
def test_a_large_array_takes_no_more_than_its_bytes(size: int) -> None:
    part = array("x", 1, bytes(200_000)) if size else plain("x", b"")
    if not size:
        part = Part(b"", part.described | {"array_len": 1 << 62})
    (value,) = fields_of(part).values()
    assert len(value) == (200_000 if size else 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, 1, [], {}])
def test_a_name_that_is_no_text_is_the_peers_error(name: object) -> None:
    part = plain("x", b"\1")
    with pytest.raises(StreamError, match="description is malformed"):
        fields_of(Part(part.data, part.described | {"name": name}))
