"""``colo primary``: the shell that protects a running QEMU.

It relays QEMU's COLO stream to the secondary, holds the guest's packets until the checkpoint that
covers them is safe, decides when to checkpoint, and sees what dies.  What follows from that, the
host's machine says (``membership.table``); until it has, the gate stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final, cast

from colo.arbiters.arbiter import Arbiter
from colo.config import VmConfig
from colo.errors import (
    ChannelLost,
    ColoError,
    GuestError,
    Misfit,
    PeerError,
    QemuRefusal,
    UsageError,
)
from colo.membership.grant import Ending
from colo.membership.member import Means, Member
from colo.membership.states import Do, Event, State
from colo.membership.words import Hello, Word, WordKind
from colo.node.copying import Copying
from colo.node.ending import ENDINGS, HUNG, LAST, WORDS, decided
from colo.node.first_start import Start, question
from colo.node.guest_here import GuestHere
from colo.node.orders import Answer, Order, serve_orders
from colo.node.peer import Peer
from colo.node.performer import Outcome, Performer
from colo.node.planned import Planned
from colo.node.replicating import Replicating
from colo.node.retry import RETRY_S, Retry
from colo.node.right import Right
from colo.node.state_folder import StateFolder
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.identity import instance, only_one
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.session.comparing import Comparing
from colo.session.qemu_primary import Checkpointing
from colo.session.standstill import StandStill
from colo.transport.address import Address

__all__ = ["PrimaryNode"]

_STATUS_S: Final = 0.25
_WHY_S: Final = 0.5
_FORGOTTEN_S: Final = 3.0
_ORDER_S: Final = 60.0

#: What to say of a loss, by the state that it came in; nothing of one that was planned.
_LOSSES: Final = {State.BEGINNING: "the protection could not begin", State.GOING_OVER: None}


class PrimaryNode(Performer):
    """One VM's primary on this host.  ``say`` tells the user what happens, a line at a time.

    ``stock``: the secondary is a stock QEMU, which has no control link.  ``start``: the VM does
    not run yet.  ``member``: the machine of a colo that goes on after this part.
    """

    def __init__(
        self,
        config: VmConfig,
        qemu: Monitor,
        to: Address,
        folder: StateFolder,
        arbiter: Arbiter,
        say: Callable[[str], None],
        *,
        stock: bool = False,
        allow_disks: bool = False,
        allow_broken: bool = False,
        claim: bool = False,
        start: Start | None = None,
        host: str = "",
        member: Member | None = None,
    ) -> None:
        means = Means(automatic=arbiter.automatic, stock=stock, claims=claim)
        super().__init__(member or Member(config.name, means, State.STARTING), folder, say)
        self._config = config
        self._qemu = qemu
        self._allow_disks = allow_disks
        self._start = start
        self._colo = ColoPrimary(qemu, allow_broken)
        hold = int(config.network.hold_limit_mib * (1 << 20))
        beside = config.has_secondary_vm and not stock
        self._gate = NetGate(qemu, folder.path, hold, vnet=beside)
        self._awake = awake = Awake(config, self.say)
        still = StandStill(config, qemu, self.say)
        self._peer = Peer(config, to, stock, self._figures, self._hear, self._link_lost)
        self._session = Checkpointing(
            config,
            self._colo,
            self._gate,
            awake,
            still,
            self._protected,
            self._lost,
            self._peer.check_heard,
        )
        self._session.say_saved = self._peer.say_saved
        self._right = Right(
            arbiter, self.member, instance(qemu.pid, host), config.name, stock, claim, self.say
        )
        self._guest = GuestHere(config, qemu, self._colo)
        self._rejected = asyncio.Event()
        self._planned = Planned(qemu, self._session, self._gate, self._guest.gone, self.say)
        if beside:
            heard = self._peer.check_heard, self._lost, self.say
            where = qemu, self._gate, config, to, folder.path
            self._session.have_comparing(Comparing(*where, self._who, *heard))
        at = config, qemu, to, folder.path, stock
        told = self._session.urge, self._lost, self.say
        self._disks = Replicating(*at, self._who, *told)
        parts = config, self._colo, self._gate, self._session, self._disks, folder.path
        link = self._peer.channel, lambda: self._peer.is_coded
        self._copying = Copying(*parts, *link, self._copy_begun, self._lost, self._left_by_qemu)
        self._error: str | None = None
        self._told: str | None = None
        self._lines: list[str] = []
        self._loss: str | None = None  # to be said once the other host was heard out
        self._objection: UsageError | None = None  # why the VM may not start here
        self._fatal: ColoError | None = None  # what this part ends with
        self._last: list[Do] = []  # what is done once nothing else is
        self._retry = Retry()

    def _who(self) -> tuple[int, str]:
        """The number of our grant, and the name that it is held under."""
        return self.member.facts.grant.number, self._right.holder

    def stop(self) -> None:
        """Ask to end the protection: the VM goes on, and nothing is left behind in QEMU.

        Where the VM has not started, it does not.
        """
        self.tell(Event.INTERRUPT)

    async def run(self) -> int:
        """Protect the VM until it ends, or ``stop``.  Returns the exit code; raises ColoError.

        Where it raises before a VM was started that was to be, no QEMU is left.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.write_status)
            try:
                stack.enter_context(only_one(self._right.holder))
                shutdowns = self._guest.shutdowns()
                self.spawn(self._guest.see_shutdown(shutdowns, self.tell))
                self.spawn(self._guest.see_death(self.tell))
                control = await serve_orders(self._folder.control, self._obey)
                stack.callback(control.close)
                self.spawn(self._watch())
                self.tell(Event.BEGIN, starts=self._start is not None)
                await self.over
            except BaseException as error:
                self._error = str(error) or "it was told to end"
                if self.state is State.STARTING:
                    self.tell(Event.UNFIT)
                await self._leave()
                raise
            try:
                return await self._ended()
            finally:
                await control.answered()

    async def _leave(self) -> None:
        """Do what is left to do once nothing else is."""
        await self._copying.end()
        await self.close()
        for effect in self._last:
            await self._perform_last(effect)

    async def _ended(self) -> int:
        """Say how it ended, and return the exit code."""
        await self._leave()
        code, text = LAST[self.state]
        if self.state in (State.DEAD, State.SHUTDOWN, State.ENDED):
            await self._gate.remove()
        objection = self._objection if self.state is State.REFUSED else None
        self._fatal = self._fatal or objection or self._guest.error
        if self._fatal is not None:
            self._error = str(self._fatal)
            if self.state is State.REFUSED and (kept := self._right.kept(self._start is not None)):
                self._fatal.add_note(kept)
            raise self._fatal
        if self.state is State.DEAD and self._guest.hangs:
            text = HUNG
        if text:
            self.say(text.format(shutdown=self._guest.shutdown))
        return code

    async def _perform_last(self, effect: Do) -> None:
        match effect:
            case Do.GIVE_BACK | Do.GIVE_BACK_UNUSED | Do.GIVE_BACK_SHUT_DOWN:
                ending = ENDINGS[effect]
                if ending is Ending.SHUT_DOWN and self._config.disks:
                    ending = Ending.LEFT  # its last writes are in this host's disks alone
                await self._right.give_back(ending)
            case Do.END_GUEST:
                assert self._start is not None
                await self._start.undo()
            case Do.STOP:
                with contextlib.suppress(GuestError):
                    await self._qemu.execute("stop")
                self.say(await self._right.fenced(self._planned.is_going_over))
                self._planned.concluded(True)

    # -- what the machine asks for --------------------------------------------------------

    def perform(self, effect: Do) -> None:
        """Begin what is asked for."""
        match effect:
            case Do.CLAIM:
                self.ask(self._or_unfit(self._right.claim()))
            case Do.PREPARE:
                self.ask(self._or_unfit(self._fit()))
            case Do.QUESTION:
                self.ask(self._or_unfit(self._question_other()))
            case Do.START:
                assert self._start is not None
                self.write_status()
                self.ask(self._or_unfit(self._start.begin()))
            case Do.CALL:
                self.ask(self._or_unfit(self._call()))
            case Do.COPY:
                self._rejected.clear()
                self._copying.begin()
            case Do.HEAR_OUT:
                self.ask(self._hear_out())
            case Do.LOOK:
                self.ask(self._guest.look())
            case Do.ASK:
                self.ask(self._right.take())
            case Do.CONFIRM:
                self.ask(self._or_unfit(self._right.confirm()))
            case Do.ASK_BY_ORDER:
                self.ask(self._right.order())
            case Do.RUN_ALONE:
                self.ask(self._guest.run_alone())
            case Do.REST:
                self.ask(self._planned.rest())
            case Do.AWAIT_TAKEN:
                self.ask(self._right.taken())
            case Do.PAUSE:
                self._wait()
            case Do.CLOSE:
                self._copying.close()
            case Do.HANG_UP:
                self._peer.close()
            case Do.HOLD:
                self._gate.hold()
            case Do.OPEN:
                self._copying.open()
                number = self.member.facts.grant.number
                self.say(f"UNPROTECTED: the VM runs here alone (grant {number})")
            case Do.SHUT:
                self._gate.shut()
            case Do.SAY_DEAD:
                self._peer.say(WordKind.DEAD, grant=self.member.facts.last_number)
            case Do.SAY_SHUTDOWN | Do.SAY_BYE | Do.SAY_ALONE | Do.SAY_HANDOVER:
                self._peer.say(WORDS[effect])
            case Do.WARN:
                self.say(self._right.warning())
            case Do.AGREE | Do.DECLINE:
                ok, missing = effect is Do.AGREE, self._right.missing
                self.pending.answer(ok, decided(self.state, ok, self._guest.hangs, missing))
            case _ if effect in ENDINGS or effect in (Do.STOP, Do.END_GUEST):
                self._last.append(effect)
            case _:
                raise AssertionError(f"a primary cannot {effect.value}")

    def entered(self, before: State, event: Event) -> None:
        """Note what a new state means to the user, who is told after its effects."""
        match self.state:
            case State.GOING_OVER:
                self._error = "the VM goes over to the other host, by order"
                self._lines.append(f"switchover: {self._error}")
            case State.LOST:
                self._right.begin()
                self._loss = _LOSSES.get(before, "the secondary is lost")
            case State.PROTECTED if before is not State.PROTECTED:
                to = self._peer.to
                self._peer.be_strict()
                self._error = None
                self._retry.succeeded()
                self._lines.append(f"PROTECTED by {to}{', over TLS' if to.tls else ''}")
            case State.DEAD:
                self._error = self._error if event is Event.HUNG else "QEMU is dead"
                if self._guest.hangs:  # its gate stays in: by when it answers the other VM may run
                    self._qemu.give_up()
        if self.state not in (State.LOST, State.GOING_OVER, State.RESUMING, State.FENCED):
            self._planned.concluded(False)

    def performed(self, event: Event) -> None:
        """Keep others informed."""
        heard_out = self.member.facts.busy is not Do.HEAR_OUT
        if self._loss is not None and heard_out:
            loss, self._loss = self._loss, None
            if not self.member.facts.one_shot:  # else it is said at the end
                self._lines.append(f"{loss}: {self._error}")
        lines, self._lines = self._lines, []
        for line in lines:
            self.say(line)
        if self.state is State.LOST and self.member.facts.busy is None:
            self._right.tell_what_is_missing(self._guest.hangs)
            if self._guest.hangs:
                self._error = self._right.missing
        self.write_status()

    async def _or_unfit(self, work: Any) -> Outcome:
        """An outcome, or that this can never be: the part ends with why."""
        try:
            return cast(Outcome, await work)
        except ColoError as error:
            self._fatal = error
            self._error = str(error)
            return Event.UNFIT, {}

    # -- before the first session ---------------------------------------------------------

    async def _fit(self) -> Outcome:
        """See that the VM can be protected.  Raises GuestError."""
        self._copying.netdevs = await self._guest.fit(self._allow_disks, self._start is None)
        if not self._copying.netdevs:
            self.say("no network card: nothing to hold back")
        return Event.FIT, {}

    async def _question_other(self) -> Outcome:
        """Ask the secondary whether the VM may start here.  Raises PeerError."""
        to = self._peer.to
        event, why = await question(to, self._hello())
        if event is Event.OBJECTS:
            self._objection = UsageError(f"{why}; the VM is not started here")
        elif event is Event.SILENT:
            self._objection = UsageError(
                f"{to} is out of reach, so nobody can say whether the VM runs there ({why}); if it "
                "certainly does not, say --claim"
            )
        return event, {}

    # -- sessions -------------------------------------------------------------------------

    async def _call(self) -> Outcome:
        """Reach the secondary.  Raises PeerError where that can never be."""
        await self._copying.gate_is_out()
        try:
            await self._peer.reach(self._hello())
        except (ChannelLost, OSError, TimeoutError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else error
            self._error = f"{self._peer.to} is out of reach: {why}"
            if self._told != self._error:
                self._told = self._error
                self.say(f"UNPROTECTED: {self._error}; trying again every {RETRY_S:.0f} s")
            return Event.UNREACHED, {}
        self._error = self._told = None
        return Event.REACHED, {}

    async def _hear_out(self) -> Outcome:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._rejected.wait(), _WHY_S)
        return Event.HEARD_OUT, {}

    def _wait(self) -> None:
        """Wait before the next try: longer each time, where every try copies the whole VM."""
        pause_s = RETRY_S
        refused, self._fatal = self._fatal, None  # whoever goes on has not ended by it
        if self.state is State.PARTING:
            pause_s = _FORGOTTEN_S
        elif self.state is State.UNPROTECTED and (self._peer.was_reached or refused):
            pause_s = self._retry.pause_s()
            again = f"trying again in {pause_s:.0f} s"
            self.say(f"{refused}; {again}" if refused else again)
        self.pause(pause_s)

    def _hello(self) -> Hello:
        return Hello.ours(self._config, self.member.facts.grant.number, self._right.holder)

    # -- what happens ---------------------------------------------------------------------

    def _copy_begun(self) -> None:
        self.tell(Event.COPY_BEGUN)

    def _protected(self) -> None:
        self.tell(Event.WHOLE)

    def _lost(self, error: ColoError | OSError) -> None:
        if isinstance(error, QemuRefusal | Misfit) and self.state is State.BEGINNING:
            self._fatal = GuestError(f"{error}; mend that, then start colo again")
        if self._error is None:
            self._error = str(error)
        self.tell(Event.LOST, final=self._fatal is not None)

    def _link_lost(self, error: PeerError) -> None:
        if self._error is None:
            self._error = str(error)
        self.tell(Event.LINK_LOST)

    def _hear(self, word: Word) -> None:
        if word.kind is WordKind.REFUSED:
            self._error = f"{self._peer.to} refuses: {word.content.get('why')}"
            final = word.content.get("final") is True
            self._fatal = PeerError(self._error) if final else None
            self._rejected.set()
            self.tell(Event.REJECTED, final=final)
        elif word.kind is WordKind.BYE:
            self.tell(Event.LETS_GO)

    def _left_by_qemu(self, why: str) -> None:
        """QEMU ended its connection: mostly because it died, which is not the secondary's loss."""
        self.spawn(self._learn_why(why))

    async def _learn_why(self, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._qemu.wait(), _WHY_S)
            return
        self._lost(ChannelLost(why))

    async def _watch(self) -> None:
        while True:
            self.write_status()
            await asyncio.sleep(_STATUS_S)
            limit = self._config.failover.silence_s
            if self.state not in (State.COPYING, State.PROTECTED):
                continue
            stalls = self._session.stalled(self._copying.bytes_moved, limit)
            if stalls and self.state is State.COPYING:
                self._lost(ChannelLost(f"the first copy did not move for {limit:.0f} s"))
            elif stalls or self._session.overdue(limit):
                self._lost(ChannelLost(f"no checkpoint was done in {limit:.0f} s"))

    # -- orders, status -------------------------------------------------------------------

    async def _obey(self, order: Order) -> Answer:
        if order.name == "failover":
            return await self._failover(order.force)
        if order.name == "switchover":
            return await self._planned.switch_over(self.state, self._right.automatic, self.tell)
        if order.name == "stop":
            return await self._planned.power_down(order.grace_s)
        if order.name in ("export", "inspect"):
            where = f"the checkpoint is on the secondary's host ({self._peer.to}): ask there"
            return Answer(False, f"{self._folder.path} is the primary's state folder; {where}")
        return Answer(False, f"there is no order {order.name!r}")

    async def _failover(self, force: bool) -> Answer:
        """Take an operator's order to run the VM here; return what came of it."""
        answered = self.pending.answered(lambda: self.tell(Event.ORDER, force=force))
        try:
            return await asyncio.wait_for(answered, _ORDER_S)
        except TimeoutError:
            return Answer(False, "it takes long: see `colo status`")

    def _figures(self) -> dict[str, Any]:
        return {"checkpoint": self._session.count, "held_bytes": self._gate.held_bytes}

    def status(self) -> dict[str, Any]:
        return {
            "role": "primary",
            "vm": self._config.name,
            "state": self.state.name,
            "meaning": self.state.value,
            **self._session.status(),
            "secondary": str(self._peer.to),
            "peer": self._peer.figures,
            "arbiter": self._config.failover.arbiter,
            "grant": self.member.facts.grant.number,
            "error": self._error,
            "bytes_total": self._copying.bytes_sent,
            "aside": self._copying.status(),
            "wire": self._copying.wire(),
            "network": self._gate.figures(),
            "disks": self._disks.status(),
            "awake": self._awake.held,
            "qemu": {"pid": self._qemu.pid},
        }
