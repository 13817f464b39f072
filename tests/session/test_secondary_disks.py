"""A session whose VM has disks: a checkpoint is whole once their part is here too."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.errors import DiskError
from colo.protocol.tables import SecondaryState
from colo.session.secondary import Incoming
from tests.session.test_secondary import READY, RECEIVED, REPLY, TINY, Session, turns, wholes


class Disks:
    """What was asked of them and done; they are there when they are let."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.here = -1
        self.fails = False

    def is_here(self, number: int) -> bool:
        return self.here == number

    def require(self, number: int) -> None:
        if self.fails:
            raise DiskError("root", "it is broken")

    def commit(self, number: int) -> None:
        self.did.append(f"commit {number}")


@pytest.fixture
def disks() -> Disks:
    return Disks()


@pytest.fixture
def session(tmp_path: Path, disks: Disks) -> Session:
    made = Session(tmp_path)
    made.incoming = Incoming("web1", made.store, made.figures, lambda: made.now, None, disks)
    return made


def here(session: Session, disks: Disks, number: int) -> None:
    disks.here = number
    session.incoming.disks_are_here()
    session.serve()


FIRST, REQUEST, WHOLE = turns(TINY)[:3]


@pytest.mark.parametrize("size", [1 << 20, 100])
def test_nothing_is_whole_before_the_disks_are_here(
    session: Session, disks: Disks, size: int
) -> None:
    session.feed(FIRST, size)
    assert (session.sent, session.store.checkpoint) == (b"", None)
    assert disks.did == []
    here(session, disks, 0)
    assert session.sent == READY
    assert disks.did == ["commit 0"]

    session.feed(REQUEST, size)
    session.feed(WHOLE, size)
    assert session.sent == READY + REPLY
    assert session.store.checkpoint is not None
    assert session.store.checkpoint.number == 0
    here(session, disks, 1)
    assert session.sent.startswith(READY + REPLY + RECEIVED)
    assert session.store.checkpoint.number == 1
    assert disks.did[1:] == ["commit 1"]
    assert session.images() == wholes(TINY)[1][0]


def test_disks_that_are_here_first_hold_nothing_up(session: Session, disks: Disks) -> None:
    disks.here = 0
    session.feed(FIRST)
    assert session.sent == READY
    session.feed(REQUEST)
    disks.here = 1
    session.feed(WHOLE)
    assert session.incoming.state is SecondaryState.READY
    assert disks.did == ["commit 0", "commit 1"]


def test_disks_that_cannot_be_committed_leave_memory_as_it_was(
    session: Session, disks: Disks
) -> None:
    disks.here = 0
    session.feed(FIRST + REQUEST)
    disks.here, disks.fails = 1, True
    with pytest.raises(DiskError):
        session.feed(WHOLE)
    assert RECEIVED not in session.sent
    assert session.store.checkpoint is not None
    assert session.store.checkpoint.number == 0
    assert "commit 1" not in disks.did
    session.apply()
    assert session.images() == wholes(TINY)[0][0]
