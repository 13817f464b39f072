"""How a primary's part ends, by the state that it ends in."""

from __future__ import annotations

from typing import Final

from colo.membership.states import State

__all__ = ["HUNG", "LAST"]

#: How a part ends: the exit code, and a line for the user.  ``{shutdown}`` is QEMU's reason.
LAST: Final[dict[State, tuple[int, str]]] = {
    State.DEAD: (1, "QEMU is dead: the other host takes over"),
    State.SHUTDOWN: (0, "the guest has shut down ({shutdown}): nothing to take over"),
    State.ENDED: (0, "protection has ended: the VM goes on, unprotected"),
    State.FENCED: (1, ""),  # it was said when it happened
    State.LEFT: (1, "the VM is left silent, and undecided: `colo primary` begins anew"),
    State.REFUSED: (1, ""),
    State.GONE: (0, "ended at its very beginning: nothing is left behind"),
}
#: Instead of that of DEAD, where its process is there, and says nothing.
HUNG: Final = (
    "QEMU does not answer: the other host takes over if it has a checkpoint; the copy here is "
    "silent: end its QEMU"
)
