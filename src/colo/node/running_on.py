"""The decision after a loss: may this host run its VM without the other one?

The arbiter says so, or an operator.  Until one of them has, the VM is not heard; where the other
host was faster it never is again.  A grant is asked for only for a VM that can use it, because who
has it takes it from the other host: not for one that is gone, or whose QEMU does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.errors import GuestError, LocalError, NoAnswer
from colo.membership.grant import Grant
from colo.node.orders import Answer
from colo.node.retry import RETRY_S
from colo.node.standing import Standing
from colo.protocol.tables import Do, Effect, ObserverEvent
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.qemu_primary import Checkpointing

__all__ = ["Solo", "Verdict"]

_QEMU_S: Final = 5.0
_DYING_S: Final = 0.5
_ORDER_S: Final = 60.0


class Verdict(Enum):
    """What came of a decision; all but ALONE end what this colo does."""

    ALONE = "the VM runs here alone"
    FENCED = "the other host has the right to run the VM"
    GONE = "the VM has ended meanwhile"
    HUNG = "QEMU does not answer"
    LEFT = "colo was told to end before anybody had decided"


@dataclass
class _Order:
    """An operator's order that waits for its answer."""

    force: bool
    answer: asyncio.Future[Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Solo:
    """Decides for one VM, and carries the decision out.

    ``gone`` is set once the VM has ended.  ``hang_up`` ends the channel to the secondary; ``stand``
    is told how the VM stands as soon as that changes; ``say`` tells the user, a line at a time.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        grant: Grant,
        qemu: Monitor,
        colo: ColoPrimary,
        gate: NetGate,
        session: Checkpointing,
        gone: asyncio.Event,
        hang_up: Callable[[], None],
        stand: Callable[[Standing], None],
        say: Callable[[str], None],
    ) -> None:
        self.grant = grant
        self._arbiter = arbiter
        self._qemu = qemu
        self._colo = colo
        self._gate = gate
        self._session = session
        self._gone = gone
        self._hang_up = hang_up
        self._stand = stand
        self._say = say
        self._asking = False
        self._unheard = 0  # the number of a grant that may have been ours without our hearing of it
        self._missing = ""
        self._order: _Order | None = None
        self._interrupts = 0
        self._wake = asyncio.Event()

    @property
    def last_number(self) -> int:
        """The number of the last grant that this VM may have, whether or not it was heard of."""
        return max(self.grant.number, self._unheard)

    # -- from outside ---------------------------------------------------------------------

    async def order(self, force: bool) -> Answer:
        """Take an operator's order to run the VM here; return what came of it.

        ``force``: whatever the arbiter has granted, and also where it is out of reach.
        """
        if not self._asking:
            return Answer(False, "nothing to decide: the decision has fallen")
        if self._order is None:
            self._order = _Order(force)
        self._order.force |= force
        self._wake.set()
        try:
            return await asyncio.wait_for(asyncio.shield(self._order.answer), _ORDER_S)
        except TimeoutError:
            return Answer(False, "it takes long: see `colo status`")

    def interrupt(self) -> None:
        """Ctrl-C: while nobody has decided the first one tells, and the second ends the wait."""
        if self._asking:
            self._interrupts += 1
            self._wake.set()
            if self._interrupts == 1:
                self._say(
                    f"{self._missing}; the protection ends then; Ctrl-C once more ends colo and "
                    "leaves the VM silent"
                )

    # -- the decisions --------------------------------------------------------------------

    async def decide(self, contested: bool = True, planned: bool = False) -> Verdict:
        """The secondary is lost: ask until somebody answers, then run the VM or silence it.

        Where it is not ``contested`` the secondary has nothing to run: nobody is asked.  Where it
        is ``planned``, the other host was told to take over.  Raises GuestError where the VM does
        not run.
        """
        self._asking, self._order, self._interrupts = True, None, 0
        self._missing = self._silent_until("")
        try:
            verdict = await (self._ask() if contested else self._look())
            if verdict is Verdict.ALONE:
                await self.alone()
            elif verdict is Verdict.FENCED:
                await self._fence(planned)
            elif verdict is Verdict.HUNG:
                self._gate.shut()
            self._answer(verdict is Verdict.ALONE, verdict.value)
        except LocalError as error:
            self._answer(False, str(error))
            raise
        finally:
            self._asking = False
        return verdict

    async def part(self) -> Verdict:
        """End the protection by order: the VM is ours alone first, and only then let go.

        Raises GuestError where the VM does not run.
        """
        if await self._look() is not Verdict.ALONE:
            self._hang_up()  # it may only be blocked by a secondary that does not read
            if (verdict := await self._look()) is not Verdict.ALONE:
                self._gate.shut()
                return verdict
        if self._arbiter.automatic:
            try:
                grant = await reach(self._arbiter.take, self.grant.number, self.grant.holder)
            except LocalError as error:
                self._say(f"the other host may still take over, as nobody could be asked: {error}")
            else:
                if grant is None:
                    await self._fence()
                    return Verdict.FENCED
                self.grant = grant
        await self.alone()
        return Verdict.ALONE

    async def alone(self) -> None:
        """Run on without a secondary: release what is held, have the VM run, take the gate out."""
        for effect in self._session.machine.handle(ObserverEvent.FAILOVER):
            await self._perform(effect)
        self._session.machine.handle(ObserverEvent.RESUMED)
        await self._gate.remove()
        self._say(f"UNPROTECTED: the VM runs here alone (grant {self.grant.number})")
        self._stand(Standing.UNPROTECTED)

    # -- how ------------------------------------------------------------------------------

    async def _ask(self) -> Verdict:
        told = False
        while True:
            self._wake.clear()
            if self._gone.is_set():
                return Verdict.GONE
            if self._interrupts > 1:
                return Verdict.LEFT
            order = self._order
            if order is not None or self._arbiter.automatic:
                if (verdict := await self._look()) is not Verdict.ALONE:
                    return verdict
                try:
                    grant = await self._take(order)
                except LocalError as error:
                    self._missing = self._silent_until(f": {error}")
                    if order is not None and not order.force:  # which may have come by now
                        self._answer(False, f"{error}; --force does without it")
                else:
                    self._asking = False  # an order that comes now would stay for the next loss
                    self.grant = grant or self.grant
                    if self._gone.is_set():
                        return Verdict.GONE
                    return Verdict.FENCED if grant is None else Verdict.ALONE
            if not told:
                told = True
                self._say(self._missing)
            await self._something()

    async def _take(self, order: _Order | None) -> Grant | None:
        """Take the grant; None where the other host has it.  Raises LocalError."""
        number, holder = self.grant.number, self.grant.holder
        try:
            if order is None or (self._arbiter.automatic and not order.force):
                return await reach(self._arbiter.take, number, holder)
            return await reach(self._arbiter.order, holder)
        except LocalError as error:
            if isinstance(error, NoAnswer) and error.may_be_done:
                self._unheard = number + 1
            if order is None or not order.force:
                raise
            self._say(f"by order, without a grant: {error}")
            return self.grant

    async def _look(self) -> Verdict:
        """Whether QEMU can run its VM alone; where it just died, that is known afterwards."""
        try:
            async with asyncio.timeout(_QEMU_S):
                await self._qemu.execute("query-status")
        except (GuestError, TimeoutError):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _DYING_S)
            return Verdict.GONE if self._gone.is_set() else Verdict.HUNG
        return Verdict.ALONE

    async def _something(self) -> None:
        """Wait for an order, a signal, the VM's end, or the time to ask again."""
        waits = [asyncio.ensure_future(each.wait()) for each in (self._wake, self._gone)]
        await asyncio.wait(waits, timeout=RETRY_S, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()

    async def _fence(self, planned: bool = False) -> None:
        """The other host has the right to run the VM: this one may not be heard any more."""
        self._gate.shut()
        self._stand(Standing.FENCED)
        self._hang_up()
        with contextlib.suppress(GuestError):
            await self._qemu.execute("stop")
        try:
            owner = await reach(self._arbiter.current)
            who = f"{owner.holder} has the right to run this VM (grant {owner.number})"
        except LocalError:
            who = "another host has the right to run this VM"
        if planned:
            self._say(f"the VM has gone over: {who}")
        else:
            self._say(f"FENCED: {who}; the copy here is stopped and silent: end its QEMU")

    async def _perform(self, effect: Effect) -> None:
        if effect.do is Do.CLOSE:
            self._hang_up()
        elif effect.do is Do.RELEASE:
            self._gate.open()
        elif effect.do is Do.RESUME:
            await self._colo.run_alone()

    def _answer(self, ok: bool, text: str) -> None:
        order, self._order = self._order, None
        if order is not None and not order.answer.done():
            order.answer.set_result(Answer(ok, text))

    def _silent_until(self, why: str) -> str:
        if self._arbiter.automatic:
            what = "the arbiter answers, or `colo failover --force`"
        else:
            what = "`colo failover`"
        return f"no grant{why}; the VM stays silent until {what}"
