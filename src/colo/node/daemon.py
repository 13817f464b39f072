"""``colo node``: one of two hosts that keep a VM alive, for good, in whichever role its turn is.

The same command runs on both.  One machine (``membership.table``) goes through all that a host
does: it looks by the arbiter's record whose turn it is, is the VM's primary or its secondary, and
goes on where that part ends: who took the VM over protects it towards the other host, who was
fenced ends its stale copy and follows.  This shell looks and waits, and has the parts carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from colo.arbiters.arbiter import Arbiter, require_memory
from colo.arbiters.asking import reach
from colo.config import VmConfig
from colo.errors import DiskError, LocalError, PeerError, UsageError
from colo.membership.grant import Grant, Record
from colo.membership.member import Means, Member, OnLoss
from colo.membership.roles import host_of, owes_a_grant, whose_turn
from colo.membership.states import Do, Event, State
from colo.membership.words import Hello
from colo.node.first_start import question
from colo.node.host_qemu import HostQemu
from colo.node.keeping import SecondaryNode
from colo.node.left_here import SilentQemu
from colo.node.orders import Answer, Order, serve_orders
from colo.node.performer import Outcome, Performer
from colo.node.protecting import PrimaryNode
from colo.node.retry import RETRY_S, Retry
from colo.node.state_folder import StateFolder
from colo.qemu.identity import living
from colo.qemu.libvirt_library import LibvirtError
from colo.qemu.process import LaunchPlan
from colo.qemu.running import NotRunning, Running
from colo.service.notify import Notifier
from colo.transport.address import Address

__all__ = ["Daemon"]

_MANAGER_S: Final = 1.0
#: The states in which nothing is kept alive yet.
_UNREADY: Final = ("LOOKING", "WAITING", "STARTING", "REFUSED")
#: The states in which a part is due, or all is over.
_DUE: Final = frozenset(
    {State.STARTING, State.LISTENING, State.ENDED, State.LEFT, State.GONE, State.REFUSED}
)


class Daemon(Performer):
    """One VM on this host; ``addresses``: how hosts are reached, by their names.

    ``adopted``: the QEMU that somebody else starts, which is never started here.  ``plan`` is how
    to start one; ``say`` tells the user what happens, a line at a time.
    """

    def __init__(
        self,
        config: VmConfig,
        host: str,
        addresses: dict[str, Address],
        plan: LaunchPlan,
        folder: StateFolder,
        arbiter: Arbiter,
        adopted: Running | None,
        say: Callable[[str], None],
        notifier: Notifier,
    ) -> None:
        fence = config.failover.fence is not None
        require_memory(arbiter, config.failover.arbiter)
        means = Means(fence=fence, node=True)
        super().__init__(Member(config.name, means), folder, say)
        self._config = config
        self._host = host
        self._is_first = next(iter(config.hosts)) == host
        self._peer = config.other_host(host)
        self._addresses = addresses
        self._plan = plan
        self._arbiter = arbiter
        self._here = HostQemu(config, host, plan, folder, adopted, say, self.spawn)
        self._notifier = notifier
        self._why = ""  # nothing is done now
        self._told = ""
        self._code = 0
        self._due = asyncio.Event()
        self._part: PrimaryNode | SecondaryNode | None = None
        self._crashes = Retry()
        self._pause_s = RETRY_S

    def stop(self) -> None:
        """Ask to end: a VM that runs here goes on, and the next colo finds it."""
        if self._part is not None:
            self._part.stop()
        else:
            self.tell(Event.INTERRUPT)

    async def run(self) -> int:
        """Keep the VM alive until it is shut down, or this is told to end.

        Returns the exit code; raises ColoError where nothing can be done here.
        """
        self.spawn(self._tell_manager())
        try:
            self.tell(Event.BEGIN)
            while part := await self._next_part():
                await part()
                self._go_on()
        finally:
            self._notifier.stopping()
            await self.close()
        return self._code

    async def _next_part(self) -> Callable[[], Awaitable[None]] | None:
        """Wait until a part is due; None where all is over.  Raises what ended this."""
        due = asyncio.create_task(self._due.wait())
        first: set[asyncio.Future[Any]] = {due, self.over}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        due.cancel()
        if self.over.done():
            self.over.result()
        self._due.clear()
        return {State.STARTING: self._lead, State.LISTENING: self._follow}.get(self.state)

    def _go_on(self) -> None:
        """A part has ended."""
        if self.state is State.LOOKING:  # a secondary was told to start the VM anew
            asked = self.member.facts.busy
            assert asked is not None
            self.perform(asked)
        else:
            self.tell(Event.GO_ON)

    async def _tell_manager(self) -> None:
        """Feed the service manager's watchdog, and say how the VM stands as soon as it does."""
        every_s, ready = min(self._notifier.every_s or _MANAGER_S, _MANAGER_S), False
        while True:
            self._notifier.alive()
            state, meaning = self._folder.last_state
            if state:
                self._notifier.status(f"{state}: {meaning}")
            if state and state not in _UNREADY and not ready:
                ready = True
                self._notifier.ready()
            await asyncio.sleep(every_s)

    # -- what the machine asks for --------------------------------------------------------

    def perform(self, effect: Do) -> None:
        """Begin what is asked for."""
        match effect:
            case Do.READ_RECORD:
                self.ask(self._look())
            case Do.ASK:
                self.ask(self._begin(by_order=False))
            case Do.ASK_BY_ORDER:
                self.ask(self._begin(by_order=True))
            case Do.QUESTION:
                self.ask(self._question_other())
            case Do.END_GUEST:
                self._here.end()
            case Do.PAUSE:
                self.ask(self._wait())
            case Do.AGREE | Do.DECLINE:
                ok = effect is Do.AGREE
                anew = "the VM is being started here, anew"
                self.pending.answer(ok, anew if ok else f"not now: {self._why}")
            case _:
                raise AssertionError(f"a daemon cannot {effect.value}")

    def entered(self, before: State, event: Event) -> None:
        """A pause that follows a crash is longer each time."""
        if before is State.DEAD and self.state is State.WAITING:
            self._why = "the VM died while it ran alone"
            self._pause_s = self._crashes.pause_s()
            return
        self._pause_s = RETRY_S
        if before is State.DEAD:
            self._crashes.succeeded()

    def performed(self, event: Event) -> None:
        """A part is due, or all is over."""
        if self.state in _DUE:
            self._due.set()

    # -- whose turn it is -----------------------------------------------------------------

    async def _look(self) -> Outcome:
        """See by the arbiter's record what this host is to do."""
        here = self._here
        await here.settled()
        try:
            record = await self._record()
        except LocalError as error:
            self._why = f"nobody can say who may run the VM: {error}"
            return Event.NO_ANSWER, {}
        try:
            is_here = await here.find(record)
        except (LibvirtError, SilentQemu) as error:  # libvirt is being started too, mostly
            self._why = f"nobody can say whether the VM runs here: {error}"
            return Event.NO_ANSWER, {}
        if not is_here and (pid := living(record.left_by, self._host)) is not None:
            self._why = (
                f"the VM runs here by right (grant {record.number}), in process {pid}, which is "
                "not of this state folder: end this colo, and say --qmp with its QMP socket"
            )
            return Event.NO_ANSWER, {}
        lives = here.has_right(record)
        foreign = is_here and not lives
        since = f"{record.left_by} has run it since (grant {record.number})"
        if not record.left_by:
            since = f"it has run elsewhere since, and was shut down (grant {record.number})"
        if foreign and here.is_adopted:
            raise UsageError(
                f"{here.adopted} has a stale copy of {self._config.name}: {since}; end that QEMU"
            )
        if foreign:
            self.say(f"a stale copy of the VM is ended here: {since}")
        turn = whose_turn(record, self._host, lives, self._is_first)
        known = Grant(record.number, record.left_by)
        owes = owes_a_grant(record, here.holder, self._folder.overridden if is_here else None)
        return Event.RECORD, {"grant": known, "turn": turn, "foreign": foreign, "owes": owes}

    async def _record(self) -> Record:
        """Who has the right to run the VM, by a record that is the one we know.

        Only the first host of the VM file makes a record where there is none, and only one that has
        never seen any: else a mount that is missing would be taken for a VM that never ran.
        """
        known = self._folder.known_grant
        begins = self._is_first and not known
        record = await reach(self._arbiter.begin if begins else self._arbiter.current)
        if record.number < known:
            raise LocalError(
                f"the arbiter shows grant {record.number}, and {known} was seen here: is it "
                "another one, or restored from an old backup?"
            )
        self._folder.know_grant(record.number)
        return record

    async def _begin(self, by_order: bool) -> Outcome:
        """Have a QEMU, and the grant to start the VM in it."""
        here = self._here
        await here.settled()
        try:
            await reach(self._arbiter.ready)
        except LocalError as error:
            self._why = f"no grant to start the VM: {error}"
            return Event.NO_ANSWER, {}
        try:
            await here.prepare()
        except (DiskError, LibvirtError, NotRunning) as error:
            self._why = str(error)
            return Event.NO_ANSWER, {}
        known = self.member.facts.known
        try:
            if by_order:
                grant: Grant | None = await reach(self._arbiter.order, here.holder)
            else:
                grant = await reach(self._arbiter.take, known.number, here.holder)
            if grant is not None:
                self._folder.know_grant(grant.number)
        except LocalError as error:
            await here.let_go()
            self._why = f"no grant to start the VM: {error}"
            return Event.NO_ANSWER, {}
        except BaseException:
            await here.let_go()
            raise
        if grant is None:
            await here.let_go()
            self._why = (
                f"another host has got the grant since grant {known.number}; where its VM is "
                "certainly silent, `colo failover --force` starts the VM here anew"
            )
            return Event.DENIED, {}
        return Event.GRANTED, {"grant": grant}

    async def _question_other(self) -> Outcome:
        """The VM ran here and died: ask whether the other host has a newer state."""
        known = self.member.facts.known
        ours = Hello.ours(self._config, known.number, known.holder)
        try:
            event, why = await question(self._addresses[self._peer], ours)
        except PeerError as error:
            event, why = Event.OBJECTS, error
        if event is Event.SILENT and await self._is_off(self._peer):
            event = Event.AGREES
        if event is Event.OBJECTS:
            self._why = f"the VM died here: {why}"
        elif event is Event.SILENT:
            self._why = (
                f"the VM ran here last and died, and host {self._peer} may have a newer state: "
                f"{why}; if that host is gone for good, `colo failover` starts the VM here anew"
            )
        elif self._here.adopted is None:
            self.say(f"the VM died here, and host {self._peer} has nothing of it: starting it anew")
        return event, {}

    async def _is_off(self, host: str) -> bool:
        try:
            return await reach(self._arbiter.is_off, host)
        except LocalError:
            return False

    # -- the two parts --------------------------------------------------------------------

    async def _lead(self) -> None:
        """Be the VM's primary, until it is not ours any more."""
        qemu, start = self._here.qemu, self._here.take_start()
        assert qemu is not None
        node = self._part = PrimaryNode(
            self._config,
            qemu,
            self._addresses[self._peer],
            self._folder,
            self._arbiter,
            self._tell_user,
            start=start,
            host=self._host,
            member=self.member,
        )
        try:
            self._code = await node.run()
        except UsageError as error:  # the right to run it is another's by now
            await qemu.detach()
            if self._here.is_adopted:
                raise
            self._why = str(error)
        except BaseException:
            await qemu.detach()
            raise
        finally:
            self._part = None
        if self.state in (State.ENDED, State.LEFT):
            await qemu.detach()
        else:
            self._code = 0

    async def _follow(self) -> None:
        """Be the VM's secondary, until it runs here or nowhere."""
        self._folder.clean(self._folder.store(self._config.store.folder, self._config.name))
        node = self._part = SecondaryNode(
            self._config,
            self._plan,
            self._addresses[self._host],
            self._folder,
            self._arbiter,
            OnLoss.TAKEOVER,
            self._tell_user,
            host=self._host,
            member=self.member,
        )
        known = self.member.facts.known
        if other := host_of(known.holder):
            self.say(
                f"the VM is host {other}'s (grant {known.number}): following; if that "
                "host is gone for good, `colo failover` starts the VM here anew"
            )
        self._here.took(None)
        try:
            await node.run()
        finally:
            self._part = None
        if self.state is State.RUNNING:
            self._here.took(node.waiting.qemu)
        elif self.state is State.SHUTDOWN:
            self.say("the guest has shut down: it ends on both hosts")

    # -- waiting --------------------------------------------------------------------------

    async def _wait(self) -> Outcome:
        """Say why nothing is done now, and look again after a while, or by an order."""
        await self._here.settled()
        if self._why != self._told:
            self._told = self._why
            self.say(self._why)
        self.write_status()
        orders = await serve_orders(self._folder.control, self._obey)
        try:
            await asyncio.sleep(self._pause_s)
        finally:
            orders.close()
        return Event.TIME, {}

    async def _obey(self, order: Order) -> Answer:
        if order.name != "failover":
            return Answer(False, f"not now: {self._why}")
        return await self.pending.answered(lambda: self.tell(Event.ORDER, force=order.force))

    def status(self) -> dict[str, Any]:
        return {
            "role": "node",
            "vm": self._config.name,
            "state": self.state.name,
            "meaning": self.state.value,
            "checkpoint": None,
            "checkpoint_at": None,
            "arbiter": self._config.failover.arbiter,
            "grant": self._folder.known_grant or None,
            "error": self._why,
            "turn": None if (turn := self.member.facts.turn) is None else turn.name,
            "qemu": None,
        }
