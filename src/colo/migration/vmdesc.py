"""The description that ends a full migration: JSON that lists every field of every device.

A device section has no length of its own.  The description gives one to each field, so the
sections can be walked; and a walk that meets every name, instance, version, subsection and
footer where the description says, and ends at the last byte, proves that both are whole.

Source: ``qemu_savevm_state_complete_precopy_non_iterable`` in ``migration/savevm.c`` and
``vmstate_save_state_v`` in ``migration/vmstate.c``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from colo.errors import StreamError
from colo.migration.format import PAGE_SIZE, Section

__all__ = ["Device", "Visitor", "parse_description", "walk", "walk_content"]

_DEPTH_MAX = 64
#: A field has a byte at least, mostly; so many may have none.
_STEPS_FREE = 100_000
_STEPS_PER_BYTE = 4


@dataclass(frozen=True)
class Device:
    """A device section: ``data[start:end]`` are its bytes from type byte to footer."""

    name: str
    instance: int
    version: int
    start: int
    end: int


class Visitor(Protocol):
    """Told by a walk of all that it passes, in the order of the stream."""

    def begin(self, name: str, description: dict[str, Any]) -> None:
        """A device, an element of a struct, or a subsection begins."""

    def field(self, description: dict[str, Any], data: bytes) -> None:
        """A field that is no struct, with all of its elements, is passed."""

    def end(self) -> None:
        """What began last ends."""


def parse_description(data: bytes) -> dict[str, Any] | None:
    """Return the description in ``data``, or None if this is none."""
    try:
        description = json.loads(data)
    except ValueError:
        return None
    except RecursionError:
        return None
    if not isinstance(description, dict) or not isinstance(description.get("devices"), list):
        return None
    return description


def walk(
    description: dict[str, Any],
    data: memoryview,
    position: int = 0,
    visitor: Visitor | None = None,
) -> list[Device]:
    """Walk the device sections in ``data``, which ends with the stream's EOF byte.

    ``position`` is the place of ``data[0]`` in the stream, for error texts.  Raises StreamError
    at the first byte that is not as the description says.
    """
    if description.get("page_size", PAGE_SIZE) != PAGE_SIZE:
        raise StreamError(f"pages of {description['page_size']} bytes, not 4096", position)
    with _malformed(position):
        return _Walk(data, position, visitor).devices(description["devices"])


def walk_content(
    description: dict[str, Any], data: memoryview, visitor: Visitor | None = None
) -> None:
    """Walk what is between the header and the footer of one device, or a struct by itself.

    Raises StreamError unless it is just as the description says.
    """
    with _malformed(0):
        _Walk(data, 0, visitor).content(description)


@contextmanager
def _malformed(position: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StreamError(f"the device description is malformed: {error!r}", position) from error


class _Nobody:
    """A visitor that does not care."""

    def begin(self, name: str, description: dict[str, Any]) -> None:
        pass

    def field(self, description: dict[str, Any], data: bytes) -> None:
        pass

    def end(self) -> None:
        pass


class _Walk:
    def __init__(self, data: memoryview, position: int, visitor: Visitor | None) -> None:
        self._data = data
        self._position = position
        self._visitor = visitor or _Nobody()
        self._at = 0
        self._steps = _STEPS_FREE + _STEPS_PER_BYTE * len(data)

    def devices(self, descriptions: list[dict[str, Any]]) -> list[Device]:
        devices = [self._device(description) for description in descriptions]
        self._expect(bytes([Section.EOF]), "the end of the device sections")
        if self._at != len(self._data):
            self._fail(f"{len(self._data) - self._at} bytes after the last device")
        return devices

    def content(self, description: dict[str, Any]) -> None:
        self._content(description, str(description.get("name", "")), 0)
        if self._at != len(self._data):
            self._fail(f"{len(self._data) - self._at} bytes after the last field")

    def _device(self, description: dict[str, Any]) -> Device:
        start, name, instance = self._at, description["name"], description["instance_id"]
        self._expect(bytes([Section.FULL]), f"the section of device {name}")
        section_id = self._take(4, name)
        self._name(name)
        self._expect(_u32(instance), f"instance {instance} of device {name}")
        version = int.from_bytes(self._take(4, name), "big")
        if description.get("version", version) != version:
            self._fail(f"version {version} of device {name}, described {description['version']}")
        self._visitor.begin(name, description)
        self._content(description, name, 0)
        self._visitor.end()
        self._expect(bytes([Section.FOOTER]) + section_id, f"the footer of device {name}")
        return Device(name, instance, version, start, self._at)

    def _content(self, description: dict[str, Any], path: str, depth: int) -> None:
        """Pass over the fields of a device or a struct, and then its subsections."""
        if depth > _DEPTH_MAX:
            self._fail(f"{path}: described over {_DEPTH_MAX} levels deep")
        for field in description.get("fields", []):
            self._steps -= 1
            if self._steps < 0:
                self._fail(f"{path}: more fields are described than these bytes can hold")
            inner, size, count = f"{path}.{field['name']}", field["size"], field.get("array_len", 1)
            if size < 0 or count < 0:
                self._fail(f"{inner}: size {size}, array_len {count}")
            if "struct" not in field:
                self._visitor.field(field, self._take(size * count, inner))
                continue
            for _ in range(count if size else 0):
                end = self._at + size
                self._visitor.begin(field["name"], field)
                self._content(field["struct"], inner, depth + 1)
                self._visitor.end()
                if self._at != end:
                    self._fail(f"{inner}: {size} bytes described, its parts end at {self._at}")
        for subsection in description.get("subsections", []):
            name = subsection["vmsd_name"]
            self._expect(bytes([Section.SUBSECTION]), f"the subsection {name}")
            self._name(name)
            self._expect(_u32(subsection["version"]), f"the version of subsection {name}")
            self._visitor.begin(name, subsection)
            self._content(subsection, name, depth + 1)
            self._visitor.end()

    def _name(self, name: str) -> None:
        encoded = name.encode()
        self._expect(bytes([len(encoded)]) + encoded, f"the name {name}")

    def _expect(self, expected: bytes, what: str) -> None:
        if self._take(len(expected), what) != expected:
            self._at -= len(expected)
            self._fail(f"{what} is not where the description has it")

    def _take(self, count: int, what: str) -> bytes:
        if self._at + count > len(self._data):
            self._fail(f"the device sections end inside {what}")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def _fail(self, text: str) -> NoReturn:
        raise StreamError(text, self._position + self._at)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
