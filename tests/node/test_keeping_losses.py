"""The secondary's shell with a guest in memory: losses, orders, and what an end gives up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.arbiters.manual import ManualArbiter
from colo.config import VmConfig
from colo.config.vm import Failover, QemuArgs, StoreRoom
from colo.errors import ChannelLost, Misfit, PeerError, StoreError
from colo.guest.memory import MemoryGuest
from colo.membership.grant import Grant, Record
from colo.membership.member import OnLoss
from colo.membership.states import State
from colo.membership.words import Hello, Word, WordKind
from colo.migration.reader import Migration
from colo.node import keeping
from colo.node.keeping import SecondaryNode
from colo.node.kept import Kept
from colo.node.orders import Answer, Order
from colo.node.state_folder import StateFolder
from colo.node.taking_over import Takeover
from colo.qemu.process import LaunchPlan
from colo.session.own_primary import Sending
from colo.store.store import Store
from colo.transport.address import Address
from colo.transport.control_link import Link, call
from tests.node.fakes import FitsAnything

PAGES = 256
A = "a/1/1"


class Waiting(FitsAnything):
    """Stands for the waiting QEMU; ``hold``: a start waits for ``let``."""

    hold = False

    def __init__(self, plan: object, image: Path, folder: Path, *_: object) -> None:
        self.qemu = SimpleNamespace(
            pid=os.getpid(),
            exited=False,
            qmp_socket=folder / "qmp.sock",
            wait=self._never,
            detach=self._nothing,
        )
        self.trouble, self.starts = None, 1
        self.let = asyncio.Event()
        self.refuses: PeerError | None = None
        self.loaded = self.stopped = False

    async def start(self) -> None:
        pass

    def renew(self) -> None:
        pass

    read_only: dict[str, str] = {}  # noqa: RUF012

    def check_devices(self, migration: Migration) -> None:
        if self.refuses is not None:
            raise self.refuses

    def status(self) -> dict[str, Any]:
        return {"qemu": {"pid": self.qemu.pid}, "clock": None}

    async def load(self, store: Store) -> None:
        if self.hold:
            await self.let.wait()
        self.loaded = True

    async def run(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True

    async def _never(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def _nothing(self) -> None:
        pass


class Mount(Arbiter):
    """A grant file; while the mount is ``dead``, whoever asks waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(FileRegister(path))
        self.alive = threading.Event()
        self.alive.set()

    def begin(self) -> Record:
        self.alive.wait()
        return super().begin()

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        self.alive.wait()
        return super().take(known, holder, void)

    def order(self, holder: str) -> Grant:
        self.alive.wait()
        return super().order(holder)


class Primary:
    """A primary whose guest is memory; ``mute``: its control link sends no heartbeats.

    One that is sent when the other side has closed ends the link before its last word is read.
    """

    def __init__(self, mute: bool = False) -> None:
        self._beat_s = 3600.0 if mute else 0.02
        self.guest = MemoryGuest(PAGES)
        self.heard: list[Word] = []
        self.link: Link | None = None
        self._sending: Sending | None = None
        self._running: asyncio.Task[None] | None = None

    async def protect(self, host: Host, grant: int, holder: str = A) -> None:
        ours = Hello.ours(host.config, grant, holder)
        sock, _ = await call(host.address, ours, 3)
        self.link = Link(
            sock, self._beat_s, (7200, 7200), dict, self.heard.append, lambda error: None
        )
        await self.protect_as_stock(host)

    async def protect_as_stock(self, host: Host) -> None:
        """Without a control link."""
        host.primaries.append(self)
        self.guest.running.set()
        self._sending = Sending(host.config.name, self.guest, await host.address.connect())
        await self._sending.migrate()
        await host.until(lambda: host.node._kept.number == 0)

    async def checkpoint(self, host: Host) -> None:
        """Write to the guest, and have the secondary commit that as checkpoint 1."""
        assert self._sending is not None
        self.guest.write(np.arange(PAGES), np.full((PAGES, 4096), 7, np.uint8))

        async def due() -> None:
            if (
                host.node._kept.store.checkpoint is not None
                and host.node._kept.store.checkpoint.number
            ):
                await asyncio.Event().wait()

        self._running = asyncio.create_task(self._sending.run(due))
        await host.until(lambda: host.node._kept.number == 1)

    async def says_that_it_is_dead(self, host: Host, content: dict[str, Any]) -> None:
        """Say so while the channel is open, so that it is heard before the end."""
        assert self.link is not None
        self.link.say(Word(WordKind.DEAD, content))
        await host.until(lambda: host.node.member.facts.word is WordKind.DEAD)
        self.die()

    def die(self) -> None:
        if self._running is not None:
            self._running.cancel()
        if self.link is not None:
            self.link.close()
        if self._sending is not None:
            self._sending.close()
            self._sending = None


