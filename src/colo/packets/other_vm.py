"""The secondary VM as host A knows of it: when one begins, whose words count, what waits for it.

A secondary VM is of one checkpoint.  While the next one is on its way nothing is compared: what the
VM said before it leaves with it, and what it says from then on is compared with the secondary VM
that begins from it.  *Only what the secondary VM of the last safe checkpoint says, over the very
link by which that checkpoint was told, lets anything out.*  Where none runs, or a difference was
found, output waits for checkpoints, as in periodic mode.

No I/O; the time is an argument, in seconds, of a clock that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final, Protocol

from colo.errors import PeerError
from colo.packets.comparing import Counts, OutputRule
from colo.packets.costs import Costs
from colo.packets.hybrid_words import Kind, Said
from colo.packets.pace import Pace, due_at
from colo.packets.worth import Worth

__all__ = ["Around", "Other", "OtherVm"]

#: Output waits no longer for a secondary VM that has yet to begin, and to catch up.
_CATCH_UP_S: Final = 0.5
_HEARD_S: Final = 0.01
#: Beside a secondary VM its primary runs at least so long, where nothing waits for a checkpoint:
#: how much it writes is known of short runs, and says too much of a long one.
_RUN_S: Final = 1.0


class Other(Enum):
    """The secondary VM, as host A knows of it."""

    NONE = "there is none"
    READY = "one can begin from the next checkpoint"
    BEGINS = "it begins from the last checkpoint"
    RUNS = "it runs, from the last checkpoint"


#: It has the last checkpoint.
_THERE: Final = (Other.BEGINS, Other.RUNS)


class Around(Protocol):
    """What is around the decisions, and performs them."""

    def say(self, said: Said) -> None:
        """Have host B told this."""

    def release(self, card: int, count: int) -> None:
        """Let so many bytes out of what the card's gate holds, the oldest first."""

    def may_release(self) -> bool:
        """Whether host B still takes us for the primary; where it may not, the session ends."""

    def urge(self) -> None:
        """Have a checkpoint taken as soon as can be."""

    def schedule(self) -> None:
        """Ask anew when the next checkpoint is due."""

    def tell(self, text: str) -> None:
        """Tell the user a line."""


