"""The observer: it follows a primary that is not ours by what the secondary says to it."""

from __future__ import annotations

from colo.protocol.machine import Machine, VMState
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import OBSERVER, Do, Effect, Event, ObserverEvent, ObserverState

__all__ = ["Observer"]


class Observer(Machine[ObserverState]):
    """The observer's machine.

    Output commit, checked on every transition: packets are released only when the secondary has
    said VMSTATE_RECEIVED of a VM that is stopped, or by the decision to run alone.
    """

    role = "primary"

    def __init__(self, vm_name: str) -> None:
        super().__init__(OBSERVER, ObserverState.COPYING, VMState.RUN, vm_name)

    def _follow(self, event: Event, effects: tuple[Effect, ...]) -> None:
        vm = self.vm
        for effect in effects:
            if effect.message is COLOMessage.CHECKPOINT_REPLY:
                vm = VMState.STOP
            elif effect.do is Do.RELEASE:
                is_safe = event is COLOMessage.VMSTATE_RECEIVED and vm is VMState.STOP
                is_safe |= event is ObserverEvent.RESUMED
                self._guard(is_safe, "no packet leaves before it is safe", event)
            elif effect.do is Do.RESUME and event is not ObserverEvent.FAILOVER:
                vm = VMState.RUN
        if event is ObserverEvent.RESUMED:
            vm = VMState.RUN
        self._change_vm(vm)
