"""What both roles share: looking a row up, changing the state, and saying so.

A machine does nothing itself.  ``handle`` takes one event and returns the effects that the
row asks for; the caller performs them in order and reports back with further events.

Every message and every change of the VM's state can be traced through the logger
``colo.trace`` at level DEBUG, with the VM's name and the checkpoint's number.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import Final, Generic

from colo.errors import InvariantBroken, LocalProtocolError, UnexpectedMessage
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import (
    CourierEvent,
    Do,
    Effect,
    Event,
    PrimaryEvent,
    S,
    SecondaryEvent,
    Step,
    Table,
)

__all__ = ["Machine", "VMState"]

_BEGINS: Final = frozenset(
    {PrimaryEvent.CHECKPOINT_DUE, CourierEvent.CHECKPOINT_DUE, COLOMessage.CHECKPOINT_REQUEST}
)
_trace = logging.getLogger("colo.trace")


class VMState(Enum):
    """What the VM of this role does, as far as the role knows."""

    NONE = "none"
    RUN = "run"
    STOP = "stop"

    def __str__(self) -> str:
        return self.value


class Machine(Generic[S]):
    """One role of the protocol, stepping through its table.

    ``number`` is that of the checkpoint under way, or of the last one between two of them;
    the first migration is number 0.
    """

    role: str

    def __init__(self, table: Table[S], state: S, vm: VMState, vm_name: str) -> None:
        self._table = table
        self._state = state
        self._vm = vm
        self._vm_name = vm_name
        self.number = 0

    @property
    def state(self) -> S:
        """The state as it is now."""
        return self._state

    @property
    def vm(self) -> VMState:
        """Whether this role's VM runs."""
        return self._vm

    @property
    def expected(self) -> COLOMessage | None:
        """The one message that may come now, or None."""
        return next(
            (e for s, e in self._table if s is self._state and isinstance(e, COLOMessage)), None
        )

    def receive(self, message: Message) -> tuple[Effect, ...]:
        """Take a message from the peer.  Raises UnexpectedMessage and leaves the state as it was.

        The value of VMSTATE_SIZE goes into the effect RECEIVE_DEVICES.
        """
        step = self._table.get((self._state, message.kind))
        if step is None:
            raise UnexpectedMessage(message.kind, self.expected, self._state.name)
        return self._take(step, message.kind, message.value, message)

    def handle(
        self, event: PrimaryEvent | CourierEvent | SecondaryEvent, value: int | None = None
    ) -> tuple[Effect, ...]:
        """Take a local event.  ``value`` is the size in bytes that goes with DEVICES_SAVED.

        Raises LocalProtocolError and leaves the state as it was.
        """
        step = self._table.get((self._state, event))
        if step is None:
            raise LocalProtocolError(f"{self.role}: {event.name} is illegal in {self._state.name}")
        return self._take(step, event, value)

    def _count(self, event: Event) -> None:
        """A checkpoint begins where one is due, or asked for."""
        if event in _BEGINS:
            self.number += 1

    def can(self, event: Event) -> bool:
        """Whether the table has a row for this event in this state."""
        return (self._state, event) in self._table

    def _take(
        self, step: Step[S], event: Event, value: int | None, received: Message | None = None
    ) -> tuple[Effect, ...]:
        effects = step.effects
        if value is not None:
            effects = tuple(
                Effect(e.do, e.message, value) if _takes_value(e) else e for e in effects
            )
        self._follow(event, effects)
        self._count(event)
        if received is not None:
            self._say("received %s", received)
        self._change(step.to, event)
        for effect in effects:
            if effect.message is not None:
                self._say("sends %s", Message(effect.message, effect.value))
        return effects

    def _follow(self, event: Event, effects: tuple[Effect, ...]) -> None:
        """Check the invariant over one transition, and follow what it speaks of.

        Raises InvariantBroken, and nothing has changed.
        """

    def _guard(self, holds: bool, rule: str, event: Event) -> None:
        if not holds:
            raise InvariantBroken(
                f"{self.role}: {event.name} in {self._state.name} would break: {rule}"
            )

    def _change(self, to: S, event: Event) -> None:
        """The only place where the state changes."""
        if to is not self._state:
            self._say("%s → %s (%s)", self._state, to, event.name)
            self._state = to

    def _change_vm(self, to: VMState) -> None:
        """The only place where the VM's state changes."""
        if to is not self._vm:
            self._say("VM %s → %s", self._vm, to)
            self._vm = to

    def _say(self, text: str, *args: object) -> None:
        if _trace.isEnabledFor(logging.DEBUG):
            _trace.debug("%s #%d %s " + text, self._vm_name, self.number, self.role, *args)


def _takes_value(effect: Effect) -> bool:
    return effect.do is Do.RECEIVE_DEVICES or effect.message is COLOMessage.VMSTATE_SIZE
