"""The simulated world: nothing is lost, doubled or stuck in it, and what would be is noticed."""

from __future__ import annotations

import pytest

from colo.membership.member import Means
from tests.sim.coverage import ROWS
from tests.sim.mutants import MUTANTS, SEARCHED, SEEDS, broken, play_broken, play_whole
from tests.sim.run import play, play_all
from tests.sim.search import search

RUNS = 450


def test_nothing_is_lost_doubled_or_stuck() -> None:
    total = play_all(1, RUNS, processes=2)
    assert [(each.seed, each.violation) for each in total.failures] == []
    assert total.runs == RUNS and total.faults.total() > 10 * RUNS
    assert len(total.rows & ROWS) > 0.8 * len(ROWS), "the faults reach most of what can happen"


def test_a_seed_is_a_run() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        play(7, lines.append)
    assert told[0] == told[1] and len(told[0]) > 10


@pytest.mark.parametrize(
    "means",
    [Means(), Means(fence=True), Means(asks=False), Means(automatic=False)],
    ids=["arbiter", "fence", "hold", "manual"],
)
def test_no_order_of_events_breaks_a_rule(means: Means) -> None:
    found = search(means, faults=3)
    assert found.violation == "", found.path
    assert found.states > 900


@pytest.mark.parametrize("name", SEARCHED)
def test_a_broken_rule_is_found(name: str) -> None:
    with broken(name):
        assert search(Means(), faults=2).violation


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in SEARCHED])
def test_a_broken_rule_is_noticed(name: str) -> None:
    whole = play_whole(name, SEEDS[name])
    assert whole.violation == "", "as long as it is not broken nothing is wrong"
    assert play_broken(name, SEEDS[name]).violation
