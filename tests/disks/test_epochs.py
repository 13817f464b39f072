"""Epochs go from left to right, and what they take is counted."""

from __future__ import annotations

import pytest

from colo.disks.epochs import Epochs
from colo.disks.extents import Extents
from colo.disks.journal import room_for
from colo.errors import DiskError, InvariantBroken


def put(extents: Extents, start: int, length: int = 10) -> None:
    extents.put(start, start + length, bytes(length))


def test_an_epoch_goes_from_the_guest_to_the_base() -> None:
    epochs = Epochs("vda")
    put(epochs.current.extents, 0)
    first = epochs.current
    epochs.end_current()
    assert (epochs.cut, epochs.layers(False), epochs.layers(True)) == (first, [], [first.extents])
    assert epochs.older_extents == 1
    put(epochs.current.extents, 100)
    second = epochs.current
    epochs.require_commit(3)
    epochs.commit(3)
    assert (first.number, epochs.committed, epochs.waiting) == (3, 3, [first])
    assert epochs.layers(False) == [first.extents]
    assert epochs.layers(True) == [first.extents, second.extents]
    assert epochs.take() == [first]
    assert epochs.layers(False) == [first.extents]
    assert epochs.older_room == room_for(10, 1)
    epochs.placed()
    assert epochs.older_room == 0
    assert epochs.older_memory == first.extents.memory_bytes
    epochs.merged()
    assert epochs.older_memory == 0
    assert epochs.layers(False) == []
    assert epochs.layers(True) == [second.extents]
    epochs.drop()
    assert epochs.layers(True) == []
    assert epochs.memory_bytes == 0


def test_what_is_dropped_is_what_is_not_committed() -> None:
    epochs = Epochs("vda")
    for number in (1, 2):
        put(epochs.current.extents, number)
        epochs.end_current()
        epochs.commit(number)
    put(epochs.current.extents, 3)
    epochs.end_current()
    put(epochs.current.extents, 4)
    epochs.drop()
    assert epochs.cut is None
    assert len(epochs.layers(True)) == len(epochs.layers(False)) == 2
    assert epochs.committed == 2


def test_the_order_is_kept() -> None:
    epochs = Epochs("vda", 5)
    with pytest.raises(InvariantBroken, match="commits an epoch that is cut"):
        epochs.commit(6)
    epochs.end_current()
    with pytest.raises(InvariantBroken, match="at most is cut"):
        epochs.end_current()
    with pytest.raises(InvariantBroken, match="checkpoint 5 follows 5"):
        epochs.commit(5)
    epochs.commit(6)
    epochs.take()
    with pytest.raises(InvariantBroken, match="one merge"):
        epochs.take()


def test_an_epoch_that_lacks_a_write_is_not_committed() -> None:
    epochs = Epochs("vda")
    epochs.current.lacks = DiskError("vda", "no luck")
    with pytest.raises(DiskError, match="lacks a write: disk vda: no luck"):
        epochs.end_current()
    epochs.drop()
    epochs.end_current()
    assert epochs.cut is not None
    epochs.cut.lacks = DiskError("vda", "no luck")
    with pytest.raises(DiskError, match="lacks a write"):
        epochs.commit(1)
    assert epochs.committed == -1


def test_the_first_record_of_all_that_is_held_counts() -> None:
    epochs = Epochs("vda")
    assert epochs.first is None
    epochs.current.first = 4096
    epochs.end_current()
    epochs.current.first = 8192
    assert epochs.first == 4096
    epochs.commit(1)
    assert epochs.first == 4096
    epochs.take()
    assert epochs.first == 8192
    epochs.end_current()
    assert epochs.first == 8192
