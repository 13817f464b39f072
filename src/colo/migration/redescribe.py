"""A description for the device state of a later checkpoint, which comes without one.

The first migration's description fits a later checkpoint mostly, and sometimes not: optional
subsections come and go, arrays change their length, and so may a whole device that has nothing
to say.  What stays is the frame of a section: its header, with a name and an instance that were
described, and its footer, with the number that the header has.  So

1. the sections are found by their frames.  A frame may also stand in the middle of a device's
   data, by accident; therefore headers are looked for from the end backwards, and only those
   count from which a chain of frames leads to the last byte.
2. a section is described as before if that fits.  Otherwise its fields are passed over as QEMU
   passes over them when it loads: after the fields of a struct come those subsections whose names
   are there.  If that does not fit either, all of it becomes one field.

Source: ``vmstate_subsection_load`` and ``vmstate_save`` in ``migration``.
"""

from __future__ import annotations

from typing import Any, Final

from colo.errors import StreamError
from colo.migration.format import Section
from colo.migration.vmdesc import walk_content

__all__ = ["redescribe"]

_FOOTER_SIZE: Final = 5
_Ends = dict[bytes, list[tuple[int, int]]]


def redescribe(description: dict[str, Any], device_state: bytes) -> dict[str, Any]:
    """Return ``description`` as it fits ``device_state``, the device sections and an EOF byte.

    ``walk`` takes the two together.  Raises StreamError where ``device_state`` is not made of
    sections of the devices that were described, in that order.
    """
    try:
        described = description["devices"]
        sections = _sections(described, device_state)
        devices = [
            _fit(described[index], device_state[start:end]) for index, start, end in sections
        ]
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise StreamError(f"the device description is malformed: {error!r}", 0) from error
    return {**description, "devices": devices}


def _sections(described: list[dict[str, Any]], data: bytes) -> list[tuple[int, int, int]]:
    """The sections in ``data``: the place of each in the description, where its content lies."""
    last = len(data) - 1
    if data[last:] != bytes([Section.EOF]):
        raise StreamError("the device sections do not end with EOF", max(last, 0))
    # By the footer in front of it: where something begins that leads to the end, and what.
    ends: _Ends = {data[max(0, last - _FOOTER_SIZE) : last]: [(last, len(described))]}
    first = len(described) if last == 0 else None
    for index in reversed(range(len(described))):
        starts = [
            start
            for start in _headers(described[index], data)
            if _ends(described[index], data, start, index, ends)
        ]
        if starts[:1] == [0]:
            first = index
        for start in starts:
            ends.setdefault(data[max(0, start - _FOOTER_SIZE) : start], []).append((start, index))
    if first is None:
        raise StreamError("the device sections are not those that were described", 0)
    sections, start, index = [], 0, first
    while index < len(described):
        device = described[index]
        content = start + _header_size(device)
        possible = _ends(device, data, start, index, ends)
        fitting = [each for each in possible if _fits(device, data[content : each[0] - 5])]
        following = min(fitting or possible)
        sections.append((index, content, following[0] - _FOOTER_SIZE))
        start, index = following
    return sections


def _headers(device: dict[str, Any], data: bytes) -> list[int]:
    """Where there is what looks like the header of this device's section."""
    mark, starts = _mark(device), []
    at = data.find(mark)
    while at >= 0:
        start = at - 5  # the type byte and the section's number
        if start >= 0 and data[start] == Section.FULL:
            starts.append(start)
        at = data.find(mark, at + 1)
    return starts


def _ends(
    device: dict[str, Any], data: bytes, start: int, index: int, ends: _Ends
) -> list[tuple[int, int]]:
    """Where the section at ``start`` may end, and what would begin there."""
    footer = bytes([Section.FOOTER]) + data[start + 1 : start + 5]
    least = start + _header_size(device) + _FOOTER_SIZE
    return [each for each in ends.get(footer, []) if each[0] >= least and each[1] > index]


def _mark(device: dict[str, Any]) -> bytes:
    """What a header says of a device, after the section's number."""
    mark = _name(device["name"]) + _u32(device["instance_id"])
    return mark + (_u32(device["version"]) if "version" in device else b"")


def _header_size(device: dict[str, Any]) -> int:
    return 5 + len(_name(device["name"])) + 8


