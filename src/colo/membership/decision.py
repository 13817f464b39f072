"""What a side that lost something does: pure decisions, in one place for both roles.

The rule behind both tables: while the control link lives, the primary decides, because its VM is
the newer one; once the link is gone, the arbiter decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from colo.membership.grant import Grant
from colo.membership.words import Word, WordKind

__all__ = ["Decision", "Heard", "LinkState", "OnLoss", "decide_secondary"]


class LinkState(Enum):
    """The control link as one side sees it."""

    NONE = "there never was one: the primary is a stock QEMU"
    UP = "the other side is heard"
    LOST = "it is closed, or silent beyond its limit"


class OnLoss(Enum):
    """Whether a secondary asks for the right to run the VM, or leaves that to an operator."""

    TAKEOVER = "takeover"
    HOLD = "hold"


class Decision(Enum):
    """What to do now."""

    GO_ON = "nothing is lost"
    WAIT = "the primary is still there and has to say what it does"
    FORGET = "the VM needs nobody: it runs elsewhere, or has ended in good order"
    ASK = "ask the arbiter for the right to run the VM"


_GONE = frozenset({WordKind.DEAD, WordKind.HANDOVER})
_FORGET = frozenset({WordKind.SHUTDOWN, WordKind.BYE, WordKind.ALONE})


@dataclass
class Heard:
    """What a secondary has heard of its primary; without a control link that is nothing.

    ``known``: the number of the grant under which the primary runs; ``holder``: its name as that
    grant's holder, or "".  ``word``: the last of dead, handover,
    shutdown, bye and alone, or None.
    """

    link: LinkState = LinkState.NONE
    known: int = 0
    holder: str = ""
    word: WordKind | None = None
    _last: int | None = None

    def hear(self, word: Word) -> bool:
        """Take a word; return whether there is something to decide now."""
        if word.kind not in _GONE | _FORGET:
            return False
        self.word, self._last = word.kind, word.grant
        return True

    @property
    def is_gone(self) -> bool:
        """Whether the primary has said that it runs the VM no more."""
        return self.word in _GONE

    @property
    def void(self) -> Grant | None:
        """A grant that the primary may have got in vain, as it is dead: it is in nobody's way.

        Only the very one of which it said so, and under its own name: whoever has another runs.
        """
        if self.word is not WordKind.DEAD or self._last is None or not self.holder:
            return None
        return Grant(self._last, self.holder)


def decide_secondary(channel_up: bool, heard: Heard) -> Decision:
    """Decide for a secondary that has a whole checkpoint."""
    if heard.word in _FORGET:
        return Decision.FORGET
    if heard.is_gone:
        # What the primary's QEMU still had sent is in the channel: read it to its end first.
        return Decision.WAIT if channel_up else Decision.ASK
    if heard.link is LinkState.LOST:
        return Decision.ASK
    if channel_up:
        return Decision.GO_ON
    return Decision.ASK if heard.link is LinkState.NONE else Decision.WAIT
