"""Both machines joined in memory, with a world around them that counts.

The primary's memory is one number that grows whenever its VM runs; each number goes out as a
packet, held until RELEASE.  What is saved, sent, staged and committed is that number, so every
invariant is a comparison.  The caller chooses every step: ``moves`` says which there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from colo.errors import PeerError
from colo.protocol.messages import Message
from colo.protocol.primary import Primary
from colo.protocol.secondary import Secondary
from colo.protocol.tables import (
    Do,
    Effect,
    PrimaryEvent,
    PrimaryState,
    SecondaryEvent,
    SecondaryState,
)

DEVICE_SIZE = 77

_ARRIVED = {
    "migration": (SecondaryState.INCOMING, SecondaryEvent.MIGRATED),
    "ram": (SecondaryState.RECEIVING_RAM, SecondaryEvent.RAM_RECEIVED),
    "devices": (SecondaryState.RECEIVING_DEVICES, SecondaryEvent.DEVICES_RECEIVED),
}


@dataclass(frozen=True)
class Payload:
    """A part of the stream: its kind, and the memory that it holds."""

    kind: str
    memory: int


def spell(effects: tuple[Effect, ...]) -> str:
    """Effects as text: messages in quotes, the others by name."""
    return ", ".join(
        f"«{Message(e.message, e.value)}»"
        if e.message is not None
        else e.do.name + ("" if e.value is None else f" {e.value}")
        for e in effects
    )


class Pair:
    """A primary and a secondary; ``log`` is what happened, a line for each transition."""

    def __init__(self) -> None:
        self.primary = Primary("web1")
        self.secondary = Secondary("web1")
        self.to_secondary: deque[Message | Payload] = deque()
        self.to_primary: deque[Message] = deque()
        self.connected = True
        self.log: list[str] = []
        # the primary's host
        self.primary_work: deque[PrimaryEvent] = deque([PrimaryEvent.MIGRATED])
        self.primary_runs = True
        self.memory = 0
        self.held: list[int] = [0]
        self.released: list[int] = []
        self.solo = False
        # the secondary's host
        self.secondary_work: deque[SecondaryEvent | None] = deque()  # None: pages were applied
        self.staged: dict[str, int] = {}
        self.committed: int | None = None
        self.applied: int | None = None
        self.taken_over: int | None = None

    # -- steps ----------------------------------------------------------------------------

    def moves(self) -> list[Callable[[], None]]:
        """What can happen next, the more urgent first."""
        found: list[Callable[[], None]] = []
        if self.primary_work:
            found.append(self._primary_works)
        if self.secondary_work:
            found.append(self._secondary_works)
        if self.to_primary:
            found.append(self._primary_receives)
        if self.to_secondary:
            found.append(self._secondary_receives)
        if self.primary.state is PrimaryState.RUNNING and not self.primary_work:
            found.append(self._checkpoint_due)
        return found

    def run(self, steps: int) -> None:
        """Take the most urgent step, so many times."""
        for _ in range(steps):
            self.moves()[0]()

    def finish_work(self) -> None:
        """Have all that is under way on either host report that it is done."""
        while self.primary_work or self.secondary_work:
            if self.primary_work:
                self._primary_works()
            if self.secondary_work:
                self._secondary_works()

    def cut(self) -> None:
        """Cut the channel: what is in flight is lost, and with it a first migration under way."""
        self.connected = False
        if PrimaryEvent.MIGRATED in self.primary_work:
            self.primary_work.remove(PrimaryEvent.MIGRATED)
        self.to_primary.clear()
        self.to_secondary.clear()

    def tell_primary(self, event: PrimaryEvent, value: int | None = None) -> str:
        """Give the primary a local event, perform what it asks for, return that as text."""
        return self._primary_did(event.name, self.primary.handle(event, value))

    def tell_secondary(self, event: SecondaryEvent) -> str:
        """Give the secondary a local event, perform what it asks for, return that as text."""
        return self._secondary_did(event.name, self.secondary.handle(event))

    def _checkpoint_due(self) -> None:
        self.tell_primary(PrimaryEvent.CHECKPOINT_DUE)

    def _primary_works(self) -> None:
        event = self.primary_work.popleft()
        if event in (PrimaryEvent.MIGRATED, PrimaryEvent.SUSPENDED):
            self.primary_runs = False
        elif event is PrimaryEvent.RESUMED:
            self.primary_runs = True
            self.memory += 1
            self.held.append(self.memory)
        if event is PrimaryEvent.MIGRATED:
            self._send(Payload("migration", self.memory))
        if self.primary.can(event):  # it is not interested in what ends after a decision
            size = DEVICE_SIZE if event is PrimaryEvent.DEVICES_SAVED else None
            self.tell_primary(event, size)

    def _secondary_works(self) -> None:
        event = self.secondary_work.popleft()
        if event is None:
            self.applied = self.committed
        elif self.secondary.can(event):
            self.tell_secondary(event)

    def _primary_receives(self) -> None:
        message = self.to_primary.popleft()
        self._primary_did(f"«{message}»", self.primary.receive(message))

    def _secondary_receives(self) -> None:
        item = self.to_secondary.popleft()
        if isinstance(item, Message):
            self._secondary_did(f"«{item}»", self.secondary.receive(item))
            return
        state, event = _ARRIVED[item.kind]
        if self.secondary.state is not state:
            raise PeerError(f"{item.kind} out of place")
        self.staged[item.kind] = item.memory
        self.tell_secondary(event)

    # -- what the machines ask for --------------------------------------------------------

    def _primary_did(self, event: str, effects: tuple[Effect, ...]) -> str:
        self._write("primary", event, self.primary.state.name, effects)
        for effect in effects:
            self._perform_primary(effect)
        return spell(effects)

    def _perform_primary(self, effect: Effect) -> None:
        if effect.do in (Do.SAVE_RAM, Do.SAVE_DEVICES, Do.SEND_DEVICES):
            assert not self.primary_runs, "only a stopped VM can be saved"
        match effect.do:
            case Do.SEND:
                assert effect.message is not None
                self._send(Message(effect.message, effect.value))
            case Do.SUSPEND:
                self.primary_work.append(PrimaryEvent.SUSPENDED)
            case Do.SAVE_RAM:
                self._send(Payload("ram", self.memory))
                self.primary_work.append(PrimaryEvent.RAM_SAVED)
            case Do.SAVE_DEVICES:
                self.primary_work.append(PrimaryEvent.DEVICES_SAVED)
            case Do.SEND_DEVICES:
                self._send(Payload("devices", self.memory))
            case Do.RESUME:
                self.primary_work.append(PrimaryEvent.RESUMED)
            case Do.CLOSE:
                self.cut()
                self.solo = True
            case Do.RELEASE:
                if not self.solo:
                    assert self.committed is not None
                    assert max(self.held) <= self.committed, "output commit"
                self.released += self.held
                self.held = []
            case other:
                raise AssertionError(f"the primary asks for {other}")

    def _send(self, item: Message | Payload) -> None:
        if self.connected:
            self.to_secondary.append(item)

    def _secondary_did(self, event: str, effects: tuple[Effect, ...]) -> str:
        self._write("secondary", event, self.secondary.state.name, effects)
        for effect in effects:
            self._perform_secondary(effect)
        return spell(effects)

    def _perform_secondary(self, effect: Effect) -> None:
        match effect.do:
            case Do.SEND:
                assert effect.message is not None
                if self.connected:
                    self.to_primary.append(Message(effect.message, effect.value))
            case Do.COMMIT:
                (memory,) = set(self.staged.values())  # all parts are of one epoch
                assert set(self.staged) in ({"migration"}, {"ram", "devices"})
                if self.committed is None:
                    self.applied = memory
                self.committed = memory
                self.staged = {}
            case Do.DISCARD:
                self.staged = {}
            case Do.APPLY:
                self.secondary_work.append(None)
            case Do.PREPARE:
                self.secondary_work.append(SecondaryEvent.PREPARED)
            case Do.RECEIVE_RAM:
                assert self.applied == self.committed, "there is one staging area"
                assert not self.staged
            case Do.RECEIVE_DEVICES:
                assert effect.value == DEVICE_SIZE
            case Do.CLOSE:
                self.cut()
            case Do.TAKE_OVER:
                assert not self.staged, "nothing partial is run"
                assert self.committed is not None
                self.taken_over = self.committed
                self.secondary_work = deque(e for e in self.secondary_work if e is None)
                self.secondary_work.append(SecondaryEvent.RESUMED)
            case other:
                raise AssertionError(f"the secondary asks for {other}")

    def _write(self, role: str, event: str, state: str, effects: tuple[Effect, ...]) -> None:
        done = f": {spell(effects)}" if effects else ""
        self.log.append(f"{role} {event} → {state}{done}")
