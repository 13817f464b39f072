"""Host B's part of hybrid mode, with QEMUs that are none: which VM a takeover goes on with."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.config import VmConfig
from colo.config.vm import Disk
from colo.errors import GuestError
from colo.membership.grant import Grant
from colo.node import beside as module
from colo.node.beside import Beside
from colo.node.replicas import Replicas
from colo.node.secondary_disks import SecondaryDisks
from colo.packets.gate import Rule
from colo.packets.hybrid_words import Kind, Said
from colo.qemu.open_taps import OpenTaps
from colo.qemu.process import LaunchPlan
from colo.qemu.standby import WaitingQemu
from colo.session.hybrid_link import HybridHello, HybridLink
from colo.store.store import Store

HELLO = HybridHello("vm", 3, "a/1", 1)


class Waiting:
    """Stands for WaitingQemu; ``fails``: so many starts do."""

    fails = 0
    slow: asyncio.Event | None = None
    last: Waiting

    def __init__(self, *_: object, **__: object) -> None:
        Waiting.last = self
        self.is_ready = False
        self.folder = Path()
        self.pid = 7
        self.done: list[str] = []

    async def start(self) -> None:
        if Waiting.fails:
            Waiting.fails -= 1
            raise GuestError("it was killed")
        if Waiting.slow is not None:
            await Waiting.slow.wait()
        self.is_ready = True
        self.done.append("start")

    def renew(self) -> None:
        self.done.append("renew")

    async def stop(self) -> None:
        self.done.append("stop")
        self.is_ready = False

    def give(self) -> Any:
        self.is_ready = False
        return SimpleNamespace(pid=42)

    async def load(self, store: object) -> None:
        self.done.append("load")

    async def run(self) -> None:
        self.done.append("run")

    async def replace(self, qemu: object) -> None:
        self.done.append("replace")

    def instance(self, host: str) -> str:
        return f"{host}/{self.pid}"


async def _nothing(vm: Vm) -> None:
    """It begins, and that is all."""


class Vm:
    """Stands for SecondaryVm: what was done with it, and what it says where it is told to."""

    last: Vm

    def __init__(
        self,
        qemu: Any,
        folder: Path,
        images: Any,
        taps: Any,
        limit: int,
        rule: Callable[..., Rule],
        disks: SecondaryDisks,
    ) -> None:
        Vm.last = self
        self.rule = rule
        self.fed: list[bytes] = []
        self.done: list[str] = []
        self.is_running = self.is_ended = False
        self.unfed_bytes = 0
        self.died = asyncio.Event()
        self.qemu = SimpleNamespace(pid=42, exited=False, wait=self._wait, last_words=lambda: "oh")

    async def _wait(self) -> str:
        await self.died.wait()
        return "it was killed by SIGSEGV"

    begins = staticmethod(_nothing)  # what happens as it begins, before that is known

    async def begin(self, stream: object, since: object) -> None:
        await self.begins(self)
        self.is_running = True

    def feed(self, card: int, data: bytes) -> None:
        self.fed.append(data)

    def drop(self, card: int, count: int) -> None:
        self.done.append(f"drop {count}")

    def kill(self) -> None:
        self.is_ended = True

    async def clear(self) -> None:
        self.done.append("clear")

    async def take_disks(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        self.done.append("stop")
        await hand_over()
        if self.is_dead:
            raise GuestError("the QEMU process is gone")
        self.done.append("files")

    dies = False

    @property
    def is_dead(self) -> bool:
        return self.is_ended or self.qemu.exited

    async def unleash(self) -> None:
        self.done.append("unleash")
        if self.dies:
            self.qemu.exited = True
            raise GuestError("the secondary VM has died")

    def says(self, data: bytes) -> None:
        assert self.rule(0)(data, 0.0) == 0


class Disks:
    """Stands for Replicas: what was handed over, and over that."""

    replicas = ()

    def __init__(self) -> None:
        self.handed_over: list[dict[str, object] | None] = []
        self.then: Callable[[], None] = lambda: None

    async def hand_over(self, over: dict[str, object] | None = None) -> None:
        self.handed_over.append(over)
        self.then()


class World:
    """A secondary with checkpoint 5, and its primary at the end of a link."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "WaitingQemu", Waiting)
        monkeypatch.setattr(module, "SecondaryVm", Vm)
        monkeypatch.setattr(module, "migration_stream", lambda *_, **__: iter(()))
        self.waiting = Waiting()
        self.heard: list[Said] = []
        self.store = SimpleNamespace(
            images={"pc.ram": SimpleNamespace(path=folder / "pc.ram")},
            checkpoint=SimpleNamespace(number=5, since=None),
        )
        self.disks = Disks()
        disk = Disk("vda", folder / "vda", folder / "vda")
        self.beside = Beside(
            VmConfig("vm", "hybrid", disks=(disk,)),
            cast(LaunchPlan, None),
            cast(Store, self.store),
            folder,
            cast(WaitingQemu, self.waiting),
            OpenTaps(()),
            self._settled,
            lambda: None,
            cast(Replicas, self.disks),
        )
        self.a: HybridLink | None = None

    async def _settled(self) -> None:
        pass

    async def connect(self, hello: HybridHello = HELLO) -> str | None:
        """Have the primary connect."""
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        theirs.send(hello.encode())
        why = await self.beside.greet(ours, lambda: Grant(3, "a/1"))
        theirs.recv(1000)
        if why is not None:
            theirs.close()
            return why
        self.a = HybridLink(theirs, 1, 1 << 24, self.heard.append, lambda error: None)
        return None

    def says(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        assert self.a is not None
        self.a.say(Said(kind, 0, number, payload))

    @property
    def next_one(self) -> Waiting:
        """The QEMU that was started last, to be a secondary VM."""
        return Waiting.last

    async def take_over(self) -> None:
        """What a takeover does with it, in its order."""
        disks = asyncio.ensure_future(self.beside.hand_over())
        await self.beside.load(cast(Store, self.store))
        await disks
        await self.beside.run()

    def commit(self, number: int) -> None:
        self.store.checkpoint.number = number
        self.beside.committed(number)

    async def until(self, is_so: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0)

    async def until_heard(self, kind: Kind) -> Said:
        await self.until(lambda: any(said.kind is kind for said in self.heard))
        return next(said for said in reversed(self.heard) if said.kind is kind)

    async def runs(self) -> Vm:
        """Have a secondary VM run, from checkpoint 5."""
        self.says(Kind.CUT, 5)
        self.commit(5)
        await self.until_heard(Kind.READY)
        self.says(Kind.START, 5)
        await self.until_heard(Kind.RUNS)
        return Vm.last


Scene = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], World]:
    def play(scene: Scene) -> World:
        async def run() -> World:
            world = World(tmp_path, monkeypatch)
            await world.beside.prepare()
            assert await world.connect() is None
            await scene(world)
            if world.a is not None:
                world.a.close()
            await world.beside.close()
            return world

        return asyncio.run(run())

    return play


