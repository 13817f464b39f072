"""What an import has found, and the VM file that it makes of that.

A remark is for the user, who reads them in their order: what was changed, what was left out, what
is to be done.  A remark that belongs to an argument stands in the file above it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from colo.findings import Topic
from colo.qemu.options import Option, words_of
from colo.terminal import printable

__all__ = ["DiskFound", "Draft", "Kind", "Line", "Remark", "vm_file"]

_DEFAULT_BINARY: Final = "qemu-system-x86_64"
_WIDTH: Final = 96
_REST: Final = """
# Who may run the VM when the hosts lose each other. Without it no protection begins.
# [failover]
# arbiter = "file:/shared/{name}.grant"    # or etcd:URL, exec:COMMAND, manual: docs/failover.md

# For colo node: both hosts, and how each reaches the other. The first has [qemu.primary].
# [hosts]
# a = "tcp:10.0.0.1:9000"
# b = "tcp:10.0.0.2:9000"

# Between the hosts: without it, plain TCP.
# [tls]
# ca = "/etc/colo/ca.crt"
# certificate = "/etc/colo/host.crt"
# key = "/etc/colo/host.key"
"""


class Kind(Enum):
    """What a remark is; its text begins the line."""

    CHANGED = "changed"
    LEFT_OUT = "left out"
    TO_DO = "to do"
    NOTE = "note"


@dataclass(frozen=True)
class Remark:
    """One line for the user; ``topic``: the entry in docs/refused.md that says more."""

    kind: Kind
    text: str
    topic: Topic | None = None

    def __str__(self) -> str:
        return self.text if self.topic is None else f"{self.text}: see {self.topic.place}"


@dataclass(frozen=True)
class Line:
    """An option in the VM file, and what is said above it."""

    option: Option
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiskFound:
    """One of ``[[disks]]``: its id, where it lies on either host, what is said above it."""

    id: str
    primary: str
    secondary: str
    comments: tuple[str, ...] = ()


@dataclass
class Draft:
    """A VM file in the making: ``shared`` is the machine, ``local`` what differs by host."""

    name: str
    source: str
    binary: str = _DEFAULT_BINARY
    shared: list[Line] = field(default_factory=list)
    local: list[Line] = field(default_factory=list)
    disks: list[DiskFound] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def say(self, kind: Kind, text: str, topic: Topic | None = None) -> str:
        """Remark something, once; return it, for a comment."""
        remark = Remark(kind, text, topic)
        if remark not in self.remarks:
            self.remarks.append(remark)
        return text

    @property
    def args(self) -> list[str]:
        """QEMU's arguments on the first host."""
        return words_of([line.option for line in (*self.shared, *self.local)])

    def told(self) -> list[str]:
        """The remarks as lines, in the order in which they are read; what is to do is numbered."""
        lines, number = [], 0
        for kind in Kind:
            for each in (each for each in self.remarks if each.kind is kind):
                number += kind is Kind.TO_DO
                begin = f"{kind.value} {number}" if kind is Kind.TO_DO else kind.value
                lines.append(f"{begin}: {each}")
        return lines


def vm_file(draft: Draft) -> str:
    """The VM file as TOML, with comments."""
    parts = [
        *_comment(f"Made by colo import from {draft.source}."),
        *_comment(
            "Both hosts have the same file. docs/operating.md has all keys; `colo check` says"
        ),
        *_comment("what stands in the way yet."),
        f"name = {_text(draft.name)}",
        "",
        "[qemu]",
        f"binary = {_text(draft.binary)}",
        *_comment("What defines the machine, on both hosts."),
        *_args(draft.shared),
    ]
    for side, host in (("primary", "first"), ("secondary", "second")):
        parts += ["", f"[qemu.{side}]"]
        parts += _comment(f"What is the {host} host's own: put it right where it differs.")
        parts += _args(draft.local)
    for disk in draft.disks:
        parts += ["", "[[disks]]", *(each for text in disk.comments for each in _comment(text))]
        parts.append(f"id = {_text(disk.id)}")
        parts.append(f"primary = {_text(disk.primary)}")
        parts.append(f"secondary = {_text(disk.secondary)}")
    return "\n".join(parts) + "\n" + _REST.format(name=draft.name)


def _args(lines: Sequence[Line]) -> Iterator[str]:
    yield "args = ["
    for line in lines:
        for text in line.comments:
            yield from (f"  {each}" for each in _comment(text))
        yield f"  {', '.join(map(_text, line.option.words()))},"
    yield "]"


def _comment(text: str) -> list[str]:
    """A comment in as many lines as it needs."""
    lines, line = [], "#"
    for word in printable(text).split(" "):
        if len(line) + 1 + len(word) > _WIDTH and line != "#":
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _text(text: str) -> str:
    """A TOML string: a literal one where it has quotes in it that would need to be escaped."""
    if '"' in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
