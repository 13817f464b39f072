"""The end of a QEMU that has nothing to run any more, by its process alone."""

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


def kill(pid: int) -> None:
    """Kill it, and wait until it is gone: it has the tap, and its state folder's sockets.

    Raises GuestError where it stays: whatever it had is not to be touched.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(_DYING_S * 1000):
            raise GuestError(f"QEMU {pid} does not end, though it was killed")
    finally:
        os.close(process)
