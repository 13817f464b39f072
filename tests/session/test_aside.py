"""A checkpoint on its way while the VM runs on: cut off at every byte, nothing is heard too soon.

QEMU is played by this test; between it and a secondary that is whole, with its store, stand the
relay, the session and the gate.  The guest sends a packet in each epoch, named by it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from colo.config import VmConfig
from colo.config.vm import Checkpoints
from colo.errors import ColoError
from colo.migration.ram import PageRun
from colo.packets.gate import Gate
from colo.protocol.messages import COLOMessage, MessageDecoder
from colo.protocol.tables import CourierState
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.session.primary_stream import Came
from colo.session.qemu_primary import Checkpointing
from colo.session.relay import Relay, area_for
from colo.session.secondary import Incoming
from colo.session.standstill import StandStill
from colo.wire.choice import Way
from colo.wire.encoder import Encoder
from colo.wire.rate import LinkRate
from colo.wire.sent import SentPages
from colo.wire.verdict import Verdict
from tests.session.test_qemu_primary import FakeAwake, FakeColo, FakeStandStill
from tests.session.test_secondary import LIMITS, Session, turns, wholes
from tests.streams import RAM, RSDP, Checkpoint, Stream, fill, full, later_devices

#: A first copy and three checkpoints.
SMALL = Stream(
    "small",
    parts=((fill(RAM, range(16)), fill(RSDP, [0], 9)),),
    checkpoints=tuple(
        Checkpoint((fill(RAM, [1, 2 + n], 7 + n), fill(RSDP, [0], n)), devices=later_devices(n))
        for n in (1, 2, 3)
    ),
)


def changed(seed: int) -> tuple[PageRun, ...]:
    """Ten pages, of which little is another than with the seed before."""
    named, run = full(RAM, [0]), full(RAM, range(1, 11))
    content = run.content.copy()
    content[:, : 8 * seed] = seed
    return named, PageRun(RAM, run.offsets, content), fill(RAM, [12], seed)


#: The same with whole pages, and devices that are worth a difference.
FULL = Stream(
    "full",
    parts=((fill(RAM, range(16)), fill(RSDP, [0], 9)),),
    checkpoints=tuple(
        Checkpoint(changed(n), devices=bytes(3000) + later_devices(n)) for n in (1, 2, 3)
    ),
)
FIRST = len(turns(SMALL)[0])
ALL = sum(map(len, turns(SMALL)))
FOR_EVER = 1 << 40
AT_ONCE = Checkpoints(run_min_ms=0, age_max_ms=0.001)


class OneCard:
    """The gate of one card, without a QEMU: ``heard`` is what has left."""

    def __init__(self) -> None:
        self.gate = Gate(1 << 20)
        self.unread = self.heard = b""
        self.on_held: Callable[[], None] = lambda: None
        self.hold, self.shut = self.gate.hold, self.gate.shut

    @property
    def held_bytes(self) -> int:
        return self.gate.held_bytes

    @property
    def held_since(self) -> float | None:
        return self.gate.held_since

    def sends(self, epoch: int) -> None:
        """The guest sends a packet; nobody has read it yet."""
        self.unread += struct.pack(">II", 4, epoch)

    def cover(self) -> None:
        unread, self.unread = self.unread, b""
        self.heard += self.gate.take(unread, 0.0)
        self.gate.cover()

    def release(self) -> None:
        self.heard += self.gate.release(0.0)

    def flush(self) -> None:
        pass

    @property
    def epochs(self) -> list[int]:
        return [
            struct.unpack_from(">I", self.heard, at + 4)[0] for at in range(0, len(self.heard), 8)
        ]


class World:
    """Two hosts; the wire between them carries ``carries`` bytes, and then breaks.

    ``coder``: what goes there goes in frames.
    """

    def __init__(
        self,
        folder: Path,
        carries: int,
        config: VmConfig,
        coder: Encoder | None = None,
        stream: Stream = SMALL,
    ) -> None:
        self.stream = stream
        self.b = Session(folder)
        if coder is not None:
            store, figures = self.b.store, self.b.figures
            self.b.incoming = Incoming("web1", store, figures, lambda: 0.0, is_coded=True)
        self.card = OneCard()
        self.left = self.carries = carries
        self.qemu, qemu = socket.socketpair()
        self.wire, secondary = socket.socketpair()
        for sock in (self.qemu, self.wire):
            sock.setblocking(False)
        self.lost: list[ColoError | str] = []
        self.broken: list[ColoError] = []
        self.answers = MessageDecoder()
        self.said: list[COLOMessage] = []
        self.ahead: list[int] = []  # what host B had when the VM ran on
        self.still = FakeStandStill()
        self.still.stopped = lambda *_: self.ahead.append(self.committed)  # type: ignore[method-assign]
        self.session = Checkpointing(
            config,
            cast(ColoPrimary, FakeColo()),
            cast(NetGate, self.card),
            cast(Awake, FakeAwake()),
            cast(StandStill, self.still),
            lambda: None,
            self.broken.append,
        )
        self.session.begin()
        area = area_for(1 << 20, LIMITS)
        self.relay = Relay(
            qemu,
            secondary,
            area,
            LIMITS,
            False,
            coder,
            self.session.received,
            self.session.came,
            self.lost.append,
            self.lost.append,
        )
        self.relay.hurries = False
        self.session.carrier = self.relay

    async def play(self) -> None:
        """QEMU plays its part, until the wire breaks or all is said."""
        carrying = asyncio.ensure_future(self._carry())
        try:
            await self._play()
            while self.committed < 3:  # the last one arrives
                await asyncio.sleep(0)
                if carrying.done():
                    return
        finally:
            carrying.cancel()
            await asyncio.wait({carrying})

    async def _play(self) -> None:
        turn = iter(turns(self.stream))
        await self._say(next(turn))
        await self._hear(COLOMessage.CHECKPOINT_READY)
        for number in range(1, 4):
            self.card.sends(number)  # in the epoch that ends with checkpoint ``number``
            await self._say(next(turn))  # the request
            await self._hear(COLOMessage.CHECKPOINT_REPLY)
            await self._say(next(turn))
            await self._hear(COLOMessage.VMSTATE_RECEIVED)
            await self._hear(COLOMessage.VMSTATE_LOADED)
            self.card.sends(number + 1)  # it runs on

    @property
    def committed(self) -> int:
        checkpoint = self.b.store.checkpoint
        return checkpoint.number if checkpoint is not None else -1

    @property
    def carried(self) -> int:
        """How many bytes have got to host B."""
        return self.carries - self.left

    async def _say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.qemu, data)

    async def _hear(self, kind: COLOMessage) -> None:
        while not self.said:
            data = await asyncio.get_running_loop().sock_recv(self.qemu, 4096)
            if not data:
                raise EOFError
            self.said += [message.kind for message in self.answers.feed(data)]
        assert self.said.pop(0) is kind

    async def _carry(self) -> None:
        """Bring what host A sends to host B, and its answers back, as far as the wire goes."""
        loop = asyncio.get_running_loop()
        sent = 0
        while self.left:
            data = await loop.sock_recv(self.wire, min(self.left, 37))
            if not data:
                return
            self.left -= len(data)
            self.b.sent = b""
            self.b.feed(data)
            await loop.sock_sendall(self.wire, self.b.sent)
            sent += len(data)
        self.wire.close()

    def close(self) -> None:
        self.session.end()
        self.relay.close()
        for sock in (self.qemu, self.wire):
            sock.close()

    def check(self) -> None:
        """Whatever was heard is in the past of what host B would go on from."""
        self.b.incoming.closed()
        assert self.broken == []
        assert all(epoch <= self.committed for epoch in self.card.epochs), self.card.epochs
        assert self.card.epochs == sorted(self.card.epochs)
        if self.committed >= 0:
            self.b.apply()
            assert self.b.images() == wholes(self.stream)[self.committed][0]


def played(
    folder: Path,
    carries: int,
    checkpoints: Checkpoints,
    coder: Encoder | None = None,
    stream: Stream = SMALL,
) -> World:
    async def scene() -> World:
        world = World(folder, carries, VmConfig("web1", checkpoints=checkpoints), coder, stream)
        try:
            await asyncio.wait_for(world.play(), 10)
        except (EOFError, ConnectionError):
            pass
        finally:
            world.close()
        return world

    return asyncio.run(scene())


def folders(root: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        folder = root / str(number)
        folder.mkdir(parents=True)
        yield folder


def test_aside_the_vm_runs_on_before_host_b_has_all(tmp_path: Path) -> None:
    world = played(tmp_path, ALL, AT_ONCE)
    world.check()
    assert world.committed == 3 and world.session.machine.state is not CourierState.LOST
    assert world.ahead == [0, 1, 2], "one behind, and not more"


def test_through_the_vm_waits_for_host_b(tmp_path: Path) -> None:
    through = Checkpoints(run_min_ms=0, age_max_ms=0.001, aside_mib=0)
    world = played(tmp_path, ALL, through)
    world.check()
    assert world.ahead == [1, 2, 3]


@pytest.mark.parametrize("aside_mib", [0, 1], ids=["through", "aside"])
def test_cut_off_at_every_byte_nothing_was_heard_that_is_not_there(
    tmp_path: Path, aside_mib: int
) -> None:
    checkpoints = Checkpoints(run_min_ms=0, age_max_ms=0.001, aside_mib=aside_mib)
    ends, ran_on = set(), 0
    for carries, folder in zip(range(FIRST - 1, ALL + 1), folders(tmp_path), strict=False):
        world = played(folder, carries, checkpoints)
        world.check()
        ends.add(world.committed)
        ran_on += len(world.ahead) > world.committed > 0
        world.b.store.remove()
    assert ends == {-1, 0, 1, 2, 3}
    assert (ran_on > 0) is (aside_mib > 0), "the case that this is about has come up"


@pytest.fixture
def slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured, the link is slow: all ways of coding are in use."""
    monkeypatch.setattr(LinkRate, "value", 1e6, raising=False)
    monkeypatch.setattr(LinkRate, "__init__", lambda self: None)
    monkeypatch.setattr(LinkRate, "add", lambda *_: None)
    monkeypatch.setattr(Verdict, "note", lambda *_: None)
    monkeypatch.setattr(Verdict, "__init__", lambda self: setattr(self, "is_coded", True))


