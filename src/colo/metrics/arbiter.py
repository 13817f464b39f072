"""Asks the arbiter now and then whether it answers.

Nothing is decided by that.  But an arbiter is needed when a host has died, and that is too late to
find out that it is out of reach.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.errors import ColoError, LocalError
from colo.membership.grant import Record

__all__ = ["EVERY_S", "Reached", "watch"]

EVERY_S: Final = 15.0


@dataclass
class Reached:
    """What came of it; ``is_up`` is None before the first answer, or silence."""

    asked: int = 0
    failed: int = 0
    is_up: bool | None = None
    answer_s: float | None = None


async def watch(arbiter: Arbiter, reached: Reached, every_s: float = EVERY_S) -> None:
    """Ask for ever.

    A call that hangs is not asked beside: how many may hang is bounded for all who ask.
    """
    under_way = 0

    def current() -> Record:
        nonlocal under_way
        under_way += 1
        try:
            return arbiter.current()
        finally:
            under_way -= 1

    while True:
        began = time.monotonic()
        try:
            if under_way:
                raise LocalError("the last call hangs")
            await reach(current)
        except ColoError:
            reached.failed += 1
            reached.is_up, reached.answer_s = False, None
        else:
            reached.is_up, reached.answer_s = True, time.monotonic() - began
        reached.asked += 1
        await asyncio.sleep(every_s)
