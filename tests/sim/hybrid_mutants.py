"""Deliberate breakages of the rules of hybrid mode: see ``mutants``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from colo.packets.comparing import OutputRule
from colo.packets.frames import ACK, Segment
from colo.packets.hybrid_words import Kind, Said
from colo.packets.other_vm import Other, OtherVm
from colo.packets.stand_in import GoesOn, Phase, StandIn
from tests.sim import comparing
from tests.sim.beside import Beside
from tests.sim.breaking import set_attribute as _set

__all__ = ["HYBRID_MUTANTS", "HYBRID_ONLY", "HYBRID_SEEDS"]

#: The breakages by name, as ``mutants.MUTANTS``.
HYBRID_MUTANTS: Final[dict[str, Callable[[contextlib.ExitStack], None]]] = {}

#: A seed at which it shows.
HYBRID_SEEDS: Final[dict[str, int]] = {
    "what_a_dead_secondary_vm_said_is_forgotten": 8,
    "what_it_says_is_not_noted": 8,
    "what_was_let_out_is_not_noted": 29,
    "asks_for_what_it_may_not_run": 8,
    "what_begins_is_taken_for_dead": 283,
    "one_begins_beside_a_takeover": 1587,
    "the_checkpoint_is_preferred_to_a_secondary_vm": 13,
    "a_commit_leaves_the_secondary_vm_running": 6,
    "words_of_an_older_epoch_count": 50,
    "the_words_of_an_epoch_outlive_it": 3,
    "an_acknowledgement_leaves_unasked": 173,
    "all_leaves_beside_a_secondary_vm": 8,
    "lets_out_where_it_may_not_be_heard": 26,
    "what_differs_waits_for_ever": 1,
    "what_waits_for_a_dead_one_waits_for_ever": 1,
}

_LOSSES: Final = (
    "secondary_vm_dies_and_then_its_primary", "primary_dies_beside_a_secondary_vm", "words_lag",
)  # fmt: skip
#: What shows seldom, unless little else goes wrong than that.
HYBRID_ONLY: Final[dict[str, tuple[str, ...]]] = {
    "what_was_let_out_is_not_noted": ("primary_dies_beside_a_secondary_vm",),
    "the_words_of_an_epoch_outlive_it": (*_LOSSES, "vms_differ"),
    "words_of_an_older_epoch_count": ("primary_dies_beside_a_secondary_vm", "vms_differ"),
    "an_acknowledgement_leaves_unasked": (
        "hybrid_link_is_silent",
        "primary_dies_beside_a_secondary_vm",
    ),
    "asks_for_what_it_may_not_run": ("secondary_vm_dies_and_then_its_primary",),
    "one_begins_beside_a_takeover": ("connection_breaks", "words_lag", "order_switchover"),
    "lets_out_where_it_may_not_be_heard": ("host_hangs", "words_lag"),
}


def _mutant(make: Callable[[contextlib.ExitStack], None]) -> None:
    HYBRID_MUTANTS[make.__name__] = make


@_mutant
def what_a_dead_secondary_vm_said_is_forgotten(stack: contextlib.ExitStack) -> None:
    def died(self: StandIn) -> None:
        self.phase, self.has_spoken = Phase.DIED, False

    _set(stack, StandIn, "died", died)


@_mutant
def what_it_says_is_not_noted(stack: contextlib.ExitStack) -> None:
    _set(stack, StandIn, "speaks", lambda self, is_told: None)


@_mutant
def what_was_let_out_is_not_noted(stack: contextlib.ExitStack) -> None:
    _set(stack, StandIn, "let_out", lambda self: None)


@_mutant
def asks_for_what_it_may_not_run(stack: contextlib.ExitStack) -> None:
    _set(stack, StandIn, "lacks", False)


@_mutant
def what_begins_is_taken_for_dead(stack: contextlib.ExitStack) -> None:
    """QEMU runs a VM before it says so: it may have spoken by then."""
    lacks = property(lambda self: self.goes_on_with() is GoesOn.NOTHING)
    _set(stack, StandIn, "lacks", lacks)


@_mutant
def one_begins_beside_a_takeover(stack: contextlib.ExitStack) -> None:
    _set(stack, StandIn, "take_over", lambda self: None)


@_mutant
def the_checkpoint_is_preferred_to_a_secondary_vm(stack: contextlib.ExitStack) -> None:
    _set(stack, StandIn, "goes_on_with", lambda self: GoesOn.CHECKPOINT)


@_mutant
def a_commit_leaves_the_secondary_vm_running(stack: contextlib.ExitStack) -> None:
    commits = StandIn.commits

    def commits_alone(self: StandIn, number: int) -> bool:
        commits(self, number)
        return False

    _set(stack, StandIn, "commits", commits_alone)


@_mutant
def words_of_an_older_epoch_count(stack: contextlib.ExitStack) -> None:
    """A secondary VM that a checkpoint has replaced lives on, and what it says still counts."""
    hear = OtherVm.hear

    def hear_all(self: OtherVm, said: Said, now: float) -> None:
        if said.kind is Kind.SAID:
            said = replace(said, number=self._covered)
        hear(self, said, now)

    def leave(self: Beside) -> None:
        self.vm = None
        self.stand_in.ended()

    def tell(self: Beside, number: int, data: bytes) -> None:
        if self.stand_in.number == number:
            self.stand_in.speaks(self.link is not None)
        self._say(Kind.SAID, number, data)

    _set(stack, OtherVm, "hear", hear_all)
    _set(stack, Beside, "_drop_vm", leave)
    _set(stack, Beside, "_tell", tell)


@_mutant
def the_words_of_an_epoch_outlive_it(stack: contextlib.ExitStack) -> None:
    def keep(self: OutputRule) -> None:
        self.differs = None

    _set(stack, OutputRule, "forget", keep)


@_mutant
def an_acknowledgement_leaves_unasked(stack: contextlib.ExitStack) -> None:
    """As with QEMU's colo-compare: what was uploaded lacks after a takeover."""
    same = OutputRule._same

    def by_data_alone(self: OutputRule, said: Any, now: float) -> bool | None:
        if isinstance(said, Segment):
            said = said._replace(flags=said.flags & ~ACK)
        return same(self, said, now)

    _set(stack, OutputRule, "_same", by_data_alone)


