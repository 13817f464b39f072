"""A simulated host: what ``colo node`` does there, by the real machines, in simulated time.

It performs what ``Member`` asks for as the shells in ``colo.node`` do, and decides as little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeAlias

from colo.membership import grant as moves
from colo.membership.grant import Ending, Foreign, Grant, Held, Moved, Record
from colo.membership.member import Means, Member
from colo.membership.roles import host_of, whose_turn
from colo.membership.states import FINAL, Do, Event, State
from colo.membership.table import TABLE
from colo.membership.words import WordKind
from colo.packets.gate import Gate
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.observer import Observer
from colo.protocol.secondary import Secondary
from colo.protocol.tables import Do as ProtocolDo
from colo.protocol.tables import ObserverEvent, SecondaryEvent, SecondaryState
from tests.sim.arbiter import Asking, Move, SimArbiter
from tests.sim.checks import Checks, Moment, Violation
from tests.sim.vm import Vm
from tests.sim.world import Connection, End, Process, Timer, World

__all__ = ["Cluster", "Colo", "Host"]

#: One end of a connection.
Offer: TypeAlias = tuple[Connection, End]

HEARTBEAT_LIMIT_S: Final = 0.8
SILENCE_S: Final = 10.0
#: A host that stood still for longer releases nothing that it finds in its sockets.
STOOD_LIMIT_S = HEARTBEAT_LIMIT_S


class Cluster:
    """Two hosts, their arbiter, and what sees everything."""

    def __init__(
        self,
        world: World,
        automatic: bool = True,
        fence: bool = False,
        make: Callable[..., Member] = Member,
    ) -> None:
        self.world, self.checks = world, Checks()
        self.arbiter = SimArbiter(world, automatic)
        self.means = Means(automatic=automatic, fence=fence, node=automatic)
        self.make = make
        self.rows: set[tuple[State, Event, int]] = set()
        self.was_shut_down = False
        self.hosts = {name: Host(self, name) for name in ("a", "b")}

    def other(self, host: Host) -> Host:
        return self.hosts["b" if host.name == "a" else "a"]

    def copies(self) -> bool:
        """Whether a whole checkpoint is anywhere, from which the VM could go on."""
        return any(
            host.colo is not None
            and host.colo.is_alive
            and host.colo.store is not None
            and self.checks.covers(host.colo.store)
            for host in self.hosts.values()
        )

    def runs_elsewhere(self, vm: Vm) -> bool:
        return any(
            host.vm is not None and host.vm is not vm and host.vm.is_alive and host.vm.has_run
            and self.checks.covers(host.vm.now)
            for host in self.hosts.values()
        )  # fmt: skip


class Host:
    """A machine: its colo, and the QEMU that may outlive that."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.is_up = True
        self.vm: Vm | None = None
        self.colo: Colo | None = None
        self.known = 0  # on its disk
        self.drift = cluster.world.random.choice([0.8, 1.0, 1.0, 1.3])
        self._count = 0

    def begin(self) -> None:
        """The service manager starts colo, where it does not run."""
        if not self.is_up or (self.colo is not None and self.colo.is_alive):
            return
        part = State.LOOKING if self.cluster.means.node else self._part()
        self.colo = Colo(self, part)
        self.colo.begin()

    def _part(self) -> State:
        """Without an arbiter an operator begins each part, and knows where the VM is."""
        other = self.cluster.other(self)
        if self.vm is not None and (not self.vm.is_alive or not self.vm.has_run):
            self.vm.kill()
            self.vm = None
        elsewhere = (other.vm is not None and other.vm.is_alive and other.vm.has_run) or (
            other.colo is not None and other.colo.is_alive and other.colo.store is not None
        )
        if self.vm is not None and (not elsewhere or self.cluster.checks.is_newest(self.vm.now)):
            return State.STARTING
        if self.vm is not None:
            self.vm.kill()
            self.vm = None
        return State.LISTENING if elsewhere or self.name == "b" else State.STARTING

    def new_name(self) -> str:
        self._count += 1
        return f"{self.name}/{self._count}/1"

    def end_colo(self) -> None:
        if self.colo is not None and self.colo.is_alive:
            self.colo.kill()
            if self.vm is not None:
                self.vm.is_deaf = True
                self.vm.cut_off()
                self.vm.died = self.vm.shut_down = self.vm.on_held = _nothing

    def power_off(self) -> None:
        """All that runs here is gone, and nobody is told."""
        self.is_up = False
        if self.colo is not None:
            self.colo.kill(with_host=True)
        if self.vm is not None:
            self.vm.died = _nothing
            self.vm.kill(with_host=True)
            self.vm = None

    def power_on(self) -> None:
        self.is_up = True
        self.begin()


