"""How a colo ends that may hold the only copy of a VM: what is cancelled, and what is not."""

from __future__ import annotations

import asyncio
import contextlib

__all__ = ["to_its_end"]


async def to_its_end(task: asyncio.Task[None]) -> None:
    """Wait for ``task``, which ends by itself, however often the one who waits is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
