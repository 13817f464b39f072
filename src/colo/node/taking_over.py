"""A takeover: getting the right to run the VM, and running it.

These are two things.  *Asking* for the grant lasts for as long as the arbiter is out of reach, or
the fence cannot say that the other host is off, and can be given up at any moment: by an operator
who does without it, by a primary that has come back, by whoever leaves.  *Starting* the VM is
bounded and is never given up half-way.

The fence is asked once the grant is ours, so of two hosts that lost each other only one ever turns
the other off.  It is not asked where the primary has said itself that its VM does not run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.arbiters.fence import Fence
from colo.errors import ColoError, GuestError, LocalError
from colo.guest.interface import SecondaryGuest
from colo.membership.decision import Heard
from colo.membership.grant import Grant
from colo.membership.roles import host_of
from colo.node.leaving import to_its_end
from colo.protocol.tables import SecondaryEvent
from colo.store.store import Store

__all__ = ["Session", "Takeover"]

_TRIES: Final = 3
#: How long after one try to get the grant, or to have the fence say so, the next begins.
_AGAIN_S: Final = 1.0

T = TypeVar("T")


class Session(Protocol):
    """What a takeover needs of the lost primary's session."""

    def handle(self, event: SecondaryEvent) -> None:
        """Take an event."""

    def close(self) -> None:
        """Close the connection."""

    async def applied(self) -> None:
        """Wait until the images equal the last whole checkpoint.  Raises StoreError."""


class Takeover:
    """Runs the VM of ``store`` as ``guest``, with a grant of ``arbiter`` and by leave of ``fence``.

    ``holder`` gives our name as the grant's holder.  ``waits_for``: why the VM may not run yet.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        fence: Fence | None,
        store: Store,
        guest: SecondaryGuest,
        holder: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._arbiter = arbiter
        self._fence = fence
        self._fencing = asyncio.Lock()
        self._store = store
        self._guest = guest
        self._holder = holder
        self._say = say
        self._decided_at = 0.0
        self._asked: tuple[int, str] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self.grant: Grant | None = None
        self.waits_for: str | None = None

    # -- the right ------------------------------------------------------------------------

    @property
    def is_asking(self) -> bool:
        """Whether the grant is asked for, or the fence, and there is no answer yet."""
        return self._asking is not None

    def ask(self, heard: Heard, answered: Callable[[Grant | None], None]) -> None:
        """Ask for the grant after the one that was ``heard`` of, and then the fence.

        ``answered`` gets the grant, or None: another host has it.  Waits while the arbiter is out
        of reach, and while the fence does not say that the other host is off: until then nothing
        may run.
        """
        self._decided_at = time.monotonic()
        self._asking = asyncio.create_task(self._ask(heard, self._name(heard.known), answered))

    def stop_asking(self) -> bool:
        """Ask no more, whatever the answer would be; return whether there was one to come."""
        asking, self._asking, self.waits_for = self._asking, None, None
        return asking is not None and asking.cancel()

    async def order(self, heard: Heard, force: bool, again: Callable[[], None]) -> Grant:
        """Take the next grant by an operator's order, after the one that was ``heard`` of too.

        ``force``: also where the arbiter is out of reach, and without the fence.  Raises
        LocalError; then ``again`` is called where the grant was being asked for.
        """
        asked = self.stop_asking()
        try:
            grant = await reach(self._arbiter.order, self._name(heard.known))
            if not force:
                await self._fence_off(heard)
            return grant
        except LocalError:
            if force:
                return Grant(0, self._holder())
            if asked:
                again()
            raise

    def _name(self, known: int) -> str:
        """Our name, which stays: an answer that is not heard is got by asking again under it."""
        if self._asked is None or self._asked[0] != known:
            self._asked = known, self._holder()
        return self._asked[1]

    async def _ask(
        self, heard: Heard, holder: str, answered: Callable[[Grant | None], None]
    ) -> None:
        grant = await self._until(
            lambda: reach(self._arbiter.take, heard.known, holder, heard.void), "no grant yet"
        )
        if grant is not None:
            why = f"grant {grant.number} is ours, but the other host may still run"
            await self._until(lambda: self._fence_off(heard), why)
        self._asking = None
        answered(grant)

    async def _until(self, ask: Callable[[], Awaitable[T]], why: str) -> T:
        """Ask until there is an answer; say once ``why`` nothing runs without it."""
        told = False
        while True:
            try:
                answer = await ask()
            except LocalError as error:
                self.waits_for = f"{why}: {error}"
                if not told:
                    told = True
                    self._say(self.waits_for)
            else:
                self.waits_for = None
                return answer
            await asyncio.sleep(_AGAIN_S)

    async def _fence_off(self, heard: Heard) -> None:
        """Return once the primary's host is off.  Raises LocalError where that is not sure."""
        if self._fence is None or heard.is_gone:
            return
        async with self._fencing:
            await self._fence.off(host_of(heard.holder))

    # -- the VM ---------------------------------------------------------------------------

    @property
    def is_starting(self) -> bool:
        """Whether the VM is being started."""
        return self._starting is not None and not self._starting.done()

    def start(
        self,
        session: Session,
        grant: Grant,
        ended: Callable[[dict[str, Any] | ColoError], None],
        decided_now: bool = False,
    ) -> None:
        """Start the VM; ``ended`` gets the facts, or what went wrong: then it can be tried again.

        ``decided_now``: nobody had asked for the grant before.
        """
        self.stop_asking()
        if decided_now:
            self._decided_at = time.monotonic()
        self.grant = grant
        session.handle(SecondaryEvent.FAILOVER)
        session.close()
        self._starting = asyncio.create_task(self._start(session, ended))

    async def settled(self) -> None:
        """Wait for the end of a start under way, however often this is cancelled."""
        if self._starting is not None:
            await to_its_end(self._starting)

    async def _start(
        self, session: Session, ended: Callable[[dict[str, Any] | ColoError], None]
    ) -> None:
        try:
            await session.applied()
            facts = await self._run()
        except ColoError as error:
            session.handle(SecondaryEvent.NOT_STARTED)
            ended(error)
        else:
            session.handle(SecondaryEvent.RESUMED)
            ended(facts)

    async def _run(self) -> dict[str, Any]:
        """Run the VM; return the facts.  Raises GuestError after three tries.

        The checkpoint is not touched by a try that fails.  From here on no view of the store is
        opened, unless all has failed.
        """
        assert self._store.checkpoint is not None
        self._store.give_up()
        failures = []
        for _ in range(_TRIES):
            try:
                began = time.monotonic()
                await self._guest.load(self._store)
                await self._guest.run()
            except (ColoError, OSError, MemoryError) as error:
                failures.append(str(error) or "out of memory")
                self._say(f"a try to take over failed: {failures[-1]}")
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
