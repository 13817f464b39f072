"""What a side that lost something does: pure decisions, in one place for both roles.

The rule behind both tables: while the control link lives, the primary decides, because its VM is
the newer one; once the link is gone, the arbiter decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from colo.failover.link import WordKind

__all__ = ["Decision", "LinkState", "SecondaryView", "decide_secondary"]


class LinkState(Enum):
    """The control link as one side sees it."""

    NONE = "there never was one: the primary is a stock QEMU"
    UP = "the other side is heard"
    LOST = "it is closed, or silent beyond its limit"


class Decision(Enum):
    """What to do now."""

    GO_ON = "nothing is lost"
    WAIT = "the primary is still there and has to say what it does"
    FORGET = "the VM needs nobody: it runs elsewhere, or has ended in good order"
    ASK = "ask the arbiter for the right to run the VM"


@dataclass(frozen=True)
class SecondaryView:
    """What a secondary sees.  ``word``: the last of dead, shutdown, bye and alone, or None."""

    channel_up: bool
    link: LinkState
    word: WordKind | None = None


_FORGET = frozenset({WordKind.SHUTDOWN, WordKind.BYE, WordKind.ALONE})


def decide_secondary(view: SecondaryView) -> Decision:
    """Decide for a secondary that has a whole checkpoint."""
    if view.word in _FORGET:
        return Decision.FORGET
    if view.word is WordKind.DEAD:
        # What the primary's QEMU still had sent is in the channel: read it to its end first.
        return Decision.WAIT if view.channel_up else Decision.ASK
    if view.link is LinkState.LOST:
        return Decision.ASK
    if view.channel_up:
        return Decision.GO_ON
    return Decision.ASK if view.link is LinkState.NONE else Decision.WAIT