def test_a_takeover_goes_on_with_the_vm_that_runs(play: Callable[[Scene], World]) -> None:
    async def scene(world: World) -> None:
        vm = await world.runs()
        vm.says(b"something")
        assert world.beside.instance("b").split("/")[:2] == ["b", "42"]
        await world.take_over()

    world = play(scene)
    assert Vm.last.done == ["stop", "files", "unleash"]
    assert world.waiting.done == ["replace"]
    assert world.disks.handed_over == [{}]
    assert world.beside.has_taken_over


def test_where_none_runs_the_waiting_qemu_takes_over(play: Callable[[Scene], World]) -> None:
    async def scene(world: World) -> None:
        world.commit(5)
        await world.take_over()

    world = play(scene)
    assert world.waiting.done == ["load", "run"]
    assert world.disks.handed_over == [None]
    assert not world.beside.has_taken_over


def test_once_its_disks_have_gone_on_no_checkpoint_is_run(play: Callable[[Scene], World]) -> None:
    """Memory of the checkpoint upon disks of a later moment would be neither."""

    async def scene(world: World) -> None:
        vm = await world.runs()
        world.disks.then = vm.kill
        with pytest.raises(GuestError, match="the QEMU process is gone"):
            await world.beside.hand_over()
        world.beside.force()
        for again in (world.beside.hand_over(), world.beside.load(cast(Store, world.store))):
            with pytest.raises(GuestError, match="`colo failover` starts the VM anew on them"):
                await again
        world.beside.forget()
        world.commit(6)
        await world.take_over()

    world = play(scene)
    assert world.waiting.done == ["load", "run"]
    assert world.disks.handed_over == [{}, None]


