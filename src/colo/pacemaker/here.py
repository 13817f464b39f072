"""A VM's colo on this host as the resource agent sees it: by its state folder, and nothing slow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colo.qemu.killing import kill

__all__ = ["Here", "Seen"]

#: A colo that runs writes its status several times a second; one that has not for so long hangs.
_HANGS_S: Final = 10.0
_POLL_S: Final = 0.05
_KILLED_S: Final = 5.0


@dataclass(frozen=True)
class Seen:
    """What colo's status says: its process, and how the VM stands on this host.

    ``turn``: whose turn the host found it to be, where it has looked; "" where it has not.
    """

    pid: int = 0
    state: str = ""
    turn: str = ""
    error: str = ""


class Here:
    """The colo of the state folder ``folder``, and the QEMUs that it runs or has left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def look(self) -> Seen | None:
        """Return what the colo that runs here says; None where none runs, or it hangs."""
        content = self._status()
        pid = content.get("pid")
        if not isinstance(pid, int) or not self._is_colo(pid):
            return None
        if time.time() - float(content.get("written_at") or 0) > _HANGS_S:
            return None
        words = {key: str(content.get(key) or "") for key in ("state", "turn", "error")}
        return Seen(pid, **words)

    def vm(self) -> str:
        """The name of the VM, by what a colo has said here last; "" where none has."""
        return str(self._status().get("vm") or "")

    def qemus(self) -> list[int]:
        """The QEMUs of this state folder."""
        sockets = os.fsencode(f"{self.folder}/")
        return [
            pid
            for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal())
            if any(sockets in word and b"qmp" in word for word in _words(pid))
        ]

    def colo(self) -> int | None:
        """The colo of this state folder, also one that hangs, or None."""
        pid = self._status().get("pid")
        return pid if isinstance(pid, int) and self._is_colo(pid) else None

    def end_colo(self, seconds: float) -> None:
        """End colo within so long; it is told again, as it keeps at first what would be lost.

        Raises TimeoutError.
        """
        deadline, told_at = time.monotonic() + seconds, 0.0
        while (pid := self.colo()) is not None:
            now = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                if now > deadline:
                    os.kill(pid, signal.SIGKILL)
                elif now > told_at + 1.0:
                    os.kill(pid, signal.SIGTERM)
                    told_at = now
            if now > deadline + _KILLED_S:
                raise TimeoutError(f"colo {pid} does not end, though it was killed")
            time.sleep(_POLL_S)

    def end_qemus(self) -> None:
        """End the QEMUs of this state folder.  Raises GuestError."""
        while pids := self.qemus():
            kill(*pids)

    def _status(self) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _is_colo(self, pid: int) -> bool:
        words = _words(pid)
        return b"node" in words and os.fsencode(self.folder) in words


def _words(pid: int) -> list[bytes]:
    """The command line of a process; one that has ended and waits to be reaped has none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
