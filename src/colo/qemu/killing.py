"""The end of QEMUs that have nothing to run any more, by their processes alone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Final

from colo.errors import GuestError

__all__ = ["kill"]

#: A process that waits for a disk or for the kernel ends once that is over.
_DYING_S: Final = 5.0


def kill(*pids: int) -> None:
    """Kill them, and wait until they are gone: they have taps, and their state folder's sockets.

    Raises GuestError where one stays: whatever that had is not to be touched.
    """
    with contextlib.ExitStack() as opened:
        processes: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                processes[pid] = os.pidfd_open(pid)
                opened.callback(os.close, processes[pid])
                signal.pidfd_send_signal(processes[pid], signal.SIGKILL)
        for pid, process in processes.items():
            ended = select.poll()
            ended.register(process, select.POLLIN)
            if not ended.poll(_DYING_S * 1000):
                raise GuestError(f"QEMU {pid} does not end, though it was killed")
