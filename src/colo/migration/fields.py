"""The device sections as named values, by the stream's own description.

A device, a struct and a subsection become dictionaries, an array becomes a list, a number is a
number, and what is no number (a buffer, a type unknown to colo) stays bytes.  A subsection
stands beside the fields, under its own name, which has a slash in it.

How QEMU describes an array: ``array_len`` elements of ``size`` bytes each, described once; or
each element by itself, one after the other, all of one name (7.2 numbers them by ``index``).  An
array of one element is described as if it were none.

Source: ``vmsd_desc_field_start`` in ``migration/vmstate.c``, ``migration/vmstate-types.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, Union

from colo.errors import StreamError
from colo.migration.vmdesc import Device, walk, walk_content

__all__ = ["DeviceState", "Fields", "Value", "decode"]

Value: TypeAlias = Union[int, bytes, list["Value"], "Fields"]
Fields: TypeAlias = dict[str, Value]

#: «equal» and «le» are conditions on loading: as before, or at most that.
_NUMBER: Final = re.compile(r"(u?)int(8|16|32|64)( equal| le)?")
#: Types whose parts are described within the field itself.
_INLINE: Final = ("tmp", "vstruct")
_INLINE_DEPTH_MAX: Final = 2
_UNUSED: Final = "unused_buffer"


@dataclass(frozen=True)
class DeviceState:
    """A device section and its values.  A bool is one; ``size`` is its bytes, with the frame."""

    name: str
    instance: int
    version: int
    size: int
    fields: Fields


def decode(description: dict[str, Any], device_state: bytes) -> list[DeviceState]:
    """Decode the device sections, which end with the EOF byte.

    Raises StreamError where they are not as the description says.
    """
    builder = _Builder()
    devices = walk(description, memoryview(device_state), visitor=builder)
    return [_state(*each) for each in zip(devices, builder.trees, strict=True)]


def _state(device: Device, fields: Fields) -> DeviceState:
    size = device.end - device.start
    return DeviceState(device.name, device.instance, device.version, size, fields)


class _Builder:
    """Builds a tree of values for each thing that begins at the top."""

    def __init__(self, inline_depth: int = 0) -> None:
        self.trees: list[Fields] = []
        self._open: list[_Part] = []
        self._inline_depth = inline_depth

    def begin(self, name: str, description: dict[str, Any]) -> None:
        self._open.append(_Part(name, _is_array(description)))

    def field(self, description: dict[str, Any], data: bytes) -> None:
        if description.get("type") == _UNUSED:
            return
        size, count = description["size"], description.get("array_len", 1)
        elements = [data[n * size : (n + 1) * size] for n in range(count if size else 1)]
        values = [self._value(description, element) for element in elements]
        self._open[-1].add(description["name"], values, _is_array(description))

    def end(self) -> None:
        part = self._open.pop()
        if self._open:
            self._open[-1].add(part.name, [part.fields], part.is_array)
        else:
            self.trees.append(part.fields)

    def _value(self, description: dict[str, Any], data: bytes) -> Value:
        kind = description.get("type")
        if isinstance(kind, str):
            number = _NUMBER.fullmatch(kind)
            if number and len(data) * 8 == int(number[2]):
                return int.from_bytes(data, "big", signed=not number[1])
            if kind == "timer" and len(data) == 8:
                return int.from_bytes(data, "big", signed=True)
            if kind == "bool" and len(data) == 1:
                return data != b"\0"
            if kind in _INLINE and "fields" in description:
                return self._inline(description, data)
        return data

    def _inline(self, description: dict[str, Any], data: bytes) -> Value:
        if self._inline_depth == _INLINE_DEPTH_MAX:
            return data
        builder = _Builder(self._inline_depth + 1)
        builder.begin(description["name"], description)
        try:
            walk_content(description, memoryview(data), builder)
        except StreamError:
            return data  # nothing rests on these: the field's size is what was verified
        builder.end()
        return builder.trees[0]


class _Part:
    """Fields that are being gathered; those of one name are elements of one array."""

    def __init__(self, name: str, is_array: bool) -> None:
        self.name = name
        self.is_array = is_array
        self._values: dict[str, list[Value]] = {}
        self._arrays: set[str] = set()

    def add(self, name: str, values: list[Value], is_array: bool) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a field called {name!r}")  # the walk says that this is malformed
        gathered = self._values.setdefault(name, [])
        if is_array or gathered:
            self._arrays.add(name)
        gathered += values

    @property
    def fields(self) -> Fields:
        return {
            name: values if name in self._arrays else values[0]
            for name, values in self._values.items()
        }


def _is_array(description: dict[str, Any]) -> bool:
    return "array_len" in description or "index" in description
