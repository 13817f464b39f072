"""Any order of steps, losses and decisions, drawn by Hypothesis; the world around the pair judges.

``Pair`` itself asserts at every step: packets are released only for what the secondary has
committed, only a stopped VM is saved, only parts of one epoch are committed together, nothing
partial is taken over.  Here come the rules that look at both hosts at once.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from colo.errors import LocalProtocolError, UnexpectedMessage
from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import PrimaryEvent, PrimaryState, SecondaryEvent, SecondaryState
from tests.protocol.pair import Pair

PRIMARY_ALONE = {PrimaryState.FAILOVER, PrimaryState.SOLO}
SECONDARY_ALONE = {SecondaryState.TAKEOVER, SecondaryState.RUNNING}


class World(RuleBasedStateMachine):
    """Two hosts, a channel that may be cut, and one grant to go on alone."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.granted = False
        self.primary_dead = False

    @rule(choice=st.integers(0, 4), steps=st.integers(1, 12))
    def go_on(self, choice: int, steps: int) -> None:
        for _ in range(steps):
            moves = self.pair.moves()
            if self.primary_dead:
                moves = [move for move in moves if "primary" not in move.__name__]
                moves = [move for move in moves if move.__name__ != "_checkpoint_due"]
            if moves:
                moves[choice % len(moves)]()

    @rule()
    @precondition(lambda self: self.pair.connected)
    def cut(self) -> None:
        self.pair.cut()

    @rule()
    @precondition(lambda self: not self.pair.connected)
    def notice(self) -> None:
        if self.pair.primary.can(PrimaryEvent.LOST) and not self.primary_dead:
            self.pair.tell_primary(PrimaryEvent.LOST)
        if self.pair.secondary.can(SecondaryEvent.LOST):
            self.pair.tell_secondary(SecondaryEvent.LOST)

    @rule()
    @precondition(lambda self: not self.granted)
    def run_alone(self) -> None:
        if not self.primary_dead:
            self.granted = True
            self.pair.tell_primary(PrimaryEvent.FAILOVER)

    @rule()
    @precondition(lambda self: not self.granted)
    def take_over(self) -> None:
        self.primary_dead = True
        self.pair.cut()
        if self.pair.secondary.can(SecondaryEvent.FAILOVER):
            self.granted = True
            self.pair.tell_secondary(SecondaryEvent.FAILOVER)

    @rule(kind=st.sampled_from(COLOMessage), to_primary=st.booleans())
    def intrude(self, kind: COLOMessage, to_primary: bool) -> None:
        """A message out of place changes nothing."""
        machine: Any = self.pair.primary if to_primary else self.pair.secondary
        if not machine.can(kind):
            before = (machine.state, machine.vm, machine.number)
            with pytest.raises(UnexpectedMessage):
                machine.receive(Message(kind))
            assert (machine.state, machine.vm, machine.number) == before

    @rule(event=st.sampled_from([*PrimaryEvent, *SecondaryEvent]))
    def err(self, event: PrimaryEvent | SecondaryEvent) -> None:
        """A local event out of place changes nothing."""
        pair = self.pair
        machine: Any = pair.primary if isinstance(event, PrimaryEvent) else pair.secondary
        if not machine.can(event):
            before = (machine.state, machine.vm, machine.number)
            with pytest.raises(LocalProtocolError):
                machine.handle(event)
            assert (machine.state, machine.vm, machine.number) == before

    @invariant()
    def output_commit(self) -> None:
        """The outside has seen only what the secondary has, or the primary runs alone."""
        pair = self.pair
        if pair.released and not pair.solo:
            assert pair.committed is not None
            assert max(pair.released) <= pair.committed
        assert pair.released == sorted(set(pair.released))

    @invariant()
    def whole_checkpoints(self) -> None:
        pair = self.pair
        if pair.taken_over is not None:
            assert pair.taken_over == pair.committed
            assert not pair.staged
        assert pair.secondary.number - pair.primary.number in (0, -1)

    @invariant()
    def one_voice(self) -> None:
        alone = [self.pair.primary.state in PRIMARY_ALONE and not self.primary_dead]
        alone.append(self.pair.secondary.state in SECONDARY_ALONE)
        assert sum(alone) <= 1

    @invariant()
    def the_machine_knows_its_vm(self) -> None:
        pair = self.pair
        if pair.primary.state not in PRIMARY_ALONE:
            assert (pair.primary.vm is VMState.RUN) is pair.primary_runs

    def teardown(self) -> None:
        """Whatever happened: a decision has a VM running, on the host that got it."""
        pair = self.pair
        if not self.granted and pair.secondary.can(SecondaryEvent.FAILOVER):
            pair.cut()
            pair.tell_secondary(SecondaryEvent.FAILOVER)
            self.primary_dead = True
        elif not self.granted:
            pair.tell_primary(PrimaryEvent.FAILOVER)
        pair.finish_work()
        assert pair.secondary.state is SecondaryState.RUNNING or (
            pair.primary.state is PrimaryState.SOLO and pair.primary_runs
        )


_SETTINGS = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestWorld = World.TestCase
TestWorld.settings = _SETTINGS