#: A machine whose memory is called as that of the primary's guest is.
MEMORY: Final = (
    "-object", "memory-backend-ram,id=memory,size=1M", "-machine", "memory-backend=memory",
)  # fmt: skip


class Host:
    """A running secondary."""

    def __init__(self, folder: Path, arbiter: Arbiter, on_loss: OnLoss) -> None:
        kind = "manual" if isinstance(arbiter, ManualArbiter) else f"file:{folder}/grant"
        self.config = VmConfig(
            "web1",
            qemu=QemuArgs(args=MEMORY),
            store=StoreRoom(folder=folder),
            failover=Failover(arbiter=kind, heartbeat_s=0.02, heartbeat_limit_s=60),
        )
        self.address = Address(path=str(folder / "b.sock"))
        self.said: list[str] = []
        self.primaries: list[Primary] = []
        self.state_folder = StateFolder(folder / "state")
        plan = cast(LaunchPlan, None)  # for the waiting QEMU only
        self.node = SecondaryNode(
            self.config, plan, self.address, self.state_folder, arbiter, on_loss, self.said.append
        )
        self.task = asyncio.create_task(self.node.run())

    @property
    def waiting(self) -> Any:
        return self.node.waiting

    @property
    def state(self) -> str:
        return self.node.state.name

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not true():
                await asyncio.sleep(0.002)

    async def until_said(self, text: str) -> None:
        try:
            await self.until(lambda: any(text in line for line in self.said))
        except TimeoutError:
            raise AssertionError(f"{text!r} was not said: {self.said}") from None

    async def order(self, force: bool = False) -> Answer:
        async with asyncio.timeout(10):
            return await self.node._obey(Order("failover", force))

    async def end(self) -> None:
        self.node.stop()
        async with asyncio.timeout(10):
            await asyncio.wait({self.task}, timeout=0.5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "WaitingQemu", Waiting)
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 10.0)  # it answers, if maybe late
    monkeypatch.setattr("colo.node.keeping._AGAIN_S", 0.01)
    monkeypatch.setattr("colo.arbiters.asking._calls", [])


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arbiter of this test is out of reach for a while."""
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 0.2)


@contextlib.asynccontextmanager
async def hosted(
    folder: Path, arbiter: Arbiter, on_loss: OnLoss = OnLoss.TAKEOVER
) -> AsyncIterator[Host]:
    host = Host(folder, arbiter, on_loss)
    try:
        await host.until_said("waiting for a primary")
        yield host
    finally:
        if isinstance(arbiter, Mount):
            arbiter.alive.set()
        host.waiting.let.set()
        for primary in host.primaries:
            primary.die()
        for _ in range(3):
            await host.end()
        host.state_folder.close()


async def closed(sock: socket.socket) -> None:
    """The other side has closed this connection, or will, and says nothing before."""
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""


def granted(folder: Path, number: int = 1, holder: str = A) -> Mount:
    """The arbiter of both hosts."""
    (folder / "grant").write_text(Record(number, holder).encode())
    return Mount(folder / "grant")


@pytest.mark.parametrize("error", [Misfit("another VM"), PeerError("of no use")])
def test_why_there_is_no_first_copy_is_said_and_whether_that_can_change(
    tmp_path: Path, error: PeerError
) -> None:
    async def run() -> None:
        primary = Primary(mute=True)
        async with hosted(tmp_path, granted(tmp_path)) as host:
            host.waiting.refuses = error
            protecting = asyncio.create_task(primary.protect(host, 1))
            await host.until(lambda: primary.heard)
            # The other host hears it before the user does: neither order is promised.
            await host.until_said(f"web1: no first copy: {error}")
            protecting.cancel()
            await asyncio.wait({protecting})
            (word,) = primary.heard
            assert word.kind is WordKind.REFUSED
            assert word.content == {"why": str(error), "final": isinstance(error, Misfit)}
            assert host.said.count(f"web1: no first copy: {error}") == 1
            assert not any("PROTECTED" in line for line in host.said)
            await host.until(lambda: host.state == "LISTENING")

    asyncio.run(run())


def test_a_lost_primary_is_taken_over(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter, primary = granted(tmp_path), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await primary.protect(host, 1)
            primary.die()
            await host.until_said("RUNNING HERE, from checkpoint 0")
            assert arbiter.current().number == 2
            await host.end()
            assert host.said[-1].startswith("web1: the VM goes on without colo")
            assert not host.waiting.stopped

    asyncio.run(run())


@pytest.mark.parametrize("meanwhile", [1, 2])
def test_a_grant_that_a_dead_primary_got_is_in_nobodys_way(tmp_path: Path, meanwhile: int) -> None:
    """It was to run alone, or its call came to life late, and its VM died."""

    async def run() -> None:
        arbiter, primary = granted(tmp_path), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await primary.protect(host, 1)
            granted(tmp_path, meanwhile)
            await primary.says_that_it_is_dead(host, {"grant": 2})
            await host.until_said("RUNNING HERE, from checkpoint 0")
            assert arbiter.current().number == meanwhile + 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("content", "stands"),
    [
        ({"grant": 2}, Grant(2, "c/1/1")),
        ({"grant": 2}, Grant(2, "")),
        ({"grant": 3}, Grant(2, A)),
        ({"grant": 2}, Grant(3, A)),
        *(
            ({"grant": number} if number else {}, Grant(2, A))
            for number in (None, "2", 2.0, [2], {"2": 2}, True, -1, 1, float("nan"), 10**4000)
        ),
    ],
)
def test_a_word_about_another_grant_takes_nothing_from_its_holder(
    tmp_path: Path, content: dict[str, Any], stands: Grant
) -> None:
    async def run() -> None:
        arbiter, primary = granted(tmp_path), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await primary.protect(host, 1)
            granted(tmp_path, stands.number, stands.holder)
            await primary.says_that_it_is_dead(host, content)
            await host.until_said("the other host has the right to run the VM")
            assert arbiter.current().grant == stands
            await Primary().protect(host, stands.number, stands.holder)

    asyncio.run(run())


async def lost_with_the_arbiter(host: Host, arbiter: Mount, primary: Primary) -> None:
    """The primary and the grant's storage die together."""
    await primary.protect(host, 1)
    arbiter.alive.clear()
    primary.die()
    await host.until_said("no grant yet")


