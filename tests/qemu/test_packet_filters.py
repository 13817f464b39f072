"""The gates of a running QEMU, at the ends of real sockets: what goes back to it, and when."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from colo.errors import GuestError
from colo.packets.gate import GateState
from colo.qemu import packet_filters
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate

LIMIT = 64 << 20


def frames(count: int, size: int = 60) -> bytes:
    """So many frames as QEMU sends them; each begins with its number."""
    return b"".join(struct.pack(">II", size, number) + bytes(size - 4) for number in range(count))


class FakeQemu:
    """Connects its character devices, as QEMU does, and notes what it is asked for."""

    def __init__(self) -> None:
        self.ends: dict[str, socket.socket] = {}
        self.asked: list[tuple[str, str]] = []

    async def execute(self, command: str, **arguments: Any) -> None:
        self.asked.append((command, str(arguments["id"])))
        if command == "chardev-add":
            end = socket.socket(socket.AF_UNIX)
            end.connect(arguments["backend"]["data"]["addr"]["data"]["path"])
            end.setblocking(False)
            self.ends[arguments["id"]] = end

    def sends(self, data: bytes) -> None:
        """The guest sends."""
        self.ends["colo-net0-out"].sendall(data)

    def reads(self, at_most: int = 1 << 24) -> bytes:
        """What may go on to the network, as far as it is here."""
        data = b""
        try:
            while len(data) < at_most:
                data += self.ends["colo-net0-back"].recv(at_most - len(data))
        except BlockingIOError:
            pass
        return data


@pytest.fixture
def scene(tmp_path: Path) -> Callable[[Callable[[FakeQemu, NetGate], Awaitable[None]]], None]:
    def play(body: Callable[[FakeQemu, NetGate], Awaitable[None]]) -> None:
        async def run() -> None:
            qemu = FakeQemu()
            gate = NetGate(cast(Monitor, qemu), tmp_path, LIMIT)
            await gate.install(["n0"])
            try:
                await body(qemu, gate)
            finally:
                for end in qemu.ends.values():
                    end.setblocking(False)
                await gate.remove()
                for end in qemu.ends.values():
                    end.close()

        asyncio.run(asyncio.wait_for(run(), 20))

    return play


Scene = Callable[[Callable[[FakeQemu, NetGate], Awaitable[None]]], None]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def released(gate: NetGate) -> None:
    """A checkpoint covers what was sent, and is safe."""
    gate.cover()
    gate.release()


def test_what_is_sent_after_the_checkpoint_is_not_released_by_it(scene: Scene) -> None:
    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        gate.hold()
        qemu.sends(frames(2))
        gate.cover()  # which drains
        qemu.sends(frames(3, 70))
        await until(lambda: gate.held_bytes > len(frames(2)))
        gate.release()
        assert qemu.reads() == frames(2)
        gate.flush()
        assert qemu.reads() == b""
        released(gate)
        assert qemu.reads() == frames(3, 70)

    scene(play)


def test_held_until_released_and_little_goes_at_once(scene: Scene) -> None:
    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        held: list[int] = []
        gate.on_held = lambda: held.append(gate.held_bytes)
        gate.hold()
        qemu.sends(frames(3))
        await until(lambda: gate.held_bytes)
        assert qemu.reads() == b""
        released(gate)
        assert qemu.reads() == frames(3)
        gate.flush()
        assert qemu.reads() == b"" and gate.held_bytes == 0

    scene(play)


def test_what_a_stopped_netdev_would_drop_waits_for_the_vm(scene: Scene) -> None:
    """More frames than it queues, 10,000, are never sent before ``flush``."""

    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        gate.hold()
        data = frames(10_001, 18)  # nothing smaller is a frame
        for at in range(0, len(data), 100_000):
            qemu.sends(data[at : at + 100_000])
            gate.hold()  # which drains
        released(gate)
        assert qemu.reads() == b""
        gate.flush()
        got = b""
        while len(got) < len(data):
            got += qemu.reads()
            await asyncio.sleep(0)
        assert got == data

    scene(play)


def test_little_behind_much_waits_too_and_the_order_stays(scene: Scene) -> None:
    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        much, little = frames(2000), frames(3, 70)
        gate.hold()
        qemu.sends(much)
        released(gate)
        qemu.sends(little)
        released(gate)
        assert qemu.reads() == b""
        gate.flush()
        got = b""
        while len(got) < len(much + little):
            got += qemu.reads()
            await asyncio.sleep(0)
        assert got == much + little

    scene(play)


def test_a_qemu_that_does_not_read_is_waited_for_again_and_again(scene: Scene) -> None:
    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        for number in range(3):
            data = frames(20_000 + number)
            gate.hold()
            for at in range(0, len(data), 100_000):
                qemu.sends(data[at : at + 100_000])
                gate.hold()
            released(gate)
            gate.flush()
            gate.flush()  # while it waits already
            got = b""
            while len(got) < len(data):
                got += qemu.reads(50_000)
                await asyncio.sleep(0)
            assert got == data

    scene(play)


def test_an_open_gate_passes_and_a_shut_one_forgets(scene: Scene) -> None:
    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        qemu.sends(frames(2))
        await until(lambda: gate.gates["n0"].stats.frames)
        assert qemu.reads() == frames(2)
        gate.hold()
        qemu.sends(frames(1))
        await until(lambda: gate.held_bytes)
        gate.shut()
        assert gate.state is GateState.SHUT
        gate.flush()
        assert qemu.reads() == b"" and gate.gates["n0"].stats.dropped == 0

    scene(play)


def test_nothing_is_left_in_qemu(scene: Scene) -> None:
    asked: list[tuple[str, str]] = []

    async def play(qemu: FakeQemu, gate: NetGate) -> None:
        await gate.remove()
        asked.extend(qemu.asked)

    scene(play)
    made = [name for command, name in asked if command.endswith("-add")]
    unmade = [name for command, name in asked if command in ("object-del", "chardev-remove")]
    assert len(made) == 4 and sorted(made) == sorted(unmade)
    assert unmade[0] == "colo-net0-out-filter", "the way out goes first"


def test_the_little_that_goes_at_once_is_fewer_frames_than_a_netdev_queues() -> None:
    smallest = 4 + 14  # the length, and an Ethernet header with nothing behind it
    assert packet_filters._LITTLE_BYTES // smallest < 10_000


#: What QEMU takes for an id: ``id_wellformed`` in ``util/id.c``.
WELL_FORMED = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class Objects(FakeQemu):
    """Takes only what is an id and is there once, and says what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.there: dict[str, list[str]] = {"object": [], "chardev": []}
        self.netdevs: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        if command == "qom-list":
            return [{"name": name} for name in ("pc.ram", *self.there["object"])]
        if command == "query-chardev":
            return [{"label": name} for name in ("console", *self.there["chardev"])]
        await super().execute(command, **arguments)
        kind, _, verb = command.partition("-")
        name = arguments["id"]
        if verb == "add":
            assert WELL_FORMED.fullmatch(name) and name not in self.there[kind]
            self.there[kind].append(name)
            self.netdevs += [arguments["netdev"]] if "netdev" in arguments else []
        elif name in self.there[kind]:
            self.there[kind].remove(name)
        else:
            raise GuestError(f"there is no {name}")
        return None


