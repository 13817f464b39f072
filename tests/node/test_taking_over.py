"""Asking for the right to run the VM can be given up at any moment; starting it cannot."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.fence import Fence
from colo.arbiters.file import FileRegister
from colo.errors import ColoError, GuestError, LocalError, NoAnswer, StoreError
from colo.membership.decision import Heard, LinkState
from colo.membership.grant import Grant, Record
from colo.membership.words import Word, WordKind
from colo.node import taking_over
from colo.node.taking_over import Takeover
from colo.protocol.tables import SecondaryEvent
from colo.store.store import Store


class Session:
    """A lost primary's session."""

    def __init__(self, trouble: ColoError | None = None) -> None:
        self.events: list[SecondaryEvent] = []
        self.closed = False
        self._trouble = trouble

    def handle(self, event: SecondaryEvent) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True

    async def applied(self) -> None:
        if self._trouble is not None:
            raise self._trouble


class Guest:
    """Starts when it is let; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.let = asyncio.Event()
        self.failures = failures
        self.runs = False

    async def load(self, store: Store) -> None:
        await self.let.wait()
        if self.failures:
            self.failures -= 1
            raise GuestError("no")

    async def run(self) -> None:
        self.runs = True


class SlowDisk(FileRegister):
    """Whoever has written waits for the ``disk``."""

    def __init__(self, path: Path, disk: threading.Event) -> None:
        super().__init__(path)
        self.disk = disk

    def _write(self, file: int, data: bytes) -> None:
        super()._write(file, data)
        self.disk.wait()


class AbsentArbiter(Arbiter):
    """Its mount hangs until it is ``back``; whoever has written waits for its ``disk``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.disk = threading.Event()
        super().__init__(SlowDisk(path, self.disk))
        self.back = threading.Event()
        self.disk.set()
        self.asked: list[str] = []

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        self.asked.append(holder)
        self.back.wait()
        return super().take(known, holder, void)

    async def until_written(self, grant: Grant) -> None:
        async with asyncio.timeout(10):
            while grant != Record.decode(self.path.read_text()).grant:
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 0.02)
    monkeypatch.setattr(taking_over, "_AGAIN_S", 0.001)


class Scene:
    def __init__(self, folder: Path, failures: int = 0, fence: Fence | None = None) -> None:
        self.arbiter = AbsentArbiter(folder / "grant")
        self.arbiter.begin()
        self.guest = Guest(failures)
        self.store = SimpleNamespace(
            checkpoint=SimpleNamespace(number=5), give_up=lambda: None, take_back=lambda: None
        )
        self.said: list[str] = []
        self.answers: list[Grant | None] = []
        self.outcomes: list[dict[str, Any] | ColoError] = []
        self.names = iter("bcdefg")
        self.takeover = Takeover(
            self.arbiter,
            fence,
            cast(Store, self.store),
            self.guest,
            lambda: next(self.names),
            self.said.append,
        )

    async def until_told(self) -> None:
        while not self.said:
            await asyncio.sleep(0.001)


def test_the_grant_is_asked_for_until_it_comes(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.takeover.ask(Heard(), scene.answers.append)
        await scene.until_told()
        assert scene.takeover.is_asking and not scene.takeover.is_starting
        scene.arbiter.back.set()
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [Grant(1, "b")]
        assert not scene.takeover.is_asking
        assert len(scene.said) == 1

    asyncio.run(run())


def test_asking_ends_at_once_and_no_answer_comes(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.takeover.ask(Heard(), scene.answers.append)
        await scene.until_told()
        assert scene.takeover.stop_asking()
        scene.arbiter.back.set()
        await asyncio.sleep(0.05)
        assert scene.answers == []
        assert not scene.takeover.stop_asking()

    asyncio.run(run())


def test_an_answer_that_comes_in_the_very_moment_counts_for_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.arbiter.back.set()
        scene.takeover.ask(Heard(), scene.answers.append)
        while scene.arbiter.current().number == 0:
            await asyncio.sleep(0)
        time.sleep(0.01)  # the answer is on its way, and is taken before us
        await asyncio.sleep(0)
        if scene.takeover.stop_asking():
            await asyncio.sleep(0.05)
            assert scene.answers == []

    asyncio.run(run())


def test_an_answer_that_came_late_is_got_by_asking_again(tmp_path: Path) -> None:
    """Though the QEMU that waits, and so our name, is another one by then."""

    async def run() -> None:
        scene = Scene(tmp_path)
        scene.arbiter.back.set()
        scene.arbiter.disk.clear()
        scene.takeover.ask(Heard(), scene.answers.append)
        await scene.arbiter.until_written(Grant(1, "b"))
        scene.takeover.stop_asking()
        scene.arbiter.disk.set()
        scene.takeover.ask(Heard(), scene.answers.append)
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [Grant(1, "b")]

    asyncio.run(run())


def test_an_order_that_was_not_heard_to_succeed_is_no_other_hosts_grant(tmp_path: Path) -> None:
    """It hung, and the asking that goes on must not be told that the VM runs elsewhere."""

    async def run() -> None:
        scene = Scene(tmp_path)
        scene.arbiter.back.set()
        scene.arbiter.disk.clear()
        with pytest.raises(NoAnswer):
            await scene.takeover.order(Heard(), False, lambda: None)
        scene.arbiter.disk.set()
        scene.takeover.ask(Heard(), scene.answers.append)
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [Grant(1, "b")]

    asyncio.run(run())


def test_a_start_ends_the_asking_and_is_waited_for_whatever_comes(tmp_path: Path) -> None:
    async def run() -> None:
        scene, session = Scene(tmp_path), Session()
        scene.takeover.ask(Heard(), scene.answers.append)
        await scene.until_told()
        scene.takeover.start(session, Grant(0, "b"), scene.outcomes.append, decided_now=True)
        assert not scene.takeover.is_asking and scene.takeover.is_starting
        assert session.closed and session.events == [SecondaryEvent.FAILOVER]
        leaving = asyncio.create_task(scene.takeover.settled())
        for _ in range(3):
            await asyncio.sleep(0.002)
            leaving.cancel()
        assert not leaving.done()
        scene.guest.let.set()
        await leaving
        assert scene.guest.runs
        assert session.events == [SecondaryEvent.FAILOVER, SecondaryEvent.RESUMED]
        (facts,) = scene.outcomes
        assert isinstance(facts, dict) and facts["checkpoint"] == 5
        scene.arbiter.back.set()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("failures", "trouble", "text"),
    [
        (3, None, "the takeover failed 3 times: no"),
        (0, StoreError("no room"), "no room"),
    ],
)
def test_a_start_that_fails_can_be_tried_again(
    tmp_path: Path, failures: int, trouble: ColoError | None, text: str
) -> None:
    async def run() -> None:
        scene, session = Scene(tmp_path, failures), Session(trouble)
        scene.guest.let.set()
        scene.takeover.start(session, Grant(1, "b"), scene.outcomes.append)
        await scene.takeover.settled()
        assert [str(outcome) for outcome in scene.outcomes] == [text]
        assert session.events == [SecondaryEvent.FAILOVER, SecondaryEvent.NOT_STARTED]
        scene.takeover.start(Session(), Grant(2, "b"), scene.outcomes.append)
        await scene.takeover.settled()
        assert scene.guest.runs

    asyncio.run(run())


def test_the_arbiter_that_does_not_answer_holds_up_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.takeover.ask(Heard(), scene.answers.append)
        await asyncio.sleep(0.3)
        assert len(scene.arbiter.asked) <= 4, "calls that hang are not piled up"
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(50)))
        with pytest.raises(LocalError):
            await scene.takeover.order(Heard(), False, lambda: None)
        scene.takeover.stop_asking()
        scene.arbiter.back.set()

    asyncio.run(run())


