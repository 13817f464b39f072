"""A later checkpoint's device state, by the first migration's description."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import StreamError
from colo.migration.fields import Fields, decode
from colo.migration.redescribe import redescribe
from colo.migration.vmdesc import walk
from tests.streams import Part, array, device, devices, plain, struct, subsection

X, Y = plain("x", b"\1\2"), plain("y", b"\3")
TSR = subsection("serial/tsr", 1, plain("thr", b"\7\7"))
FIFO = subsection("serial/fifo", 2, array("bytes", 1, b"abc"))
POLL = subsection("serial/poll", 1, plain("timer", bytes(8)))


def fitted(first: tuple[Part, ...], later: tuple[Part, ...]) -> dict[str, Fields]:
    """Describe ``later`` by what describes ``first``, and decode it."""
    _, description = devices(*first)
    before = copy.deepcopy(description)
    data, _ = devices(*later)
    found = redescribe(description, data)
    assert description == before
    walk(found, memoryview(data))
    return {f"{each.name} {each.instance}": each.fields for each in decode(found, data)}


def of_one(first: tuple[Part, ...], later: tuple[Part, ...]) -> Fields:
    """The same for the parts of one device, called serial."""
    frame = (device(1, "a", 1, X), device(3, "z", 1, X))
    states = [(frame[0], device(2, "serial", 3, *parts), frame[1]) for parts in (first, later)]
    found = fitted(*states)
    assert found["a 0"] == found["z 0"] == {"x": b"\1\2"}
    return found["serial 0"]


def test_what_fits_is_described_as_before() -> None:
    data, description = devices(device(1, "a", 1, X), device(2, "serial", 3, X, TSR))
    description |= {"configuration": {"vmsd_name": "configuration"}}
    assert redescribe(description, data) == description


def test_no_device_at_all() -> None:
    _, description = devices(device(1, "a", 1, X))
    assert redescribe(description, b"\0")["devices"] == []
    assert fitted((), ()) == {}


def test_subsections_go() -> None:
    assert of_one((X, TSR, FIFO), (X, FIFO)) == {
        "x": b"\1\2",
        "serial/fifo": {"bytes": [b"a", b"b", b"c"]},
    }
    assert of_one((X, TSR, FIFO), (X,)) == {"x": b"\1\2"}


def test_subsections_come() -> None:
    assert of_one((X, FIFO), (X, TSR, FIFO, POLL)) == {
        "x": b"\1\2",
        "serial/tsr": {"data": b"\7\7"},
        "serial/fifo": {"bytes": [b"a", b"b", b"c"]},
        "serial/poll": {"data": bytes(8)},
    }


def test_a_subsection_of_another_version_is_one_field() -> None:
    newer = subsection("serial/tsr", 2, plain("thr", b"\7\7\7"))
    assert of_one((X, TSR), (X, newer)) == {"x": b"\1\2", "serial/tsr": {"data": b"\7\7\7"}}


def test_subsections_of_a_struct_come_and_go() -> None:
    def state(*parts: Part) -> Part:
        made = struct("state", X, *parts)
        made.described["struct"]["vmsd_name"] = "serial"
        return made

    fifo = {"bytes": [b"a", b"b", b"c"]}
    first, after = (state(FIFO), Y), {"x": b"\1\2"}
    assert of_one(first, (state(), Y)) == {"state": after, "y": b"\3"}
    assert of_one(first, (state(TSR, FIFO), Y)) == {
        "state": after | {"serial/tsr": {"data": b"\7\7"}, "serial/fifo": fifo},
        "y": b"\3",
    }
    # the last one ends where the fields after the struct begin
    assert of_one(first, (state(FIFO, POLL), Y)) == {
        "state": after | {"serial/fifo": fifo, "serial/poll": {"data": bytes(8)}},
        "y": b"\3",
    }


def test_an_array_of_another_length_makes_the_device_one_field() -> None:
    later = (X, array("a", 2, b"1234"), Y)
    assert of_one((X, array("a", 2, b"123456"), Y), later) == {"data": b"\1\0021234\3"}


def test_a_device_of_one_field_keeps_its_name() -> None:
    first, later = (plain("virtio", bytes(9)),), (plain("virtio", bytes(31)),)
    assert of_one(first, later) == {"virtio": bytes(31)}


def test_a_device_without_a_vmsd_may_change_its_size() -> None:
    """QEMU describes a device of the old style as one field; the demo's guest is one too."""
    old, new = (device(1, "old", 1, plain("data", bytes(size))) for size in (9, 31))
    del old.described["vmsd_name"]
    assert fitted((old,), (new,)) == {"old 0": {"data": bytes(31)}}


def test_a_device_comes_and_goes() -> None:
    a, b, c = (device(n, name, 1, X) for n, name in ((1, "a"), (2, "b"), (3, "c")))
    every = (a, b, c, device(4, "c", 1, X, instance=1))
    for left in range(16):
        some = tuple(each for n, each in enumerate(every) if left & (1 << n))
        names = [f"{each.described['name']} {each.described['instance_id']}" for each in some]
        assert list(fitted(every, some)) == names


@pytest.mark.parametrize(
    "later",
    [
        (device(2, "b", 1, X), device(1, "a", 1, X)),
        (device(1, "a", 1, X), device(2, "b", 2, X)),
        (device(1, "a", 1, X), device(2, "b", 1, X, instance=1)),
        (device(1, "a", 1, X), device(2, "c", 1, X)),
        (device(1, "a", 1, X), device(3, "a", 1, X), device(2, "b", 1, X)),
    ],
)
def test_other_devices_are_refused(later: tuple[Part, ...]) -> None:
    with pytest.raises(StreamError, match="not those that were described"):
        fitted((device(1, "a", 1, X), device(2, "b", 1, X)), later)


