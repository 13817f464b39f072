"""The gates of a VM's network cards, put into a running QEMU and taken out again.

For each card two unix sockets: QEMU's filter sends what the guest sends out of the one, and what
comes in by the other goes on to the network.  Packets for the guest are not touched.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from colo.errors import GuestError
from colo.packets.gate import Gate, GateState, Rule
from colo.qemu.card_ends import PREFIX, CardEnds
from colo.qemu.monitor import Monitor
from colo.status.figures import summarise, summary
from colo.transport.sockets import unacknowledged

__all__ = ["NetGate", "cards", "vnet_cards"]

_CHUNK: Final = 1 << 20
_LITTLE_BYTES: Final = 64 << 10  # fewer than 4,000 frames, however small they are
_SETTLE_S: Final = 2.0
_SETTLE_STEP_S: Final = 0.001
#: «n0: index=0,type=tap,…», indented by a backslash below the card that it serves.
_NETDEV: Final = re.compile(r"^ \\ ([^:]+): index=\d+,type=(\w[\w-]*)", re.MULTILINE)
#: Cards that have their tap put a virtio-net header before each frame.
_WITH_HEADERS: Final = r"(?:virtio-net|vmxnet3|e1000e|igb)\b"
#: The same as _NETDEV, with the line of such a card above it.
_VNET: Final = re.compile(rf"model={_WITH_HEADERS}[^\n]*\n \\ ([^:]+): index=\d+", re.MULTILINE)


async def vnet_cards(qemu: Monitor) -> frozenset[str]:
    """Return the ids of those whose cards have virtio-net headers before their frames."""
    text = await qemu.execute("human-monitor-command", command_line="info network")
    return frozenset(_VNET.findall(str(text).replace("\r", "")))


async def cards(qemu: Monitor) -> list[str]:
    """Return the ids of the netdevs that serve the VM's network cards."""
    text = await qemu.execute("human-monitor-command", command_line="info network")
    return [name for name, _ in _NETDEV.findall(str(text).replace("\r", ""))]


class NetGate:
    """All gates of one VM: one state, one release.

    ``limit``: the most that each holds, in bytes.  ``on_held`` is called when bytes were held.
    ``vnet``: QEMU tells of virtio-net headers, as comparing needs it.
    """

    def __init__(self, qemu: Monitor, folder: Path, limit: int, vnet: bool = False) -> None:
        self._qemu = qemu
        self._folder = folder
        self._limit = limit
        self._vnet = vnet
        #: Where QEMU tells of virtio-net headers: before these netdevs.
        self.with_headers: frozenset[str] = frozenset()
        self._doors: list[_Door] = []
        self.on_held: Callable[[], None] = lambda: None

    @property
    def gates(self) -> dict[str, Gate]:
        """The gate of each netdev."""
        return {door.netdev: door.gate for door in self._doors}

    @property
    def state(self) -> GateState | None:
        """What the gates do; None where no gate is in QEMU."""
        return self._doors[0].gate.state if self._doors else None

    @property
    def held_bytes(self) -> int:
        """How many bytes are held."""
        return sum(door.gate.held_bytes for door in self._doors)

    @property
    def held_since(self) -> float | None:
        """When the oldest held bytes came."""
        since = [door.gate.held_since for door in self._doors if door.gate.held_since is not None]
        return min(since, default=None)

    def figures(self) -> dict[str, Any]:
        """What the status file has of each netdev's gate."""
        return {
            netdev: {
                "gate": gate.state.name,
                "frames": gate.stats.frames,
                "bytes": gate.stats.bytes,
                "dropped": gate.stats.dropped,
                "held_bytes": gate.held_bytes,
                "held_max_bytes": gate.stats.held_max_bytes,
                "held_ms": summary(summarise(gate.stats.held_s), 1e3),
                "held": gate.stats.held_s.counted(),
            }
            for netdev, gate in self.gates.items()
        }

    async def install(self, netdevs: list[str]) -> None:
        """Put a gate, open, before each netdev.  Raises GuestError and leaves nothing behind."""
        try:
            self.with_headers = await vnet_cards(self._qemu) if self._vnet else frozenset()
            for number, netdev in enumerate(netdevs):
                vnet = netdev in self.with_headers
                gate = Gate(self._limit, vnet)
                ends = CardEnds(self._qemu, self._folder, netdev, number, vnet)
                door = _Door(ends, gate, self.on_held)
                self._doors.append(door)
                await door.install()
        except GuestError:
            await self.remove()
            raise

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Each card's output rule, by which packets may leave before their checkpoint is safe.

        None at all: no packet may.
        """
        for number, door in enumerate(self._doors):
            door.gate.rule = rules[number] if rules else None

    def release_first(self, card: int, count: int) -> None:
        """So many bytes of what the card's gate holds may go at once."""
        door = self._doors[card]
        door.queue(door.gate.release_first(count, time.monotonic()))
        door.flush()

    def drop_all(self) -> None:
        """Whatever was said so far is of no use any more."""
        for door in self._doors:
            door.drain()
            door.gate.cover()
            door.gate.release(time.monotonic())

    def drop_first(self, card: int, count: int) -> None:
        """So many bytes of what the card's gate holds are of no use any more."""
        gate = self._doors[card].gate
        gate.release_first(min(count, gate.held_bytes), time.monotonic())

    async def remove(self) -> None:
        """Take the gates out of QEMU again, as far as there is a QEMU."""
        for door in self._doors:
            await door.remove()
        self._doors = []

    def hold(self) -> None:
        """Hold packets from now on."""
        for door in self._doors:
            door.drain()
            door.gate.hold()

    def cover(self) -> None:
        """The VM is stopped, and a checkpoint covers all that it sent."""
        for door in self._doors:
            door.drain()
            door.gate.cover()

    def release(self) -> None:
        """The checkpoint is safe: what it covers may go.

        A stopped VM's netdev queues frames until the VM runs, and drops what is over 10,000.  So
        little goes at once, to leave the very moment that the VM runs; much goes at ``flush``.
        """
        for door in self._doors:
            door.queue(door.gate.release(time.monotonic()))
            if door.unsent_bytes <= _LITTLE_BYTES:
                door.flush()

    def flush(self) -> None:
        """Send what may go."""
        for door in self._doors:
            door.flush()

    async def settle(self) -> None:
        """Wait until QEMU has taken all that may go, for a while."""
        for door in self._doors:
            await door.settle()

    def open(self) -> None:
        """The VM runs alone by a grant."""
        for door in self._doors:
            door.drain()
            door.queue(door.gate.open(time.monotonic()))
            door.flush()

    def shut(self) -> None:
        """The VM may not be heard any more."""
        for door in self._doors:
            door.gate.shut()
            door.forget()

    @staticmethod
    async def clean(qemu: Monitor) -> None:
        """Remove what a colo left in QEMU that was killed."""
        objects = await qemu.execute("qom-list", path="/objects")
        for item in objects:
            if str(item["name"]).startswith(PREFIX):
                await qemu.execute("object-del", id=item["name"])
        for item in await qemu.execute("query-chardev"):
            if str(item["label"]).startswith(PREFIX):
                await qemu.execute("chardev-remove", id=item["label"])