def test_ids_are_ids_whatever_the_netdevs_are_called(tmp_path: Path) -> None:
    """QEMU names a netdev by itself #net042, which it takes for no id of an object."""

    async def play() -> None:
        qemu = Objects()
        gate = NetGate(cast(Monitor, qemu), tmp_path, LIMIT)
        names = ["#net042", "net0", "#net142", "a b", "n" * 200]
        await gate.install(names)
        assert list(gate.gates) == names
        assert qemu.netdevs == [name for name in names for _ in range(2)]
        assert len(qemu.there["object"]) == len(qemu.there["chardev"]) == 2 * len(names)
        await NetGate.clean(cast(Monitor, qemu))  # as the next colo does where this one is killed
        assert qemu.there == {"object": [], "chardev": []}
        await gate.remove()
        for end in qemu.ends.values():
            end.close()

    asyncio.run(play())


def test_the_cards_whose_frames_have_headers_are_told_from_the_others() -> None:
    class Told:
        async def execute(self, command: str, **arguments: Any) -> str:
            models = ("virtio-net-pci", "e1000", "vmxnet3", "e1000e", "igb", "rtl8139")
            return "".join(
                f"net{at}: index=0,type=nic,model={model},macaddr=52:54:00:00:00:0{at}\r\n"
                f" \\ n{at}: index=0,type=tap,ifname=tap{at},script=no\r\n"
                for at, model in enumerate(models)
            )

    qemu = cast(Monitor, Told())
    assert asyncio.run(packet_filters.vnet_cards(qemu)) == {"n0", "n2", "n3", "n4"}
    assert asyncio.run(packet_filters.cards(qemu)) == [f"n{at}" for at in range(6)]
