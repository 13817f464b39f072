"""Whether to code at all is decided by what came of it."""

from __future__ import annotations

import pytest

from colo.wire.verdict import Verdict


def play(verdict: Verdict, plain_s: float, coded_s: float, turns: int) -> list[bool]:
    """Have so many checkpoints go, each as it is told; return which were coded.

    The first that is coded after one that was not has nothing to differ from.
    """
    went: list[bool] = []
    for _ in range(turns):
        is_coded = verdict.is_coded
        is_cold = is_coded and not (went and went[-1])
        took_s = (max(plain_s, coded_s) if is_cold else coded_s) if is_coded else plain_s
        went.append(is_coded)
        verdict.note(is_coded, 400_000, took_s)
    return went


@pytest.mark.parametrize(
    ("plain_s", "coded_s", "coded"), [(0.018, 0.003, True), (0.002, 0.004, False)]
)
def test_what_is_better_is_done_and_the_other_one_tried_now_and_then(
    plain_s: float, coded_s: float, coded: bool
) -> None:
    went = play(Verdict(), plain_s, coded_s, 1000)[10:]
    assert 0.9 < went.count(coded) / len(went) < 1.0


def test_a_link_that_becomes_slow_is_noticed() -> None:
    verdict = Verdict()
    play(verdict, 0.002, 0.004, 200)
    went = play(verdict, 0.040, 0.010, 200)
    assert went[20:].count(True) > 0.9 * 180


def test_what_is_hardly_better_is_not_worth_both_hosts_time() -> None:
    went = play(Verdict(), 0.002, 0.0019, 200)
    assert went.count(True) < 20
