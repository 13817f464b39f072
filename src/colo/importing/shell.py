"""A command as a shell would take it, as libvirt and Proxmox print it: into its words.

Lines end in a backslash where they go on, words with blanks are quoted, and libvirt has the
environment before the command.  Nothing is expanded: what only a shell could is told.
"""

from __future__ import annotations

import re
import shlex
from typing import Final

from colo.errors import UsageError

__all__ = ["command_words", "has_program"]

_BYTES_MAX: Final = 1 << 20
_GOES_ON: Final = re.compile(r"\\\r?\n")
_ENVIRONMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=", re.ASCII)
_QEMU: Final = re.compile(r"(.*/)?[^/]*(qemu|kvm)[^/]*")
#: What has QEMU's name in its own, and is none: libvirt's daemon, QEMU's tools.
_NO_QEMU: Final = re.compile(
    r"(.*/)?(virt[a-z]*d|qemu-(img|nbd|io|ga|edid|pr-helper|storage-daemon|bridge-helper).*)"
)
_HINTS: Final = {
    "<": "it is XML: `virsh domxml-to-native qemu-argv FILE` makes the command of it",
    "{": "it is JSON: give the command that starts QEMU",
}


def command_words(text: str) -> list[str]:
    """The words of QEMU's command, its program first.  Raises UsageError."""
    if len(text) > _BYTES_MAX:
        raise UsageError(f"{len(text):,} characters: no command is longer than {_BYTES_MAX:,}")
    if "\0" in text:
        raise UsageError("it has a NUL character in it, and no command does")
    for start, hint in _HINTS.items():
        if text.lstrip().startswith(start):
            raise UsageError(hint)
    try:
        words = shlex.split(_GOES_ON.sub(" ", text))
    except ValueError as error:
        raise UsageError(f"it cannot be taken apart as a shell does it: {error}") from error
    while words and _ENVIRONMENT.match(words[0]):
        del words[0]
    if not words:
        raise UsageError("there is no command in it")
    if not has_program(words):
        raise UsageError(f"it begins with {words[0][:60]!r}, which is no QEMU")
    return words


def has_program(words: list[str]) -> bool:
    """Whether the first word may be a QEMU's name."""
    name = words[0] if words else ""
    return _QEMU.fullmatch(name) is not None and _NO_QEMU.fullmatch(name) is None
