"""How a colo ends that may hold the only copy of a VM: what is cancelled, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

__all__ = ["to_its_end", "until_one_ends"]


async def to_its_end(task: asyncio.Task[None]) -> None:
    """Wait for ``task``, which ends by itself, however often the one who waits is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})


async def until_one_ends(
    tasks: Sequence[asyncio.Task[None]], stays: Callable[[], Awaitable[bool]]
) -> None:
    """Return when one of these has ended, or raise what it raised.

    To be cancelled does not count where ``stays``, which is asked each time, says so.
    """
    while True:
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not await stays():
                raise
            me = asyncio.current_task()
            assert me is not None
            me.uncancel()
        else:
            for task in done:
                task.result()
            return
