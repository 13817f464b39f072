"""A name for one QEMU process, as the holder of a grant."""

from __future__ import annotations

import socket
from pathlib import Path

__all__ = ["instance"]

#: The field of /proc/PID/stat with the process's start, counted after the command's name.
_START_TIME = 19


def instance(pid: int) -> str:
    """Return host, process and its start: a name that no other process ever has."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TIME]
    except (OSError, IndexError):
        started = "0"
    return f"{socket.gethostname()}/{pid}/{started}"
