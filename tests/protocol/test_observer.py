"""The observer beside the primary whose conversation it relays: both see the same VM."""

from __future__ import annotations

import pytest

from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.observer import Observer
from colo.protocol.tables import Do, ObserverEvent, ObserverState
from tests.protocol.pair import Pair

CHECKPOINTS = 3


class Relayed(Pair):
    """A pair whose secondary's messages go through an observer, which holds replies back."""

    def __init__(self) -> None:
        super().__init__()
        self.observer = Observer("web1")
        self.let_out: list[int] = []

    def _primary_receives(self) -> None:
        message = self.to_primary[0]
        effects = self.observer.receive(message)
        if self.observer.state is ObserverState.REPLIED:
            assert self.primary_runs, "the reply is held back from a VM that runs"
            effects = self.observer.handle(ObserverEvent.CHECKPOINT_DUE)
            assert [e.message for e in effects] == [COLOMessage.CHECKPOINT_REPLY]
        if any(effect.do is Do.RELEASE for effect in effects):
            assert not self.primary_runs
            self.let_out.append(self.primary.number)
        super()._primary_receives()


def test_the_observer_releases_what_the_primary_releases_and_knows_its_vm() -> None:
    pair = Relayed()
    while len(pair.let_out) < CHECKPOINTS or not pair.primary_runs:
        pair.run(1)
        if pair.observer.state is ObserverState.STOPPED and not pair.primary_work:
            assert not pair.primary_runs
        if pair.observer.vm is VMState.STOP:
            assert pair.observer.state in (ObserverState.STOPPED, ObserverState.SAFE)
    assert pair.let_out == list(range(1, CHECKPOINTS + 1))
    assert pair.observer.number == pair.primary.number
    assert pair.observer.state is ObserverState.RUNNING


def test_a_reply_that_is_held_back_is_not_sent_before_a_checkpoint_is_due() -> None:
    observer = Observer("web1")
    observer.receive(Message(COLOMessage.CHECKPOINT_READY))
    assert observer.receive(Message(COLOMessage.CHECKPOINT_REPLY)) == ()
    assert (observer.vm, observer.number) == (VMState.RUN, 0)
    (sent,) = observer.handle(ObserverEvent.CHECKPOINT_DUE)
    assert sent.message is COLOMessage.CHECKPOINT_REPLY
    assert (observer.vm, observer.number) == (VMState.STOP, 1)


@pytest.mark.parametrize("lost_first", [False, True])
def test_alone_by_a_grant_everything_held_is_let_out(lost_first: bool) -> None:
    observer = Observer("web1")
    observer.receive(Message(COLOMessage.CHECKPOINT_READY))
    if lost_first:
        assert observer.handle(ObserverEvent.LOST) == ()
    done = [effect.do for effect in observer.handle(ObserverEvent.FAILOVER)]
    assert done == [Do.CLOSE, Do.RESUME], "a VM that does not run is not heard either"
    assert [effect.do for effect in observer.handle(ObserverEvent.RESUMED)] == [Do.RELEASE]
    assert (observer.state, observer.vm) == (ObserverState.SOLO, VMState.RUN)
