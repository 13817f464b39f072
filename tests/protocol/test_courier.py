"""The courier between a primary and a secondary: all three see the same VM, in either way."""

from __future__ import annotations

import pytest

from colo.protocol.courier import Courier
from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import CourierEvent, CourierState, Do, Effect
from tests.protocol.pair import Pair

CHECKPOINTS = 3
each_way = pytest.mark.parametrize("aside", [False, True], ids=["through", "aside"])


class Carried(Pair):
    """A pair with a courier between its ends; ``slow``: the secondary gets nothing meanwhile.

    ``covered`` are the packets that the courier has marked, ``let_out`` those that have left.
    """

    def __init__(self, aside: bool) -> None:
        super().__init__()
        self.courier = Courier("web1")
        self.aside = aside
        self.said = 0  # of what is on its way to the secondary, the courier has seen so many
        self.covered: list[int] = []
        self.let_out: list[int] = []
        self.ran_ahead = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.moves()[0]()
            self._look()

    def _look(self) -> None:
        """The courier sees what the primary has sent."""
        while self.said < len(self.to_secondary):
            item = self.to_secondary[self.said]
            self.said += 1
            kind = "" if isinstance(item, Message) else item.kind
            if kind == "migration":
                self._did(self.courier.handle(CourierEvent.PASSED))
            elif kind == "devices":
                whole = CourierEvent.TAKEN if self.aside else CourierEvent.PASSED
                self._did(self.courier.handle(whole))

    def _secondary_receives(self) -> None:
        self.said -= 1
        super()._secondary_receives()

    def _primary_receives(self) -> None:
        """What the secondary says comes to the courier; the primary hears what that one says."""
        self._did(self.courier.receive(self.to_primary.popleft()))
        if self.courier.state is CourierState.REPLIED:
            assert self.primary_runs, "the reply is held back from a VM that runs"
            self._did(self.courier.handle(CourierEvent.CHECKPOINT_DUE))

    def _perform_primary(self, effect: Effect) -> None:
        if effect.do is not Do.RELEASE:  # that is the courier's
            super()._perform_primary(effect)

    def _did(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if effect.message is not None:
                message = Message(effect.message)
                self._primary_did(f"«{message}»", self.primary.receive(message))
            elif effect.do is Do.COVER:
                assert not self.primary_runs
                self.covered = list(range(self.memory + 1))
            elif effect.do is Do.RELEASE:
                assert self.committed is not None
                assert max(self.covered) <= self.committed, "it is heard, and could be undone"
                self.ran_ahead += self.memory > self.committed
                self.let_out = list(self.covered)


@each_way
def test_what_leaves_is_what_the_secondarys_checkpoint_covers(aside: bool) -> None:
    pair = Carried(aside)
    while pair.courier.number <= CHECKPOINTS:
        pair.run(1)
        if pair.courier.vm is VMState.STOP:
            still = (CourierState.COPIED, CourierState.STOPPED, CourierState.WAITING)
            assert pair.courier.state in (*still, CourierState.SAFE)
    assert pair.let_out == list(range(CHECKPOINTS + 1))
    assert pair.courier.number == pair.primary.number
    assert (pair.ran_ahead > 0) is aside, "aside, its VM has run on by then"


@each_way
def test_qemu_hears_the_same_conversation_in_either_way(aside: bool) -> None:
    pair = Carried(aside)
    while pair.courier.number <= CHECKPOINTS:
        pair.run(1)
    told = [line for line in pair.log if line.startswith("primary «")]
    order = ["reply", "received", "loaded"]
    assert [line.split("-")[1].split("»")[0] for line in told[1:10]] == order * 3


def copied() -> Courier:
    """A courier whose secondary has the first copy."""
    courier = Courier("web1")
    courier.handle(CourierEvent.PASSED)
    courier.receive(Message(COLOMessage.CHECKPOINT_READY))
    return courier


def begun() -> Courier:
    """A courier whose QEMU has stopped its VM."""
    courier = copied()
    courier.receive(Message(COLOMessage.CHECKPOINT_REPLY))
    courier.handle(CourierEvent.CHECKPOINT_DUE)
    return courier


def test_a_reply_that_is_held_back_is_not_sent_before_a_checkpoint_is_due() -> None:
    courier = copied()
    assert courier.receive(Message(COLOMessage.CHECKPOINT_REPLY)) == ()
    assert (courier.vm, courier.number) == (VMState.RUN, 0)
    (sent,) = courier.handle(CourierEvent.CHECKPOINT_DUE)
    assert sent.message is COLOMessage.CHECKPOINT_REPLY
    assert (courier.vm, courier.number) == (VMState.STOP, 1)


def test_aside_the_vm_runs_before_the_secondary_has_all_and_nothing_is_released() -> None:
    courier = begun()
    done = courier.handle(CourierEvent.TAKEN)
    assert [effect.message or effect.do for effect in done] == [
        Do.COVER,
        COLOMessage.VMSTATE_RECEIVED,
        COLOMessage.VMSTATE_LOADED,
        Do.RESUME,
    ]
    assert courier.vm is VMState.RUN
    assert [each.do for each in courier.receive(Message(COLOMessage.VMSTATE_RECEIVED))] == [
        Do.RELEASE
    ]
    assert courier.receive(Message(COLOMessage.VMSTATE_LOADED)) == ()
    assert courier.state is CourierState.RUNNING


def test_through_the_vm_waits_for_the_secondary() -> None:
    courier = begun()
    assert [each.do for each in courier.handle(CourierEvent.PASSED)] == [Do.COVER]
    assert courier.vm is VMState.STOP
    done = courier.receive(Message(COLOMessage.VMSTATE_RECEIVED))
    assert [effect.do for effect in done] == [Do.RELEASE, Do.SEND]
    assert courier.vm is VMState.STOP
    courier.receive(Message(COLOMessage.VMSTATE_LOADED))
    assert (courier.vm, courier.state) == (VMState.RUN, CourierState.RUNNING)


@pytest.mark.parametrize("lost_first", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_alone_by_a_grant_everything_held_is_let_out(lost_first: bool, taken: bool) -> None:
    courier = begun() if taken else copied()
    if taken:
        courier.handle(CourierEvent.TAKEN)
    if lost_first:
        assert courier.handle(CourierEvent.LOST) == ()
    done = [effect.do for effect in courier.handle(CourierEvent.FAILOVER)]
    assert done == [Do.CLOSE, Do.RESUME], "a VM that does not run is not heard either"
    assert [effect.do for effect in courier.handle(CourierEvent.RESUMED)] == [Do.RELEASE]
    assert (courier.state, courier.vm) == (CourierState.SOLO, VMState.RUN)
