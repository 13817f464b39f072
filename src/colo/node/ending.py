"""What a host says at the end of its part, and of an order to decide: by the state."""

from __future__ import annotations

from typing import Final

from colo.errors import ColoError
from colo.membership.grant import Ending
from colo.membership.states import Do, State
from colo.membership.words import WordKind

__all__ = ["ENDINGS", "HUNG", "LAST", "WORDS", "decided", "ordered"]

#: What the other host is told.
WORDS: Final = {
    Do.SAY_SHUTDOWN: WordKind.SHUTDOWN,
    Do.SAY_BYE: WordKind.BYE,
    Do.SAY_ALONE: WordKind.ALONE,
    Do.SAY_HANDOVER: WordKind.HANDOVER,
}
#: What the arbiter is told.
ENDINGS: Final = {
    Do.GIVE_BACK: Ending.LEFT,
    Do.GIVE_BACK_UNUSED: Ending.UNUSED,
    Do.GIVE_BACK_SHUT_DOWN: Ending.SHUT_DOWN,
}

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


def decided(state: State, ok: bool, hung: bool, missing: str) -> str:
    """What an operator hears who has said that the VM is to run here.

    ``ok``: it does.  ``hung``: its QEMU does not answer.  ``missing``: what it takes to decide.
    """
    match state:
        case State.LOST if hung:
            return "QEMU does not answer, and is waited for"
        case State.LOST:
            return f"{missing}; --force does without it"
        case State.FENCED:
            return "the other host has the right to run the VM"
        case State.LEFT:
            return "colo was told to end before anybody had decided"
        case State.DEAD:
            return "QEMU does not answer" if hung else "the VM has ended meanwhile"
        case State.RESUMING | State.PARTING:
            return "nothing to decide: the decision has fallen"
        case _ if ok:
            return "the VM runs here alone"
        case _:
            return f"nothing to decide: the VM is {state.name}"


def ordered(state: State, ok: bool, number: int, waits: bool, error: ColoError | None) -> str:
    """What an operator is told who has a secondary's host run the VM.

    ``number``: of the last whole checkpoint; ``waits``: for a right that there is no answer about.
    """
    match state:
        case _ if ok:
            return f"the VM runs here, from checkpoint {number}"
        case State.KEEPING:
            return (
                "the primary is connected and its VM runs: two VMs would run; "
                "end that one first, or say --force"
            )
        case State.ORPHANED if waits:
            return f"{error}; --force does without it"
        case State.ORPHANED:
            return f"the VM could not be started: {error}"
        case _:
            return "there is no whole checkpoint to run the VM from"
