"""``colo secondary``: the shell around a session, a store and a waiting QEMU.

It takes one primary in, carries the session's requests out, keeps a QEMU waiting, and takes over
when the host's machine says so (``membership.table``); ``status.json`` says what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.named import make_fence
from colo.config import VmConfig
from colo.errors import ColoError, Misfit
from colo.membership.member import Means, Member, OnLoss
from colo.membership.states import Do, Event, State
from colo.membership.words import Word, WordKind
from colo.node.beside import taps_of
from colo.node.callers import OPEN, Callers
from colo.node.ending import ordered
from colo.node.exporting import exported
from colo.node.kept import Kept
from colo.node.leaving import to_its_end
from colo.node.orders import Answer, Order, serve_orders
from colo.node.performer import Performer
from colo.node.state_folder import StateFolder
from colo.node.taking_over import Takeover
from colo.qemu.process import LaunchPlan
from colo.qemu.standby import WaitingQemu
from colo.session.awake import Awake
from colo.session.chain import Destination, Forwarding
from colo.session.intake import Receiving
from colo.store.store import Store
from colo.transport.address import Address

__all__ = ["SecondaryNode"]

_STATUS_S: Final = 0.25

#: The orders that only a VM's own host can carry out.
_PRIMARYS: Final = ("switchover", "stop")
#: How long after one try to get the grant, or to have the fence say so, the next begins.
_AGAIN_S: Final = 1.0
_WHOLE: Final = (State.KEEPING, State.CUT_OFF, State.ORPHANED)


class SecondaryNode(Performer):
    """One VM's secondary on this host.  ``say`` tells the user what happens, a line at a time.

    ``host``: what the VM file calls this one, or "".  ``member``: the machine of a colo that goes
    on after this part.
    """

    def __init__(
        self,
        config: VmConfig,
        plan: LaunchPlan,
        listen: Address,
        folder: StateFolder,
        arbiter: Arbiter,
        on_loss: OnLoss,
        say: Callable[[str], None],
        forward: Destination | None = None,
        host: str = "",
        member: Member | None = None,
    ) -> None:
        fence = make_fence(config)
        if member is None:
            means = Means(arbiter.automatic, on_loss is OnLoss.TAKEOVER, fence is not None)
            member = Member(config.name, means, State.LISTENING)
        super().__init__(member, folder, say)
        self._config = config
        self._listen = listen
        self._arbiter = arbiter
        self._awake = Awake(config, self.say)
        main = tuple(backend.block for backend in config.backends)
        store = Store(folder.store(config.store.folder, config.name), main, config.limits)
        files = {block.name: store.images[block.name].path for block in main}
        open_taps = taps_of(config)
        self.waiting = WaitingQemu(plan, files, folder.path, self.write_status, open_taps.files)
        self._kept = Kept(config, store, self.waiting, self._fresh, self._lost, folder.path)
        if config.has_secondary_vm:
            self._kept.have_beside(plan, open_taps, self.write_status)
        told = self._refused, self._left
        self._callers = Callers(config, arbiter, self, self._kept, *told)
        who, silence_s = config.name, config.failover.silence_s
        self._forwarding: Forwarding | None = None
        if forward is not None:
            self._forwarding = Forwarding(
                who, store, self._kept.settled, forward, silence_s, self.say
            )
        guest, disks = self._kept.beside or self.waiting, self._kept.beside or self._kept.disks
        holder = partial(guest.instance, host)
        part = self.member, arbiter, fence, store, disks, guest, holder, self.say
        self._takeover = Takeover(*part, lambda: self._kept.lacks)
        self._loading: asyncio.Task[None] | None = None
        self._runs_here = False
        self._why = ""
        self._final = False
        self._error: str | None = None

    def stop(self) -> None:
        """Ask to end: a VM that runs here goes on.

        Where that would give up the only copy of a VM, it takes a second time.
        """
        self.tell(Event.INTERRUPT)

    async def run(self) -> int:
        """Serve until the VM that was taken over ends, or ``stop``.

        Returns the exit code.  Raises ColoError where it cannot even start.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._awake.close)
            try:
                await self._kept.open()
                server = stack.enter_context(self._listen.listen())
                await self.waiting.start()
                await self._kept.prepare()
                stack.callback((await serve_orders(self._folder.control, self._obey)).close)
                self.say(
                    f"waiting for a primary on {self._listen} "
                    f"(QEMU {self.waiting.pid} is ready to take over)"
                )
                self.write_status()
                self.spawn(self._callers.door(server, self._listen.tls).serve())
                self.spawn(self._watch())
                if self._forwarding is not None:
                    self.spawn(self._forwarding.run(), is_needed=False)
                await self.over
                return 0
            finally:
                leaving = asyncio.create_task(self._leave())
                await to_its_end(leaving)
                leaving.result()

    # -- what the machine asks for --------------------------------------------------------

    def perform(self, effect: Do) -> None:
        """Begin what is asked for."""
        match effect:
            case Do.RECEIVE:
                self._receive()
            case Do.REJECT:
                self._reject()
            case Do.CLOSE:
                self._kept.close()
            case Do.SAY_BYE:
                self._callers.say(Word(WordKind.BYE))
            case Do.FORGET:
                self._forget()
            case Do.ASK | Do.ASK_BY_ORDER if self.state is State.LOOKING:
                pass  # the VM is to be started anew: the daemon asks, in that VM's name
            case Do.ASK:
                self.ask(self._takeover.take())
            case Do.ASK_BY_ORDER:
                self.ask(self._takeover.order())
            case Do.FENCE:
                self.ask(self._takeover.fence_off())
            case Do.PAUSE:
                self.pause(_AGAIN_S)
            case Do.LOAD:
                assert self._kept.session is not None
                self._loading = self.spawn(self._load(self._kept.session))
            case Do.WARN:
                self.say(
                    f"not ended: checkpoint {self._kept.number} is all that is left of the lost "
                    f"primary's VM; `colo export --state-dir {self._folder.path} FILE` keeps it, "
                    "`colo failover` runs it; end colo once more to give it up"
                )
            case Do.AGREE | Do.DECLINE:
                self._answer(effect is Do.AGREE)
            case Do.REFUSE:
                pass  # the caller does
            case _:
                raise AssertionError(f"a secondary cannot {effect.value}")

    def entered(self, before: State, event: Event) -> None:
        """Say what a new state means, before its effects take away what it was about."""
        number = self._kept.number
        match self.state:
            case State.KEEPING:
                if self._callers.link is not None:
                    self._callers.link.be_strict()
                self.say("PROTECTED, the first copy is whole")
            case State.ORPHANED if event is Event.STUCK:
                self.say(f"NOT RUNNING: {self._takeover.error}; `colo failover` tries again")
                self._error = str(self._takeover.error)
            case State.ORPHANED:
                self._takeover.begin()
                if event is not Event.ORDER:
                    self._orphaned()
            case State.RUNNING | State.GONE if event is Event.RUNS:
                self._runs()
            case State.GREETED if before in _WHOLE:
                self.say("the primary was granted the VM: forgetting the checkpoint held here")
            case State.LISTENING if before in _WHOLE and event is Event.DENIED:
                self.say(
                    f"the other host has the right to run the VM: forgetting checkpoint {number}"
                )
            case State.LISTENING | State.SHUTDOWN if before in _WHOLE:
                self.say(f"{self._why}; forgetting checkpoint {number}")
            case State.LISTENING if before is State.RECEIVING and event is Event.LOST:
                self.say(f"no first copy: {self._error}")
            case State.LOOKING if event is Event.ORDER:
                anew = "there is no checkpoint here: the VM is being started anew"
                self.pending.answer(True, anew)

    def performed(self, event: Event) -> None:
        """Keep others informed; what is not this part's ends it."""
        if self.state not in (State.ORPHANED, State.TAKING_OVER):
            self.pending.answer(False, "that checkpoint was forgotten meanwhile")
        goes_on = self.state is State.RUNNING and self.member.means.node
        if (goes_on or self.state is State.LOOKING) and not self.over.done():
            self.over.set_result(None)
        self.write_status()

    # -- who connects ---------------------------------------------------------------------

    def _receive(self) -> None:
        """Take in what the connection brings that has come."""
        self._error = None
        self.say(f"a primary has connected from {self._callers.receive()}")

    def _refused(self, text: str, is_new: bool) -> None:
        """Somebody was not taken in."""
        self._error = text
        if is_new:
            super().say(text)
        self.write_status()

    def _left(self, why: str) -> None:
        """The primary has said its last words, or its control link is gone."""
        self._why = why

    def _forget(self) -> None:
        """Begin anew: nothing of the last primary counts any more."""
        self._kept.forget()
        self._callers.forget()

    def _fresh(self, number: int) -> None:
        """There is a new checkpoint."""
        self._awake.checkpoint()
        if self._forwarding is not None:
            self._forwarding.fresh.set()
        if number == 0:
            self.tell(Event.WHOLE)

    # -- losses ---------------------------------------------------------------------------

    def _lost(self, error: ColoError) -> None:
        """The channel is gone."""
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        self._why = f"{error}{cause}"
        self._final = isinstance(error, Misfit)
        if self.state is State.RECEIVING:
            self._error = self._why
        self.tell(Event.LOST, lacks=self._kept.lacks)

    def _reject(self) -> None:
        self._callers.say(Word(WordKind.REFUSED, {"why": self._error, "final": self._final}))

    def _orphaned(self) -> None:
        """Say that the primary is lost, and what happens now."""
        self._error, waits = self._why, ""
        if not self.member.facts.asking and self.member.facts.busy is None:
            waits = f"; {self._kept.holding(self._folder.path)}"
        self.say(f"the primary is lost: {self._why}{waits}")

    async def _watch(self) -> None:
        """Bound the primary's silence, and keep the status file fresh."""
        while True:
            await asyncio.sleep(_STATUS_S)
            self.write_status()
            self._kept.bound_silence(self._callers.link is not None)

    # -- the takeover ---------------------------------------------------------------------

    async def _load(self, session: Receiving) -> None:
        outcome = await self._takeover.load(session)
        assert outcome is not None
        self.tell(outcome[0], **outcome[1])

    def _runs(self) -> None:
        """The VM was taken over."""
        facts = self._takeover.facts
        self._kept.facts["takeover"] = facts
        self.say(
            f"RUNNING HERE, {self._kept.origin}, started in "
            f"{facts['total_ms']:.0f} ms (QEMU {self.waiting.pid})"
        )
        self._kept.store.remove()  # the running QEMU holds its memory; nobody needs the files
        self._runs_here = True
        self.spawn(self._see_end())

    async def _see_end(self) -> None:
        assert self.waiting.qemu is not None
        how = await self.waiting.qemu.wait()
        self.say(f"the VM has ended; QEMU: {how}")
        self.tell(Event.DIED)

    async def _leave(self) -> None:
        """End what is ours; a VM that runs here goes on."""
        self.stop_asking()
        if self._loading is not None:
            await to_its_end(self._loading)
        await self.close()
        await self._kept.end()
        qemu = self.waiting.qemu
        if self._runs_here and qemu is not None:
            if self.member.means.node and self.state is State.RUNNING:
                self._forget()
                return
            if not qemu.exited:
                self.say(f"the VM goes on without colo: QEMU {qemu.pid}, QMP {qemu.qmp_socket}")
            await qemu.detach()
        else:
            self._forget()
            await self.waiting.stop()
            self._kept.store.remove()
        self.write_status()

    # -- orders and status ----------------------------------------------------------------

    async def _obey(self, order: Order) -> Answer:
        here = self.state in (State.RUNNING, State.TAKING_OVER)
        if order.name in ("export", "inspect"):
            if here:
                return Answer(False, "the VM runs here: its QEMU can `migrate` to a file")
            return await exported(self._kept, self._folder.path, order.name == "export")
        if order.name in _PRIMARYS:
            return Answer(False, "the VM runs on the other host: say that there")
        if order.name != "failover":
            return Answer(False, f"there is no order {order.name!r}")
        if self.state is State.RUNNING:
            return Answer(True, "the VM runs here already")
        if order.force and self._kept.beside is not None:
            self._kept.beside.force()
        facts = {"force": order.force, "lacks": self._kept.lacks}
        return await self.pending.answered(lambda: self.tell(Event.ORDER, **facts))

    def _answer(self, ok: bool) -> None:
        """Tell an operator what came of an order to run the VM here."""
        waits, error = self._takeover.waits_for is not None, self._takeover.error
        text = ordered(self.state, ok, self._kept.number, waits, error)
        if not ok and self._kept.lacks and self.state in (State.CUT_OFF, State.ORPHANED):
            text = self._kept.holding(self._folder.path)
        self.pending.answer(ok, text)

    def say(self, text: str) -> None:
        """Tell the user a line; what was refused is told again after it."""
        self._callers.news()
        super().say(text)

    def _grant(self) -> int | None:
        """The number of the grant as far as it is known now: no primary, none."""
        facts = self.member.facts
        if self.state in (State.RUNNING, State.TAKING_OVER):
            return facts.grant.number
        return None if self.state is State.LISTENING else facts.known.number

    def status(self) -> dict[str, Any]:
        link = self._callers.link
        return {
            "role": "secondary",
            "vm": self._config.name,
            "state": self.state.name,
            "meaning": self.state.value,
            **self._kept.status(self.state not in OPEN),
            "on_loss": "takeover" if self.member.means.asks else "hold",
            "arbiter": self._config.failover.arbiter,
            "grant": self._grant(),
            "listen": str(self._listen),
            "link": self._callers.link_state(),
            "waits_for": self._takeover.waits_for,
            "error": self._error or self.waiting.trouble,
            "peer": link.peer_figures if link is not None else None,
            "forward": self._forwarding.status() if self._forwarding is not None else None,
            **self.waiting.status(),
            "awake": self._awake.held,
            **self._kept.facts,
        }
