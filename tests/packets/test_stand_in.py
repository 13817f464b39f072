"""Host B's decisions on the secondary VM: when one begins, and what a takeover goes on with."""

from __future__ import annotations

import pytest

from colo.packets.stand_in import GoesOn, Inputs, Phase, StandIn


def committed(number: int = 5) -> StandIn:
    """Host B with a whole checkpoint, whose link has told what came after it."""
    stand_in = StandIn(100)
    stand_in.cut(number)
    stand_in.commits(number)
    return stand_in


def running(*, spoken: bool) -> StandIn:
    stand_in = committed()
    stand_in.begins(5)
    stand_in.runs()
    if spoken:
        stand_in.speaks(is_told=True)
    return stand_in


def test_where_none_runs_a_takeover_goes_on_from_the_checkpoint() -> None:
    assert committed().goes_on_with() is GoesOn.CHECKPOINT


@pytest.mark.parametrize("spoken", [True, False])
def test_what_runs_is_the_vm_whether_it_has_spoken_or_not(spoken: bool) -> None:
    assert running(spoken=spoken).goes_on_with() is GoesOn.VM


def test_one_that_has_spoken_and_died_is_not_passed_over_until_the_next_checkpoint() -> None:
    stand_in = running(spoken=True)
    stand_in.died()
    assert stand_in.goes_on_with() is GoesOn.NOTHING and stand_in.lacks
    assert stand_in.commits(6)
    stand_in.ended()
    assert stand_in.goes_on_with() is GoesOn.CHECKPOINT


def test_one_that_died_unheard_is_passed_over() -> None:
    stand_in = running(spoken=False)
    stand_in.speaks(is_told=False)
    stand_in.died()
    assert stand_in.goes_on_with() is GoesOn.CHECKPOINT


def test_one_that_speaks_before_it_is_known_to_run_is_awaited() -> None:
    """A takeover awaits what begins, so nothing lacks before that has failed."""
    stand_in = committed()
    stand_in.begins(5)
    stand_in.speaks(is_told=True)
    assert not stand_in.lacks
    stand_in.died()
    assert stand_in.goes_on_with() is GoesOn.NOTHING and stand_in.lacks


def test_one_that_was_let_out_may_have_been_heard() -> None:
    stand_in = running(spoken=False)
    stand_in.take_over()
    stand_in.let_out()
    stand_in.died()
    assert stand_in.goes_on_with() is GoesOn.NOTHING


def test_once_its_disks_have_gone_on_no_order_has_the_checkpoint_run() -> None:
    stand_in = running(spoken=False)
    stand_in.gives_disks()
    assert stand_in.goes_on_with() is GoesOn.VM
    stand_in.died()
    stand_in.force()
    assert stand_in.goes_on_with() is GoesOn.NOTHING
    stand_in.forget()
    stand_in.ended()
    assert stand_in.goes_on_with() is GoesOn.CHECKPOINT


def test_an_operator_has_the_checkpoint_run_and_says_so_of_that_one_only() -> None:
    stand_in = running(spoken=True)
    stand_in.died()
    stand_in.force()
    assert stand_in.goes_on_with() is GoesOn.CHECKPOINT
    stand_in.commits(6)
    stand_in.ended()
    stand_in.begins(6)
    stand_in.speaks(is_told=True)
    stand_in.died()
    assert stand_in.goes_on_with() is GoesOn.NOTHING


def test_one_begins_from_the_last_checkpoint_if_all_that_came_since_is_known() -> None:
    assert committed().refusal(5, is_ready=True) is None
    assert committed().refusal(5, is_ready=False) == "no QEMU waits"
    assert committed().refusal(4, is_ready=True) == "another checkpoint is the last one"
    on_its_way = committed()
    on_its_way.cut(6)
    assert on_its_way.refusal(6, is_ready=True) == "another checkpoint is the last one"
    unlinked = committed()
    unlinked.unlinked()
    assert unlinked.refusal(5, is_ready=True) == "another checkpoint is the last one"
    assert running(spoken=False).refusal(5, is_ready=True) == "no QEMU waits"


def test_none_begins_during_a_takeover_and_one_may_beside_the_next_primary() -> None:
    stand_in = committed()
    stand_in.take_over()
    assert stand_in.refusal(5, is_ready=True) == "the VM is being taken over"
    stand_in.forget()
    stand_in.cut(0)
    stand_in.commits(0)
    assert stand_in.refusal(0, is_ready=True) is None


def test_it_gets_what_came_since_its_checkpoint() -> None:
    stand_in = StandIn(100)
    for number, data in ((4, b"of 4"), (5, b"of 5"), (6, b"of 6")):
        stand_in.cut(number)
        assert stand_in.input(0, data)
    stand_in.commits(5)
    stand_in.begins(5)
    assert stand_in.runs() == [(0, b"of 5"), (0, b"of 6")]
    assert stand_in.phase is Phase.RUNS


def test_input_is_kept_up_to_a_limit_and_none_of_it_beyond() -> None:
    inputs = Inputs(10)
    assert inputs.add(0, bytes(100)), "what came before any checkpoint is not kept"
    inputs.cut(1)
    assert inputs.add(0, bytes(10))
    assert not inputs.add(0, b"!")
    assert inputs.since(1) is None and inputs.size == 0
