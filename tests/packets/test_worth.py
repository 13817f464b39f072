"""Whether a secondary VM pays: by what it brought."""

from __future__ import annotations

import pytest

from colo.packets.worth import Worth


def spell(worth: Worth, now: float, packets: int, waited_s: float, in_vain_s: float) -> None:
    worth.begins(0, 0.0)
    worth.ended(now, packets, packets * waited_s, in_vain_s)


def test_one_that_brings_more_than_it_costs_is_followed_at_once() -> None:
    worth = Worth(always=False)
    worth.periodic(0.006)
    spell(worth, 10.0, 100, 0.001, 0.05)
    assert worth.is_due(10.0)


@pytest.mark.parametrize(
    ("packets", "waited_s", "in_vain_s"),
    [(0, 0.0, 0.05), (5, 0.001, 0.05), (1000, 0.02, 0.0)],
    ids=["nothing alike", "too few alike", "it lags"],
)
def test_one_that_costs_more_is_put_off_ever_longer(
    packets: int, waited_s: float, in_vain_s: float
) -> None:
    worth = Worth(always=False)
    worth.periodic(0.006)
    now, rests = 0.0, []
    for _ in range(12):
        spell(worth, now, packets, waited_s, in_vain_s)
        assert not worth.is_due(now)
        rests.append(worth.rests_until - now)
        now = worth.rests_until
        assert worth.is_due(now)
    assert rests == sorted(rests)
    assert rests[0] == 0.5
    assert rests[-1] == 60.0


def test_one_that_pays_ends_the_rests() -> None:
    worth = Worth(always=False)
    worth.periodic(0.006)
    spell(worth, 0.0, 0, 0.0, 0.05)
    spell(worth, 1.0, 100, 0.0, 0.0)
    spell(worth, 2.0, 0, 0.0, 0.05)
    assert worth.rests_until == 2.5


def test_where_the_user_wants_one_it_always_is_due() -> None:
    worth = Worth(always=True)
    spell(worth, 0.0, 0, 0.0, 0.05)
    assert worth.is_due(0.0)


def test_patience_follows_what_a_checkpoint_holds() -> None:
    worth = Worth(always=False)
    assert worth.patience(0.1) == 0.01
    worth.periodic(0.02)
    assert worth.patience(0.1) == 0.04
    assert worth.patience(0.03) == 0.03
    worth.periodic(100.0)
    assert worth.patience(0.1) == 0.1
