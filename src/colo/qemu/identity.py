"""A name for one QEMU process, as the holder of a grant; and that one colo alone protects it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from colo.errors import LocalError, UsageError
from colo.membership.roles import holder_name

__all__ = ["instance", "lives", "only_one"]

#: The field of /proc/PID/stat with the process's start, counted after the command's name.
_START_TIME = 19


def instance(pid: int, host: str = "") -> str:
    """Return host, process and its start: a name that no other process ever has.

    ``host``: what the VM file calls this one; else its own name.
    """
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
    except (OSError, IndexError):
        started = "0"
    return holder_name(host or socket.gethostname(), pid, started)


def lives(holder: str) -> bool:
    """Whether the process of this name, of this host, is there."""
    host, pid, _ = holder.rsplit("/", 2)
    return instance(int(pid), host) == holder


def only_one(name: str) -> socket.socket:
    """Return what no other colo on this host gets for the QEMU of this name while it is open.

    An address among Linux's abstract ones, which goes with its process.  Raises UsageError where
    another colo has it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0colo primary of {name}")
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"another colo protects this QEMU ({name}): end that one first"
            ) from None
        raise LocalError(
            f"nobody can say whether another colo does so: {error.strerror}"
        ) from error
    return sock
