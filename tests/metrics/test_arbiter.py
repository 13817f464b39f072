"""An arbiter that is asked now and then: it answers, does not, or hangs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from colo.arbiters import asking
from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.membership.grant import Record
from colo.metrics.arbiter import Reached, watch


def watched(arbiter: Arbiter, until: int) -> Reached:
    reached = Reached()

    async def run() -> None:
        task = asyncio.create_task(watch(arbiter, reached, 0.001))
        while reached.asked < until:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    return reached


def test_one_that_answers_is_up_and_is_not_changed(tmp_path: Path) -> None:
    arbiter = Arbiter(FileRegister(tmp_path / "grant"))
    arbiter.begin()
    before = (tmp_path / "grant").read_bytes()
    reached = watched(arbiter, 3)
    assert (reached.is_up, reached.failed) == (True, 0)
    assert reached.answer_s is not None and 0 < reached.answer_s < 3
    assert (tmp_path / "grant").read_bytes() == before


def test_one_that_is_out_of_reach_is_not(tmp_path: Path) -> None:
    reached = watched(Arbiter(FileRegister(tmp_path / "none" / "grant")), 3)
    assert (reached.is_up, reached.asked, reached.failed) == (False, 3, 3)
    assert reached.answer_s is None


def test_a_call_that_hangs_is_alone_so_that_others_can_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_ANSWER_S", 0.01)
    let_go, calls = threading.Event(), []

    class Hangs(Arbiter):
        def current(self) -> Record:
            calls.append(1)
            assert let_go.wait(10)
            return super().current()

    arbiter = Hangs(FileRegister(tmp_path / "grant"))
    arbiter.begin()
    try:
        reached = watched(arbiter, 20)
        assert (reached.is_up, reached.failed, len(calls)) == (False, 20, 1)
    finally:
        let_go.set()
    assert watched(arbiter, 2).is_up