def test_a_disk_of_another_size_takes_another_qemu(play: Callable[[Scene], World]) -> None:
    async def scene(world: World) -> None:
        first = world.next_one
        world.beside.renew()
        assert first.done == ["start", "renew"]
        Waiting.slow = asyncio.Event()
        await world.runs()
        await world.until(lambda: world.next_one is not first)
        world.beside.renew()
        Waiting.slow.set()
        await world.until(lambda: world.next_one.is_ready)
        assert world.next_one.done == ["renew", "start"], "one that is being started is told, too"

    try:
        play(scene)
    finally:
        Waiting.slow = None


@pytest.mark.parametrize("has_spoken", [True, False])
def test_one_that_died_is_not_passed_over_if_it_has_spoken(
    play: Callable[[Scene], World], has_spoken: bool
) -> None:
    """What it said may have been heard, and the checkpoint is older."""

    async def scene(world: World) -> None:
        vm = await world.runs()
        if has_spoken:
            vm.says(b"something")
        vm.died.set()
        gone = await world.until_heard(Kind.GONE)
        assert gone.number == 5
        if has_spoken:
            with pytest.raises(
                GuestError, match="clients may have heard of more than checkpoint 5"
            ):
                await world.beside.load(cast(Store, world.store))
            with pytest.raises(GuestError, match="--force"):
                await world.beside.hand_over()
            assert (world.waiting.done, world.disks.handed_over) == ([], [])
            world.beside.force()
        await world.beside.load(cast(Store, world.store))

    assert play(scene).waiting.done == ["load"]


