"""Whose turn it is, by what the arbiter's record says of who ran the VM last."""

from __future__ import annotations

import pytest

from colo.membership.grant import Grant, Record
from colo.membership.roles import (
    Turn,
    holder_name,
    host_of,
    owes_a_grant,
    runs_by_right,
    whose_turn,
)

A, B = holder_name("a", 7, "100"), holder_name("b", 8, "200")


@pytest.mark.parametrize(
    ("record", "turn"),
    [
        (Record(1), Turn.START),
        (Record(1, A), Turn.ASK),
        (Record(1, A, B), Turn.ASK),
        (Record(1, B), Turn.FOLLOW),
        (Record(1, B, A), Turn.FOLLOW),
        (Record(1, "c/9/300"), Turn.FOLLOW),
        (Record(1, "", A), Turn.START),
        (Record(1, "", B), Turn.FOLLOW),
    ],
)
def test_a_host_whose_vm_does_not_run(record: Record, turn: Turn) -> None:
    assert whose_turn(record, "a", lives=False, is_first=True) is turn


def test_a_vm_that_runs_here_by_right_is_adopted_whatever_else_is_so() -> None:
    for is_first in (False, True):
        assert whose_turn(Record(1, A), "a", True, is_first) is Turn.ADOPT


def test_a_vm_that_never_ran_is_the_first_hosts_and_one_that_was_shut_down_anybodys() -> None:
    assert whose_turn(Record(), "a", False, is_first=True) is Turn.START
    assert whose_turn(Record(), "b", False, is_first=False) is Turn.FOLLOW
    assert whose_turn(Record(7), "b", False, is_first=False) is Turn.START


def test_of_two_hosts_that_begin_at_most_one_may_start_without_asking_the_other() -> None:
    """Where nobody ran it both may try, and the arbiter lets one; else at most one even asks."""
    for holder in (A, B, "c/9/300"):
        for record in (Record(1, holder), Record(1, "", holder)):
            turns = [whose_turn(record, host, False, host == "a") for host in ("a", "b")]
            assert turns.count(Turn.ASK) + turns.count(Turn.START) <= 1


def test_what_an_operator_has_forced_counts_until_somebody_has_got_another_grant() -> None:
    assert runs_by_right(Record(7, B), B, None), "the usual right"
    assert not owes_a_grant(Record(7, B), B, 7), "the arbiter knows already"
    assert not runs_by_right(Record(7, A), B, None)
    assert runs_by_right(Record(7, A), B, 7)
    assert owes_a_grant(Record(7, A), B, 7)
    for later in (Record(8, A), Record(8, "", A)):
        assert not runs_by_right(later, B, 7)
        assert not owes_a_grant(later, B, 7)


def test_where_nobody_has_it_a_vm_that_had_an_earlier_grant_is_stale() -> None:
    """It has run elsewhere since, and was shut down there."""
    shut_down = Record(8)
    assert not runs_by_right(shut_down, B, None, Grant(7, B))
    assert runs_by_right(shut_down, B, None, Grant(8, B)), "no other grant came after its own"
    assert runs_by_right(shut_down, B, None, Grant(7, A)), "it was another process that had one"
    assert runs_by_right(shut_down, B, None), "it never had any"
    assert runs_by_right(shut_down, B, 8, Grant(7, B)), "an operator's word counts still"


def test_a_name_says_which_host_it_is() -> None:
    assert host_of(A) == "a"
    assert host_of("rack/1/b/8/200") == "rack/1/b"
    assert host_of("") == ""
    assert host_of("somebody") == "somebody"
