"""A QEMU's process, by what /proc tells: its command line, and what its descriptors are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from colo.errors import UsageError
from colo.importing.known import Known
from colo.importing.shell import has_program

__all__ = ["read_process"]

_PROC: Final = Path("/proc")
_TUN: Final = "/dev/net/tun"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


def read_process(pid: int) -> tuple[list[str], Known]:
    """The words of a process's command, its program first, and what is known of its descriptors.

    Raises UsageError where there is none, or it is no QEMU.
    """
    folder = _PROC / str(pid)
    try:
        command = (folder / "cmdline").read_bytes()
    except OSError as error:
        raise UsageError(f"process {pid}: {_why(error)}") from error
    try:
        words = [word.decode() for word in command.split(b"\0")][:-1]
    except UnicodeDecodeError as error:
        raise UsageError(f"process {pid}: its command line is no UTF-8") from error
    if not has_program(words):
        name = words[0][:60] if words else "a process without a command line"
        raise UsageError(f"process {pid} is {name!r}, no QEMU: say QEMU's by --pid")
    known = Known(folder=_link(folder / "cwd") or "/")
    taps, sockets, files = {}, {}, {}
    listening = _listening(folder)
    for link in _children(folder / "fd"):
        target = _link(link)
        match = _SOCKET.fullmatch(target)
        if target == _TUN:
            taps[link.name] = _interface(folder / "fdinfo" / link.name)
        elif match is not None and match[1] in listening:
            sockets[link.name] = listening[match[1]]
        elif target.startswith("/") and not target.startswith("/dev/fd"):
            files[link.name] = target.removesuffix(" (deleted)")
    return words, Known(known.folder, taps, sockets, files)


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return "there is no such process"
    return f"{error.strerror}: it is another user's"


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # another user's: then nothing is known


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _interface(info: Path) -> str:
    """The interface of a tap that is open; "" where that is not told."""
    try:
        found = re.search(r"^iff:\s*(\S+)", info.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _listening(folder: Path) -> dict[str, str]:
    """The paths of unix sockets, by their inodes."""
    try:
        lines = (folder / "net" / "unix").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return {}
    rows = [line.split(maxsplit=7) for line in lines]
    return {row[6]: row[7] for row in rows if len(row) == 8 and row[7].startswith("/")}
