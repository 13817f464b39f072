"""A simulated colo: it tells the host's machine what happens, and has its effects performed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from colo.membership.grant import Foreign, Record
from colo.membership.states import FINAL, Do, Event, State
from colo.protocol.courier import Courier
from colo.protocol.messages import Message
from colo.protocol.secondary import Secondary
from tests.sim.arbiter import Asking, Move
from tests.sim.checks import LATE_S, Moment, Violation
from tests.sim.coverage import watch_member
from tests.sim.vm import nothing
from tests.sim.world import Connection, End, Process, Timer

if TYPE_CHECKING:
    from tests.sim.beside import Beside
    from tests.sim.cluster import Host
    from tests.sim.comparing import Comparing

__all__ = ["HEARTBEAT_LIMIT_S", "Shell"]

HEARTBEAT_LIMIT_S: Final = LATE_S


class Shell(Process):
    """What performs a host's machine, without what it is asked for by that."""

    beside: Beside | None = None

    def __init__(self, host: Host, part: State = State.LOOKING) -> None:
        cluster = host.cluster
        super().__init__(cluster.world, host.name, host.drift)
        self.it, self.cluster = host, cluster
        other = cluster.other(host).colo
        alone = other is None or not other.is_alive
        self.means = replace(cluster.means, claims=alone and not cluster.means.node)
        self.member = cluster.make("vm", self.means, part)
        watch_member(self.member, self.world.rows)
        self.store: Moment | None = None
        self.told: list[tuple[str, bool]] = []
        self._events: list[tuple[Event, dict[str, Any]]] = []
        self._telling = False
        self._question = 0
        self._asking: Asking | None = None
        self._pause: Timer | None = None
        self._waiting_name: tuple[int, str] | None = None
        self._ended_vm = ""  # the name of the VM that was ended last
        self._gives_back = False  # a part has ended, and has yet to give its grant back
        self._reset()

    def _reset(self) -> None:
        self.link: tuple[Connection, End] | None = None
        self.channel: tuple[Connection, End] | None = None
        self.courier: Courier | None = None
        self.secondary: Secondary | None = None
        self._staged: Moment | None = None
        self._due: Timer | None = None
        self._rests = False
        self._incoming: tuple[Connection, End] | None = None
        self.comparing: Comparing | None = None
        self._renew_beside()

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
        if event is Event.ORDER and self.beside is not None:
            if facts.get("force"):
                self.beside.stand_in.force()
            facts["lacks"] = self.lacks
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
        before, overridden = self.state, self.member.facts.overridden
        effects = self.member.handle(event, **facts)
        if self.member.facts.overridden != overridden:
            self.it.overridden = self.member.facts.overridden
        if self.member.facts.grant.number:
            self.it.granted = self.member.facts.grant
        self._see_the_only_copy(before, event, Do.FORGET in effects)
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

    def _see_the_only_copy(self, before: State, event: Event, forgets: bool) -> None:
        """It is given up by a word of the other host or the arbiter, or at an operator's second."""
        said = (Event.LETS_GO, Event.SAYS_SHUTDOWN, Event.DENIED, Event.LINK_UP, Event.INTERRUPT)
        runs = self.cluster.runs_elsewhere(self.it.vm)
        if forgets and event not in said and not runs and self.cluster.has_copy(self):
            raise Violation("the only copy is forgotten, and nobody has said so")
        if before not in (State.ORPHANED, State.TAKING_OVER):
            self._words = 0
        elif event is Event.INTERRUPT:
            self._words += 1
            cluster = self.cluster
            only = cluster.has_copy(self) and not cluster.runs_elsewhere(self.it.vm)
            if self.state is State.GONE and self._words < 2 and only:
                raise Violation("the only copy is given up at the first word")

    _words = 0

    @property
    def lacks(self) -> bool:
        """Whether clients may have heard of more than is here."""
        return self.beside is not None and self.beside.stand_in.lacks

    def _entered(self, before: State) -> None:
        self.cluster.entered(self.it)
        is_lost = self.state is State.ORPHANED and before in (State.KEEPING, State.CUT_OFF)
        if is_lost and self.beside is not None:
            self.beside.lacked = self.beside.has_nothing
            vm = self.beside.vm
            if self.lacks and vm is not None and vm.is_alive:
                raise Violation("the VM is held back for want of what a secondary VM here has")
        if self.state in (State.PROTECTED, State.KEEPING) and self.link is not None:
            self.link[0].be_strict(self.link[1], HEARTBEAT_LIMIT_S)
        if self.state is State.PROTECTED:
            other = self.cluster.other(self.it).colo
            has = other is not None and (other.store is not None or not other.is_alive)
            # Where the other end is closed already, that comes next.
            ends = self.channel is not None and not all(
                each.is_open for each in self.channel[0].ends
            )
            if not has and not ends:
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
            if not self.member.means.node:
                if state in (State.FENCED, State.DEAD, State.REFUSED):
                    self.do_end_guest()
                self._exit()
            elif state in (State.ENDED, State.LEFT, State.GONE):
                self._exit()
            else:
                self.do_stop_asking()
                if self.it.vm is not None:
                    self.it.vm.died = self.it.vm.shut_down = nothing
                if not self._gives_back:
                    self.tell(Event.GO_ON)

    def _exit(self) -> None:
        self.it.end_colo()
        if not self.cluster.was_shut_down:
            self.world.after(1.0, self.it.begin)  # the service manager

    def soon(self, act: Callable[[], object]) -> None:
        """Somebody's end is noticed."""
        self.after(self.world.some(0.001, 0.06), act)

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

    # -- what the other parts of a colo do ------------------------------------------------

    def _new_vm(self) -> None:
        raise NotImplementedError

    def _renew_beside(self) -> None:
        raise NotImplementedError

    def _holder(self) -> str:
        raise NotImplementedError

    def _watch_vm(self) -> None:
        raise NotImplementedError

    def _send(self, what: object) -> None:
        raise NotImplementedError

    def _say(self, what: object) -> None:
        raise NotImplementedError

    def _from_secondary(self, message: Message) -> None:
        raise NotImplementedError

    def _from_primary(self, what: Any) -> None:
        raise NotImplementedError

    def _session_lost(self) -> None:
        raise NotImplementedError

    def _channel_lost(self) -> None:
        raise NotImplementedError

    def do_forget(self) -> None:
        raise NotImplementedError

    def do_end_guest(self) -> None:
        raise NotImplementedError

    def do_close(self) -> None:
        raise NotImplementedError

    def do_hang_up(self) -> None:
        raise NotImplementedError
