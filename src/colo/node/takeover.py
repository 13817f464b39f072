"""A takeover: getting the right to run the VM, and running it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from colo.errors import ColoError, GuestError, LocalError
from colo.failover.arbiter import Arbiter, Grant, reach
from colo.guest.interface import SecondaryGuest
from colo.node.instance import instance
from colo.store.store import Store

__all__ = ["Takeover"]

_TRIES: Final = 3
_ARBITER_S: Final = 1.0


class Takeover:
    """Runs the VM of ``store`` as ``guest``, with a grant of ``arbiter``."""

    def __init__(
        self, arbiter: Arbiter, store: Store, guest: SecondaryGuest, say: Callable[[str], None]
    ) -> None:
        self._arbiter = arbiter
        self._store = store
        self._guest = guest
        self._say = say
        self._decided_at = 0.0

    def decided(self) -> None:
        """The decision falls now: from here the time is counted."""
        self._decided_at = time.monotonic()

    async def win(self, known: int, pid: int) -> Grant | None:
        """Take the grant after ``known``; None where the other host was first.

        Waits while the arbiter is out of reach: without a grant nothing may run.
        """
        self.decided()
        told = False
        while True:
            try:
                return await reach(self._arbiter.take, known, instance(pid))
            except LocalError as error:
                if not told:
                    told = True
                    self._say(f"no grant yet: {error}")
            await asyncio.sleep(_ARBITER_S)

    async def start(self) -> dict[str, Any]:
        """Start the VM; return the facts.  Raises GuestError after three tries.

        The checkpoint is not touched by a try that fails.  The store has to be applied; from here
        on no view of it is opened, unless all has failed.
        """
        assert self._store.checkpoint is not None
        self._store.give_up()
        failures = []
        for _ in range(_TRIES):
            try:
                began = time.monotonic()
                await self._guest.load(self._store)
                await self._guest.run()
            except ColoError as error:
                failures.append(str(error))
                self._say(f"a try to take over failed: {error}")
            else:
                now = time.monotonic()
                return {
                    "checkpoint": self._store.checkpoint.number,
                    "total_ms": (now - self._decided_at) * 1e3,
                    "loading_ms": (now - began) * 1e3,
                    "running_at": time.time(),
                }
        self._store.take_back()
        raise GuestError(f"the takeover failed {_TRIES} times", failures[-1])
