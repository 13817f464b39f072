"""The end of a QEMU that has nothing to run any more, whoever started it."""

from __future__ import annotations

import asyncio

from colo.qemu.killing import kill
from colo.qemu.monitor import Monitor
from colo.qemu.process import Qemu

__all__ = ["end"]


async def end(qemu: Monitor) -> None:
    """End a QEMU whose VM is not ours to run, or has ended.  Raises GuestError where it stays."""
    if isinstance(qemu, Qemu):
        await qemu.kill()
        return
    pid, gone = qemu.pid, qemu.exited
    await qemu.detach()
    if not gone:
        await asyncio.to_thread(kill, pid)
