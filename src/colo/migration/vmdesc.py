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
from dataclasses import dataclass
from typing import Any, NoReturn

from colo.errors import StreamError
from colo.migration.format import PAGE_SIZE, Section

__all__ = ["Device", "fit", "parse_description", "walk"]

_DEPTH_MAX = 64
#: A field has a byte at least, mostly; so many may have none.
_STEPS_FREE = 100_000
_STEPS_PER_BYTE = 4
#: Of a section: type, id, the length of its name; instance, version.
_HEAD_BYTES = 6 + 8
_EOF = bytes([Section.EOF])


@dataclass(frozen=True)
class Device:
    """A device section: ``data[start:end]`` are its bytes from type byte to footer."""

    name: str
    instance: int
    version: int
    start: int
    end: int


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


def walk(description: dict[str, Any], data: memoryview, position: int = 0) -> list[Device]:
    """Walk the device sections in ``data``, which ends with the stream's EOF byte.

    ``position`` is the place of ``data[0]`` in the stream, for error texts.  Raises StreamError
    at the first byte that is not as the description says.
    """
    if description.get("page_size", PAGE_SIZE) != PAGE_SIZE:
        raise StreamError(f"pages of {description['page_size']} bytes, not 4096", position)
    try:
        return _Walk(data, position).devices(description["devices"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StreamError(f"the device description is malformed: {error!r}", position) from error


def fit(description: dict[str, Any], data: bytes) -> dict[str, Any]:
    """Return a description that fits the device sections in ``data``, those of a later checkpoint.

    A VM's subsections come and go, and with them what was described once may not fit any more.
    Then this tells the sections alone, without their fields.  Raises StreamError.
    """
    try:
        walk(description, memoryview(data))
    except StreamError:
        return {"page_size": PAGE_SIZE, "devices": list(_sections(data))}
    return description


def _sections(data: bytes) -> Iterator[dict[str, Any]]:
    """Describe each section as one piece: it ends at its footer, where the next one begins."""
    at = 0
    while data[at:] != _EOF:
        name = _name_at(data, at)
        if name is None:
            raise StreamError("no device section begins here", at)
        start = at + _HEAD_BYTES + len(name)
        footer = bytes([Section.FOOTER]) + data[at + 1 : at + 5]
        end = data.find(footer, start)
        while end >= 0 and not _is_boundary(data, end + len(footer)):
            end = data.find(footer, end + 1)
        if end < 0:
            raise StreamError(f"the section of device {name} has no end", at)
        yield {
            "name": name,
            "instance_id": int.from_bytes(data[start - 8 : start - 4], "big"),
            "version": int.from_bytes(data[start - 4 : start], "big"),
            "fields": [{"name": "data", "type": "buffer", "size": end - start}],
        }
        at = end + len(footer)


def _is_boundary(data: bytes, at: int) -> bool:
    return data[at:] == _EOF or _name_at(data, at) is not None


def _name_at(data: bytes, at: int) -> str | None:
    """The name of the device whose section begins here, or None."""
    if len(data) < at + _HEAD_BYTES or data[at] != Section.FULL:
        return None
    name = data[at + 6 : at + 6 + data[at + 5]]
    return name.decode() if name.isascii() and name.decode().isprintable() and name else None


class _Walk:
    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position
        self._at = 0
        self._steps = _STEPS_FREE + _STEPS_PER_BYTE * len(data)

    def devices(self, descriptions: list[dict[str, Any]]) -> list[Device]:
        devices = [self._device(description) for description in descriptions]
        self._expect(bytes([Section.EOF]), "the end of the device sections")
        if self._at != len(self._data):
            self._fail(f"{len(self._data) - self._at} bytes after the last device")
        return devices

    def _device(self, description: dict[str, Any]) -> Device:
        start, name, instance = self._at, description["name"], description["instance_id"]
        self._expect(bytes([Section.FULL]), f"the section of device {name}")
        section_id = self._take(4, name)
        self._name(name)
        self._expect(_u32(instance), f"instance {instance} of device {name}")
        version = int.from_bytes(self._take(4, name), "big")
        if description.get("version", version) != version:
            self._fail(f"version {version} of device {name}, described {description['version']}")
        self._content(description, name, 0)
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
                self._take(size * count, inner)
                continue
            for _ in range(count if size else 0):
                end = self._at + size
                self._content(field["struct"], inner, depth + 1)
                if self._at != end:
                    self._fail(f"{inner}: {size} bytes described, its parts end at {self._at}")
        for subsection in description.get("subsections", []):
            name = subsection["vmsd_name"]
            self._expect(bytes([Section.SUBSECTION]), f"the subsection {name}")
            self._name(name)
            self._expect(_u32(subsection["version"]), f"the version of subsection {name}")
            self._content(subsection, name, depth + 1)

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
