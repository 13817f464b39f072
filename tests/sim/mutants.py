"""Deliberate breakages of the rules, each of which the simulation has to notice.

The machines' own invariants are switched off: what notices is outside of them.  ``SEEDS`` has a
seed for each, at which its breakage shows; ``python -m tests.sim.mutants`` looks for them anew,
up to seed 2000 or the one that it is given, or for those that are named behind that.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from multiprocessing import Pool
from typing import Any, Final, cast

from colo.membership import grant as moves
from colo.membership import roles
from colo.membership.grant import Grant
from colo.membership.member import Facts, Member
from colo.membership.states import Do, Event, Row, State, When
from colo.membership.table import TABLE
from colo.packets.gate import Gate
from colo.protocol.machine import Machine
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import (
    COURIER,
    SECONDARY,
    CourierEvent,
    CourierState,
    Effect,
    SecondaryEvent,
    SecondaryState,
    Step,
)
from colo.protocol.tables import Do as ProtocolDo
from tests.sim import leading
from tests.sim.breaking import set_attribute as _set
from tests.sim.hybrid_mutants import HYBRID_MUTANTS, HYBRID_ONLY, HYBRID_SEEDS
from tests.sim.run import Outcome, play

__all__ = ["MUTANTS", "SEARCHED", "SEEDS", "broken", "play_broken", "play_whole"]

_S, _E, _D = State, Event, Do
_ALL_THERE_IS: Final = (Effect(ProtocolDo.COVER), Effect(ProtocolDo.RELEASE))

#: The breakages by name; each makes its own, with what undoes it.
MUTANTS: Final[dict[str, Callable[[contextlib.ExitStack], None]]] = {}

#: A seed at which it shows.
SEEDS: Final[dict[str, int]] = {
    "takes_over_without_asking": 4,
    "takes_over_where_nobody_answers": 6,
    "takes_over_though_another_has_the_grant": 6,
    "runs_alone_without_asking": 4,
    "runs_alone_where_nobody_answers": 4,
    "runs_alone_though_another_has_the_grant": 4,
    "ends_the_protection_on_its_own_word": 319,
    "ends_the_protection_without_asking": 319,
    "releases_when_the_vm_stops": 16,
    "releases_when_the_secondary_replies": 16,
    "releases_by_the_local_answer": 16,
    "releases_the_epoch_after": 17,
    "does_not_hold": 4,
    "does_not_hold_where_a_first_copy_is_lost": 4421,
    "commits_before_all_is_here": 3,
    "acknowledges_before_all_is_here": 1,
    "takes_a_grant_that_has_moved_on": 4,
    "takes_any_grant_for_void": 6,
    "gives_the_grant_back_that_the_copy_needs": 371,
    "forgets_the_only_copy": 5,
    "forgets_at_the_first_ctrl_c": 194,
    "says_alone_before_it_may": 25,
    "opens_the_gate_of_a_fenced_vm": 4,
    "goes_on_after_a_handover": 4,
    "starts_before_it_asks": 37,
    "starts_from_an_old_state": 1,
    "adopts_a_stale_vm": 18,
    "adopts_what_was_shut_down_elsewhere": 382,
    "releases_though_it_may_not_be_heard": 121,
    "starts_by_a_grant_that_may_be_old": 1217,
    "asks_only_once_for_the_vm": 27,
    "forgets_what_an_operator_has_forced": 11,
    "ends_what_may_run_where_nobody_answers": 11,
    "parts_without_holding": 546,
}

#: What shows seldom, unless nothing else goes wrong than that.
ONLY: Final = {"parts_without_holding": ("colo_is_told_to_end", "host_is_cut_off")}

#: What shows in the search, and seldom by chance.
SEARCHED: Final = ("overrides_the_arbiter_by_an_order",)


@contextlib.contextmanager
def broken(name: str) -> Iterator[None]:
    """The world with one rule broken."""
    with contextlib.ExitStack() as stack:
        _set(stack, Member, "_check", lambda self, event, row: None)
        _set(stack, Machine, "_guard", lambda self, holds, rule, event: None)
        MUTANTS[name](stack)
        yield


def _row(stack: contextlib.ExitStack, state: State, event: Event, *rows: Row) -> None:
    """Have other rows."""
    table = cast(MutableMapping[Any, Any], TABLE)
    stack.callback(table.__setitem__, (state, event), table[state, event])
    table[state, event] = rows


def _step(stack: contextlib.ExitStack, table: Any, key: Any, *effects: Effect) -> None:
    """Have a row of a protocol's table do this as well, and first."""
    stack.callback(table.__setitem__, key, table[key])
    table[key] = Step(table[key].to, (*effects, *table[key].effects))


def _mutant(make: Callable[[contextlib.ExitStack], None]) -> None:
    MUTANTS[make.__name__] = make


@_mutant
def takes_over_without_asking(stack: contextlib.ExitStack) -> None:
    for event in (_E.LINK_LOST, _E.LOST):
        _row(stack, _S.KEEPING, event, Row(_S.TAKING_OVER, (_D.CLOSE, _D.LOAD)))