@pytest.mark.parametrize("fails", [True, False])
def test_one_that_speaks_as_it_begins_is_awaited_and_not_passed_over(
    play: Callable[[Scene], World], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """QEMU runs it before it says that it does."""
    goes_on = asyncio.Event()

    async def speaks(vm: Vm) -> None:
        vm.says(b"something")
        await goes_on.wait()
        if fails:
            raise GuestError("it did not start in time")

    monkeypatch.setattr(Vm, "begins", staticmethod(speaks))

    async def scene(world: World) -> None:
        world.says(Kind.CUT, 5)
        world.commit(5)
        await world.until_heard(Kind.READY)
        world.says(Kind.START, 5)
        await world.until_heard(Kind.SAID)
        assert not world.beside.lacks
        asyncio.get_running_loop().call_soon(goes_on.set)
        if not fails:
            await world.take_over()
            return
        with pytest.raises(GuestError, match="may have heard of more than checkpoint 5"):
            await world.beside.load(cast(Store, world.store))
        assert world.beside.lacks and Vm.last.is_ended
        gone = await world.until_heard(Kind.GONE)
        assert gone.payload == b"it did not start in time"

    assert play(scene).waiting.done == ([] if fails else ["replace"])


def test_one_that_dies_as_it_is_let_out_is_not_passed_over(play: Callable[[Scene], World]) -> None:
    """It had said nothing to its primary, and yet clients may have heard it."""

    async def scene(world: World) -> None:
        vm = await world.runs()
        vm.dies = True
        await world.beside.load(cast(Store, world.store))
        with pytest.raises(GuestError):
            await world.beside.run()
        with pytest.raises(GuestError, match="may have heard of more than checkpoint 5"):
            await world.beside.load(cast(Store, world.store))
        world.beside.force()
        await world.beside.load(cast(Store, world.store))  # in a QEMU that waits again

    assert play(scene).waiting.done == ["replace", "start", "load"]


def test_one_that_had_died_unheard_is_passed_over(play: Callable[[Scene], World]) -> None:
    async def scene(world: World) -> None:
        vm = await world.runs()
        await world.beside.load(cast(Store, world.store))
        vm.qemu.exited = True
        with pytest.raises(GuestError):
            await world.beside.run()
        await world.beside.load(cast(Store, world.store))
        await world.beside.run()

    assert play(scene).waiting.done == ["load", "run"]
    assert Vm.last.done == ["clear"]


def test_none_begins_once_the_checkpoint_is_being_taken_over(
    play: Callable[[Scene], World],
) -> None:
    """Its primary's last words may be on their way still."""

    async def scene(world: World) -> None:
        world.says(Kind.CUT, 5)
        world.commit(5)
        await world.until_heard(Kind.READY)
        await world.beside.load(cast(Store, world.store))
        world.says(Kind.START, 5)
        gone = await world.until_heard(Kind.GONE)
        assert gone.payload == b"the VM is being taken over"
        await world.beside.run()

    assert play(scene).waiting.done == ["load", "run"]


def test_the_next_checkpoint_covers_what_one_that_died_had_said(
    play: Callable[[Scene], World],
) -> None:
    async def scene(world: World) -> None:
        vm = await world.runs()
        vm.says(b"something")
        vm.died.set()
        await world.until_heard(Kind.GONE)
        world.commit(6)
        await world.beside.load(cast(Store, world.store))

    assert play(scene).waiting.done == ["load"]


def test_a_checkpoint_ends_it_before_it_is_put_into_the_image(
    play: Callable[[Scene], World],
) -> None:
    async def scene(world: World) -> None:
        vm = await world.runs()
        world.commit(6)
        assert vm.is_ended

    play(scene)


def test_it_gets_what_has_come_since_its_checkpoint_and_what_comes(
    play: Callable[[Scene], World],
) -> None:
    async def scene(world: World) -> None:
        world.says(Kind.INPUT, payload=b"before any")
        world.says(Kind.CUT, 4)
        world.says(Kind.INPUT, payload=b"of 4")
        world.says(Kind.CUT, 5)
        world.says(Kind.INPUT, payload=b"of 5")
        world.commit(5)
        await world.until_heard(Kind.READY)
        world.says(Kind.START, 5)
        await world.until_heard(Kind.RUNS)
        world.says(Kind.CUT, 6)
        world.says(Kind.INPUT, payload=b"of 6")
        await world.until(lambda: len(Vm.last.fed) == 2)

    play(scene)
    assert Vm.last.fed == [b"of 5", b"of 6"]


@pytest.mark.parametrize("number", [4, 6])
def test_it_begins_from_the_last_checkpoint_and_from_no_other(
    play: Callable[[Scene], World], number: int
) -> None:
    async def scene(world: World) -> None:
        for each in (4, 5, 6):
            world.says(Kind.CUT, each)
        world.commit(5)
        await world.until_heard(Kind.READY)
        world.says(Kind.START, number)
        assert (await world.until_heard(Kind.GONE)).number == number

    assert play(scene).beside.begun == 0


def test_more_input_than_may_be_kept_is_said(play: Callable[[Scene], World]) -> None:
    async def scene(world: World) -> None:
        world.says(Kind.CUT, 5)
        world.commit(5)
        for _ in range(70):
            world.says(Kind.INPUT, payload=bytes(1 << 20))
            await asyncio.sleep(0)
        assert b"hold_limit_mib" in (await world.until_heard(Kind.GONE)).payload

    assert play(scene).beside.status()["input_bytes"] <= 64 << 20


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (HybridHello("other", 3, "a/1", 1), "its VM is other, this one is vm"),
        (HybridHello("vm", 4, "a/1", 1), "not of the primary that has said hello"),
        (HybridHello("vm", 3, "c/1", 1), "not of the primary that has said hello"),
        (HybridHello("vm", 3, "a/1", 1, 9), "version 9 of the hybrid link"),
    ],
)
def test_who_else_comes_is_refused(
    play: Callable[[Scene], World], hello: HybridHello, why: str
) -> None:
    async def scene(world: World) -> None:
        assert why in str(await world.connect(hello))

    play(scene)


def test_a_link_that_breaks_leaves_what_has_spoken_to_a_takeover(
    play: Callable[[Scene], World],
) -> None:
    async def scene(world: World) -> None:
        vm = await world.runs()
        vm.says(b"something")
        assert world.a is not None
        world.a.close()
        await world.until(lambda: world.beside.status()["trouble"])
        await world.beside.load(cast(Store, world.store))
        await world.beside.run()

    assert play(scene).waiting.done == ["replace"]


def test_a_qemu_that_does_not_start_is_started_again(
    play: Callable[[Scene], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        monkeypatch.setattr(module, "_AGAIN_S", 0.001)
        Waiting.fails = 2
        await world.runs()
        await world.until(lambda: world.beside._next is not None)
        assert Waiting.fails == 0

    play(scene)
