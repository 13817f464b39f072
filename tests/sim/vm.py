"""A simulated QEMU with its VM: it counts on, sends packets, and plays COLO's primary."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from colo.packets.gate import Gate, GateState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.primary import Primary
from colo.protocol.tables import Do, Effect, PrimaryEvent, PrimaryState
from tests.sim.checks import Checks, Moment
from tests.sim.coverage import watched
from tests.sim.world import Process, World

__all__ = ["Vm", "nothing"]

_FRAME: Final = struct.Struct(">III")
_SIZE: Final = _FRAME.size - 4


class Vm(Process):
    """One QEMU process; ``name`` is its holder's name.  Its monitor answers unless it hangs."""

    vnet = False  # its frames have virtio-net headers

    def __init__(self, world: World, host: str, name: str, checks: Checks) -> None:
        super().__init__(world, host)
        self.name, self._checks = name, checks
        self.life, self.position = -1, 0
        self.runs = False
        self.has_run = self.is_shut_down = False
        self.gate: Gate | None = None
        self.is_deaf = False  # the gate is there, and nobody behind it
        self.machine: Primary | None = None  # in COLO
        self.send: Callable[[object], None] = lambda what: None
        self.died: Callable[[], object] = lambda: None
        self.shut_down: Callable[[], object] = lambda: None
        self.on_held: Callable[[], object] = lambda: None

    def start(self, at: Moment | None) -> None:
        """Begin a life."""
        self.life, self.position = self._checks.born(at), 0
        self.run()

    def run(self) -> None:
        if not self.runs and self.is_alive:
            self.runs = True
            if not self.has_run:
                self.has_run = True
                self._tick()

    @property
    def now(self) -> Moment:
        return Moment(self.life, self.position)

    def _tick(self) -> None:
        if self.runs and not self.is_paused:
            self.position += 1
            self._transmit()
        self.after(self.world.some(0.01, 0.12), self._tick)

    def _transmit(self) -> None:
        frame = self._frame()
        if self.gate is None:
            self._out(frame)
        elif not self.is_deaf:
            self._out(self.gate.take(frame, self.world.now))
            if self.gate.state is GateState.HOLDING:
                self.on_held()

    def _frame(self) -> bytes:
        """What it says at this position."""
        return _FRAME.pack(_SIZE, self.life, self.position)

    def _moments(self, data: bytes) -> Iterator[Moment]:
        """Where these frames were said."""
        for _, life, position in _FRAME.iter_unpack(data):
            yield Moment(life, position)

    def _out(self, frames: bytes) -> None:
        for at in self._moments(frames):
            self._checks.heard(at, self.world.now)

    def release_first(self, count: int) -> None:
        """So many bytes of what the gate holds may leave, by the output rule."""
        assert self.gate is not None
        self._out(self.gate.release_first(count, self.world.now))

    def cover(self) -> None:
        """What was sent before is of the checkpoint for which it is stopped."""
        if self.gate is not None:
            self.gate.cover()

    def release(self) -> None:
        """What the gate has covered is safe."""
        assert self.gate is not None
        self._out(self.gate.release(self.world.now))

    def open(self) -> None:
        """The VM is heard at once from now on."""
        if self.gate is not None:
            self._out(self.gate.open(self.world.now))
            self.gate = None

    def kill(self, with_host: bool = False) -> None:
        if self.is_alive:
            super().kill(with_host)
            self.runs = False
            self.died()

    def power_down(self) -> None:
        """The guest shuts down, by itself."""
        if self.is_alive:
            super().kill()
            self.runs, self.is_shut_down = False, True
            self.shut_down()

    # -- COLO -----------------------------------------------------------------------------

    def migrate(self) -> None:
        """Send a first copy; the VM runs until it is sent."""
        self.machine = watched("primary", Primary("vm"), self.world.rows)
        self.after(self.world.some(0.05, 0.8), self._migrated)

    def _migrated(self) -> None:
        if self.machine is not None and self.machine.can(PrimaryEvent.MIGRATED):
            self.machine.handle(PrimaryEvent.MIGRATED)
            self.runs = False
            self.send(("migration", self.now))

    def receive(self, message: Message) -> None:
        """The secondary says this."""
        machine = self.machine
        if machine is not None and self.is_alive and machine.state is not PrimaryState.LOST:
            self._perform(machine.receive(message))

    def _handle(self, event: PrimaryEvent) -> None:
        if self.machine is not None and self.machine.can(event):
            self._perform(self.machine.handle(event, 1 if event.name == "DEVICES_SAVED" else None))

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect.do:
                case Do.SEND:
                    assert effect.message is not None
                    self.send(Message(effect.message, effect.value))
                case Do.SUSPEND:
                    self.runs = False
                    self.after(0, lambda: self._handle(PrimaryEvent.SUSPENDED))
                case Do.SAVE_RAM:
                    self.send(("ram", None))
                    delay_s = self.world.some(0.001, 0.02)
                    self.after(delay_s, lambda: self._handle(PrimaryEvent.RAM_SAVED))
                case Do.SAVE_DEVICES:
                    delay_s = self.world.some(0.001, 0.02)
                    self.after(delay_s, lambda: self._handle(PrimaryEvent.DEVICES_SAVED))
                case Do.SEND_DEVICES:
                    self.send(("devices", self.now))
                case Do.RESUME:
                    self.runs = True
                    self.after(0, lambda: self._handle(PrimaryEvent.RESUMED))
                    self.after(0.02, lambda: self._handle(PrimaryEvent.CHECKPOINT_DUE))
                case Do.RELEASE:
                    pass  # that is for who watches QEMU
                case _:
                    raise AssertionError(effect)

    def cut_off(self) -> None:
        """Its migration stream is closed: a first copy fails, and the VM goes on by itself."""
        machine, self.send = self.machine, lambda what: None
        if machine is not None and machine.expected is COLOMessage.CHECKPOINT_READY:
            self.runs = True
        elif machine is not None and machine.can(PrimaryEvent.MIGRATED):
            self.machine = None
        if machine is not None and machine.can(PrimaryEvent.LOST):
            machine.handle(PrimaryEvent.LOST)

    def leave_colo(self) -> None:
        """Run without a secondary."""
        machine = self.machine
        self.machine, self.send = None, lambda what: None
        self.runs = True
        if machine is not None and machine.can(PrimaryEvent.FAILOVER):
            machine.handle(PrimaryEvent.FAILOVER)
            machine.handle(PrimaryEvent.RESUMED)


def nothing(*_: object) -> None:
    pass