@pytest.mark.usefixtures("impatient")
def test_an_order_by_force_does_without_an_arbiter_out_of_reach(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter = granted(tmp_path)
        async with hosted(tmp_path, arbiter) as host:
            await lost_with_the_arbiter(host, arbiter, Primary())
            refused = await host.order()
            assert not refused.ok
            assert refused.text.endswith("; --force does without it")
            assert host.node.member.facts.asking, "it is still asked for"
            answer = await host.order(force=True)
            assert answer == Answer(True, "the VM runs here, from checkpoint 0")
            assert host.node._folder.overridden == host.node.member.facts.known.number == 1

    asyncio.run(run())


def test_where_clients_heard_of_more_the_grant_is_left_to_the_primary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secondary VM has spoken and died; only an operator's force runs the checkpoint."""
    monkeypatch.setattr(Kept, "lacks", True)

    async def run() -> None:
        arbiter = granted(tmp_path)
        async with hosted(tmp_path, arbiter) as host:
            primary = Primary()
            await primary.protect(host, 1)
            primary.die()
            await host.until_said("clients may have heard of more than checkpoint 0 has")
            assert not host.node.member.facts.asking
            refused = await host.order()
            assert not refused.ok and refused.text.endswith("--force` runs that one")
            assert arbiter.current().number == 1, "the primary may take the next one"
            assert (await host.order(force=True)).ok

    asyncio.run(run())


def test_two_orders_at_once_are_one(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosted(tmp_path, granted(tmp_path), OnLoss.HOLD) as host:
            primary = Primary()
            await primary.protect(host, 1)
            primary.die()
            await host.until_said("holding")
            answers = await asyncio.gather(host.order(), host.order(), host.order(force=True))
            assert [answer.ok for answer in answers] == [True, True, True]
            assert sum("RUNNING HERE" in line for line in host.said) == 1

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_the_only_copy_is_given_up_at_the_second_time_of_asking(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter = granted(tmp_path)
        async with hosted(tmp_path, arbiter) as host:
            await lost_with_the_arbiter(host, arbiter, Primary())
            store = host.node._kept.store.folder
            host.node.stop()
            await host.until_said("not ended: checkpoint 0 is all that is left")
            assert "export --state-dir" in host.said[-1]
            assert not host.task.done() and store.exists()
            await host.end()
            assert host.task.done() and not store.exists() and host.waiting.stopped

    asyncio.run(run())


def test_a_copy_whose_primary_is_heard_is_not_the_only_one(tmp_path: Path) -> None:
    async def run() -> None:
        primary = Primary()
        async with hosted(tmp_path, granted(tmp_path)) as host:
            await primary.protect(host, 1)
            assert primary._sending is not None
            primary._sending.close()
            await host.until(lambda: host.state == "CUT_OFF")
            await host.end()
            assert host.task.done() and host.waiting.stopped

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_after_the_first_time_it_still_takes_over(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter = granted(tmp_path)
        async with hosted(tmp_path, arbiter) as host:
            await lost_with_the_arbiter(host, arbiter, Primary())
            host.node.stop()
            await host.until_said("not ended")
            arbiter.alive.set()
            await host.until_said("RUNNING HERE")
            await host.end()
            assert host.task.done() and not host.waiting.stopped

    asyncio.run(run())


def test_a_takeover_under_way_ends_first_however_often_it_is_told_to_end(tmp_path: Path) -> None:
    async def run() -> None:
        async with hosted(tmp_path, granted(tmp_path)) as host:
            host.waiting.hold = True
            primary = Primary()
            await primary.protect(host, 1)
            primary.die()
            await host.until(lambda: host.state == "TAKING_OVER")
            for _ in range(3):
                host.node.stop()
                await asyncio.sleep(0.01)
            assert not host.task.done() and not host.waiting.stopped
            host.waiting.let.set()
            await host.end()
            assert host.waiting.loaded and not host.waiting.stopped
            assert "the VM goes on without colo" in host.said[-1]

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_an_asking_ends_with_its_session(tmp_path: Path) -> None:
    """The mount is dead on host B; host A gets the next grant, comes back and then dies."""

    async def run() -> None:
        arbiter, first, again = granted(tmp_path), Primary(), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await lost_with_the_arbiter(host, arbiter, first)
            assert Arbiter(FileRegister(tmp_path / "grant")).take(1, A) == Grant(2, A)
            await again.protect(host, 2)
            assert host.state == "KEEPING"
            assert not host.node.member.facts.asking
            arbiter.alive.set()
            await asyncio.sleep(0.3)
            assert host.state == "KEEPING", host.said
            again.die()
            await host.until_said("RUNNING HERE")
            assert arbiter.current().number == 3

    asyncio.run(run())


async def refusal(host: Host, grant: int, holder: str = A) -> str:
    with pytest.raises(ChannelLost) as caught:
        await Primary().protect(host, grant, holder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("here", "grant", "text"),
    [
        (None, 7, "the grant file {} here does not show grant 7 of the primary: both hosts must"),
        ((0, ""), 7, "does not show grant 7 of the primary: both hosts must see the same one"),
        (
            (7, "c/1/1"),
            7,
            "does not stand: by the grant file {} here c/1/1 has grant 7",
        ),
        (
            (8, "c/1/1"),
            7,
            "does not stand: by the grant file {} here c/1/1 has grant 8",
        ),
    ],
)
def test_hosts_with_different_grant_files_protect_nothing(
    tmp_path: Path, here: tuple[int, str] | None, grant: int, text: str
) -> None:
    async def run() -> None:
        path = tmp_path / "grant"
        arbiter = Mount(path) if here is None else granted(tmp_path, *here)
        async with hosted(tmp_path, arbiter) as host:
            assert text.format(path) in await refusal(host, grant)
            assert sum("was refused" in line for line in host.said) == 1
            assert path.exists() == (here is not None), "no file is made here"
            granted(tmp_path, grant)
            await Primary().protect(host, grant)

    asyncio.run(run())


@pytest.mark.parametrize("known_as", [A, ""])
def test_a_grant_of_which_its_primary_has_not_heard_is_taken_over_from(
    tmp_path: Path, known_as: str
) -> None:
    """An order that hung, and was granted: the primary went on without, as it was told to."""

    async def run() -> None:
        arbiter, primary = granted(tmp_path, 2 if known_as else 1), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await primary.protect(host, 1, known_as)
            primary.die()
            await host.until_said("RUNNING HERE")
            assert arbiter.current().number == (3 if known_as else 2)

    asyncio.run(run())


def test_the_only_copy_is_not_forgotten_for_a_primary_with_another_grant_file(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        primary = Primary()
        async with hosted(tmp_path, granted(tmp_path), OnLoss.HOLD) as host:
            await primary.protect(host, 1)
            primary.die()
            await host.until_said("holding checkpoint 0")
            assert "does not show grant 9" in await refusal(host, 9)
            assert host.state == "ORPHANED"
            assert (await host.order()).ok

    asyncio.run(run())


def test_a_grant_file_that_was_exchanged_is_no_answer(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter, primary = granted(tmp_path, 7), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await primary.protect(host, 7)
            granted(tmp_path, 0, "")
            primary.die()
            await host.until_said("no grant yet: the grant file")
            assert host.state == "ORPHANED"
            granted(tmp_path, 7)
            await host.until_said("RUNNING HERE")

    asyncio.run(run())


def test_a_manual_arbiter_has_nothing_to_compare(tmp_path: Path) -> None:
    async def run() -> None:
        primary = Primary()
        async with hosted(tmp_path, ManualArbiter()) as host:
            await primary.protect(host, 3)
            primary.die()
            await host.until_said("holding checkpoint 0")
            assert (await host.order()).ok

    asyncio.run(run())


def test_nobody_who_listens_and_a_full_folder_decide_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        primary = Primary()
        async with hosted(tmp_path, granted(tmp_path)) as host:
            await primary.protect(host, 1)

            def broken(*_: object) -> None:
                raise BrokenPipeError("nobody reads")

            monkeypatch.setattr(host.node, "_tell_user", broken)
            monkeypatch.setattr(host.state_folder, "write_status", broken)
            await asyncio.sleep(0.6)
            assert not host.task.done()
            primary.die()
            await host.until(lambda: host.state == "RUNNING")

    asyncio.run(run())


def test_who_says_two_things_before_the_answer_is_closed(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with hosted(tmp_path, granted(tmp_path)) as host:
            with await host.address.connect() as sock:
                hello = Hello.ours(host.config, 1).word().encode()
                await loop.sock_sendall(sock, b"COLO" + hello + Word(WordKind.BYE).encode())
                async with asyncio.timeout(5):
                    assert await loop.sock_recv(sock, 1000) == b""
            assert host.node._callers.link is None

    asyncio.run(run())


def test_who_says_no_hello_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colo.node.admission._HELLO_S", 0.05)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with hosted(tmp_path, granted(tmp_path)) as host:
            with await host.address.connect() as sock:
                await loop.sock_sendall(sock, b"COLO" + Word(WordKind.HEARTBEAT).encode())
                async with asyncio.timeout(5):
                    assert await loop.sock_recv(sock, 1000) == b""

    asyncio.run(run())


def test_however_many_begin_a_link_a_primary_is_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colo.node.admission._UNDECIDED_MAX", 4)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            async with hosted(tmp_path, granted(tmp_path)) as host:
                for _ in range(20):
                    sock = stack.enter_context(await host.address.connect())
                    await loop.sock_sendall(sock, b"COLO")
                await host.until(lambda: len(host.node._callers._greetings) == 4)
                primary = Primary()
                await primary.protect(host, 1)
                assert len(host.node._callers._greetings) == 3
                primary.die()
                await host.until_said("RUNNING HERE")

    asyncio.run(run())


@pytest.mark.parametrize("error", [MemoryError(), StoreError("no room")])
def test_a_checkpoint_that_could_not_be_copied_is_a_lost_session_and_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def run() -> None:
        primary = Primary()
        async with hosted(tmp_path, granted(tmp_path)) as host:
            await primary.protect(host, 1)
            store = host.node._kept.store
            copy, failures = store.apply, [error, error]

            def apply() -> None:
                if failures:
                    raise failures.pop()
                copy()

            monkeypatch.setattr(store, "apply", apply)
            await primary.checkpoint(host)
            await host.until(lambda: host.state == "CUT_OFF")
            assert host.node._kept.session is not None
            assert host.node._kept.session.applying is None
            primary.die()
            await host.until_said("NOT RUNNING: checkpoint 1 cannot be applied: ")
            assert (await host.order()).ok
            assert store.is_applied and (store.images["memory"].pages == 7).all()

    asyncio.run(run())


def test_a_checkpoint_that_was_never_copied_is_not_the_next_primarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        arbiter, first, second = granted(tmp_path), Primary(), Primary()
        async with hosted(tmp_path, arbiter) as host:
            await first.protect(host, 1)

            def apply() -> None:
                raise MemoryError

            with monkeypatch.context() as patch:
                patch.setattr(host.node._kept.store, "apply", apply)
                await first.checkpoint(host)
                await host.until(lambda: host.state == "CUT_OFF")
                assert arbiter.take(1, A) == Grant(2, A)
                first.die()
                await host.until_said("the other host has the right")
            await second.protect(host, 2)
            await second.checkpoint(host)
            await host.until(lambda: host.node._kept.store.is_applied)
            second.die()
            await host.until_said("RUNNING HERE, from checkpoint 1")

    asyncio.run(run())


@pytest.mark.usefixtures("impatient")
def test_a_dead_mount_holds_up_nothing_but_a_stock_primary(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter, loop = granted(tmp_path), asyncio.get_running_loop()
        async with hosted(tmp_path, arbiter) as host:
            arbiter.alive.clear()
            with await host.address.connect() as sock:
                await loop.sock_sendall(sock, b"QEVM")
                assert not (await host.order()).ok, "it answers meanwhile"
                await host.until_said("was refused: the arbiter did not answer in")
                await closed(sock)
            arbiter.alive.set()
            primary = Primary()
            await primary.protect_as_stock(host)
            assert host.node.member.facts.known.number == 1
            primary.die()
            await host.until_said("RUNNING HERE")
            assert arbiter.current().number == 2

    asyncio.run(run())


def test_who_is_first_to_be_taken_in_is_the_primary(tmp_path: Path) -> None:
    """Others came before, and the arbiter had not said yet what they need to know."""

    async def run() -> None:
        arbiter, loop, primary = granted(tmp_path), asyncio.get_running_loop(), Primary()
        async with hosted(tmp_path, arbiter) as host:
            arbiter.alive.clear()
            with await host.address.connect() as one, await host.address.connect() as two:
                for sock in (one, two):
                    await loop.sock_sendall(sock, b"QEVM")
                await asyncio.sleep(0.02)
                await primary.protect(host, 1)
                arbiter.alive.set()
                await host.until_said("a control link has come or gone meanwhile")
                for sock in (one, two):
                    await closed(sock)
            assert host.state == "KEEPING" and host.node.member.facts.linked

    asyncio.run(run())


def test_a_connection_that_waits_for_the_arbiter_ends_with_colo(tmp_path: Path) -> None:
    async def run() -> None:
        arbiter, loop = granted(tmp_path), asyncio.get_running_loop()
        async with hosted(tmp_path, arbiter) as host:
            arbiter.alive.clear()
            with await host.address.connect() as sock:
                await loop.sock_sendall(sock, b"QEVM")
                await asyncio.sleep(0.02)
                await host.end()
                await closed(sock)

    asyncio.run(run())


def test_the_status_has_only_what_is_so_now(tmp_path: Path) -> None:
    """Neither the address of a primary that is forgotten nor the grant that it had."""

    async def run() -> None:
        arbiter, primary = granted(tmp_path), Primary()
        async with hosted(tmp_path, arbiter) as host:
            assert host.node.status()["grant"] is None
            await primary.protect(host, 1)
            status = host.node.status()
            assert (status["primary"], status["grant"]) == ("a unix socket", 1)
            granted(tmp_path, 2, "c/1/1")
            primary.die()
            await host.until_said("the other host has the right to run the VM")
            status = host.node.status()
            assert (status["state"], status["grant"]) == ("LISTENING", None)
            assert "primary" not in status
            assert "lost_in" not in status

    asyncio.run(run())


@pytest.mark.parametrize("force", [False, True])
def test_to_start_the_vm_anew_is_asked_for_by_the_daemon_alone(tmp_path: Path, force: bool) -> None:
    """Asked for twice, by two names, one of them is denied: and it may be the one that starts."""

    async def scene() -> None:
        arbiter = Arbiter(FileRegister(tmp_path / "grant"))
        arbiter.begin()
        host = Host(tmp_path, arbiter, OnLoss.TAKEOVER)
        await host.until_said("waiting for a primary")
        host.node.member.means = replace(host.node.member.means, node=True)
        performed = list[str]()
        host.node._takeover = cast(
            Takeover,
            SimpleNamespace(
                take=lambda: performed.append("take"),
                order=lambda: performed.append("order"),
                **{name: None for name in ("waits_for", "error")},
            ),
        )
        answer = await host.order(force)
        assert answer.ok and "started anew" in answer.text
        assert host.state == "LOOKING" and performed == []
        await host.task

    asyncio.run(scene())


def test_a_primary_that_hangs_up_behind_its_bye_leaves_a_secondary_that_listens(
    tmp_path: Path,
) -> None:
    """Its bye is answered, and the answer finds nobody."""

    async def run() -> None:
        async with hosted(tmp_path, granted(tmp_path)) as host:
            primary = Primary()
            await primary.protect(host, 1)
            assert primary.link is not None
            primary.link.say(Word(WordKind.BYE))
            primary.link.close()  # both in one go: the secondary finds them together
            await host.until(lambda: host.node.state is State.LISTENING)
            await asyncio.sleep(0.05)
            assert not host.task.done()
            await Primary().protect(host, 1)

    asyncio.run(run())
