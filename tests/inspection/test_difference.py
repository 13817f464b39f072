"""What differs between two streams, and nothing else."""

from __future__ import annotations

import pytest

from colo.inspection.difference import (
    BlockDifference,
    DeviceDifference,
    Difference,
    FieldDifference,
    compare,
    leaves,
)
from colo.inspection.source import load_stream
from colo.migration.ram import RamBlock
from tests.streams import (
    QEMU_11,
    QEMU_72,
    RAM,
    RSDP,
    Part,
    Stream,
    array,
    device,
    devices,
    fill,
    full,
    plain,
    struct,
    subsection,
)


def compared(old: Stream, new: Stream) -> Difference:
    return compare(load_stream("old", [old.data]), load_stream("new", [new.data]))


def with_devices(*parts: Part) -> Stream:
    data, description = devices(*parts)
    return Stream("devices", devices=data, description=description)


@pytest.mark.parametrize("stream", [QEMU_72, QEMU_11])
def test_a_stream_does_not_differ_from_itself(stream: Stream) -> None:
    found = compared(stream, stream)
    assert not any(block.is_different for block in found.blocks)
    assert not any(device.is_different for device in found.devices)
    assert [block.name for block in found.blocks] == [RAM.name, RSDP.name]
    assert len(found.devices) == 3


def test_pages() -> None:
    old = Stream("old", parts=((full(RAM, range(4)), fill(RAM, [8, 9], 1), full(RAM, [15])),))
    new = Stream(
        "new",
        parts=((full(RAM, [0, 2]), full(RAM, [1], 7), fill(RAM, [8], 1), fill(RAM, [9], 2)),),
        end=(fill(RAM, [3, 15]), fill(RAM, [4])),
    )
    for one, other in ((old, new), (new, old)):
        block, rsdp = compared(one, other).blocks
        assert block == BlockDifference("pc.ram", 16, 16, ((1, 1), (3, 1), (9, 1), (15, 1)))
        assert (block.changed, block.is_different) == (4, True)
        assert (rsdp.ranges, rsdp.is_different) == ((), False)


def test_pages_next_to_each_other_are_one_range() -> None:
    one, other = Stream("zero"), Stream("not", parts=((full(RAM, range(16)), full(RSDP, [0])),))
    assert [block.ranges for block in compared(one, other).blocks] == [((0, 16),), ((0, 1),)]


def test_blocks_that_only_one_has_or_that_have_grown() -> None:
    rom, small = RamBlock("rom", RSDP.length), RamBlock(RAM.name, RAM.length // 2)
    old, new = Stream("old", blocks=(RAM, RSDP)), Stream("new", blocks=(small, rom))
    assert compared(old, new).blocks == (
        BlockDifference("pc.ram", 16, 8, ((8, 8),)),
        BlockDifference("/rom@etc/acpi/rsdp", 1, None, ((0, 1),)),
        BlockDifference("rom", None, 1, ((0, 1),)),
    )


def test_fields() -> None:
    def stream(x: bytes, b: bytes, c: bytes, *more: Part) -> Stream:
        inner = struct("inner", array("b", 1, b), plain("c", c))
        return with_devices(device(1, "d", 1, plain("x", x), inner, *more))

    old = stream(b"\1", b"\1\2\3", b"\4", subsection("d/old", 1, plain("y", b"\5")))
    new = stream(b"\1", b"\1\7", b"\6", subsection("d/new", 1, plain("z", b"\5")))
    (found,) = compared(old, new).devices
    assert found == DeviceDifference(
        "d",
        0,
        1,
        1,
        (
            FieldDifference("inner.b[1]", b"\2", b"\7"),
            FieldDifference("inner.b[2]", b"\3", None),
            FieldDifference("inner.c", b"\4", b"\6"),
            FieldDifference("d/old.y", b"\5", None),
            FieldDifference("d/new.z", None, b"\5"),
        ),
    )


def test_devices_that_only_one_has_or_of_another_version() -> None:
    x = plain("x", b"\1")
    old = with_devices(device(1, "a", 1, x), device(2, "b", 1, x), device(3, "b", 1, x, instance=1))
    new = with_devices(device(1, "a", 2, x), device(3, "b", 1, x, instance=1), device(4, "c", 0))
    found = [each for each in compared(old, new).devices if each.is_different]
    assert found == [
        DeviceDifference("a", 0, 1, 2, ()),
        DeviceDifference("b", 0, 1, None, ()),
        DeviceDifference("c", 0, None, 0, ()),
    ]


def test_leaves() -> None:
    tree = {"a": 1, "b": [1, {"c": b"x", "d": []}], "e/f": {"g": [[True]]}}
    assert list(leaves(tree)) == [  # type: ignore[arg-type]
        ("a", 1),
        ("b[0]", 1),
        ("b[1].c", b"x"),
        ("e/f.g[0][0]", True),
    ]
