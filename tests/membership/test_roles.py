"""Whose turn it is, by what the arbiter's record says of who ran the VM last."""

from __future__ import annotations

from itertools import product

import pytest

from colo.membership.roles import Turn, holder_name, host_of, whose_turn

A, B = holder_name("a", 7, "100"), holder_name("b", 8, "200")


@pytest.mark.parametrize(
    ("holder", "turn"),
    [("", Turn.START), (A, Turn.ASK), (B, Turn.FOLLOW), ("c/9/300", Turn.FOLLOW)],
)
def test_a_host_whose_vm_does_not_run(holder: str, turn: Turn) -> None:
    assert whose_turn(holder, "a", lives=False, automatic=True, is_first=True) is turn


def test_a_vm_that_runs_here_by_right_is_adopted_whatever_else_is_so() -> None:
    for automatic, is_first in product((False, True), repeat=2):
        assert whose_turn(A, "a", True, automatic, is_first) is Turn.ADOPT


def test_without_a_record_the_first_host_asks_and_the_other_one_follows() -> None:
    assert whose_turn("", "a", False, automatic=False, is_first=True) is Turn.ASK
    assert whose_turn("", "b", False, automatic=False, is_first=False) is Turn.FOLLOW


def test_of_two_hosts_that_begin_at_most_one_may_start_without_asking_the_other() -> None:
    """Where nobody ran it both may try, and the arbiter lets one; else at most one even asks."""
    for holder in (A, B, "c/9/300"):
        turns = [whose_turn(holder, host, False, True, host == "a") for host in ("a", "b")]
        assert Turn.START not in turns
        assert turns.count(Turn.ASK) <= 1


def test_a_name_says_which_host_it_is() -> None:
    assert host_of(A) == "a"
    assert host_of("rack/1/b/8/200") == "rack/1/b"
    assert host_of("") == ""
    assert host_of("somebody") == "somebody"
