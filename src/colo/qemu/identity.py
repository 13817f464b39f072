"""A name for one QEMU process, as the holder of a grant; and that one colo alone protects it."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from colo.errors import LocalError, UsageError
from colo.membership.roles import holder_name

__all__ = ["instance", "living", "only_one"]

#: The fields of /proc/PID/stat with the process's state and its start, counted after the command's
#: name.
_STATE, _START_TIME = 0, 19
_DEAD = "ZX"


def instance(pid: int, host: str = "") -> str:
    """Return host, process and its start: a name that no other process ever has.

    ``host``: what the VM file calls this one; else its own name.
    """
    try:
        started = _stat(pid)[_START_TIME]
    except (OSError, IndexError):
        started = "0"
    return holder_name(host or socket.gethostname(), pid, started)


def living(holder: str, host: str) -> int | None:
    """Return the id of the process of this name, where it is one of ``host``, this one, and lives.

    ``host``: what the VM file calls this one.
    """
    try:
        pid = int(holder.split("/")[-2])
        lives = _stat(pid)[_STATE] not in _DEAD
    except (OSError, IndexError, ValueError):
        return None
    return pid if lives and instance(pid, host) == holder else None


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


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
