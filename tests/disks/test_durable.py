"""The base and its journal: found as they were left, and written in no other order."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from colo.disks.durable import Durable
from colo.disks.extents import Extents
from colo.disks.head import HEADS_SIZE, HeadState
from colo.disks.standing import At, Stale
from colo.errors import InvariantBroken
from tests.disks.simulated import SimulatedFile

ID = UUID(int=1)


def made() -> tuple[SimulatedFile, SimulatedFile, Durable, list[str]]:
    """Two files, what is durable of them at checkpoint 1, and the calls from then on."""
    base = SimulatedFile("base", bytes(8192))
    file = SimulatedFile("journal", bytes(HEADS_SIZE + (64 << 10)))
    durable = Durable("vda", base, file)
    assert durable.ring == 0
    durable.begin_copy(ID)
    durable.copy(0, b"copied")
    durable.copy_zeroes(2, 2)
    durable.end_copy(1)
    calls: list[str] = []
    base.on_step = file.on_step = lambda each, what: calls.append(f"{what} {each.name}")
    return base, file, durable, calls


def extents() -> Extents:
    result = Extents()
    result.put(1, 3, b"XY")
    return result


def test_a_merge_goes_by_the_rules() -> None:
    base, file, durable, calls = made()
    position = durable.journal.reserve(durable.journal.size_of(extents()))
    durable.merge(position, 2, extents())
    records = ["write journal", "write journal", "sync journal"]
    head = ["write journal", "sync journal"]
    assert calls == [*records, *head, "write base", "sync base", *head]
    assert base.durable[:6] == b"cXY\0ed"
    assert Durable("vda", base, file).recover() == At(ID, 2)


def test_where_nothing_was_written_a_head_says_so() -> None:
    base, file, durable, calls = made()
    durable.merge(durable.journal.next, 5, Extents())
    assert calls == ["write journal", "sync journal"]
    assert Durable("vda", base, file).recover() == At(ID, 5)


def test_what_the_journal_holds_is_merged_once_more() -> None:
    base, file, durable, _ = made()
    position = durable.journal.reserve(durable.journal.size_of(extents()))
    durable.journal.write_batch(position, 2, extents())
    again = Durable("vda", base, file)
    assert again.recover() == At(ID, 2)
    assert base.durable[:6] == b"cXY\0ed"
    assert again.journal.head.state is HeadState.CLEAN


def test_the_base_is_guarded() -> None:
    base, _, durable, _ = made()
    before = bytes(base.cache)
    refused: list[Callable[[], None]] = [lambda: durable.copy(0, b"x")]
    refused += [lambda: durable.copy_zeroes(0, 1), lambda: durable.end_copy(2)]
    for each in refused:
        with pytest.raises(InvariantBroken, match="only while the journal calls it a mixture"):
            each()
    with pytest.raises(InvariantBroken, match="only with what the journal holds"):
        durable._finish(2, extents())
    assert base.cache == before


def test_each_state_is_found() -> None:
    base, file, durable, _ = made()
    assert Durable("vda", base, SimulatedFile("journal", b"")).recover() == Stale(
        "there is no journal in it"
    )
    durable.hand_over(1, extents())
    assert Durable("vda", base, file).recover() == Stale("a VM has run on it", is_vms=True)
    durable.begin_copy(UUID(int=2))
    assert Durable("vda", base, file).recover() == Stale("its first copy was cut off")
    durable.end_copy(0)
    assert Durable("vda", base, file).recover() == At(UUID(int=2), 0)
    durable.close()