@_mutant
def takes_over_where_nobody_answers(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.ORPHANED, _E.NO_ANSWER, Row(_S.TAKING_OVER, (_D.LOAD,)))


@_mutant
def takes_over_though_another_has_the_grant(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.ORPHANED, _E.DENIED, Row(_S.TAKING_OVER, (_D.LOAD,)))


@_mutant
def runs_alone_without_asking(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOST, _E.ANSWERS, Row(_S.RESUMING, (_D.RUN_ALONE,)))


@_mutant
def runs_alone_where_nobody_answers(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOST, _E.NO_ANSWER, Row(_S.RESUMING, (_D.RUN_ALONE,)))


@_mutant
def runs_alone_though_another_has_the_grant(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOST, _E.DENIED, Row(_S.RESUMING, (_D.RUN_ALONE,)))


@_mutant
def ends_the_protection_on_its_own_word(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.PARTING, _E.NO_ANSWER, Row(_S.RESUMING, (_D.CLOSE, _D.RUN_ALONE)))


@_mutant
def ends_the_protection_without_asking(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.PARTING, _E.ANSWERS, Row(_S.RESUMING, (_D.CLOSE, _D.RUN_ALONE)))


@_mutant
def releases_when_the_vm_stops(stack: contextlib.ExitStack) -> None:
    _step(stack, COURIER, (CourierState.REPLIED, CourierEvent.CHECKPOINT_DUE), *_ALL_THERE_IS)


@_mutant
def releases_when_the_secondary_replies(stack: contextlib.ExitStack) -> None:
    _step(stack, COURIER, (CourierState.RUNNING, COLOMessage.CHECKPOINT_REPLY), *_ALL_THERE_IS)


@_mutant
def releases_by_the_local_answer(stack: contextlib.ExitStack) -> None:
    _step(stack, COURIER, (CourierState.STOPPED, CourierEvent.TAKEN), *_ALL_THERE_IS)


@_mutant
def releases_the_epoch_after(stack: contextlib.ExitStack) -> None:
    release = Gate.release

    def all_of_it(gate: Gate, now: float) -> bytes:
        gate.cover()
        return release(gate, now)

    _set(stack, Gate, "release", all_of_it)


@_mutant
def does_not_hold(stack: contextlib.ExitStack) -> None:
    key = CourierState.COPIED, COLOMessage.CHECKPOINT_READY
    table = cast(Any, COURIER)
    stack.callback(table.__setitem__, key, table[key])
    said = Effect(ProtocolDo.SEND, COLOMessage.CHECKPOINT_READY)
    table[key] = Step(CourierState.RUNNING, (said, Effect(ProtocolDo.RESUME)))


@_mutant
def does_not_hold_where_a_first_copy_is_lost(stack: contextlib.ExitStack) -> None:
    for event in (_E.LOST, _E.LINK_LOST):
        _row(stack, _S.COPYING, event, Row(_S.LOST, (_D.CLOSE, _D.LOOK)))


@_mutant
def commits_before_all_is_here(stack: contextlib.ExitStack) -> None:
    key = SecondaryState.RECEIVING_RAM, SecondaryEvent.RAM_RECEIVED
    _step(stack, SECONDARY, key, Effect(ProtocolDo.COMMIT))


@_mutant
def acknowledges_before_all_is_here(stack: contextlib.ExitStack) -> None:
    key = SecondaryState.AWAITING_SIZE, COLOMessage.VMSTATE_SIZE
    _step(stack, SECONDARY, key, Effect(ProtocolDo.SEND, COLOMessage.VMSTATE_RECEIVED))


@_mutant
def takes_a_grant_that_has_moved_on(stack: contextlib.ExitStack) -> None:
    _set(stack, moves, "take", lambda record, known, holder, void=None: moves.order(record, holder))


@_mutant
def takes_any_grant_for_void(stack: contextlib.ExitStack) -> None:
    def void(self: Facts) -> Grant:
        return Grant(self.known.number + 1, self.known.holder)

    _set(stack, Facts, "void", property(void))


@_mutant
def gives_the_grant_back_that_the_copy_needs(stack: contextlib.ExitStack) -> None:
    for state in (_S.PROTECTED, _S.COPYING, _S.LOST):
        dead = (_D.STOP_ASKING, _D.CLOSE, _D.HANG_UP, _D.DECLINE, _D.GIVE_BACK)
        _row(stack, state, _E.DIED, Row(_S.DEAD, dead))


@_mutant
def forgets_the_only_copy(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.KEEPING, _E.LINK_LOST, Row(_S.LISTENING, (_D.FORGET,)))


@_mutant
def forgets_at_the_first_ctrl_c(stack: contextlib.ExitStack) -> None:
    gone = Row(_S.GONE, (_D.STOP_ASKING, _D.FORGET))
    _row(stack, _S.ORPHANED, _E.INTERRUPT, gone)


@_mutant
def says_alone_before_it_may(stack: contextlib.ExitStack) -> None:
    for event in (_E.LOST, _E.LINK_LOST):
        alone = Row(_S.LOST, (_D.SAY_ALONE, _D.CLOSE, _D.LOOK))
        _row(stack, _S.PROTECTED, event, alone)