def encoder() -> Encoder:
    made = Encoder(SentPages(64), True, time.perf_counter)
    made.rate = 1e6
    return made


def test_in_frames_it_is_the_same(tmp_path: Path, slow_link: None) -> None:
    coder = encoder()
    world = played(tmp_path, FOR_EVER, AT_ONCE, coder, FULL)
    world.check()
    assert world.committed == 3
    size = sum(map(len, turns(FULL)))
    assert world.relay.bytes_taken == coder.figures.total.stream_bytes == size
    assert world.carried == coder.figures.total.wire_bytes < size
    assert coder.figures.by_way[Way.DIFFERENCE.value].stream_bytes > 0


def test_in_frames_cut_off_anywhere(tmp_path: Path, slow_link: None) -> None:
    """What a frame has in it is often what differs from pages that host B has."""
    whole = played(next(folders(tmp_path)), FOR_EVER, AT_ONCE, encoder(), FULL)
    ends = set()
    for carries, folder in zip(
        range(0, whole.carried + 1, 71), folders(tmp_path / "cut"), strict=False
    ):
        world = played(folder, carries, AT_ONCE, encoder(), FULL)
        world.check()
        ends.add(world.committed)
        world.b.store.remove()
    assert ends >= {-1, 0, 1, 2}


def test_a_gate_that_releases_by_the_local_answer_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test."""
    came = Checkpointing.came

    def too_soon(self: Checkpointing, what: Came) -> None:
        came(self, what)
        if what is Came.CHECKPOINT:
            self._gate.release()

    monkeypatch.setattr(Checkpointing, "came", too_soon)
    with pytest.raises(AssertionError):
        for carries, folder in zip(range(FIRST, ALL), folders(tmp_path), strict=False):
            played(folder, carries, AT_ONCE).check()
