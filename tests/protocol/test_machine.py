"""What both roles share: refusals leave everything as it was, and every step can be traced."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import product
from typing import Any, cast

import pytest

from colo.errors import InvariantBroken, LocalProtocolError, UnexpectedMessage
from colo.protocol.courier import Courier
from colo.protocol.machine import Machine, VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.primary import Primary
from colo.protocol.secondary import Secondary
from colo.protocol.tables import (
    COURIER,
    PRIMARY,
    SECONDARY,
    CourierEvent,
    CourierState,
    Do,
    Effect,
    Event,
    PrimaryEvent,
    PrimaryState,
    SecondaryEvent,
    SecondaryState,
    Step,
)
from tests.protocol.pair import Pair

ROLES: dict[str, tuple[Callable[[], Machine[Any]], Any, Any, Any]] = {
    "primary": (lambda: Primary("web1"), PRIMARY, PrimaryState, PrimaryEvent),
    "courier": (lambda: Courier("web1"), COURIER, CourierState, CourierEvent),
    "secondary": (lambda: Secondary("web1"), SECONDARY, SecondaryState, SecondaryEvent),
}


def take(machine: Machine[Any], event: Event) -> None:
    if isinstance(event, COLOMessage):
        machine.receive(Message(event))
    else:
        machine.handle(event)


def ways(role: str) -> dict[Any, list[Event]]:
    """The shortest way from the start to each state, by the events that a machine accepts."""
    make, _, _, events = ROLES[role]
    found: dict[Any, list[Event]] = {make().state: []}
    queue = deque(found)
    while queue:
        state = queue.popleft()
        for event in (*COLOMessage, *events):
            machine = replay(role, found[state])
            if machine.can(event):
                take(machine, event)
                if machine.state not in found:
                    found[machine.state] = [*found[state], event]
                    queue.append(machine.state)
    return found


def replay(role: str, events: list[Event]) -> Machine[Any]:
    machine = ROLES[role][0]()
    for event in events:
        take(machine, event)
    return machine


@pytest.mark.parametrize("role", ROLES)
def test_every_state_can_be_reached(role: str) -> None:
    assert set(ways(role)) == set(ROLES[role][2])


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_in_the_table_is_refused_and_changes_nothing(role: str) -> None:
    _, table, _, events = ROLES[role]
    refused = 0
    for (state, way), event in product(ways(role).items(), (*COLOMessage, *events)):
        if (state, event) in table:
            continue
        machine = replay(role, way)
        before = (machine.state, machine.vm, machine.number, machine.expected)
        if isinstance(event, COLOMessage):
            expected = next((e for s, e in table if s is state and e in COLOMessage), None)
            with pytest.raises(UnexpectedMessage) as caught:
                machine.receive(Message(event))
            error = caught.value
            assert (error.message, error.expected, error.state) == (event, expected, state.name)
            number, name = (
                ("none", "nothing")
                if expected is None
                else (
                    str(int(expected)),
                    expected.wire_name,
                )
            )
            assert str(error) == (
                f"Unexpected COLO message {int(event)}, expected {number} "
                f"(got {event.wire_name}, expected {name}, in state {state.name})"
            )
        else:
            with pytest.raises(
                LocalProtocolError, match=f"{event.name} is illegal in {state.name}"
            ):
                machine.handle(event)
        assert (machine.state, machine.vm, machine.number, machine.expected) == before
        refused += 1
    assert refused > len(table)


def test_the_text_of_a_refusal_has_both_numbers_and_both_names() -> None:
    machine = replay("primary", [PrimaryEvent.MIGRATED])
    with pytest.raises(UnexpectedMessage) as caught:
        machine.receive(Message(COLOMessage.VMSTATE_RECEIVED))
    assert str(caught.value) == (
        "Unexpected COLO message 5, expected 0 "
        "(got vmstate-received, expected checkpoint-ready, in state AWAITING_READY)"
    )


def test_the_value_of_a_size_goes_from_effect_to_effect() -> None:
    primary = replay("primary", ways("primary")[PrimaryState.SAVING_DEVICES])
    effects = primary.handle(PrimaryEvent.DEVICES_SAVED, 60_000)
    assert effects == (
        Effect(Do.SEND, COLOMessage.VMSTATE_SIZE, 60_000),
        Effect(Do.SEND_DEVICES),
    )
    secondary = replay("secondary", ways("secondary")[SecondaryState.AWAITING_SIZE])
    effects = secondary.receive(Message(COLOMessage.VMSTATE_SIZE, 60_000))
    assert effects == (Effect(Do.RECEIVE_DEVICES, None, 60_000),)


TRACE = """\
web1 #0 primary VM run → stop
web1 #0 primary MIGRATING → AWAITING_READY (MIGRATED)
web1 #0 secondary INCOMING → READY (MIGRATED)
web1 #0 secondary sends checkpoint-ready
web1 #0 primary received checkpoint-ready
web1 #0 primary AWAITING_READY → RESUMING (CHECKPOINT_READY)
web1 #0 primary VM stop → run
web1 #0 primary RESUMING → RUNNING (RESUMED)
web1 #1 primary RUNNING → REQUESTED (CHECKPOINT_DUE)
web1 #1 primary sends checkpoint-request
web1 #1 secondary received checkpoint-request
web1 #1 secondary READY → PREPARING (CHECKPOINT_REQUEST)
web1 #1 secondary PREPARING → REPLIED (PREPARED)
web1 #1 secondary sends checkpoint-reply
web1 #1 primary received checkpoint-reply
web1 #1 primary REQUESTED → SUSPENDING (CHECKPOINT_REPLY)
web1 #1 primary VM run → stop
web1 #1 primary SUSPENDING → SAVING_RAM (SUSPENDED)
web1 #1 primary sends vmstate-send
web1 #1 primary SAVING_RAM → SAVING_DEVICES (RAM_SAVED)
web1 #1 primary SAVING_DEVICES → AWAITING_RECEIVED (DEVICES_SAVED)
web1 #1 primary sends vmstate-size 77
web1 #1 secondary received vmstate-send
web1 #1 secondary REPLIED → RECEIVING_RAM (VMSTATE_SEND)
web1 #1 secondary RECEIVING_RAM → AWAITING_SIZE (RAM_RECEIVED)
web1 #1 secondary received vmstate-size 77
web1 #1 secondary AWAITING_SIZE → RECEIVING_DEVICES (VMSTATE_SIZE)
web1 #1 secondary RECEIVING_DEVICES → READY (DEVICES_RECEIVED)
web1 #1 secondary sends vmstate-received
web1 #1 secondary sends vmstate-loaded
web1 #1 primary received vmstate-received
web1 #1 primary AWAITING_RECEIVED → AWAITING_LOADED (VMSTATE_RECEIVED)
web1 #1 primary received vmstate-loaded
web1 #1 primary AWAITING_LOADED → RESUMING (VMSTATE_LOADED)
web1 #1 primary VM stop → run
web1 #1 primary RESUMING → RUNNING (RESUMED)
"""


def test_messages_and_vm_changes_are_traced_with_name_and_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = TRACE.splitlines()
    with caplog.at_level(logging.DEBUG, "colo.trace"):
        pair = Pair()
        pair.run(19)
    assert {record.name for record in caplog.records} == {"colo.trace"}
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert caplog.messages == expected


def test_nothing_is_traced_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "colo.trace"):
        Pair().run(19)
    assert caplog.messages == []


# What the machines guard, shown by tables that are wrong

BREACHES = [
    pytest.param("primary", PrimaryState.REQUESTED, COLOMessage.CHECKPOINT_REPLY, Do.RELEASE),
    pytest.param("primary", PrimaryState.RESUMING, PrimaryEvent.RESUMED, Do.RELEASE),
    pytest.param("primary", PrimaryState.REQUESTED, COLOMessage.CHECKPOINT_REPLY, Do.SAVE_RAM),
    pytest.param("primary", PrimaryState.RUNNING, PrimaryEvent.CHECKPOINT_DUE, Do.SEND_DEVICES),
    pytest.param("courier", CourierState.RUNNING, COLOMessage.CHECKPOINT_REPLY, Do.RELEASE),
    pytest.param("courier", CourierState.RUNNING, COLOMessage.VMSTATE_RECEIVED, Do.RELEASE),
    pytest.param("courier", CourierState.REPLIED, CourierEvent.CHECKPOINT_DUE, Do.RELEASE),
    pytest.param("courier", CourierState.STOPPED, CourierEvent.LOST, Do.RELEASE),
    pytest.param("courier", CourierState.STOPPED, CourierEvent.TAKEN, Do.RELEASE),
    pytest.param("courier", CourierState.STOPPED, CourierEvent.TAKEN, Do.RESUME),
    pytest.param("courier", CourierState.STOPPED, COLOMessage.VMSTATE_RECEIVED, Do.RELEASE),
    pytest.param("courier", CourierState.SENDING, COLOMessage.VMSTATE_RECEIVED, Do.COVER),
    pytest.param("courier", CourierState.REPLIED, COLOMessage.VMSTATE_RECEIVED, Do.RELEASE),
    pytest.param("secondary", SecondaryState.RECEIVING_RAM, SecondaryEvent.FAILOVER, Do.TAKE_OVER),
    pytest.param("secondary", SecondaryState.AWAITING_SIZE, COLOMessage.VMSTATE_SIZE, Do.TAKE_OVER),
]


@pytest.mark.parametrize(("role", "state", "event", "do"), BREACHES)
def test_a_row_that_breaks_the_invariant_is_caught(
    role: str, state: Any, event: Event, do: Do, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replay(role, ways(role)[state])
    wrong = Step(state, (Effect(do),))
    monkeypatch.setitem(cast("dict[Any, Any]", ROLES[role][1]), (state, event), wrong)
    before = (machine.state, machine.vm, machine.number)
    with pytest.raises(InvariantBroken, match=f"{event.name} in {state.name} would break"):
        take(machine, event)
    assert (machine.state, machine.vm, machine.number) == before


@pytest.mark.parametrize("message", [COLOMessage.CHECKPOINT_READY, COLOMessage.VMSTATE_RECEIVED])
@pytest.mark.parametrize("role", ["secondary"])
def test_nothing_is_acknowledged_before_it_is_committed(
    role: str, message: COLOMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SecondaryState.RECEIVING_RAM
    machine = replay(role, ways(role)[state])
    wrong = Step(state, (Effect(Do.SEND, message), Effect(Do.COMMIT)))
    key = (state, SecondaryEvent.RAM_RECEIVED)
    monkeypatch.setitem(cast("dict[Any, Any]", ROLES[role][1]), key, wrong)
    with pytest.raises(InvariantBroken):
        machine.handle(SecondaryEvent.RAM_RECEIVED)


def test_a_machine_starts_here() -> None:
    primary, secondary = Primary("web1"), Secondary("web1")
    assert (primary.state, primary.vm, primary.number) == (PrimaryState.MIGRATING, VMState.RUN, 0)
    assert (secondary.state, secondary.vm, secondary.number) == (
        SecondaryState.INCOMING,
        VMState.NONE,
        0,
    )
