"""The courier: it takes each checkpoint from a primary that is not ours to the secondary."""

from __future__ import annotations

from colo.protocol.machine import Machine, VMState
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import COURIER, CourierEvent, CourierState, Do, Effect, Event

__all__ = ["Courier"]

_WHOLE = frozenset({CourierEvent.TAKEN, CourierEvent.PASSED})
_SAYS_SAFE = frozenset({COLOMessage.CHECKPOINT_READY, COLOMessage.VMSTATE_RECEIVED})


class Courier(Machine[CourierState]):
    """The courier's machine.

    Output commit, checked on every transition: only the output of a stopped VM is covered, and only
    when all of its checkpoint is here; the VM does not go on before that; and packets are released
    only when the secondary has said VMSTATE_RECEIVED of the very checkpoint that covers them, or by
    the decision to run alone.
    """

    role = "primary"

    def __init__(self, vm_name: str) -> None:
        super().__init__(COURIER, CourierState.COPYING, VMState.RUN, vm_name)
        self._covered: int | None = None  # the checkpoint that covers what is marked,
        self._safe: int | None = None  # and the last one that the secondary has

    def _follow(self, event: Event, effects: tuple[Effect, ...]) -> None:
        vm, covered, safe = self.vm, self._covered, self._safe
        is_said = event in _SAYS_SAFE
        if event in _WHOLE:
            vm = VMState.STOP  # the first copy has stopped it too
        for effect in effects:
            if effect.message is COLOMessage.CHECKPOINT_REPLY:
                vm, covered = VMState.STOP, None
            elif effect.do is Do.COVER:
                is_still = event in _WHOLE and vm is VMState.STOP
                self._guard(is_still, "only what a stopped VM has sent is covered", event)
                covered = self.number
            elif effect.do is Do.RELEASE:
                is_safe = is_said and covered == self.number and safe != self.number
                is_safe |= event is CourierEvent.RESUMED
                self._guard(is_safe, "no packet leaves before it is safe", event)
            elif effect.do is Do.RESUME and event is not CourierEvent.FAILOVER:
                is_marked = covered == self.number
                self._guard(is_marked, "the VM runs on once its output is covered", event)
                vm = VMState.RUN
        if event is CourierEvent.RESUMED:
            vm = VMState.RUN
        self._covered, self._safe = covered, self.number if is_said else safe
        self._change_vm(vm)
