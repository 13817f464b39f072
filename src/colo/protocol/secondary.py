"""The secondary: it keeps the last whole checkpoint and can run the VM from it."""

from __future__ import annotations

from colo.protocol.machine import Machine, VMState
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import SECONDARY, Do, Effect, Event, SecondaryEvent, SecondaryState

__all__ = ["Secondary"]


class Secondary(Machine[SecondaryState]):
    """The secondary's machine.

    Whole checkpoints, checked on every transition: CHECKPOINT_READY and VMSTATE_RECEIVED are
    said only after the commit of the very state that they acknowledge, and the VM is taken
    over only when nothing partial is staged.
    """

    role = "secondary"

    def __init__(self, vm_name: str) -> None:
        super().__init__(SECONDARY, SecondaryState.INCOMING, VMState.NONE, vm_name)
        self._committed = False  # since the last request, or since the start
        self._partial = True  # something is staged that is not whole

    def _follow(self, event: Event, effects: tuple[Effect, ...]) -> None:
        committed, partial = self._committed, self._partial
        for effect in effects:
            if effect.do is Do.RECEIVE_RAM:
                committed, partial = False, True
            elif effect.do is Do.COMMIT:
                committed, partial = True, False
            elif effect.do is Do.DISCARD:
                partial = False
            elif effect.do is Do.TAKE_OVER:
                self._guard(not partial, "nothing partial is taken over", event)
            if effect.message in (COLOMessage.CHECKPOINT_READY, COLOMessage.VMSTATE_RECEIVED):
                self._guard(committed, "only what is committed is acknowledged", event)
        self._committed, self._partial = committed, partial
        if event is SecondaryEvent.RESUMED:
            self._change_vm(VMState.RUN)