def _nothing(*_: object) -> None:
    pass


class Colo(Process):
    """A ``colo node``."""

    def __init__(self, host: Host, part: State = State.LOOKING) -> None:
        cluster = host.cluster
        super().__init__(cluster.world, host.name, host.drift)
        self.it, self.cluster = host, cluster
        other = cluster.other(host).colo
        alone = other is None or not other.is_alive
        self.means = replace(cluster.means, claims=alone and not cluster.means.node)
        self.member = cluster.make("vm", self.means, part)
        self.store: Moment | None = None
        self.told: list[tuple[str, bool]] = []
        self._events: list[tuple[Event, dict[str, Any]]] = []
        self._telling = False
        self._question = 0
        self._asking: Asking | None = None
        self._pause: Timer | None = None
        self._waiting_name: tuple[int, str] | None = None
        self._reset()

    def _reset(self) -> None:
        self.link: tuple[Connection, End] | None = None
        self.channel: tuple[Connection, End] | None = None
        self.observer: Observer | None = None
        self.secondary: Secondary | None = None
        self._staged: Moment | None = None
        self._reply: Message | None = None
        self._due: Timer | None = None
        self._rests = False

    @property
    def state(self) -> State:
        return self.member.state

    def begin(self) -> None:
        if self.state is State.STARTING:
            if self.it.vm is None:
                self._new_vm()
            self._begin_to_lead()
        else:
            self.tell(Event.BEGIN)

    def _begin_to_lead(self) -> None:
        vm = self.it.vm
        assert vm is not None
        self._reset()
        self._watch_vm()
        self.tell(Event.BEGIN, starts=not vm.has_run)

    # -- the machine ----------------------------------------------------------------------

    def tell(self, event: Event, **facts: Any) -> tuple[Do, ...]:
        self._events.append((event, facts))
        if self._telling:
            return ()
        self._telling, first = True, None
        try:
            while self._events and self.is_alive:
                effects = self._take(*self._events.pop(0))
                first = effects if first is None else first
        finally:
            self._telling = False
        return first or ()

    def _take(self, event: Event, facts: dict[str, Any]) -> tuple[Do, ...]:
        before = self.state
        effects = self.member.handle(event, **facts)
        self._note_row(before, event, effects)
        if self.world.is_told:
            what = ", ".join(do.name for do in effects)
            self.world.say(self.host, f"{before.name} -{event.name}-> {self.state.name}: {what}")
        if self.state is not before:
            if self._pause is not None:
                self._pause.cancel()
            self._entered(before)
        for effect in effects:
            self._perform(effect)
        self._go_on(before)
        return effects

    def _note_row(self, before: State, event: Event, effects: tuple[Do, ...]) -> None:
        for number, row in enumerate(TABLE[before, event]):
            if row.to is self.state and row.do == effects:
                self.cluster.rows.add((before, event, number))
                return

    def _entered(self, before: State) -> None:
        if self.state is State.PROTECTED:
            other = self.cluster.other(self.it).colo
            has = other is not None and (other.store is not None or not other.is_alive)
            if not has:
                raise Violation("PROTECTED, and the other host has nothing whole")
        if self.state is State.SHUTDOWN:
            self.cluster.was_shut_down = True

    def _go_on(self, before: State) -> None:
        """What the daemon does between its parts."""
        state = self.state
        if state is State.RUNNING and before is State.TAKING_OVER:
            self.do_forget()
            if self.member.means.node:
                self.tell(Event.GO_ON)
            else:
                self._watch_vm()
        elif state is State.STARTING and before is not state:
            self._begin_to_lead()
        elif state is State.LISTENING and before is State.LOOKING:
            self._reset()
            self.store = None
            if self.it.vm is not None:
                self.it.vm.kill()
                self.it.vm = None
        elif state in FINAL and before is not state:
            facts = self.member.facts
            if not self.member.means.node:
                if state in (State.FENCED, State.DEAD, State.REFUSED):
                    self.do_end_guest()
                self._exit()
            elif state in (State.ENDED, State.LEFT, State.GONE) or (
                state is State.REFUSED and not facts.starts
            ):
                self._exit()
            else:
                self.do_stop_asking()
                if self.it.vm is not None:
                    self.it.vm.died = self.it.vm.shut_down = _nothing
                self.tell(Event.GO_ON)

    def _exit(self) -> None:
        self.it.end_colo()
        if not self.cluster.was_shut_down:
            self.world.after(1.0, self.it.begin)  # the service manager

    def ask(self, delay_s: float, answer: Callable[[], object]) -> None:
        """A question: answered once, if it is not given up."""
        self._question += 1
        number = self._question

        def answered() -> None:
            if number == self._question:
                answer()

        self.after(delay_s, answered)

    def _call(self, move: Move[Any], answered: Callable[[Any], object]) -> None:
        """A question to the arbiter."""
        self._question += 1
        number = self._question
        if not self.means.automatic:
            self.ask(0, lambda: answered(Record(0, self._holder())))
            return

        def hear(result: Any) -> None:
            if number == self._question:
                if isinstance(result, Foreign):
                    self.tell(Event.NO_ANSWER)
                else:
                    answered(result)

        def fail(may_be_done: bool) -> None:
            if number == self._question:
                self.tell(Event.NO_ANSWER, may_be_done=may_be_done)

        self._asking = self.cluster.arbiter.call(self, move, hear, fail)

    def do_stop_asking(self) -> None:
        self._question += 1
        if self._asking is not None:
            self._asking.is_given_up = True

    def _perform(self, effect: Do) -> None:
        performed: Callable[[], object] = getattr(self, "do_" + effect.name.lower())
        performed()

    # -- the arbiter ----------------------------------------------------------------------

    def do_read_record(self) -> None:
        first = self.host == "a" and self.it.known == 0
        move: Move[Any] = moves.begin if first else (lambda record: record)
        self._call(move, self._looked)

    def _looked(self, record: Record | None) -> None:
        if record is None or record.number < self.it.known:
            self.tell(Event.NO_ANSWER)
            return
        self.it.known = max(self.it.known, record.number)
        vm = self.it.vm
        if vm is not None and (not vm.is_alive or not vm.has_run):
            vm.kill()
            vm = self.it.vm = None
        lives = vm is not None and record.left_by in ("", vm.name)
        turn = whose_turn(record, self.host, lives, self.host == "a")
        grant = Grant(record.number, record.left_by)
        foreign = vm is not None and not lives
        self.tell(Event.RECORD, grant=grant, turn=turn, foreign=foreign)

    def _holder(self) -> str:
        """Our name for what is asked for now."""
        facts = self.member.facts
        if self.state is State.ORPHANED:
            known = facts.known.number
            if self._waiting_name is None or self._waiting_name[0] != known:
                self._waiting_name = known, self.it.new_name()
            return self._waiting_name[1]
        assert self.it.vm is not None
        return self.it.vm.name

    def _new_vm(self) -> None:
        name = self.it.new_name()
        self.it.vm = Vm(self.world, self.host, name, self.cluster.checks)

    def do_ask(self) -> None:
        facts = self.member.facts
        if self.state is State.LOOKING:
            self._new_vm()
            known, void = facts.known.number, None
        elif self.state is State.ORPHANED:
            known, void = facts.known.number, facts.void
        else:
            known, void = facts.grant.number, None
        holder = self._holder()
        self._call(lambda record: moves.take(record, known, holder, void), self._answered)

    def do_ask_by_order(self) -> None:
        if self.state is State.LOOKING:
            self._new_vm()
        holder = self._holder()
        self._call(lambda record: moves.order(record, holder), self._answered)

    def _answered(self, result: Any) -> None:
        if isinstance(result, Moved):
            self.tell(Event.DENIED)
        else:
            self.it.known = max(self.it.known, result.number)
            self.tell(Event.GRANTED, grant=result.grant)

    def do_claim(self) -> None:
        holder = self._holder()

        def claimed(result: Any) -> None:
            if isinstance(result, Held):
                self.tell(Event.UNFIT)
            else:
                self.tell(Event.GRANTED, grant=result.grant)

        if not self.means.automatic:
            self.ask(0, lambda: claimed(Record(0, holder)))
            return
        self._question += 1
        number = self._question
        self._asking = self.cluster.arbiter.call(
            self,
            lambda record: moves.claim(record, holder, False),
            lambda result: claimed(result) if number == self._question else None,
            lambda _: self.tell(Event.UNFIT) if number == self._question else None,
        )

    def _back(self, ending: Ending) -> None:
        if self.it.vm is not None:
            holder = self.it.vm.name
            move: Move[Any] = partial(moves.give_back, holder=holder, ending=ending)
            self.cluster.arbiter.call(self, move, _nothing, _nothing)

    def do_give_back(self) -> None:
        self._back(Ending.LEFT)

    def do_give_back_unused(self) -> None:
        self._back(Ending.UNUSED)

    def do_give_back_shut_down(self) -> None:
        self._back(Ending.SHUT_DOWN)

    def do_fence(self) -> None:
        """It turns the other host off, if it can be reached at all."""
        works = self.world.random.random() < 0.7

        def done() -> None:
            if works:
                self.cluster.other(self.it).power_off()
                self.world.after(5.0, self.cluster.other(self.it).power_on)
            self.tell(Event.OFF if works else Event.NOT_OFF)

        assert host_of(self.member.facts.known.holder) != self.host
        self.ask(self.world.some(0.1, 2.0), done)

    # -- the other host -------------------------------------------------------------------

    def _hello(self, reply: Callable[[Event, Offer | None], object], stays: bool) -> None:
        """Say hello to the other host: a way there, its look at the arbiter, and a way back.

        ``stays``: the connection is to be kept, and is offered with the answer.
        """
        world, me = self.world, self.host
        other = self.cluster.other(self.it)
        facts = self.member.facts
        grant = facts.grant if stays or self.state is State.STARTING else facts.known
        self._question += 1
        number = self._question

        def end(event: Event, offer: Offer | None = None) -> None:
            if number == self._question and self.is_alive:
                self._question += 1
                reply(event, offer)
            elif offer is not None:
                offer[0].close(offer[1])

        def arrive() -> None:
            peer = other.colo
            if (me, other.name) in world.cut or not other.is_up:
                return  # it hears nothing of that, and nothing comes back
            if peer is None or not peer.is_alive or not peer.listens:
                answer(Event.SILENT)
            else:
                colo = peer
                colo.take(lambda: colo.judge(self, grant, answer, stays))

        def answer(event: Event, offer: Offer | None = None) -> None:
            if (other.name, me) not in world.cut:
                delay_s = world.some(0.0005, 0.004)
                world.after(delay_s, lambda: self.take(lambda: end(event, offer)))
            elif offer is not None:
                offer[0].close(offer[1])

        self.after(3.0, lambda: end(Event.SILENT))
        world.after(world.some(0.0005, 0.004), arrive)

    @property
    def listens(self) -> bool:
        return self.can(Event.LINK_UP)

    def can(self, event: Event) -> bool:
        return self.member.can(event)

    def judge(self, caller: Colo, grant: Grant, answer: Callable[..., object], stays: bool) -> None:
        """A primary says hello: see that the arbiter here shows its grant, and take it in."""

        def checked(result: Any) -> None:
            if not self.listens or isinstance(result, Foreign | Moved):
                answer(Event.OBJECTS)
                return
            if Do.REFUSE in self.tell(Event.LINK_UP, grant=result):
                answer(Event.OBJECTS)
                return
            end = End(self, self._hear, self._link_lost)
            theirs = End(caller, caller._hear, caller._link_lost)
            made = Connection(self.world, theirs, end, HEARTBEAT_LIMIT_S)
            self.link = made, end
            if not caller.is_alive or not stays:
                made.close(theirs)
            answer(Event.AGREES, (made, theirs) if stays else None)

        if not self.means.automatic:
            checked(grant)
            return
        move: Move[Any] = lambda record: moves.check(record, grant)  # noqa: E731
        self.cluster.arbiter.call(self, move, checked, lambda _: answer(Event.OBJECTS))

    def do_question(self) -> None:
        self._hello(lambda event, _: self.tell(event), stays=False)

    def do_call(self) -> None:
        def reply(event: Event, offer: Offer | None) -> None:
            if event is not Event.AGREES or offer is None or not offer[1].is_open:
                self.tell(Event.UNREACHED)
                return
            self.link = offer
            peer = self.cluster.other(self.it).colo
            assert peer is not None
            ours = End(self, self._from_secondary, self._session_lost)
            theirs = End(peer, peer._from_primary, peer._channel_lost)
            made = Connection(self.world, ours, theirs, None)
            self.channel = made, ours
            peer.take(lambda: peer._channel_up(made, theirs))
            self.tell(Event.REACHED)

        self._hello(reply, stays=True)

    def _channel_up(self, made: Connection, end: End) -> None:
        if not self.can(Event.CHANNEL_UP):
            made.close(end)
            return
        self._incoming = made, end
        if Do.REFUSE in self.tell(Event.CHANNEL_UP, grant=Grant(0, "")):
            made.close(end)

    def _say(self, what: object) -> None:
        if self.link is not None:
            self.link[0].send(self.link[1], what)

    def _hear(self, what: Any) -> None:
        word, number = what
        match word:
            case WordKind.DEAD | WordKind.HANDOVER:
                grant = Grant(number, "") if number is not None else None
                self._hear_if(Event.SAYS_GONE, word=word, grant=grant)
            case WordKind.SHUTDOWN:
                self._hear_if(Event.SAYS_SHUTDOWN)
            case WordKind.REFUSED:
                self._hear_if(Event.REJECTED)
            case _:
                self._hear_if(Event.LETS_GO)

    def _hear_if(self, event: Event, **facts: Any) -> None:
        self.tell(event, **facts)

    def _link_lost(self) -> None:
        self.link = None
        self.tell(Event.LINK_LOST)

    def do_hang_up(self) -> None:
        if self.link is not None:
            self.link[0].close(self.link[1])
            self.link = None

    def do_say_dead(self) -> None:
        self._say((WordKind.DEAD, self.member.facts.last_number))

    def do_say_shutdown(self) -> None:
        self._say((WordKind.SHUTDOWN, None))

    def do_say_bye(self) -> None:
        self._say((WordKind.BYE, None))

    def do_say_alone(self) -> None:
        self._say((WordKind.ALONE, None))

    def do_say_handover(self) -> None:
        self._say((WordKind.HANDOVER, None))

    def do_reject(self) -> None:
        self._say((WordKind.REFUSED, None))

    def do_refuse(self) -> None:
        pass

    def do_await_taken(self) -> None:
        deadline = self.world.now + 3.0
        ours = self.member.facts.grant

        def look() -> None:
            if self.state is not State.GOING_OVER:
                return
            if self.world.now > deadline:
                self.tell(Event.TIME)
                return
            self.cluster.arbiter.call(self, lambda record: record, seen, lambda _: again())

        def seen(record: Any) -> None:
            if self.state is not State.GOING_OVER:
                return
            if record is not None and record.grant != ours:
                self.tell(Event.TAKEN)
            else:
                again()

        def again() -> None:
            self.after(0.02, look)

        look()

    def do_hear_out(self) -> None:
        self.ask(0.5, lambda: self.tell(Event.HEARD_OUT))

    # -- the guest here -------------------------------------------------------------------

    def _watch_vm(self) -> None:
        vm = self.it.vm
        assert vm is not None
        vm.died = lambda: self.soon(lambda: self._ended(vm, Event.DIED))
        vm.shut_down = lambda: self.soon(lambda: self._ended(vm, Event.SHUT_DOWN))

    def soon(self, act: Callable[[], object]) -> None:
        self.after(self.world.some(0.001, 0.06), act)

    def _ended(self, vm: Vm, event: Event) -> None:
        if vm is self.it.vm and vm.died is not _nothing:
            self.tell(event)

    def do_prepare(self) -> None:
        vm = self.it.vm
        assert vm is not None

        def fit() -> None:
            if not vm.is_alive or vm.is_paused:
                self.tell(Event.UNFIT)
                return
            if vm.has_run:
                vm.leave_colo()
                vm.gate, vm.is_deaf = None, False
            self.tell(Event.FIT)

        self.ask(0.01, fit)

    def do_start(self) -> None:
        vm = self.it.vm
        assert vm is not None
        if self.cluster.copies() or self.cluster.runs_elsewhere(vm):
            raise Violation("an older state is started, while a newer one is there")
        self.cluster.checks.undone()
        vm.start(None)
        self.ask(0.01, lambda: self.tell(Event.RUNS))

    def do_copy(self) -> None:
        vm = self.it.vm
        assert vm is not None
        self.observer = Observer("vm")

        def begin() -> None:
            if self.state is not State.BEGINNING or not vm.is_alive or vm.is_paused:
                if self.state is State.BEGINNING:
                    self.tell(Event.LOST)
                return
            vm.gate = Gate(1 << 20)
            vm.is_deaf = False
            vm.on_held = self._held
            vm.send = self._from_qemu
            vm.migrate()
            self.tell(Event.COPY_BEGUN)

        self.after(self.world.some(0.005, 0.03), begin)
        self.after(SILENCE_S, self._bound_silence)

    def _bound_silence(self) -> None:
        """No checkpoint is done any more: its guest hangs, or the other host does."""
        vm, live = self.it.vm, self.state in (State.COPYING, State.PROTECTED)
        if live and vm is not None and vm.is_paused:
            self.tell(Event.LOST)
        elif live:
            self.after(1.0, self._bound_silence)

    def _from_qemu(self, what: object) -> None:
        self.take(lambda: self._send(what))

    def _send(self, what: object) -> None:
        if self.channel is not None:
            self.channel[0].send(self.channel[1], what)

    def _from_secondary(self, message: Message) -> None:
        observer = self.observer
        if observer is None or self.channel is None:
            return
        for effect in observer.receive(message):
            self._observed(effect, message.kind)
        if message.kind is COLOMessage.CHECKPOINT_REPLY:
            self._reply = message
            self._schedule()
        else:
            self._to_qemu(message)

    def _observed(self, effect: Any, kind: COLOMessage | None) -> None:
        vm = self.it.vm
        assert vm is not None and vm.gate is not None
        match effect.do:
            case ProtocolDo.HOLD:
                vm.gate.hold()
            case ProtocolDo.RELEASE if self.stood_s > STOOD_LIMIT_S:
                self._session_lost()  # it stood still so long that others may have decided
            case ProtocolDo.RELEASE:
                vm.release()
            case ProtocolDo.RESUME if kind is COLOMessage.CHECKPOINT_READY:
                self.tell(Event.WHOLE)
            case ProtocolDo.RESUME if self._rests:
                self._rests = False
                self.ask(self.world.some(0.001, 0.02), self._at_rest)

    def _to_qemu(self, message: Message) -> None:
        vm = self.it.vm
        if vm is not None:
            vm.take(lambda: vm.receive(message))

    def _held(self) -> None:
        if self._reply is not None:
            self._schedule(0.002)

    def _schedule(self, delay_s: float = 0.0) -> None:
        delay_s = delay_s or (0.0 if self._rests else self.world.some(0.002, 1.0))
        if self._due is not None:
            self._due.cancel()
        self._due = self.after(delay_s, self._checkpoint)

    def _checkpoint(self) -> None:
        reply, self._reply, observer = self._reply, None, self.observer
        if reply is not None and observer is not None and self.channel is not None:
            for effect in observer.handle(ObserverEvent.CHECKPOINT_DUE):
                self._observed(effect, None)
            self._to_qemu(reply)

    def do_rest(self) -> None:
        self._rests = True
        self._question += 1
        if self._reply is not None:
            self._schedule()
        self.ask(10.0, lambda: self.tell(Event.NOT_AT_REST))

    def _at_rest(self) -> None:
        vm = self.it.vm
        if vm is None or not vm.is_alive or vm.is_paused:
            self.tell(Event.NOT_AT_REST)
            return
        vm.runs = False
        self.tell(Event.AT_REST)

    def _session_lost(self) -> None:
        self.do_close()
        self.tell(Event.LOST)

    def do_close(self) -> None:
        if self.channel is not None:
            self.channel[0].close(self.channel[1])
            self.channel = None
        self._reply = None
        if self.secondary is not None:
            if self.secondary.can(SecondaryEvent.LOST):
                self.secondary.handle(SecondaryEvent.LOST)
            self._staged = None
        elif self.it.vm is not None:
            self.it.vm.take(self.it.vm.cut_off)

    def do_look(self) -> None:
        vm = self.it.vm
        if vm is None or not vm.is_alive:
            return  # its end is told
        if vm.is_paused:
            self.ask(5.5, self._look_again)
        else:
            self.ask(0.002, lambda: self.tell(Event.ANSWERS))

    def _look_again(self) -> None:
        vm = self.it.vm
        if vm is not None and vm.is_alive:
            self.tell(Event.HUNG if vm.is_paused else Event.ANSWERS)

    def do_run_alone(self) -> None:
        vm = self.it.vm
        assert vm is not None

        if self.member.facts.forced:
            self.cluster.checks.undone()

        def run() -> None:
            if vm.is_alive and not vm.is_paused:
                vm.leave_colo()
                self.tell(Event.RUNS)
            else:
                self.tell(Event.STUCK)

        self.ask(self.world.some(0.002, 0.05), run)

    def do_hold(self) -> None:
        if self.it.vm is not None and self.it.vm.gate is not None:
            self.it.vm.gate.hold()

    def do_open(self) -> None:
        if self.it.vm is not None:
            self.it.vm.open()

    def do_shut(self) -> None:
        if self.it.vm is not None and self.it.vm.gate is not None:
            self.it.vm.gate.shut()

    def do_stop(self) -> None:
        if self.it.vm is not None:
            vm = self.it.vm
            vm.take(lambda: setattr(vm, "runs", False))

    def do_end_guest(self) -> None:
        if self.it.vm is not None:
            self.it.vm.died = _nothing
            self.it.vm.kill()
            self.it.vm = None

    # -- as a secondary -------------------------------------------------------------------

    def do_receive(self) -> None:
        self.channel = self._incoming
        self.secondary, self._staged = Secondary("vm"), None

    def _from_primary(self, what: Any) -> None:
        machine = self.secondary
        if machine is None or self.channel is None:
            return
        if isinstance(what, Message):
            self._obey(machine.receive(what))
            return
        kind, at = what
        match kind:
            case "migration":
                self._staged = at
                self._obey(machine.handle(SecondaryEvent.MIGRATED))
                self.tell(Event.WHOLE)
            case "ram":
                self._obey(machine.handle(SecondaryEvent.RAM_RECEIVED))
            case "devices":
                self._staged = at
                self._obey(machine.handle(SecondaryEvent.DEVICES_RECEIVED))

    def _obey(self, effects: tuple[Any, ...]) -> None:
        for effect in effects:
            match effect.do:
                case ProtocolDo.COMMIT:
                    self.store = self._staged
                case ProtocolDo.SEND:
                    self._send(Message(effect.message, effect.value))
                case ProtocolDo.PREPARE:
                    self.after(self.world.some(0.0005, 0.01), self._prepared)
                case ProtocolDo.DISCARD:
                    self._staged = None

    def _prepared(self) -> None:
        machine = self.secondary
        if machine is not None and machine.state is SecondaryState.PREPARING and self.channel:
            self._obey(machine.handle(SecondaryEvent.PREPARED))

    def _channel_lost(self) -> None:
        self.do_close()
        self.tell(Event.LOST)

    def do_forget(self) -> None:
        self.do_stop_asking()
        self.do_close()
        self.do_hang_up()
        self.secondary, self.store = None, None

    def do_load(self) -> None:
        assert self.store is not None
        name = self._waiting_name[1] if self._waiting_name is not None else self.it.new_name()
        vm = self.it.vm = Vm(self.world, self.host, name, self.cluster.checks)
        at = self.store
        if self.member.facts.forced or not self.means.automatic:
            self.cluster.checks.undone()  # an operator takes what there is

        def run() -> None:
            if not vm.is_alive or self.world.random.random() < 0.05:
                vm.kill()
                self.it.vm = None
                self.tell(Event.STUCK)
                return
            vm.start(at)
            self.after(0.005, lambda: self.tell(Event.RUNS))

        self.after(self.world.some(0.005, 0.05), run)

    # -- time and people ------------------------------------------------------------------

    def do_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self.after(1.0, self._time)

    def _time(self) -> None:
        self.tell(Event.TIME)

    def do_warn(self) -> None:
        pass

    def do_agree(self) -> None:
        pass

    def do_decline(self) -> None:
        pass