@_mutant
def opens_the_gate_of_a_fenced_vm(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOST, _E.DENIED, Row(_S.UNPROTECTED, (_D.OPEN, _D.CALL)))


@_mutant
def goes_on_after_a_handover(stack: contextlib.ExitStack) -> None:
    for event in (_E.TAKEN, _E.TIME):
        _row(stack, _S.GOING_OVER, event, Row(_S.RESUMING, (_D.RUN_ALONE,)))


@_mutant
def starts_before_it_asks(stack: contextlib.ExitStack) -> None:
    """Both at once: on its own word that it is its turn, and without the other host's."""
    start = Row(_S.STARTING, (_D.START,), (When.STARTS,))
    _row(stack, _S.STARTING, _E.FIT, start, Row(_S.UNPROTECTED, (_D.CALL,)))
    rows = tuple(
        Row(_S.LOOKING, (_D.ASK,), row.when) if When.ASKS_FIRST in row.when else row
        for row in TABLE[_S.LOOKING, _E.RECORD]
    )
    _row(stack, _S.LOOKING, _E.RECORD, *rows)


@_mutant
def starts_from_an_old_state(stack: contextlib.ExitStack) -> None:
    def turn(record: object, name: str, lives: bool, is_first: bool) -> roles.Turn:
        return roles.Turn.ADOPT if lives else roles.Turn.START

    _set(stack, roles, "whose_turn", turn)


@_mutant
def adopts_a_stale_vm(stack: contextlib.ExitStack) -> None:
    rows = tuple(
        Row(_S.STARTING, (), row.when) if When.FOREIGN in row.when else row
        for row in TABLE[_S.LOOKING, _E.RECORD]
    )
    _row(stack, _S.LOOKING, _E.RECORD, *rows)
    claim = moves.claim
    _set(stack, moves, "claim", lambda record, holder, force: claim(record, holder, True))


@_mutant
def adopts_what_was_shut_down_elsewhere(stack: contextlib.ExitStack) -> None:
    by_right = roles.runs_by_right
    _set(stack, roles, "runs_by_right", lambda record, *known: by_right(record, *known[:2]))


@_mutant
def releases_though_it_may_not_be_heard(stack: contextlib.ExitStack) -> None:
    _set(stack, leading, "CERTAIN_S", float("inf"))


@_mutant
def starts_by_a_grant_that_may_be_old(stack: contextlib.ExitStack) -> None:
    start = Row(_S.STARTING, (_D.START,))
    _row(stack, _S.STARTING, _E.AGREES, start)
    _row(stack, _S.STARTING, _E.SILENT, start)


@_mutant
def overrides_the_arbiter_by_an_order(stack: contextlib.ExitStack) -> None:
    order = Row(_S.ORPHANED, (_D.STOP_ASKING, _D.ASK_BY_ORDER))
    _row(stack, _S.ORPHANED, _E.ORDER, order)


@_mutant
def asks_only_once_for_the_vm(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOST, _E.NO_ANSWER, Row(_S.LOST, (_D.DECLINE,)))


@_mutant
def forgets_what_an_operator_has_forced(stack: contextlib.ExitStack) -> None:
    _set(stack, roles, "owes_a_grant", lambda record, holder, overridden: False)


@_mutant
def ends_what_may_run_where_nobody_answers(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.LOOKING, _E.NO_ANSWER, Row(_S.WAITING, (_D.END_GUEST, _D.DECLINE, _D.PAUSE)))


@_mutant
def parts_without_holding(stack: contextlib.ExitStack) -> None:
    _row(stack, _S.COPYING, _E.INTERRUPT, Row(_S.PARTING, (_D.LOOK,)))


MUTANTS.update(HYBRID_MUTANTS)
SEEDS.update(HYBRID_SEEDS)


def play_whole(name: str, seed: int) -> Outcome:
    """Play a seed as it is played with this rule broken."""
    only = ONLY.get(name) or HYBRID_ONLY.get(name, ())
    return play(seed, only=only, hybrid=name in HYBRID_MUTANTS)


def play_broken(name: str, seed: int) -> Outcome:
    """Play a seed with a rule broken."""
    with broken(name):
        return play_whole(name, seed)


def hunt(name: str, most: int) -> Outcome | None:
    """Look for a seed at which a breakage shows."""
    for seed in range(1, most):
        outcome = play_broken(name, seed)
        if outcome.violation and not play_whole(name, seed).violation:
            return outcome
    return None


def main() -> int:
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    names, missed = [name for name in MUTANTS if name not in SEARCHED], 0
    names = [name for name in names if not sys.argv[2:] or name in sys.argv[2:]]
    with Pool(2) as pool:
        for name, outcome in zip(names, pool.imap(partial(hunt, most=most), names), strict=True):
            missed += outcome is None
            seed = f"{outcome.seed},  # {outcome.violation}" if outcome is not None else "none"
            print(f"    {name!r}: {seed}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
