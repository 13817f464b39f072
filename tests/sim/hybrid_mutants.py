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
from tests.sim.world import Connection, End

__all__ = ["HYBRID_MUTANTS", "HYBRID_ONLY", "HYBRID_SEEDS"]

#: The breakages by name, as ``mutants.MUTANTS``.
HYBRID_MUTANTS: Final[dict[str, Callable[[contextlib.ExitStack], None]]] = {}

#: A seed at which it shows.
HYBRID_SEEDS: Final[dict[str, int]] = {}

_LOSSES: Final = (
    "secondary_vm_dies_and_then_its_primary", "primary_dies_beside_a_secondary_vm", "words_lag",
)  # fmt: skip
#: What shows seldom, unless little else goes wrong than that.
HYBRID_ONLY: Final[dict[str, tuple[str, ...]]] = {
    "what_was_let_out_is_not_noted": ("primary_dies_beside_a_secondary_vm",),
    "the_words_of_an_epoch_outlive_it": (*_LOSSES, "vms_differ"),
    "words_of_an_older_epoch_count": (*_LOSSES, "vms_differ"),
    "old_words_are_said_over_a_new_link": ("hybrid_link_breaks", *_LOSSES),
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
    hear = OtherVm.hear

    def hear_all(self: OtherVm, said: Said, now: float) -> None:
        if said.kind is Kind.SAID:
            said = replace(said, number=self._covered)
        hear(self, said, now)

    _set(stack, OtherVm, "hear", hear_all)


@_mutant
def the_words_of_an_epoch_outlive_it(stack: contextlib.ExitStack) -> None:
    def keep(self: OutputRule) -> None:
        self.differs = None

    _set(stack, OutputRule, "forget", keep)


@_mutant
def old_words_are_said_over_a_new_link(stack: contextlib.ExitStack) -> None:
    """Host A goes on comparing where the link was cut, and host B says then what it had not."""
    tell, take = Beside._tell, Beside.take
    unsaid: list[tuple[int, bytes]] = []

    def keep(self: Beside, number: int, data: bytes) -> None:
        tell(self, number, data)
        if self.link is None:
            unsaid.append((number, data))

    def take_and_say(self: Beside, made: Connection, end: End) -> None:
        take(self, made, end)
        for number, data in unsaid:
            self._say(Kind.SAID, number, data)
        unsaid.clear()

    def unlinked(self: OtherVm, now: float) -> None:
        self._is_linked = False

    _set(stack, Beside, "_tell", keep)
    _set(stack, Beside, "take", take_and_say)
    _set(stack, OtherVm, "unlinked", unlinked)


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
def lets_out_before_it_runs(stack: contextlib.ExitStack) -> None:
    """What the checkpoint covers is on its way still, and nothing says that it is safe."""
    cover = OtherVm.cover

    def cover_and_live(self: OtherVm, number: int, now: float) -> None:
        was = self.other
        cover(self, number, now)
        if was is Other.RUNS:
            for each in self.cards:
                each.live(now)
            self.other, self._safe = was, number

    _set(stack, OtherVm, "cover", cover_and_live)


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
