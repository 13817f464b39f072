"""Whether a process that a command has started is still there."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["HANGING", "pid_in", "until_gone"]

#: A script that hangs, with a process of its own whose number it writes into the file {0}.
HANGING = "sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait"
_LIMIT_S = 20.0


def pid_in(file: Path) -> int:
    """The number that a script has written."""
    return int(file.read_text())


def until_gone(pid: int) -> None:
    """Wait until a process that was killed is gone."""
    until = time.monotonic() + _LIMIT_S
    while _runs(pid):
        assert time.monotonic() < until, f"{pid} goes on"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
