"""Both roles joined in memory: the exact order of things, and how it ends when it is cut short."""

from __future__ import annotations

import pytest

from colo.errors import LocalProtocolError
from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import (
    PRIMARY,
    SECONDARY,
    PrimaryEvent,
    PrimaryState,
    SecondaryEvent,
    SecondaryState,
)
from tests.protocol.pair import Pair

FIRST_MIGRATION = """\
primary MIGRATED → AWAITING_READY
secondary MIGRATED → READY: COMMIT, «checkpoint-ready»
primary «checkpoint-ready» → RESUMING: RESUME
primary RESUMED → RUNNING
"""
CHECKPOINT = """\
primary CHECKPOINT_DUE → REQUESTED: «checkpoint-request»
secondary «checkpoint-request» → PREPARING: PREPARE
secondary PREPARED → REPLIED: «checkpoint-reply»
primary «checkpoint-reply» → SUSPENDING: SUSPEND
primary SUSPENDED → SAVING_RAM: «vmstate-send», SAVE_RAM
primary RAM_SAVED → SAVING_DEVICES: SAVE_DEVICES
primary DEVICES_SAVED → AWAITING_RECEIVED: «vmstate-size 77», SEND_DEVICES
secondary «vmstate-send» → RECEIVING_RAM: RECEIVE_RAM
secondary RAM_RECEIVED → AWAITING_SIZE
secondary «vmstate-size 77» → RECEIVING_DEVICES: RECEIVE_DEVICES 77
secondary DEVICES_RECEIVED → READY: COMMIT, «vmstate-received», «vmstate-loaded», APPLY
primary «vmstate-received» → AWAITING_LOADED: RELEASE
primary «vmstate-loaded» → RESUMING: RESUME
primary RESUMED → RUNNING
"""
PARTIAL = {
    SecondaryState.REPLIED,
    SecondaryState.RECEIVING_RAM,
    SecondaryState.AWAITING_SIZE,
    SecondaryState.RECEIVING_DEVICES,
}
#: More than the steps of a first migration and two checkpoints.
STEPS = range(44)
each_step = pytest.mark.parametrize("steps", STEPS)


def test_the_first_migration_and_two_checkpoints_go_step_by_step() -> None:
    expected = (FIRST_MIGRATION + 2 * CHECKPOINT).splitlines()
    pair = Pair()
    while len(pair.log) < len(expected):
        pair.run(1)
    assert pair.log == expected
    assert len(expected) < len(STEPS)
    assert pair.primary.number == pair.secondary.number == 2
    assert pair.primary.vm is VMState.RUN
    assert pair.secondary.vm is VMState.NONE
    assert pair.released == [0, 1, 2]
    assert (pair.committed, pair.memory, pair.held) == (2, 3, [3])


def test_the_tables_expect_these_messages_and_no_others() -> None:
    primary = {state: event for state, event in PRIMARY if isinstance(event, COLOMessage)}
    assert primary == {
        PrimaryState.AWAITING_READY: COLOMessage.CHECKPOINT_READY,
        PrimaryState.REQUESTED: COLOMessage.CHECKPOINT_REPLY,
        PrimaryState.AWAITING_RECEIVED: COLOMessage.VMSTATE_RECEIVED,
        PrimaryState.AWAITING_LOADED: COLOMessage.VMSTATE_LOADED,
    }
    secondary = {state: event for state, event in SECONDARY if isinstance(event, COLOMessage)}
    assert secondary == {
        SecondaryState.READY: COLOMessage.CHECKPOINT_REQUEST,
        SecondaryState.REPLIED: COLOMessage.VMSTATE_SEND,
        SecondaryState.AWAITING_SIZE: COLOMessage.VMSTATE_SIZE,
    }


@each_step
@pytest.mark.parametrize("lost_first", [False, True])
def test_the_primary_runs_alone_once_it_may(steps: int, lost_first: bool) -> None:
    pair = Pair()
    pair.run(steps)
    before, runs, released = pair.primary.state, pair.primary_runs, list(pair.released)
    if lost_first:
        pair.cut()
        assert pair.tell_primary(PrimaryEvent.LOST) == ""
        assert pair.primary.state is PrimaryState.LOST
        assert (pair.primary_runs, pair.released) == (runs, released), before
        pair.finish_work()
        assert pair.primary.state is PrimaryState.LOST
        assert pair.released == released, "no decision, no packets"
    assert pair.tell_primary(PrimaryEvent.FAILOVER) == "CLOSE, RELEASE, RESUME"
    assert pair.primary.state is PrimaryState.FAILOVER
    assert pair.released == [*released, *range(len(released), len(pair.released))]
    pair.finish_work()
    assert pair.primary.state.name == "SOLO"
    assert pair.primary_runs
    assert pair.primary.vm is VMState.RUN


@each_step
@pytest.mark.parametrize("lost_first", [False, True])
def test_the_secondary_goes_on_from_the_last_whole_checkpoint(steps: int, lost_first: bool) -> None:
    pair = Pair()
    pair.run(steps)
    before, committed = pair.secondary.state, pair.committed
    discard = ["DISCARD"] if before in PARTIAL | {SecondaryState.INCOMING} else []
    takeover = ["CLOSE", *discard, "TAKE_OVER"]
    if lost_first:
        pair.cut()
        assert pair.tell_secondary(SecondaryEvent.LOST) == ", ".join(discard)
        takeover = ["CLOSE", "TAKE_OVER"]
        assert pair.staged == {}
    if committed is None:
        ended = SecondaryState.FAILED if lost_first else SecondaryState.INCOMING
        assert pair.secondary.state is ended
        with pytest.raises(LocalProtocolError, match="FAILOVER is illegal"):
            pair.tell_secondary(SecondaryEvent.FAILOVER)
        assert pair.secondary.state is ended
        return
    if lost_first:
        assert pair.secondary.state is SecondaryState.LOST
        pair.finish_work()
        assert pair.secondary.state is SecondaryState.LOST
    assert pair.tell_secondary(SecondaryEvent.FAILOVER) == ", ".join(takeover)
    assert pair.secondary.state is SecondaryState.TAKEOVER
    pair.finish_work()
    assert pair.secondary.state.name == "RUNNING"
    assert pair.secondary.vm is VMState.RUN
    assert pair.taken_over == committed
    assert pair.released == [] or max(pair.released) <= committed, "output commit"


def test_a_takeover_that_failed_can_be_tried_again() -> None:
    pair = Pair()
    pair.run(30)
    for _ in range(3):
        pair.tell_secondary(SecondaryEvent.FAILOVER)
        pair.tell_secondary(SecondaryEvent.NOT_STARTED)
        assert pair.secondary.state is SecondaryState.LOST
    pair.secondary_work.clear()
    assert pair.tell_secondary(SecondaryEvent.FAILOVER) == "CLOSE, TAKE_OVER"
    pair.finish_work()
    assert pair.secondary.state is SecondaryState.RUNNING


def test_what_was_under_way_may_still_report_after_a_loss() -> None:
    late: dict[PrimaryEvent, bool] = {}
    for steps in STEPS:
        pair = Pair()
        pair.run(steps)
        pair.cut()
        pair.tell_primary(PrimaryEvent.LOST)
        late |= {event: pair.primary.can(event) for event in pair.primary_work}
    assert late == {
        PrimaryEvent.SUSPENDED: True,
        PrimaryEvent.RAM_SAVED: True,
        PrimaryEvent.DEVICES_SAVED: True,
        PrimaryEvent.RESUMED: True,
    }