class _Door:
    """One gate's two sockets and its filters in QEMU."""

    def __init__(self, ends: CardEnds, gate: Gate, on_held: Callable[[], None]) -> None:
        self._ends = ends
        self.netdev = ends.netdev
        self.gate = gate
        self._on_held = on_held
        self._loop = asyncio.get_running_loop()
        self._out: socket.socket | None = None  # what the guest sent
        self._back: socket.socket | None = None  # what may go on to the network
        self._unsent = memoryview(b"")
        self._waits = False  # for room to write

    async def install(self) -> None:
        ends = self._ends
        self._back = await ends.chardev("back")
        self._out = await ends.chardev("out")
        # The filter that takes packets back in has to stand behind the one that leads them out.
        await ends.filter("back", indev=f"{ends.id}-back")
        await ends.filter("out", outdev=f"{ends.id}-out")
        self._loop.add_reader(self._out, self._readable)

    async def remove(self) -> None:
        """Lead packets past us again: first the way out goes, then what is on its way, then us."""
        await self._ends.take_out("object-del", self.settle)
        if self._out is not None:
            self.drain()
            self._loop.remove_reader(self._out)
        await self._ends.take_out("chardev-remove")
        for sock in (self._out, self._back):
            if sock is not None:
                self._loop.remove_writer(sock)
                sock.close()
        self._out = self._back = None

    def drain(self) -> None:
        """Take all that QEMU has written."""
        while self._take():
            pass

    def _take(self) -> bool:
        """Take a piece of what QEMU has written; False where there is none."""
        if self._out is None:
            return False
        try:
            data = self._out.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._out)
            return False
        passing = self.gate.take(data, time.monotonic())
        if passing:
            self.queue(passing)
            self.flush()
        return True

    def queue(self, data: bytes) -> None:
        """Have frames go to QEMU at the next ``flush``, behind those that wait already."""
        if data:
            self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)

    @property
    def unsent_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._unsent)

    def flush(self) -> None:
        """Send what waits, as far as QEMU takes it."""
        if self._back is None:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[self._back.send(self._unsent) :]
        except BlockingIOError:
            if not self._waits:
                self._loop.add_writer(self._back, self.flush)
                self._waits = True
            return
        except OSError:
            self.forget()
        if self._waits:
            self._loop.remove_writer(self._back)
            self._waits = False

    async def settle(self) -> None:
        """Wait until QEMU has taken all that may go, for a while."""
        deadline = self._loop.time() + _SETTLE_S
        while self._loop.time() < deadline:
            self.drain()
            self.flush()
            if self._back is None or not (self._unsent or unacknowledged(self._back)):
                return
            await asyncio.sleep(_SETTLE_STEP_S)

    def forget(self) -> None:
        """Forget what waits to be sent."""
        self._unsent = memoryview(b"")

    def _readable(self) -> None:
        self._take()
        if self.gate.held_bytes:
            self._on_held()