@_mutant
def all_leaves_beside_a_secondary_vm(stack: contextlib.ExitStack) -> None:
    def release(self: OutputRule, now: float) -> int:
        size = sum(length for _, length, _ in self._waiting) if self._is_live else 0
        if self._is_live:
            self._waiting.clear()
        return size

    _set(stack, OutputRule, "release", release)


@_mutant
def lets_out_where_it_may_not_be_heard(stack: contextlib.ExitStack) -> None:
    _set(stack, comparing, "CERTAIN_S", math.inf)


@_mutant
def what_differs_waits_for_ever(stack: contextlib.ExitStack) -> None:
    due_at = OtherVm.due_at

    def never(self: OtherVm, *about: Any) -> float:
        return math.inf if self.other is Other.RUNS else due_at(self, *about)

    _set(stack, OtherVm, "due_at", never)


@_mutant
def what_waits_for_a_dead_one_waits_for_ever(stack: contextlib.ExitStack) -> None:
    hear, due_at = OtherVm.hear, OtherVm.due_at

    def hear_but_that(self: OtherVm, said: Said, now: float) -> None:
        if said.kind is not Kind.GONE:
            hear(self, said, now)

    def never(self: OtherVm, *about: Any) -> float:
        is_there = self.other in (Other.BEGINS, Other.RUNS)
        is_alike = not any(each.differs for each in self.cards)
        return math.inf if is_there and is_alike else due_at(self, *about)

    _set(stack, OtherVm, "hear", hear_but_that)
    _set(stack, OtherVm, "due_at", never)