def test_what_is_cut_off_is_refused() -> None:
    data, description = devices(device(1, "a", 1, X), device(2, "b", 1, X))
    for cut in range(1, len(data)):
        if cut != len(data) - 1:
            with pytest.raises(StreamError):
                redescribe(description, data[:-cut])
    for odd in (b"", data + b"\0", data[:-1]):
        with pytest.raises(StreamError):
            redescribe(description, odd)


@pytest.mark.parametrize("odd", [None, 1, -1, 1 << 80, "", "é", [], [1], {}, {"name": 1}])
def test_a_malformed_description_is_the_peers_error(odd: object) -> None:
    data, description = devices(device(1, "serial", 1, struct("s", X, TSR), Y))
    later, _ = devices(device(1, "serial", 1, struct("s", X), Y))
    refused = 0
    for key in ("name", "instance_id", "version", "fields"):
        changed: dict[str, Any] = copy.deepcopy(description)
        changed["devices"][0][key] = odd
        for state in (data, later):
            try:
                walk(redescribe(changed, state), memoryview(state))
            except StreamError:
                refused += 1
    for wrong in (odd, [odd]):
        with pytest.raises(StreamError):
            walk(redescribe({"devices": wrong}, data), memoryview(data))
    assert refused


def test_frames_within_the_data_do_not_mislead() -> None:
    """A device's data may hold what looks like its footer and the next header."""
    b = device(2, "b", 1, X)
    fake = b"\x7e\0\0\0\1" + b.data
    for later in (plain("l", fake), plain("l", fake + b"\x7e\0\0\0\1" + b.data[:-1])):
        found = fitted((device(1, "a", 1, Y, X), b), (device(1, "a", 1, later), b))
        assert list(found) == ["a 0", "b 0"]
    # where both readings are whole, that which is as described counts
    first = (device(1, "a", 1, plain("l", bytes(len(fake)))), b)
    assert fitted(first, (device(1, "a", 1, plain("l", fake)), b))["a 0"] == {"l": fake}


def test_frames_out_of_order_or_over_each_other_do_not_count() -> None:
    b = device(2, "b", 1, X)
    again = device(2, "a", 1, plain("l", b"more"))
    first = (device(1, "a", 1, X), b)
    assert fitted(
        first, (first[0], device(2, "b", 1, plain("l", b.data[-5:] + again.data[:-5])))
    ) == {
        "a 0": {"x": b"\1\2"},
        "b 0": {"x": b.data[-5:] + again.data[:-5]},
    }
    # the end of this header looks like the footer
    over = [device(1, "a", 1, part, instance=0x7E) for part in (X, plain("l", b.data))]
    assert over[0].data.count(b"\x7e\0\0\0\1") == 2
    assert fitted((over[0], b), (over[1], b)) == {"a 126": {"x": b.data}, "b 0": {"x": b"\1\2"}}


# -- drawn ----------------------------------------------------------------------------------


@dataclass
class Shape:
    """Parts of a device, some of them optional."""

    fields: list[Part | Shape]
    extra: dict[str, Shape] = field(default_factory=dict)
    there: frozenset[str] = frozenset()

    def parts(self) -> tuple[Part, ...]:
        plain_parts = [
            struct("s", *each.parts()) if isinstance(each, Shape) else each for each in self.fields
        ]
        more = [
            subsection(name, 1, *shape.parts())
            for name, shape in self.extra.items()
            if name in self.there
        ]
        return (*plain_parts, *more)


#: Bytes that a frame is made of, more often than others.
TELLING = st.sampled_from([b"\x7e\0\0\0\1", b"\x04\0\0\0\2\1b", b"\5\3s/a\0\0\0\1", b"\0", b"\x7e"])
BYTES = st.lists(st.one_of(TELLING, st.binary(max_size=4)), max_size=6).map(b"".join)
LEAVES = st.one_of(
    BYTES.map(lambda data: plain("p", data)),
    BYTES.map(lambda data: array("a", 1, data)),
)


@st.composite
def shapes(draw: st.DrawFn, depth: int = 2) -> tuple[Shape, Shape]:
    """A shape as it is at first, and later."""
    first, later = Shape([]), Shape([])
    for _ in range(draw(st.integers(0, 3))):
        if depth and draw(st.booleans()):
            one, other = draw(shapes(depth - 1))
            first.fields.append(one)
            later.fields.append(other)
        else:
            leaf = draw(LEAVES)
            first.fields.append(leaf)
            same = draw(st.booleans())
            later.fields.append(leaf if same else draw(LEAVES))
    if depth:
        for name in draw(st.sets(st.sampled_from(["s/a", "s/b", "d/c", "d/d"]), max_size=3)):
            one, other = draw(shapes(depth - 1))
            first.extra[name], later.extra[name] = one, other
    first.there, later.there = (
        frozenset(draw(st.sets(st.sampled_from(["s/a", "s/b", "d/c", "d/d"])))) for _ in range(2)
    )
    return first, later


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abbd"), shapes(), st.booleans()), max_size=5))
def test_whatever_is_framed_can_be_described(
    drawn: list[tuple[str, tuple[Shape, Shape], bool]],
) -> None:
    first, later = [], []
    for number, (name, (one, other), is_there) in enumerate(drawn):
        first.append(device(number, name, 1, *one.parts(), instance=number))
        if is_there:
            later.append(device(number, name, 1, *other.parts(), instance=number))
    _, description = devices(*first)
    data, _ = devices(*later)
    found = redescribe(description, data)
    assert len(walk(found, memoryview(data))) <= len(drawn)
    decode(found, data)
