"""The guest that runs on this host: what is asked of it, and what is seen of its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.config import VmConfig
from colo.errors import GuestError
from colo.findings import summed
from colo.membership.states import Event
from colo.node.performer import Outcome
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.monitor import Monitor
from colo.qemu.obstacles import obstacles
from colo.qemu.packet_filters import NetGate, cards

__all__ = ["GuestHere"]

_LAST_EVENTS_S: Final = 1.0
_QEMU_S: Final = 5.0
_DYING_S: Final = 0.5


class GuestHere:
    """The guest of ``qemu``; ``gone`` is set once it has ended."""

    def __init__(self, config: VmConfig, qemu: Monitor, colo: ColoPrimary) -> None:
        self._config, self._qemu, self._colo = config, qemu, colo
        self.gone = asyncio.Event()
        #: QEMU's reason for a shutdown, once there was one.
        self.shutdown: str | None = None
        #: Why it does not run, though it should.
        self.error: GuestError | None = None
        self._is_silent = False

    @property
    def hangs(self) -> bool:
        """Whether its process is there, and did not do what it was last asked for."""
        return self._is_silent and not self.gone.is_set()

    async def fit(self, allow_disks: bool, runs: bool) -> list[str]:
        """Bring QEMU into a state from which protection can begin; return its network cards.

        Raises GuestError.
        """
        await self._colo.check()
        if (await self._qemu.execute("query-migrate")).get("status") == "colo":
            await self._colo.run_alone()  # a colo that was killed left it in COLO
        await NetGate.clean(self._qemu)
        netdevs = await cards(self._qemu)
        found = await obstacles(self._qemu, self._config, netdevs, allow_disks, runs)
        if found:
            raise GuestError(f"this VM cannot be protected: {summed(found)}")
        return netdevs

    async def look(self) -> Outcome:
        """Whether QEMU can run its VM alone; where it just died, that is told by its end."""
        await self._qemu.reached()
        try:
            async with asyncio.timeout(_QEMU_S):
                await self._qemu.execute("query-status")
        except (GuestError, TimeoutError):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), _DYING_S)
                return None
            self._is_silent = True
            return Event.HUNG, {}
        self._is_silent = False
        return Event.ANSWERS, {}

    async def run_alone(self) -> Outcome:
        """Have it run without a secondary."""
        try:
            await self._colo.run_alone()
        except GuestError as error:
            self.error, self._is_silent = error, True
            return Event.STUCK, {}
        return Event.RUNS, {}

    def shutdowns(self) -> EventListener:
        """Hear from now on that it shuts down."""
        shutdowns = EventListener("SHUTDOWN")
        self._qemu.listen(shutdowns)
        return shutdowns

    async def see_shutdown(self, shutdowns: EventListener, tell: Callable[[Event], Any]) -> None:
        """Tell that it has shut down, when it has."""
        async for event in shutdowns:
            self.shutdown = str(cast(dict[str, Any], event["data"])["reason"])
            self.gone.set()
            tell(Event.SHUT_DOWN)

    async def see_death(self, tell: Callable[[Event], Any]) -> None:
        """Tell that its process has ended, when it has."""
        await self._qemu.wait()
        await self._qemu.heard_out(_LAST_EVENTS_S)
        self.gone.set()
        tell(Event.SHUT_DOWN if self.shutdown else Event.DIED)
