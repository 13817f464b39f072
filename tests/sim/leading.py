"""What a simulated colo does with the guest that runs on its host."""

from __future__ import annotations

from typing import Any

from colo.membership.states import Event, State
from colo.packets.gate import Gate
from colo.protocol.courier import Courier
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import CourierEvent, CourierState, SecondaryEvent
from colo.protocol.tables import Do as ProtocolDo
from tests.sim.checks import Violation
from tests.sim.comparing import Comparing
from tests.sim.coverage import watched
from tests.sim.shell import HEARTBEAT_LIMIT_S, Shell
from tests.sim.talking import SILENCE_S
from tests.sim.talking_vm import TalkingVm
from tests.sim.vm import Vm, nothing

__all__ = ["Leads"]

#: A host that is not heard for longer releases nothing that it finds in its sockets.
CERTAIN_S = 0.75 * HEARTBEAT_LIMIT_S


class Leads(Shell):
    """The part of a primary."""

    def _watch_vm(self) -> None:
        vm = self.it.vm
        assert vm is not None
        vm.died = lambda: self.soon(lambda: self._ended(vm, Event.DIED))
        vm.shut_down = lambda: self.soon(lambda: self._ended(vm, Event.SHUT_DOWN))

    def _ended(self, vm: Vm, event: Event) -> None:
        if vm is self.it.vm and vm.died is not nothing:
            self.tell(Event.DIED if self.state is State.RUNNING else event)

    def do_prepare(self) -> None:
        vm = self.it.vm
        assert vm is not None

        def fit() -> None:
            if not vm.is_alive or vm.is_paused or self.cluster.is_refused():
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
        self.courier = watched("courier", Courier("vm"), self.world.rows)

        def begin() -> None:
            if self.state is not State.BEGINNING or not vm.is_alive or vm.is_paused:
                if self.state is State.BEGINNING:
                    self.tell(Event.LOST)
                return
            vm.gate = Gate(1 << 20, vm.vnet)
            vm.is_deaf = False
            if isinstance(vm, TalkingVm):
                self.comparing = Comparing(self, vm)
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
        self.take(lambda: self._take_aside(what))

    def _take_aside(self, what: object) -> None:
        """Read what QEMU sends; the other host gets it later, however long that takes."""
        if self.channel is None or self.courier is None:
            return
        kind = what[0] if isinstance(what, tuple) else None
        if kind == "migration":
            self._happens(CourierEvent.PASSED)
        elif kind == "devices":
            is_through = self._rests or self._goes_through
            self._happens(CourierEvent.PASSED if is_through else CourierEvent.TAKEN)
        self._send(what)

    @property
    def _goes_through(self) -> bool:
        """Now and then one does, as the VM file may want it."""
        return self.world.random.random() < 0.2

    def _happens(self, event: CourierEvent) -> None:
        assert self.courier is not None
        for effect in self.courier.handle(event):
            self._carry(effect, None)

    def _send(self, what: object) -> None:
        if self.channel is not None:
            self.channel[0].send(self.channel[1], what)

    def _from_secondary(self, message: Message) -> None:
        courier = self.courier
        if courier is None or self.channel is None:
            return
        for effect in courier.receive(message):
            self._carry(effect, message.kind)
        if courier.state is CourierState.REPLIED:
            self._schedule()

    def _carry(self, effect: Any, kind: COLOMessage | None) -> None:
        vm = self.it.vm
        assert vm is not None and vm.gate is not None
        match effect.do:
            case ProtocolDo.SEND:
                self._to_qemu(Message(effect.message))
            case ProtocolDo.HOLD:
                vm.gate.hold()
                if self.comparing is not None and not self._is_doubtful:
                    vm.release()  # what was held during the copy, which covers it
            case ProtocolDo.COVER:
                vm.cover()
            case ProtocolDo.RELEASE if self._is_doubtful:
                self._session_lost()  # others may have decided
            case ProtocolDo.RELEASE:
                vm.release()
            case ProtocolDo.RESUME if kind is COLOMessage.CHECKPOINT_READY:
                if self.stood_s > CERTAIN_S:
                    self._session_lost()
                else:
                    self.tell(Event.WHOLE)
            case ProtocolDo.RESUME if self._rests and kind is COLOMessage.VMSTATE_LOADED:
                self._rests = False
                self.ask(self.world.some(0.001, 0.02), self._at_rest)
        if self.comparing is not None and self.courier is not None:
            self.comparing.carried(effect, self.courier.number)

    @property
    def _is_doubtful(self) -> bool:
        """Whether the other host may have counted this one as lost."""
        return self.link is not None and self.link[0].unheard_s(self.link[1]) > CERTAIN_S

    def _to_qemu(self, message: Message) -> None:
        vm = self.it.vm
        if vm is not None:
            vm.take(lambda: vm.receive(message))

    def _held(self) -> None:
        self._schedule(0.002)

    def _schedule(self, delay_s: float = 0.0) -> None:
        if self.courier is None or self.courier.state is not CourierState.REPLIED:
            return
        if self.comparing is not None:
            self.comparing.schedule()
            return
        delay_s = delay_s or (0.0 if self._rests else self.world.some(0.002, 1.0))
        if self._due is not None:
            self._due.cancel()
        self._due = self.after(delay_s, self._checkpoint)

    @property
    def may_begin(self) -> bool:
        """Whether a checkpoint can."""
        courier = self.courier
        replied = courier is not None and courier.state is CourierState.REPLIED
        return replied and self.channel is not None

    @property
    def rests(self) -> bool:
        """Whether one is awaited, to stop the VM behind it."""
        return self._rests

    def _checkpoint(self) -> None:
        if self.may_begin:
            self._happens(CourierEvent.CHECKPOINT_DUE)

    def do_rest(self) -> None:
        self._rests = True
        self._question += 1
        self._schedule()
        self.ask(10.0, lambda: self.tell(Event.NOT_AT_REST))

    def _at_rest(self) -> None:
        vm = self.it.vm
        gone = vm is None or not (vm.is_alive or vm.is_shut_down)
        if vm is None or gone or vm.is_paused or self.cluster.is_refused():
            self.tell(Event.NOT_AT_REST)
            return
        vm.runs = False
        self.tell(Event.AT_REST)

    def _session_lost(self) -> None:
        self.do_close()
        self.tell(Event.LOST)

    def do_close(self) -> None:
        if self.comparing is not None:
            self.comparing.close()
            self.comparing = None
        if self.channel is not None:
            self.channel[0].close(self.channel[1])
            self.channel = None
        self._courier(CourierEvent.LOST)
        if self.secondary is not None:
            if self.secondary.can(SecondaryEvent.LOST):
                self.secondary.handle(SecondaryEvent.LOST)
            self._staged = None
        elif self.it.vm is not None:
            self.it.vm.take(self.it.vm.cut_off)

    def _courier(self, event: CourierEvent) -> None:
        if self.courier is not None and self.courier.can(event):
            self.courier.handle(event)

    def do_look(self) -> None:
        self._rests = False  # that question is given up by this one
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

        self._courier(CourierEvent.FAILOVER)

        def run() -> None:
            if vm.is_alive and not vm.is_paused:
                vm.leave_colo()
                self._courier(CourierEvent.RESUMED)
                self.tell(Event.RUNS)
            else:
                self.tell(Event.STUCK)

        self.ask(self.world.some(0.002, 0.05), run)

    def do_hold(self) -> None:
        if self.it.vm is not None and self.it.vm.gate is not None:
            self.it.vm.gate.hold()

    def do_open(self) -> None:
        if self.it.vm is not None:
            self.cluster.runs_alone(self.it.vm)
            self.it.vm.open()

    def do_shut(self) -> None:
        if self.state is State.FENCED and self.it.vm is not None:
            self.cluster.check_silenced(self.it, self.it.vm)
        if self.it.vm is not None and self.it.vm.gate is not None:
            self.it.vm.gate.shut()

    def do_stop(self) -> None:
        if self.it.vm is not None:
            vm = self.it.vm
            vm.take(lambda: setattr(vm, "runs", False))

    def do_end_guest(self) -> None:
        if self.it.vm is not None:
            self.cluster.check_end(self.it.vm)
            self._ended_vm = self.it.vm.name
            self.it.vm.died = nothing
            self.it.vm.kill()
            self.it.vm = None
