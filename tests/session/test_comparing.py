"""Host A's part of hybrid mode, with the other host at the end of a socket: what leaves when."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from colo.config import VmConfig
from colo.errors import ChannelLost, ColoError
from colo.packets.gate import Gate, Rule
from colo.packets.hybrid_words import Kind, Said
from colo.packets.other_vm import Other
from colo.packets.pace import Pace
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session import comparing as module
from colo.session.comparing import Comparing
from colo.session.hybrid_link import HybridLink
from colo.transport.address import Address
from tests.packets.two_vms import tcp

PACE = Pace()
ONE, TWO = tcp(1000, 5, b"one"), tcp(1003, 5, b"two")


class Doors:
    """A gate for one card, without a QEMU; ``left``: what went to the network."""

    def __init__(self) -> None:
        self.gate = Gate(1 << 20, vnet=True)
        self.with_headers = frozenset({"n0"})
        self.left = b""

    def set_rules(self, rules: list[Rule]) -> None:
        self.gate.rule = rules[0] if rules else None

    def release_first(self, card: int, count: int) -> None:
        self.left += self.gate.release_first(count, 0.0)

    def says(self, frames: bytes) -> None:
        """The primary VM says this."""
        self.left += self.gate.take(frames, 0.0)


class Inputs:
    """Stands for Mirrors."""

    def __init__(self, qemu: object, folder: Path, on_input: Callable[[int, bytes], None]) -> None:
        self.on_input = on_input

    async def install(self, netdevs: list[str], virtio: frozenset[str]) -> None:
        pass

    def drain(self) -> None:
        pass


class World:
    """Host A's comparing, and host B: ``heard`` is what that one was told."""

    def __init__(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.doors = Doors()
        self.heard: list[Said] = []
        self.broken: list[ColoError] = []
        self.urged = 0
        self.uncertain = False
        self.calls = 0
        self.b: HybridLink | None = None
        monkeypatch.setattr(module, "Mirrors", Inputs)
        monkeypatch.setattr(module, "call_hybrid", self._call)
        monkeypatch.setattr(module, "_AGAIN_S", 0.001)
        self.comparing = Comparing(
            cast(Monitor, None),
            cast(NetGate, self.doors),
            VmConfig("vm", mode),
            Address(path="b"),
            Path(),
            lambda: (3, "a/1"),
            self._check,
            self.broken.append,
            lambda text: None,
        )
        self.comparing.urge = self._urge

    async def _call(self, to: Address, hello: object) -> socket.socket:
        self.calls += 1
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        self.b = HybridLink(theirs, 1, 1 << 20, self.heard.append, lambda error: None)
        return ours

    def _check(self, at: float | None) -> None:
        if self.uncertain:
            raise ChannelLost("the other host may have taken over")

    def _urge(self) -> None:
        self.urged += 1

    def says(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        """Host B says this."""
        assert self.b is not None
        self.b.say(Said(kind, 0, number, payload))

    def checkpoint(self, number: int) -> None:
        """Take one, and have it safe."""
        self.doors.gate.cover()
        self.comparing.cover(number)
        self.doors.left += self.doors.gate.release(0.0)
        self.comparing.safe(number, 0.005)

    async def until(self, is_so: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not is_so():
                await asyncio.sleep(0)

    async def runs(self, number: int) -> None:
        """Have a secondary VM run from this checkpoint."""
        self.checkpoint(number)
        self.says(Kind.READY)
        await self.until(lambda: self.comparing.other_vm.other is Other.BEGINS)
        self.says(Kind.RUNS, number)
        await self.until(lambda: self.comparing.other_vm.other is Other.RUNS)

    def kinds(self) -> list[Kind]:
        return [said.kind for said in self.heard]


Scene = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Play a scene with a protected VM, whose gate holds."""

    def play(scene: Scene, mode: str = "hybrid") -> World:
        async def run() -> World:
            world = World(mode, monkeypatch)
            await world.comparing.begin(["n0"])
            world.doors.gate.hold()
            await world.until(lambda: world.b is not None)
            await asyncio.sleep(0)
            await scene(world)
            world.comparing.close()
            await asyncio.sleep(0)
            if world.b is not None:
                world.b.close()
            return world

        return asyncio.run(run())

    return play


def test_what_both_say_leaves_at_once(play: Callable[..., World]) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.doors.says(ONE + TWO)
        world.says(Kind.SAID, 0, ONE)
        await world.until(lambda: world.doors.left)
        assert world.doors.left == ONE
        world.says(Kind.SAID, 0, TWO)
        await world.until(lambda: world.doors.left == ONE + TWO)

    world = play(scene)
    assert world.kinds()[:2] == [Kind.CUT, Kind.START]
    assert world.urged == 0


def test_input_is_said_between_the_cuts_that_it_belongs_to(play: Callable[..., World]) -> None:
    async def scene(world: World) -> None:
        inputs = cast(Inputs, world.comparing._mirrors)
        inputs.on_input(0, b"before the first copy")
        world.checkpoint(0)
        inputs.on_input(0, b"then")
        world.checkpoint(1)
        await world.until(lambda: len(world.heard) == 3)

    assert play(scene).heard == [
        Said(Kind.CUT, 0, 0),
        Said(Kind.INPUT, 0, 0, b"then"),
        Said(Kind.CUT, 0, 1),
    ]


@pytest.mark.parametrize("number", [0, 2])
def test_what_another_secondary_vm_said_does_not_count(
    play: Callable[..., World], number: int
) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        await world.runs(1)
        world.doors.says(ONE)
        world.says(Kind.SAID, number, ONE)
        world.says(Kind.SAID, 1, TWO)
        await world.until(lambda: world.comparing.other_vm.cards[0]._spoken)

    assert play(scene).doors.left == b""


def test_nothing_leaves_by_comparing_while_a_checkpoint_is_on_its_way(
    play: Callable[..., World],
) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.doors.says(ONE)
        world.doors.gate.cover()
        world.comparing.cover(1)
        world.says(Kind.SAID, 0, ONE)
        world.says(Kind.READY)
        await world.until(lambda: world.comparing.other_vm.other is Other.READY)
        assert world.doors.left == b""
        world.doors.left += world.doors.gate.release(0.0)
        world.comparing.safe(1, 0.005)
        await world.until(lambda: Kind.START in world.kinds()[2:])

    assert play(scene).doors.left == ONE


def test_nothing_leaves_where_the_other_host_may_have_taken_over(
    play: Callable[..., World],
) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.doors.says(ONE)
        world.uncertain = True
        world.says(Kind.SAID, 0, ONE)
        await world.until(lambda: world.broken)

    world = play(scene)
    assert world.doors.left == b""
    assert [str(error) for error in world.broken] == ["the other host may have taken over"]


def test_a_secondary_vm_that_dies_is_covered_at_once(play: Callable[..., World]) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.says(Kind.GONE, 0, b"it was killed")
        await world.until(lambda: world.comparing.other_vm.other is Other.NONE)

    world = play(scene)
    assert world.urged == 1
    status = world.comparing.status()
    assert status["ended_by"] == {"secondary VM": 1}
    assert status["trouble"] == "it was killed"


def test_a_link_that_breaks_is_made_anew_and_what_was_said_is_covered(
    play: Callable[..., World],
) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.doors.says(ONE)
        assert world.b is not None
        world.b.close()
        await world.until(lambda: world.urged)
        await world.until(lambda: world.calls == 2)
        await asyncio.sleep(0.01)
        world.says(Kind.READY)
        await world.until(lambda: world.comparing.other_vm.other is Other.READY)
        assert Kind.START not in world.kinds()[2:]  # what came since is not known there
        world.checkpoint(1)
        await world.until(lambda: world.kinds()[-1] is Kind.START)

    assert play(scene).doors.left == ONE


@pytest.mark.parametrize("kind", [Kind.INPUT, Kind.CUT, Kind.START, Kind.HEARD])
def test_a_word_out_of_place_ends_the_link_and_not_the_protection(
    play: Callable[..., World], kind: Kind
) -> None:
    async def scene(world: World) -> None:
        world.says(kind)
        await world.until(lambda: world.calls == 2)

    assert not play(scene).broken


def test_what_is_held_waits_for_a_secondary_vm_and_not_for_one_that_differs(
    play: Callable[..., World],
) -> None:
    async def scene(world: World) -> None:
        comparing = world.comparing
        assert comparing.other_vm.waits_until(PACE, 1.0, 10) is None
        await world.runs(0)
        assert comparing.other_vm.waits_until(PACE, None, 0) == float("inf")
        waits = comparing.other_vm.waits_until(PACE, 1.0, 10)
        assert waits is not None
        assert comparing.other_vm.waits_until(PACE, 1.0, PACE.high_water) is None
        world.doors.says(ONE)
        world.says(Kind.SAID, 0, tcp(1000, 5, b"other"))
        await world.until(lambda: comparing.other_vm.cards[0].differs)
        assert comparing.other_vm.waits_until(PACE, 1.0, 10) is None

    assert play(scene).comparing.status()["differed"] == {"tcp": 1}


def test_with_auto_one_that_does_not_pay_is_put_off(play: Callable[..., World]) -> None:
    async def scene(world: World) -> None:
        await world.runs(0)
        world.doors.says(ONE)
        world.says(Kind.GONE, 0, b"it was killed")
        await world.until(lambda: world.comparing.other_vm.other is Other.NONE)
        world.checkpoint(1)
        world.says(Kind.READY)
        await world.until(lambda: world.comparing.other_vm.other is Other.READY)
        await asyncio.sleep(0.01)
        assert world.comparing.other_vm.other is Other.READY

    world = play(scene, mode="auto")
    assert world.kinds().count(Kind.START) == 1
    assert world.comparing.status()["rests_s"] > 0
