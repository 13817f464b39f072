"""The end of a QEMU that has nothing to run any more, whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Final

from colo.errors import GuestError
from colo.qemu.monitor import Monitor
from colo.qemu.process import Qemu

__all__ = ["end", "kill"]

_DYING_S: Final = 5.0


async def end(qemu: Monitor) -> None:
    """End a QEMU whose VM is not ours to run, or has ended."""
    if isinstance(qemu, Qemu):
        await qemu.kill()
        return
    pid, gone = qemu.pid, qemu.exited
    await qemu.detach()
    if not gone:
        await kill(pid)


async def kill(pid: int) -> None:
    """End a process, and wait until it is gone: it has the tap, and the state folder's sockets."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(file, signal.SIGKILL)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(file, ended.set)
        try:
            async with asyncio.timeout(_DYING_S):
                await ended.wait()
        except TimeoutError:
            raise GuestError(f"QEMU {pid} does not end, though it was killed") from None
        finally:
            asyncio.get_running_loop().remove_reader(file)
    except ProcessLookupError:
        pass
    finally:
        os.close(file)
