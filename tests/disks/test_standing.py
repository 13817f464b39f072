"""What a replica may be, in words."""

from __future__ import annotations

from uuid import UUID

from colo.disks.standing import At, Condition, Limits, Stale


def test_each_condition_is_said_in_words_of_its_own() -> None:
    assert len({each.value for each in Condition}) == len(Condition) == 5
    assert At(UUID(int=1), 2) != At(UUID(int=2), 2)
    assert Stale("a") != Stale("b")


def test_a_checkpoint_is_wanted_before_writes_are_unwelcome() -> None:
    assert 0 < Limits().wanted < Limits().full < 1
