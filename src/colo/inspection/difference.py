"""How one stream differs from another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from colo.inspection.source import Inspected
from colo.migration.fields import DeviceState, Value

__all__ = [
    "BlockDifference",
    "DeviceDifference",
    "Difference",
    "FieldDifference",
    "compare",
    "leaves",
]


@dataclass(frozen=True)
class BlockDifference:
    """A block of memory: its pages, old and new, None where there is no such block.

    ``ranges``: first page and count of each run of pages that differ.  Where one side has more
    pages, those differ.
    """

    name: str
    old_pages: int | None
    new_pages: int | None
    ranges: tuple[tuple[int, int], ...]

    @property
    def changed(self) -> int:
        """How many pages differ."""
        return sum(count for _, count in self.ranges)

    @property
    def is_different(self) -> bool:
        """Whether anything differs."""
        return self.old_pages != self.new_pages or bool(self.ranges)


@dataclass(frozen=True)
class FieldDifference:
    """A field's value, old and new, None where there is no such field."""

    path: str
    old: Value | None
    new: Value | None


@dataclass(frozen=True)
class DeviceDifference:
    """A device: its versions, old and new, None where there is no such device, and its fields."""

    name: str
    instance: int
    old_version: int | None
    new_version: int | None
    fields: tuple[FieldDifference, ...]

    @property
    def is_different(self) -> bool:
        """Whether anything differs."""
        return bool(self.fields) or self.old_version != self.new_version


@dataclass(frozen=True)
class Difference:
    """All blocks and devices of both; those that are equal too."""

    old: Inspected
    new: Inspected
    blocks: tuple[BlockDifference, ...]
    devices: tuple[DeviceDifference, ...]


def compare(old: Inspected, new: Inspected) -> Difference:
    """Compare two streams page by page and field by field."""
    names = dict.fromkeys((*old.memory, *new.memory))
    blocks = tuple(_compare_block(name, old, new) for name in names)
    olds = {(device.name, device.instance): device for device in old.devices}
    news = {(device.name, device.instance): device for device in new.devices}
    devices = tuple(
        _compare_device(*key, olds.get(key), news.get(key)) for key in dict.fromkeys((*olds, *news))
    )
    return Difference(old, new, blocks, devices)


def _compare_block(name: str, old: Inspected, new: Inspected) -> BlockDifference:
    sides = [side.memory[name].marks if name in side.memory else None for side in (old, new)]
    counts = [None if marks is None else len(marks) for marks in sides]
    one, other = (np.zeros((0, 16), np.uint8) if marks is None else marks for marks in sides)
    common = min(len(one), len(other))
    differs = np.ones(max(len(one), len(other)), np.bool_)
    differs[:common] = (one[:common] != other[:common]).any(axis=1)
    edges = np.flatnonzero(np.diff(differs, prepend=False, append=False))
    ranges = tuple((int(first), int(end - first)) for first, end in edges.reshape(-1, 2))
    return BlockDifference(name, counts[0], counts[1], ranges)


def _compare_device(
    name: str, instance: int, old: DeviceState | None, new: DeviceState | None
) -> DeviceDifference:
    if old is None or new is None:
        versions = [None if device is None else device.version for device in (old, new)]
        return DeviceDifference(name, instance, versions[0], versions[1], ())
    olds, news = dict(leaves(old.fields)), dict(leaves(new.fields))
    fields = tuple(
        FieldDifference(path, olds.get(path), news.get(path))
        for path in dict.fromkeys((*olds, *news))
        if olds.get(path) != news.get(path)
    )
    return DeviceDifference(name, instance, old.version, new.version, fields)


def leaves(value: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    """Each single value of a tree and the way to it: ``env.segs[2].base``."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{number}]")
    else:
        yield path, value