class FakeFence:
    """Says that the other host is off once it ``is_off``."""

    def __init__(self) -> None:
        self.is_off = False
        self.asked: list[str] = []

    async def off(self, host: str) -> None:
        self.asked.append(host)
        if not self.is_off:
            raise LocalError("the fence: exit 1")


def fenced(folder: Path) -> tuple[Scene, FakeFence, Heard]:
    """A takeover with a fence, whose arbiter answers; and what was heard of the primary."""
    fence = FakeFence()
    scene = Scene(folder, fence=cast(Fence, fence))
    scene.arbiter.back.set()
    return scene, fence, Heard(LinkState.LOST, holder="a/1/1")


def test_the_vm_waits_for_the_fence_with_the_grant_in_hand(tmp_path: Path) -> None:
    async def run() -> None:
        scene, fence, heard = fenced(tmp_path)
        scene.takeover.ask(heard, scene.answers.append)
        while len(fence.asked) < 3:
            await asyncio.sleep(0.001)
        assert scene.arbiter.current().grant == Grant(1, "b")
        assert scene.takeover.is_asking and scene.answers == []
        waits = "grant 1 is ours, but the other host may still run: the fence: exit 1"
        assert scene.takeover.waits_for == waits and scene.said == [waits]
        fence.is_off = True
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [Grant(1, "b")]
        assert scene.takeover.waits_for is None and set(fence.asked) == {"a"}

    asyncio.run(run())


def test_the_fence_is_not_asked_without_the_grant(tmp_path: Path) -> None:
    async def run() -> None:
        scene, fence, heard = fenced(tmp_path)
        scene.arbiter.order("another")
        scene.takeover.ask(heard, scene.answers.append)
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [None] and fence.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("word", [WordKind.DEAD, WordKind.HANDOVER])
def test_a_primary_that_says_it_runs_nothing_is_not_turned_off(
    tmp_path: Path, word: WordKind
) -> None:
    async def run() -> None:
        scene, fence, heard = fenced(tmp_path)
        heard.hear(Word(word))
        scene.takeover.ask(heard, scene.answers.append)
        while not scene.answers:
            await asyncio.sleep(0.001)
        assert scene.answers == [Grant(1, "b")] and fence.asked == []

    asyncio.run(run())


def test_an_order_asks_the_fence_and_by_force_does_without(tmp_path: Path) -> None:
    async def run() -> None:
        scene, fence, heard = fenced(tmp_path)
        scene.takeover.ask(heard, scene.answers.append)
        await scene.until_told()
        again: list[bool] = []
        with pytest.raises(LocalError, match="the fence: exit 1"):
            await scene.takeover.order(heard, False, lambda: again.append(True))
        assert again == [True], "it goes on asking"
        asked = len(fence.asked)
        assert await scene.takeover.order(heard, True, lambda: None) == Grant(3, "b")
        assert len(fence.asked) == asked
        fence.is_off = True
        assert await scene.takeover.order(heard, False, lambda: None) == Grant(4, "b")
        assert len(fence.asked) == asked + 1

    asyncio.run(run())
