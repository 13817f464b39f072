"""How a session of the primary ends, and what is left of it where no other follows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from colo.node.running_on import Verdict
from colo.node.standing import Standing

__all__ = ["LAST", "End", "Last"]


class End(Enum):
    """How a session ended, before anything was decided."""

    LOST = "the secondary is lost"
    DIED = "QEMU is dead"
    SHUTDOWN = "the guest has shut down"
    ORDERED = "protection was ended by an order"


@dataclass(frozen=True)
class Last:
    """What is left: how the VM stands, a line for the user or "", and the exit code."""

    standing: Standing
    text: str
    code: int


#: After the ends for good, and the decisions that are one.  ``{shutdown}`` is QEMU's reason.
LAST: Final[dict[End | Verdict, Last]] = {
    End.DIED: Last(Standing.DEAD, "QEMU is dead: the other host takes over", 1),
    End.SHUTDOWN: Last(
        Standing.SHUTDOWN, "the guest has shut down ({shutdown}): nothing to take over", 0
    ),
    End.ORDERED: Last(Standing.ENDED, "protection has ended: the VM goes on, unprotected", 0),
    Verdict.FENCED: Last(Standing.FENCED, "", 1),  # it was said when it happened
    Verdict.HUNG: Last(
        Standing.DEAD,
        "QEMU does not answer: the other host takes over if it has a checkpoint; the copy here is "
        "silent: end its QEMU",
        1,
    ),
    Verdict.LEFT: Last(
        Standing.LOST, "the VM is left silent, and undecided: `colo primary` begins anew", 1
    ),
}
