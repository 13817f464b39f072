"""Checkpoints are ordered over sessions."""

from __future__ import annotations

from colo.membership.epoch import Epoch


def test_a_later_grant_is_newer_whatever_its_number_and_within_one_the_number_tells() -> None:
    later = [Epoch(1, 0), Epoch(1, 9), Epoch(1, 10), Epoch(2, 0), Epoch(10, 0)]
    assert sorted(reversed(later)) == later
    assert max(later) == Epoch(10, 0)


def test_it_is_written_as_grant_and_number() -> None:
    assert f"{Epoch(3, 17)}" == "3.17"
