"""Asking for the right to run the VM can be given up at any moment; starting it cannot."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.fence import Fence
from colo.arbiters.file import FileRegister
from colo.errors import ColoError, DiskError, GuestError, LocalError, StoreError
from colo.membership.grant import Grant, Record
from colo.membership.member import Facts, Means, Member
from colo.membership.states import Do, Event, State
from colo.membership.words import WordKind
from colo.node.performer import Performer
from colo.node.state_folder import StateFolder
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
        self.closed = True

    async def applied(self) -> None:
        if self._trouble is not None:
            raise self._trouble


class Disks:
    """What they were when the VM ran: handed over, or not."""

    def __init__(self) -> None:
        self.handed_over = 0
        self.trouble: DiskError | None = None

    async def hand_over(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.handed_over += 1


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
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arbiter that answers is waited for, however busy this machine is."""
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 10.0)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arbiter of this test does not answer for a while."""
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 0.02)


class Host(Performer):
    """A host whose primary is lost: its machine, and the takeover that it performs."""

    def __init__(self, folder: Path, failures: int = 0, fence: Fence | None = None) -> None:
        means = Means(fence=fence is not None)
        nothing = SimpleNamespace(override=lambda number: None, note_grant=lambda grant: None)
        nowhere = cast(StateFolder, nothing)
        super().__init__(Member("web1", means, State.KEEPING), nowhere, lambda text: None)
        self.member.facts = Facts(known=Grant(0, "a/1/1"), linked=True)
        self.arbiter = AbsentArbiter(folder / "grant")
        self.arbiter.begin()
        self.guest = Guest(failures)
        self.session = Session()
        store = SimpleNamespace(
            checkpoint=SimpleNamespace(number=5), give_up=lambda: None, take_back=lambda: None
        )
        self.said: list[str] = []
        self.did: list[Do] = []
        self.disks = Disks()
        self.lacks = False
        self.names = "bcdefg"  # of the QEMUs that wait, one after the other
        self.takeover = Takeover(
            self.member,
            self.arbiter,
            fence,
            cast(Store, store),
            self.disks,
            self.guest,
            lambda: self.names[0],
            self.said.append,
            lambda: self.lacks,
        )

    def perform(self, effect: Do) -> None:
        self.did.append(effect)
        match effect:
            case Do.ASK:
                self.ask(self.takeover.take())
            case Do.ASK_BY_ORDER:
                self.ask(self.takeover.order())
            case Do.FENCE:
                self.ask(self.takeover.fence_off())
            case Do.PAUSE:
                self.pause(0.001)
            case Do.LOAD:
                self.ask(self.takeover.load(self.session))

    def entered(self, before: State, event: Event) -> None:
        if self.state is State.ORPHANED:
            self.takeover.begin()

    def performed(self, event: Event) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {}

    def lose(self) -> None:
        """The primary is lost."""
        self.tell(Event.LINK_LOST)

    async def until(self, *states: State) -> None:
        async with asyncio.timeout(10):
            while self.state not in states:
                await asyncio.sleep(0.001)

    async def until_told(self) -> None:
        while not self.said:
            await asyncio.sleep(0.001)


def play(folder: Path, scene: Callable[[Host], Awaitable[None]], **made: Any) -> None:
    async def run() -> None:
        host = Host(folder, **made)
        try:
            await asyncio.wait_for(scene(host), 15)
        finally:
            host.arbiter.back.set()
            host.arbiter.disk.set()
            host.guest.let.set()
            await host.close()

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_the_grant_is_asked_for_until_it_comes(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.guest.let.set()
        host.lose()
        await host.until_told()
        assert host.state is State.ORPHANED
        host.arbiter.back.set()
        await host.until(State.RUNNING)
        assert host.member.facts.grant == Grant(1, "b")
        assert len(host.said) == 1

    play(tmp_path, scene)


def test_who_comes_to_lack_what_clients_heard_asks_no_more(tmp_path: Path) -> None:
    """A secondary VM has died while the arbiter was away: a grant could not be used, and would
    silence a primary that may be well."""

    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.guest.let.set()
        host.lacks = True
        host.lose()
        await host.until_told()
        assert "the secondary VM has died" in host.said[0]
        while host.did.count(Do.ASK) < 3:
            await asyncio.sleep(0.001)
        assert host.arbiter.current().grant.number == 0
        host.lacks = False  # by an operator's force, say
        await host.until(State.RUNNING)

    play(tmp_path, scene)


def test_a_fence_is_not_used_for_what_could_not_be_run(tmp_path: Path) -> None:
    fence = FakeFence()

    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.guest.let.set()
        fence.is_off = True
        host.lacks = True
        assert await host.takeover.fence_off() == (Event.NOT_OFF, {})
        assert fence.asked == []
        host.lacks = False
        assert await host.takeover.fence_off() == (Event.OFF, {})

    play(tmp_path, scene, fence=cast(Fence, fence))


@pytest.mark.usefixtures("impatient")
def test_asking_ends_at_once_and_no_answer_comes(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.lose()
        await host.until_told()
        host.tell(Event.LINK_UP, grant=Grant(7, "a/1/1"))
        assert host.state is State.GREETED and Do.STOP_ASKING not in host.did
        host.arbiter.back.set()
        await asyncio.sleep(0.05)
        assert host.state is State.GREETED

    play(tmp_path, scene)


def test_an_answer_that_comes_in_the_very_moment_counts_for_nothing(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.lose()
        while host.arbiter.current().number == 0:
            await asyncio.sleep(0)
        time.sleep(0.01)  # the answer is on its way, and is taken before us
        await asyncio.sleep(0)
        if host.member.facts.busy is not None:
            host.tell(Event.LINK_UP, grant=Grant(7, "a/1/1"))
            await asyncio.sleep(0.05)
            assert host.state is State.GREETED and Do.LOAD not in host.did

    play(tmp_path, scene)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ordered", [False, True])
def test_an_answer_that_came_late_is_got_by_asking_again(tmp_path: Path, ordered: bool) -> None:
    """Though the QEMU that waits, and so our name, is another one by then.

    An order that hung is no other host's grant either.
    """

    async def scene(host: Host) -> None:
        host.guest.let.set()
        host.arbiter.back.set()
        host.arbiter.disk.clear()
        if ordered:
            host.tell(Event.LINK_LOST)
            host.tell(Event.ORDER)
        else:
            host.lose()
        await host.arbiter.until_written(Grant(1, "b"))
        host.names = "c"
        await host.until_told()
        host.arbiter.disk.set()
        await host.until(State.RUNNING)
        assert host.arbiter.asked[:2] == ["b", "b"] or ordered
        assert host.member.facts.grant == host.arbiter.current().grant == Grant(2, "c")

    play(tmp_path, scene)


async def until_granted(host: Host) -> None:
    """Have the grant, and a VM that is being started."""
    host.arbiter.back.set()
    host.lose()
    await host.until(State.TAKING_OVER)
    assert host.member.facts.grant == Grant(1, "b")


def test_the_grant_is_in_the_name_of_the_qemu_that_runs(tmp_path: Path) -> None:
    """The one in whose name it was asked for has died: who looks next would take this for stale."""

    async def scene(host: Host) -> None:
        await until_granted(host)
        host.names = "c"
        host.guest.let.set()
        await host.until(State.RUNNING)
        assert host.member.facts.grant == host.arbiter.current().grant == Grant(2, "c")
        assert host.takeover.facts["grant"] == 2
        assert not host.member.facts.owes

    play(tmp_path, scene)


@pytest.mark.usefixtures("impatient")
def test_an_arbiter_that_is_away_then_learns_it_later(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        await until_granted(host)
        host.names = "c"
        host.arbiter.back.clear()
        host.guest.let.set()
        await host.until(State.RUNNING)
        assert host.member.facts.owes
        assert host.member.facts.overridden == 1
        assert "the arbiter is told later which QEMU runs the VM" in host.said[-1]

    play(tmp_path, scene)


def test_a_grant_that_has_moved_on_meanwhile_starts_nothing(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        await until_granted(host)
        host.names = "c"
        host.arbiter.order("another")
        host.guest.let.set()
        await host.until(State.ORPHANED)
        assert not host.guest.runs
        assert "another host has the right to run the VM since grant 1" in str(host.takeover.error)

    play(tmp_path, scene)


def test_a_start_is_bounded_and_closes_the_session(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.lose()
        await host.until(State.TAKING_OVER)
        await asyncio.sleep(0)
        assert host.session.closed and host.session.events == [SecondaryEvent.FAILOVER]
        for _ in range(3):
            host.tell(Event.INTERRUPT)
        assert host.state is State.TAKING_OVER
        host.guest.let.set()
        await host.until(State.GONE)
        assert host.guest.runs
        assert host.session.events == [SecondaryEvent.FAILOVER, SecondaryEvent.RESUMED]
        assert host.takeover.facts["checkpoint"] == 5

    play(tmp_path, scene)


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
    async def scene(host: Host) -> None:
        host.session = Session(trouble)
        host.guest.let.set()
        host.arbiter.back.set()
        host.lose()
        while not host.session.events[1:]:
            await asyncio.sleep(0.001)
        await host.until(State.ORPHANED)
        assert str(host.takeover.error) == text
        assert host.session.events == [SecondaryEvent.FAILOVER, SecondaryEvent.NOT_STARTED]
        host.session = Session()
        host.tell(Event.ORDER)
        await host.until(State.RUNNING)
        assert host.guest.runs and Do.AGREE in host.did

    play(tmp_path, scene, failures=failures)


@pytest.mark.usefixtures("impatient")
def test_the_arbiter_that_does_not_answer_holds_up_nothing_else(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.lose()
        await asyncio.sleep(0.3)
        assert len(host.arbiter.asked) <= 4, "calls that hang are not piled up"
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(50)))
        host.tell(Event.ORDER)
        while Do.DECLINE not in host.did:
            await asyncio.sleep(0.001)
        assert host.member.facts.asking, "it goes on asking"

    play(tmp_path, scene)


class FakeFence:
    """Says that the other host is off once it ``is_off``."""

    def __init__(self) -> None:
        self.is_off = False
        self.asked: list[str] = []

    async def off(self, host: str) -> None:
        self.asked.append(host)
        if not self.is_off:
            raise LocalError("the fence: exit 1")


def test_the_vm_waits_for_the_fence_with_the_grant_in_hand(tmp_path: Path) -> None:
    fence = FakeFence()

    async def scene(host: Host) -> None:
        host.guest.let.set()
        host.arbiter.back.set()
        host.lose()
        while len(fence.asked) < 3:
            await asyncio.sleep(0.001)
        assert host.arbiter.current().grant == Grant(1, "b")
        assert host.state is State.ORPHANED
        waits = "grant 1 is ours, but the other host may still run: the fence: exit 1"
        assert host.takeover.waits_for == waits and host.said == [waits]
        fence.is_off = True
        await host.until(State.RUNNING)
        assert host.takeover.waits_for is None and set(fence.asked) == {"a"}
        assert host.did.count(Do.ASK) == 1, "the grant is asked for once"

    play(tmp_path, scene, fence=cast(Fence, fence))


def test_the_fence_is_not_asked_without_the_grant(tmp_path: Path) -> None:
    fence = FakeFence()

    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.arbiter.order("another")
        host.lose()
        await host.until(State.LISTENING)
        assert fence.asked == [] and Do.FORGET in host.did

    play(tmp_path, scene, fence=cast(Fence, fence))


@pytest.mark.parametrize("word", [WordKind.DEAD, WordKind.HANDOVER])
def test_a_primary_that_says_it_runs_nothing_is_not_turned_off(
    tmp_path: Path, word: WordKind
) -> None:
    fence = FakeFence()

    async def scene(host: Host) -> None:
        host.guest.let.set()
        host.arbiter.back.set()
        host.tell(Event.SAYS_GONE, word=word)
        assert host.state is State.KEEPING, "what it still had sent is read first"
        host.tell(Event.LOST)
        await host.until(State.RUNNING)
        assert fence.asked == []

    play(tmp_path, scene, fence=cast(Fence, fence))


def test_an_order_asks_the_fence_and_by_force_does_without(tmp_path: Path) -> None:
    fence = FakeFence()

    async def scene(host: Host) -> None:
        host.guest.let.set()
        host.arbiter.back.set()
        host.lose()
        await host.until_told()
        host.tell(Event.ORDER)
        while Do.DECLINE not in host.did:
            await asyncio.sleep(0.001)
        assert host.state is State.ORPHANED and host.member.facts.asking
        host.tell(Event.ORDER, force=True)
        await host.until(State.RUNNING)
        assert host.did[-3:].count(Do.FENCE) == 0
        assert host.arbiter.current().number == host.member.facts.grant.number

    play(tmp_path, scene, fence=cast(Fence, fence))


def test_a_vm_whose_disk_cannot_be_handed_over_never_runs(tmp_path: Path) -> None:
    """Its memory is loaded meanwhile; and it is not tried again and again."""

    async def scene(host: Host) -> None:
        host.arbiter.back.set()
        host.guest.let.set()
        host.disks.trouble = DiskError("vda", "cannot write: Input/output error")
        host.lose()
        while SecondaryEvent.NOT_STARTED not in host.session.events:
            await asyncio.sleep(0.001)
        assert not host.guest.runs
        assert "Input/output error" in str(host.takeover.error)
        assert not any("try to take over" in line for line in host.said)

    play(tmp_path, scene)


def test_a_vm_runs_only_once_its_disk_is_there(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        there = asyncio.Event()

        async def hand_over() -> None:
            await there.wait()
            host.disks.handed_over += 1

        host.disks.hand_over = hand_over  # type: ignore[method-assign]
        host.arbiter.back.set()
        host.guest.let.set()
        host.lose()
        await host.until(State.TAKING_OVER)
        await asyncio.sleep(0.05)
        assert not host.guest.runs
        there.set()
        await host.until(State.RUNNING)
        assert host.guest.runs and host.disks.handed_over == 1

    play(tmp_path, scene)