class OtherVm:
    """The decisions of host A.

    ``always``: it is not asked whether a secondary VM pays.  ``limit``: of what it says ahead, in
    bytes a card.  ``patience_s``: the longest that output waits for it.  ``age_max_s``: how old a
    checkpoint gets beside one.
    """

    def __init__(
        self, always: bool, limit: int, patience_s: float, age_max_s: float, around: Around
    ) -> None:
        self._limit, self._patience_s, self._age_max_s = limit, patience_s, age_max_s
        self._around = around
        self.cards: list[OutputRule] = []
        self._counts = Counts()
        self._covered = self._safe = -1
        self._is_linked = False
        self._is_cut = False  # the other host knows what came after the last checkpoint
        self.other = Other.NONE
        self._since = 0.0
        self._has_caught_up = False
        self._heard_at = 0.0
        self._worth = Worth(always)
        self._spells = 0
        self._causes: dict[str, int] = {}

    # -- a session ------------------------------------------------------------------------

    def begin(self, vnets: Sequence[bool]) -> None:
        """Compare from the first copy on.

        ``vnets``: of each card, whether its frames have virtio-net headers.
        """
        self._covered = self._safe = -1
        self.other, self._is_cut, self._is_linked = Other.NONE, False, False
        self.cards = [OutputRule(self._limit, self._counts, each) for each in vnets]

    def linked(self) -> None:
        """There is a link: what is said over it counts."""
        self._is_linked = True

    def unlinked(self, now: float) -> None:
        """It is of no use any more."""
        self._is_linked = False
        self._gone("link", now)

    def end(self) -> None:
        """The session is over: nothing leaves by the rule any more."""
        self._is_linked, self.other = False, Other.NONE
        self.cards = []

    # -- checkpoints ----------------------------------------------------------------------

    def cover(self, number: int, now: float) -> None:
        """The VM is stopped for this checkpoint, which covers what it has said and got."""
        self._covered = number
        if self.other in _THERE:
            differs = next((each.differs for each in self.cards if each.differs), None)
            lags = self._waited_s(now) >= self._worth.patience(self._patience_s)
            self._ended(differs or ("lag" if lags else "pace"), now)
        for each in self.cards:
            each.cover()
        if self._is_linked:
            self._around.say(Said(Kind.CUT, number=number))
            self._is_cut = True

    def safe(self, number: int, held_s: float, now: float) -> None:
        """That checkpoint is safe.  ``held_s``: how long output was held for it."""
        self._safe = number
        self._worth.periodic(held_s)
        self._want(now)

    def _want(self, now: float) -> None:
        """Have a secondary VM begin, where one can and pays."""
        is_between = self._is_cut and self._safe == self._covered >= 0
        if self.other is Other.READY and is_between and self._worth.is_due(now):
            self.other, self._since = Other.BEGINS, now
            self._has_caught_up = False
            self._worth.begins(self._counts.alike, self._counts.waited_s)
            self._around.say(Said(Kind.START, number=self._safe))

    def _ended(self, cause: str, now: float) -> None:
        """There is none any more, and this is why."""
        self._causes[cause] = self._causes.get(cause, 0) + 1
        counts = self._counts
        self._worth.ended(now, counts.alike, counts.waited_s, self._waited_s(now))
        self.other = Other.NONE

    def _waited_s(self, now: float) -> float:
        """How long the oldest packet that waits has done so."""
        since = [each.waits_since for each in self.cards if each.waits_since is not None]
        return now - min(since, default=now)

    def _gone(self, cause: str, now: float) -> None:
        """None runs from the last checkpoint any more: what it has said has to be covered."""
        self._is_cut = self._is_cut and self._is_linked
        if self.other in _THERE:
            self._ended(cause, now)
            for each in self.cards:
                each.forget()
            self._around.urge()
        self.other = Other.NONE
        self._around.schedule()

    # -- what is said ---------------------------------------------------------------------

    def input(self, card: int, data: bytes) -> None:
        """The network brings this for the VM."""
        if self._is_linked and self._is_cut:
            self._around.say(Said(Kind.INPUT, card, payload=data))

    def says(self, card: int, data: bytes, now: float) -> int:
        """The primary VM says this: how much may leave of all that it has said."""
        each = self.cards[card]
        count = each.primary(data, now)
        if each.differs is not None and self.other is Other.RUNS:
            self._around.schedule()
        return count if count and self._around.may_release() else 0

    def hear(self, said: Said, now: float) -> None:
        """Host B says this.  Raises PeerError where that is none of its words."""
        match said.kind:
            case Kind.READY:
                if self.other is Other.NONE:
                    self.other = Other.READY
                    self._want(now)
            case Kind.RUNS if self.other is Other.BEGINS and said.number == self._covered:
                self.other = Other.RUNS
                self._spells += 1
                for card, each in enumerate(self.cards):
                    self._release(card, each.live(now))
                self._around.schedule()
            case Kind.SAID if self.other in _THERE:
                if said.number == self._covered == self._safe:
                    self._compare(said.card, said.payload, now)
            case Kind.GONE if said.number == self._covered:
                self._around.tell(said.payload.decode(errors="replace"))
                self._gone("secondary VM", now)
            case Kind.RUNS | Kind.SAID | Kind.GONE:
                pass  # of a secondary VM that a checkpoint has replaced meanwhile
            case other:
                raise PeerError(f"the hybrid link says {other.name} out of place")

    def _compare(self, card: int, data: bytes, now: float) -> None:
        """The secondary VM says this."""
        each = self.cards[card]
        self._release(card, each.secondary(data, now))
        if self.other is Other.RUNS and not self._has_caught_up:
            patience_s = self._worth.patience(self._patience_s)
            self._has_caught_up = self._waited_s(now) < patience_s / 2
        if each.differs is not None:
            self._around.schedule()
        if now - self._heard_at > _HEARD_S:
            self._say_heard(now)

    def _say_heard(self, now: float) -> None:
        """Say how much of what the secondary VM has said has left here, or would be said again."""
        self._heard_at = now
        for card, each in enumerate(self.cards):
            count = each.heard(now)
            if count and self._is_linked:
                self._around.say(Said(Kind.HEARD, card, count))

    def _release(self, card: int, count: int) -> None:
        if count and self._around.may_release():
            self._around.release(card, count)

    # -- when the next checkpoint is due --------------------------------------------------

    def waits_until(self, pace: Pace, held_since: float | None, held_bytes: int) -> float | None:
        """Until when what is held waits for the secondary VM; None where it does not.

        Then it is as in periodic mode: none runs or is about to, or something has differed.  One
        that begins has to catch up first; one that has, and lags again, is behind for good.
        """
        if any(each.differs is not None for each in self.cards) or held_bytes >= pace.high_water:
            return None
        if self.other not in _THERE:
            return None
        if held_since is None:
            return math.inf
        if self._has_caught_up:
            return held_since + self._worth.patience(self._patience_s)
        return max(self._since, held_since) + _CATCH_UP_S

    def due_at(
        self,
        pace: Pace,
        costs: Costs,
        held_since: float | None,
        held_bytes: int,
        resumed_at: float,
        stopped_s: float,
    ) -> float:
        """Return when the next checkpoint is due: see ``packets.pace``."""
        until = self.waits_until(pace, held_since, held_bytes)
        if until is None:
            return due_at(pace, costs, held_since, held_bytes, resumed_at, stopped_s)
        relaxed = replace(pace, age_max_s=self._age_max_s)
        idle = due_at(relaxed, costs, None, 0, resumed_at, stopped_s)
        return min(until, max(resumed_at + _RUN_S, idle))

    def status(self, now: float) -> dict[str, Any]:
        """What the status file has of it."""
        return {
            "other": self.other.name,
            "meaning": self.other.value,
            "link": self._is_linked,
            "compared": self._counts.compared,
            "alike": self._counts.alike,
            "differed": dict(self._counts.differed),
            "spells": self._spells,
            "ended_by": dict(self._causes),
            "rests_s": max(0.0, self._worth.rests_until - now),
        }
