"""The replica after every crash: exactly a checkpoint, and never one that was lost.

Then the rules are broken one by one, and each time the judge has to complain.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import colo.disks.durable
import colo.disks.extents
import colo.disks.head
import colo.disks.journal
import colo.disks.replica
from colo.disks.durable import Durable
from colo.disks.epochs import Epochs
from colo.disks.extents import Extents
from colo.disks.head import Head, HeadState
from colo.disks.journal import Journal
from colo.disks.overlay import write_into
from colo.errors import InvariantBroken
from tests.disks.histories import Complaint, History
from tests.disks.simulated import SimulatedFile

#: What is tried before a broken rule counts as missed.
SEEDS_MAX = 60


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small disk has several records of a write, and several chunks of extents."""
    monkeypatch.setattr(colo.disks.replica, "RECORD_MAX", 2048)
    monkeypatch.setattr(colo.disks.journal, "RECORD_MAX", 2048)
    monkeypatch.setattr(colo.disks.extents, "_CHUNK_MAX", 4)


@pytest.mark.parametrize("seed", range(16))
def test_after_every_crash_the_disk_is_at_a_checkpoint(seed: int) -> None:
    History(seed).run()


@pytest.mark.parametrize("seed", range(12))
def test_where_io_fails_the_disk_is_at_a_checkpoint_or_stale(seed: int) -> None:
    History(seed, failing=True).run()


def test_histories_come_across_what_they_are_for() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100, 112):
        counts += History(seed, failing=True, nested=0).run(80)
    for what in (
        "recovered", "stale", "committed", "merged", "dropped", "opened", "killed", "full",
        "handed over", "write fails", "sync fails", "read fails",
    ):  # fmt: skip
        assert counts[what], what


# The rules, broken

Break = Callable[[pytest.MonkeyPatch], None]


def _unsynced(file: str, function: str) -> Break:
    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(SimulatedFile, "unsynced", frozenset({(file, function)}))

    return apply


def _head_unsynced(state: HeadState, after: HeadState | None = None) -> Break:
    def apply(patch: pytest.MonkeyPatch) -> None:
        def write_head(self: Journal, head: Head) -> None:
            self._file.pwrite(head.place, head.packed())
            if head.state is not state or after not in (None, self._head.state):
                self._file.sync()
            self._head = head

        patch.setattr(Journal, "_write_head", write_head)

    return apply


def _replaced(where: Any, name: str, what: Any) -> Break:
    return lambda patch: patch.setattr(where, name, what, raising=False)


def _released_at_once(patch: pytest.MonkeyPatch) -> None:
    write_batch = Journal.write_batch

    def broken(self: Journal, position: int, epoch: int, extents: Extents) -> None:
        write_batch(self, position, epoch, extents)
        self._tail = self._next

    patch.setattr(Journal, "write_batch", broken)
    patch.setattr(Journal, "release", lambda self, tail: setattr(self, "_tail", self._next))


def _endless(patch: pytest.MonkeyPatch) -> None:
    def reserve(self: Journal, length: int) -> int:
        position = self._next
        self._next = position + -(-length // 4096) * 4096
        return position

    patch.setattr(Journal, "reserve", reserve)
    patch.setattr(Journal, "room_with", lambda self, length: 1 << 30)


def _oldest_wins(maps: Iterable[Extents]) -> Extents:
    return colo.disks.extents.folded(reversed(list(maps)))


def _straight_into_the_base(self: Durable, position: int, epoch: int, extents: Extents) -> None:
    write_into(self.base, extents, self.journal.read)
    self.base.sync()
    self.journal.say(HeadState.CLEAN, epoch)


def _drop_the_current_only(self: Epochs) -> None:
    self.current = type(self.current)()
    self._recount()


def _commit_what_came_after_the_cut(self: Epochs, number: int) -> None:
    epoch = self.require_commit(number)
    for start, end, source, at in self.current.extents:
        epoch.extents.put(start, end, source, at)
    epoch.number = self.committed = number
    self.waiting.append(epoch)
    self.cut = None
    self._recount()


def _forgets_to_write_zeroes(base: Any, extents: Extents, load: Any) -> None:
    for start, end, source, at in extents:
        if source is not None:
            base.pwrite(start, load(source)[at : at + end - start])


def _no_replay(self: Durable, epoch: int, extents: Extents) -> None:
    if sys._getframe(1).f_code.co_name == "merge":
        write_into(self.base, extents, self.journal.read)
        self.base.sync()
    self.journal.say(HeadState.CLEAN, epoch)


BREAKS: dict[str, Break] = {
    "a base is written before it is called a mixture": _head_unsynced(HeadState.COPYING),
    "a head that says JOURNAL before its records": _unsynced("journal", "_seal"),
    "merged before the head says so": _head_unsynced(HeadState.JOURNAL),
    "merged without the journal": _replaced(Durable, "merge", _straight_into_the_base),
    "CLEAN before the base is": _unsynced("base", "_finish"),
    "the first copy ends before the base is durable": _unsynced("base", "end_copy"),
    "room reused before the next head": _released_at_once,
    "room reused before that head is durable": _head_unsynced(
        HeadState.CLEAN, after=HeadState.JOURNAL
    ),
    "the first copy ends before that is durable": _head_unsynced(
        HeadState.CLEAN, after=HeadState.COPYING
    ),
    "a head that was found is relied upon": _replaced(Journal, "renew", lambda self: None),
    "what the journal holds is not written again": _replaced(Durable, "_finish", _no_replay),
    "handed over before that is durable": _head_unsynced(HeadState.HANDED_OVER),
    "the oldest write wins": _replaced(colo.disks.replica, "folded", _oldest_wins),
    "zeroes are not written": _replaced(
        colo.disks.durable, "write_into", _forgets_to_write_zeroes
    ),
    "a cut epoch survives a drop": _replaced(Epochs, "drop", _drop_the_current_only),
    "a commit takes more than was cut": _replaced(
        Epochs, "commit", _commit_what_came_after_the_cut
    ),
    "records of an epoch that waits are not needed": _replaced(
        Epochs, "first", property(lambda self: self.current.first)
    ),
    "the ring has room without end": _endless,
    "any head will do": _replaced(
        colo.disks.head, "max", min
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_rule_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BREAKS[name](monkeypatch)
    for seed in range(SEEDS_MAX):
        try:
            History(seed, nested=0.1).run(40)
        except (Complaint, InvariantBroken):
            return
    pytest.fail(f"nobody noticed: {name}")
