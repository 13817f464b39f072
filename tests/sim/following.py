"""What a simulated colo does with the copy that it keeps."""

from __future__ import annotations

from typing import Any

from colo.membership.grant import Grant
from colo.membership.states import Event, State
from colo.membership.words import WordKind
from colo.protocol.messages import Message
from colo.protocol.secondary import Secondary
from colo.protocol.tables import Do as ProtocolDo
from colo.protocol.tables import SecondaryEvent, SecondaryState
from tests.sim.beside import Beside
from tests.sim.checks import Moment, Violation
from tests.sim.coverage import watched
from tests.sim.shell import Shell
from tests.sim.talking import SILENCE_S
from tests.sim.talking_vm import TalkingVm
from tests.sim.world import Connection, End

__all__ = ["Follows"]


class Follows(Shell):
    """The part of a secondary."""

    def do_receive(self) -> None:
        self.channel = self._incoming
        self.secondary = watched("secondary", Secondary("vm"), self.world.rows)
        self._staged = None
        session = self.secondary

        def bound() -> None:
            if self.secondary is session and self.state is State.RECEIVING:
                self._channel_lost()

        self.after(SILENCE_S, bound)

    def _from_primary(self, what: Any) -> None:
        machine = self.secondary
        if machine is None or self.channel is None:
            return
        if isinstance(what, Message):
            self._obey(machine.receive(what))
            return
        kind, at = what
        match kind:
            case "migration" if self.world.random.random() < 0.04:
                self._reject_copy()
            case "migration":
                self._staged = at
                self._obey(machine.handle(SecondaryEvent.MIGRATED))
                self.tell(Event.WHOLE)
            case "ram":
                self._staged = None  # what is here is not whole any more
                self._obey(machine.handle(SecondaryEvent.RAM_RECEIVED))
            case "devices":
                self._staged = at
                self._obey(machine.handle(SecondaryEvent.DEVICES_RECEIVED))

    def _reject_copy(self) -> None:
        """What came cannot be taken over here, and maybe never."""
        self._is_final = self.world.random.random() < 0.2
        self._channel_lost()

    _is_final = False

    def do_reject(self) -> None:
        self._say((WordKind.REFUSED, self._is_final))

    def _obey(self, effects: tuple[Any, ...]) -> None:
        for effect in effects:
            match effect.do:
                case ProtocolDo.COMMIT:
                    self.store = self._staged
                    if self.beside is not None and self.secondary is not None:
                        self.beside.committed(self.secondary.number)
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
        self.tell(Event.LOST, lacks=self.lacks)

    def do_forget(self) -> None:
        self.do_stop_asking()
        self.do_close()
        self.do_hang_up()
        self.secondary, self.store = None, None
        if self.beside is not None:
            self.beside.forget()

    def _follow(self, event: SecondaryEvent) -> None:
        if self.secondary is not None and self.secondary.can(event):
            self.secondary.handle(event)

    def do_load(self) -> None:
        if self.store is None:
            raise Violation("a takeover from nothing whole")
        name = self._waiting_name[1] if self._waiting_name is not None else self.it.new_name()
        if self.beside is not None:
            self._load_beside(self.beside, name, self.store)
            return
        vm = self.it.vm = self.cluster.new_vm(self.it, name)
        at = self.store
        self._follow(SecondaryEvent.FAILOVER)
        if self.member.facts.forced:
            self.cluster.is_forced(vm, self.member.facts.known.number)
        if self.member.facts.forced or not self.means.automatic:
            self.cluster.checks.undone()  # an operator takes what there is

        def run() -> None:
            if not vm.is_alive or self.world.random.random() < 0.05 or self.cluster.is_refused():
                vm.kill()
                self.it.vm = None
                self._follow(SecondaryEvent.NOT_STARTED)
                self.tell(Event.STUCK)
                return
            vm.start(at)
            self._follow(SecondaryEvent.RESUMED)
            self.after(0.005, lambda: self.tell(Event.RUNS))

        self.after(self.world.some(0.005, 0.05), run)

    # -- hybrid mode ----------------------------------------------------------------------

    def _renew_beside(self) -> None:
        if self.beside is not None:
            self.beside.close()
        self.beside = Beside(self) if self.cluster.day.hybrid else None

    def greets_hybrid(self, grant: Grant) -> bool:
        """Whether a primary with this grant may have a hybrid link."""
        greeted = State.GREETED, State.RECEIVING, State.KEEPING
        is_known = self.state in greeted and self.member.facts.known.number == grant.number
        return is_known and self.beside is not None

    def take_hybrid(self, made: Connection, end: End) -> None:
        """It has one."""
        assert self.beside is not None
        self.beside.take(made, end)

    def _load_beside(self, beside: Beside, name: str, at: Moment) -> None:
        self._follow(SecondaryEvent.FAILOVER)
        is_forced = self.member.facts.forced
        if is_forced or not self.means.automatic:
            self.cluster.checks.undone()  # an operator takes what there is

        def ran(vm: TalkingVm | None) -> None:
            self.it.vm = vm
            if vm is None:
                self._follow(SecondaryEvent.NOT_STARTED)
                self.tell(Event.STUCK)
                return
            if is_forced:
                self.cluster.is_forced(vm, self.member.facts.known.number)
            self._follow(SecondaryEvent.RESUMED)
            self.after(0.005, lambda: self.tell(Event.RUNS))

        beside.load(name, at, ran)
