"""The primary: it owns the running VM and decides when a checkpoint is taken."""

from __future__ import annotations

from colo.protocol.machine import Machine, VMState
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import PRIMARY, Do, Effect, Event, PrimaryEvent, PrimaryState

__all__ = ["Primary"]

_STOPS = frozenset({PrimaryEvent.MIGRATED, PrimaryEvent.SUSPENDED})
_SAVES = frozenset({Do.SAVE_RAM, Do.SAVE_DEVICES, Do.SEND_DEVICES})


class Primary(Machine[PrimaryState]):
    """The primary's machine.

    Output commit, checked on every transition: packets are released only when the secondary
    has said VMSTATE_RECEIVED, or by the decision to run alone.  And what is saved is the state
    of a stopped VM: nothing is saved while it runs.
    """

    role = "primary"

    def __init__(self, vm_name: str) -> None:
        super().__init__(PRIMARY, PrimaryState.MIGRATING, VMState.RUN, vm_name)

    def _follow(self, event: Event, effects: tuple[Effect, ...]) -> None:
        vm = self.vm
        if event in _STOPS:
            vm = VMState.STOP
        elif event is PrimaryEvent.RESUMED:
            vm = VMState.RUN
        for effect in effects:
            if effect.do is Do.RELEASE:
                is_safe = event in (COLOMessage.VMSTATE_RECEIVED, PrimaryEvent.FAILOVER)
                self._guard(is_safe, "no packet leaves before it is safe", event)
            elif effect.do in _SAVES:
                self._guard(vm is VMState.STOP, "only a stopped VM is saved", event)
        self._change_vm(vm)