def _fits(described: dict[str, Any], content: bytes) -> bool:
    try:
        walk_content(described, memoryview(content))
    except StreamError:
        return False
    return True


def _fit(device: dict[str, Any], content: bytes) -> dict[str, Any]:
    """Describe the content of a device's section."""
    if _fits(device, content):
        return device
    if "vmsd_name" in device:  # one of the old style has no parts that could come and go
        try:
            refitted = _Refit(content).part(device, 0)
        except _Misfit:
            pass
        else:
            if _fits(refitted, content):
                return refitted
    return _replaced(device, [_one_field(device, len(content))], [])


def _one_field(device: dict[str, Any], size: int) -> dict[str, Any]:
    """All of a device as one field; under its old name, if it always was only one."""
    fields = device.get("fields", [])
    if len(fields) == 1 and not fields[0].keys() & {"struct", "array_len"}:
        return {**fields[0], "size": size}
    return {"name": "data", "type": "buffer", "size": size}


def _replaced(
    described: dict[str, Any], fields: list[dict[str, Any]], subsections: list[dict[str, Any]]
) -> dict[str, Any]:
    """The description of a device, a struct or a subsection with other parts."""
    kept = {key: value for key, value in described.items() if key not in ("fields", "subsections")}
    return {**kept, "fields": fields} | ({"subsections": subsections} if subsections else {})


class _Misfit(Exception):
    """The parts are not to be told apart."""


class _Refit:
    """Passes over the content of one section and describes what is there."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0
        self._prefixes: list[bytes] = []  # of the names of subsections that may follow

    def part(self, described: dict[str, Any], rest: int) -> dict[str, Any]:
        """Pass over a device, a struct or a subsection; ``rest`` bytes of fields come after it."""
        fields: list[dict[str, Any]] = []
        after = sum(_size(field) for field in described.get("fields", []))
        self._prefixes.append(described["vmsd_name"].encode())
        for field in described.get("fields", []):
            after -= _size(field)
            if "struct" not in field or "array_len" in field:
                self._at += _size(field)
                fields.append(field)
                continue
            start = self._at
            struct = self.part(field["struct"], rest + after)
            fields.append({**field, "struct": struct, "size": self._at - start})
        known = {each["vmsd_name"]: each for each in described.get("subsections", [])}
        subsections = []
        while name := self._subsection_at(self._at, self._prefixes[-1:]):
            subsections.append(self._subsection(name.decode(), known, rest))
        self._prefixes.pop()
        return _replaced(described, fields, subsections)

    def _subsection(self, name: str, known: dict[str, dict[str, Any]], rest: int) -> dict[str, Any]:
        self._at += 2 + len(name)
        version = int.from_bytes(self._content[self._at : self._at + 4], "big")
        self._at += 4
        if name in known and known[name]["version"] == version:
            return self.part(known[name], rest)
        start, end = self._at, len(self._content) - rest
        for at in range(start, end):
            if self._subsection_at(at, self._prefixes):
                end = at
                break
        if end < start:
            raise _Misfit
        self._at = end
        field = {"name": "data", "type": "buffer", "size": end - start}
        return {"vmsd_name": name, "version": version, "fields": [field]}

    def _subsection_at(self, at: int, prefixes: list[bytes]) -> bytes | None:
        """The name of the subsection that begins there, if it is one of a vmsd of ``prefixes``."""
        if self._content[at : at + 1] != bytes([Section.SUBSECTION]):
            return None
        name = self._content[at + 2 : at + 2 + self._content[at + 1]] if self._room(at) else b""
        is_one = name.isascii() and any(
            name.startswith(prefix) and len(name) > len(prefix) for prefix in prefixes
        )
        return name if is_one else None

    def _room(self, at: int) -> bool:
        """Whether there is room for a subsection's name and version."""
        content = self._content
        return at + 1 < len(content) and at + 6 + content[at + 1] <= len(content)


def _size(field: dict[str, Any]) -> int:
    size, count = int(field["size"]), int(field.get("array_len", 1))
    if size < 0 or count < 0:
        raise ValueError(f"size {size}, array_len {count}")
    return size * count


def _name(name: str) -> bytes:
    encoded = name.encode()
    return bytes([len(encoded)]) + encoded


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
