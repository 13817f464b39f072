"""A takeover: getting the right to run the VM, and running it, each a question of the machine's.

The fence is asked once the grant is ours, so of two hosts that lost each other only one ever turns
the other off.  To start the VM is bounded, and never given up half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.arbiters.fence import Fence
from colo.errors import ColoError, DiskError, GuestError, LocalError, NoAnswer
from colo.guest.interface import SecondaryGuest
from colo.membership.grant import Grant
from colo.membership.member import Member
from colo.membership.roles import host_of
from colo.membership.states import Event
from colo.node.performer import Outcome
from colo.protocol.tables import SecondaryEvent
from colo.store.store import Store

__all__ = ["Disks", "Session", "Takeover"]

_TRIES: Final = 3


class Session(Protocol):
    """What a takeover needs of the lost primary's session."""

    def handle(self, event: SecondaryEvent) -> None:
        """Take an event."""

    async def applied(self) -> None:
        """Wait until the images equal the last whole checkpoint.  Raises StoreError."""


class Disks(Protocol):
    """The VM's disks as of the last whole checkpoint."""

    async def hand_over(self) -> None:
        """Have their files be that; once is enough.  Raises DiskError."""


class Takeover:
    """Runs the VM of ``store`` and ``disks`` as ``guest``, by a grant of ``arbiter``.

    ``fence``, where there is one, has to give its leave.  ``holder`` gives our name as the grant's
    holder.  ``waits_for``: why the VM may not run yet.  ``lacks``: whether clients may have heard
    of more than is here; then only an operator's force has it run, and nobody is turned off for it.
    """

    def __init__(
        self,
        member: Member,
        arbiter: Arbiter,
        fence: Fence | None,
        store: Store,
        disks: Disks,
        guest: SecondaryGuest,
        holder: Callable[[], str],
        say: Callable[[str], None],
        lacks: Callable[[], bool] = lambda: False,
    ) -> None:
        self._member = member
        self._arbiter = arbiter
        self._fence = fence
        self._store = store
        self._disks = disks
        self._guest = guest
        self._holder = holder
        self._say, self._lacks = say, lacks
        self._decided_at = 0.0
        self._asked: tuple[int, str] | None = None
        self._told: str | None = None
        self.waits_for: str | None = None
        #: How the last start went.
        self.facts: dict[str, Any] = {}
        self.error: ColoError | None = None
        self._grant = Grant(0, "")
        self._owes = False

    # -- the right ------------------------------------------------------------------------

    def begin(self) -> None:
        """A decision is due: the time to the takeover counts from here."""
        self._decided_at = time.monotonic()
        self._told = None

    async def take(self) -> Outcome:
        """Ask for the grant after the one that is known of the primary."""
        facts = self._member.facts
        known, void = facts.known.number, facts.void
        try:
            self._require_all()
            grant = await reach(self._arbiter.take, known, self._name(known), void)
        except LocalError as error:
            return self._no_answer(error)
        self.waits_for = None
        return (Event.DENIED, {}) if grant is None else (Event.GRANTED, {"grant": grant})

    async def order(self) -> Outcome:
        """Take the next grant by an operator's order, whoever has this one."""
        self._decided_at = time.monotonic()
        name = self._name(self._member.facts.known.number)
        try:
            return Event.GRANTED, {"grant": await reach(self._arbiter.order, name)}
        except LocalError as error:
            return self._no_answer(error)

    async def fence_off(self) -> Outcome:
        """Have the primary's host turned off."""
        facts = self._member.facts
        assert self._fence is not None
        try:
            if not facts.ordered:
                self._require_all()
            await self._fence.off(host_of(facts.known.holder))
        except LocalError as error:
            why = f"grant {facts.grant.number} is ours, but the other host may still run"
            self._wait_for(why, error)
            return Event.NOT_OFF, {}
        self.waits_for = None
        return Event.OFF, {}

    def _require_all(self) -> None:
        """Raise LocalError where something of the VM that was heard is not here."""
        if self._lacks():
            raise LocalError(
                "the secondary VM has died, and clients may have heard of more than is here: the "
                "primary may go on, or else `colo failover --force` runs what there is"
            )

    def _no_answer(self, error: LocalError) -> Outcome:
        self._wait_for("no grant yet", error)
        return Event.NO_ANSWER, {"may_be_done": isinstance(error, NoAnswer) and error.may_be_done}

    def _wait_for(self, why: str, error: LocalError) -> None:
        """Say once why nothing runs; ``waits_for`` has it."""
        self.error = error
        self.waits_for = f"{why}: {error}"
        if self._told != why and self._member.facts.asking:
            self._told = why
            self._say(self.waits_for)

    def _name(self, known: int) -> str:
        """Our name, which stays: an answer that is not heard is got by asking again under it."""
        if self._asked is None or self._asked[0] != known:
            self._asked = known, self._holder()
        return self._asked[1]

    # -- the VM ---------------------------------------------------------------------------

    async def load(self, session: Session) -> Outcome:
        """Start the VM from the last whole checkpoint."""
        self.error, self.waits_for = None, None
        session.handle(SecondaryEvent.FAILOVER)  # which closes its connection
        disks = asyncio.ensure_future(self._disks.hand_over())  # while its memory is loaded
        try:
            await session.applied()
            self.facts = await self._run(disks)
        except ColoError as error:
            with contextlib.suppress(ColoError):
                await disks
            self.error = error
            session.handle(SecondaryEvent.NOT_STARTED)
            return Event.STUCK, {}
        session.handle(SecondaryEvent.RESUMED)
        return Event.RUNS, {"grant": self._grant, "owes": self._owes}

    async def _run(self, disks: Awaitable[None]) -> dict[str, Any]:
        """Run the VM, once its ``disks`` are; return the facts.

        Raises GuestError after three tries, and DiskError.  The checkpoint is not touched by a try
        that fails.  From here on no view of the store is opened, unless all has failed.
        """
        assert self._store.checkpoint is not None
        self._grant, self._owes = self._member.facts.grant, False
        self._store.give_up()
        failures = []
        for _ in range(_TRIES):
            try:
                began = time.monotonic()
                await self._guest.load(self._store)
                await disks
                await self._hold_by_name()
                await self._guest.run()
            except DiskError:
                self._store.take_back()
                raise
            except (ColoError, OSError, MemoryError) as error:
                failures.append(str(error) or "out of memory")
                self._say(f"a try to take over failed: {failures[-1]}")
            else:
                now = time.monotonic()
                return {
                    "checkpoint": self._store.checkpoint.number,
                    "grant": self._grant.number,
                    "total_ms": (now - self._decided_at) * 1e3,
                    "loading_ms": (now - began) * 1e3,
                    "running_at": time.time(),
                }
        self._store.take_back()
        raise GuestError(f"the takeover failed {_TRIES} times", failures[-1])

    async def _hold_by_name(self) -> None:
        """Have the grant in the name of the QEMU that is to run: one that waited may have died.

        Raises GuestError where somebody else has got it meanwhile.
        """
        name = self._holder()
        if not self._arbiter.automatic or self._member.facts.owes or self._grant.holder == name:
            return
        try:
            grant = await reach(self._arbiter.take, self._grant.number, name)
        except LocalError as error:  # that it is ours is certain; by which name, it has to learn
            self._say(f"the arbiter is told later which QEMU runs the VM: {error}")
            self._owes = True
            return
        if grant is None:
            raise GuestError(
                f"another host has the right to run the VM since grant {self._grant.number}"
            )
        self._grant = grant
