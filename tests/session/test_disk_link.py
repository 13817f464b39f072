"""A disk link's two ends, joined: what is written at one is in the replicas at the other."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from colo.disks.blockfile import RealFile
from colo.disks.digests import BLOCK_SIZE
from colo.disks.replica import Replica
from colo.disks.standing import Condition
from colo.disks.words import Kind, Said, encode, header
from colo.errors import ChannelLost, ColoError, DiskError, ExportError, PeerError
from colo.session import disk_feed
from colo.session.disk_feed import DiskFeed, MirrorTarget
from colo.session.disk_intake import DiskIntake

SIZE = 8 * BLOCK_SIZE + 1000
JOURNAL = 768 << 10


class Ends:
    """Both ends, of two disks; the second host has ``old`` of each, or nothing."""

    def __init__(self, folder: Path, old: bytes | None) -> None:
        self.folder = folder
        self.replicas = []
        for name in ("root", "data"):
            base = folder / name
            base.write_bytes(old if old is not None else bytes(SIZE))
            file = RealFile.make(folder / f"{name}.journal", name, JOURNAL)
            replica = Replica.open(name, RealFile(base, name), file)
            replica.begin_copy(uuid4())
            self.replicas.append(replica)
        near, far = socket.socketpair()
        self.far = far
        self.lost: list[tuple[str, ColoError]] = []
        self.cuts = asyncio.Event()
        self.urged = asyncio.Event()
        holds = (old is not None,) * 2
        self.feed = DiskFeed(near, holds, self.urged.set, lambda e: self.lost.append(("feed", e)))
        self.intake = DiskIntake(
            far, self.replicas, self.cuts.set, lambda e: self.lost.append(("intake", e))
        )

    def base(self, name: str = "root") -> bytes:
        return (self.folder / name).read_bytes()

    async def in_step(self) -> None:
        self.feed.in_step()
        await self.feed.is_ready()

    async def checkpoint(self, number: int) -> None:
        self.cuts.clear()
        self.feed.cut(number)
        await self.cuts.wait()
        assert self.intake.is_here(number)
        self.intake.require(number)
        self.intake.commit(number)

    async def until_lost(self, *sides: str) -> None:
        while {side for side, _ in self.lost} != set(sides):
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self.feed.close()
        self.intake.close()
        await self.intake.settled()
        for replica in self.replicas:
            replica.close()


def play(folder: Path, scene: Callable[[Ends], Awaitable[None]], old: bytes | None = None) -> None:
    async def run() -> None:
        ends = Ends(folder, old)
        try:
            async with asyncio.timeout(20):
                await scene(ends)
        finally:
            await ends.close()

    asyncio.run(run())


def noise(seed: int, length: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(length)


def test_a_copy_goes_into_the_file(tmp_path: Path) -> None:
    content = noise(1)

    async def scene(ends: Ends) -> None:
        await ends.feed.write(0, 0, content[:100_000])
        await ends.feed.write(0, 100_000, content[100_000:])
        await ends.feed.write(1, 5, b"five")
        await ends.feed.zero(1, 7, 1, needs_no_room=True)
        await ends.in_step()
        assert ends.base() == content
        assert ends.base("data") == bytes(5) + b"fi\0e" + bytes(SIZE - 9)
        assert [replica.condition for replica in ends.replicas] == [Condition.WHOLE] * 2
        assert ends.lost == []

    play(tmp_path, scene)


def test_of_an_older_copy_only_what_differs_is_sent(tmp_path: Path) -> None:
    old = noise(2)
    new = bytearray(old)
    new[3 * BLOCK_SIZE + 5] ^= 1
    new[6 * BLOCK_SIZE : 7 * BLOCK_SIZE] = bytes(BLOCK_SIZE)

    async def scene(ends: Ends) -> None:
        await ends.feed.write(0, 0, bytes(new))
        await ends.in_step()
        assert ends.base() == new
        assert ends.feed.bytes_same == 6 * BLOCK_SIZE
        assert ends.feed.bytes_sent < 2 * BLOCK_SIZE

    play(tmp_path, scene, old)


@pytest.mark.parametrize("cut", range(0, 3 * BLOCK_SIZE, 23_456))
def test_a_copy_in_any_pieces(tmp_path: Path, cut: int) -> None:
    new = noise(3)

    async def scene(ends: Ends) -> None:
        await asyncio.gather(
            ends.feed.write(0, 0, new[:cut] or b"\0"), ends.feed.write(1, cut, b"!")
        )
        await ends.feed.write(0, cut, new[cut:])
        await ends.in_step()
        assert ends.base() == new

    play(tmp_path, scene, noise(2))


def test_a_checkpoint_has_what_was_written_before_it_and_a_takeover_no_more(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        await ends.in_step()
        await ends.feed.write(0, 0, b"first")
        await ends.checkpoint(0)
        await ends.feed.write(0, 5, b"second")
        await ends.feed.write(1, 0, b"too")
        await ends.checkpoint(1)
        await ends.feed.write(0, 0, b"third")
        assert ends.replicas[0].read_committed(0, 11) == b"firstsecond"
        ends.intake.close()
        await ends.intake.settled()
        for replica in ends.replicas:
            replica.hand_over()
        assert ends.base()[:11] == b"firstsecond"
        assert ends.base("data")[:3] == b"too"

    play(tmp_path, scene)


def test_what_is_written_before_the_checkpoints_memory_is_here_is_not_of_it(tmp_path: Path) -> None:
    """The VM runs on while its memory is still on its way."""

    async def scene(ends: Ends) -> None:
        await ends.in_step()
        await ends.feed.write(0, 0, b"first")
        ends.feed.cut(0)
        await ends.feed.write(0, 0, b"later")
        await ends.feed.write(1, 0, b"too")
        await ends.cuts.wait()
        while ends.intake.taken < ends.feed.bytes_sent:
            await asyncio.sleep(0.001)
        ends.intake.require(0)
        ends.intake.commit(0)
        assert ends.replicas[0].read_committed(0, 5) == b"first"
        assert ends.replicas[1].read_committed(0, 3) == bytes(3)
        await ends.checkpoint(1)
        assert ends.replicas[0].read_committed(0, 5) == b"later"
        assert ends.replicas[1].read_committed(0, 3) == b"too"

    play(tmp_path, scene)


def test_nothing_of_a_checkpoint_that_cannot_be_committed_counts(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        await ends.in_step()
        await ends.feed.write(0, 0, b"first")
        await ends.checkpoint(0)
        await ends.feed.write(0, 0, b"other")
        ends.cuts.clear()
        ends.feed.cut(1)
        await ends.cuts.wait()
        ends.replicas[1]._fail(DiskError("data", "it is broken"))
        with pytest.raises(DiskError):
            ends.intake.require(1)
        assert ends.replicas[0].read_committed(0, 5) == b"first"

    play(tmp_path, scene)


def test_cut_comes_behind_all_that_was_written(tmp_path: Path) -> None:
    """Also where the link is slow: the secondary has it all before it has the CUT."""

    async def scene(ends: Ends) -> None:
        await ends.in_step()
        writes = [
            asyncio.ensure_future(ends.feed.write(0, at * 4096, bytes([at + 1]) * 4096))
            for at in range(100)
        ]
        await asyncio.wait(writes)
        await ends.checkpoint(0)
        read = ends.replicas[0].read_committed(0, 100 * 4096)
        assert read == b"".join(bytes([at + 1]) * 4096 for at in range(100))

    play(tmp_path, scene)


def test_a_write_that_finds_no_room_waits_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_feed, "_ROOM_BYTES", 10_000)

    async def scene(ends: Ends) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(ends.far)  # the secondary is busy
        writes = [
            asyncio.ensure_future(ends.feed.write(0, at, bytes([at + 1]) * 4096)) for at in range(9)
        ]
        await asyncio.sleep(0)
        assert [write.done() for write in writes] == [True] * 3 + [False] * 6
        writes[4].cancel()
        loop.add_reader(ends.far, ends.intake._readable)
        await asyncio.wait(writes)
        await ends.in_step()
        assert ends.base()[:9] == bytes([1, 2, 3, 4, 4, 6, 7, 8, 9])

    play(tmp_path, scene)


def test_whoever_waits_gets_the_error_that_ended_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_feed, "_ROOM_BYTES", 0)

    async def scene(ends: Ends) -> None:
        asyncio.get_running_loop().remove_reader(ends.far)
        target = MirrorTarget(ends.feed, 0, "root", SIZE)
        first = asyncio.ensure_future(ends.feed.write(0, 0, b"x"))
        await asyncio.wait([first])
        waiting = asyncio.ensure_future(target.write(0, b"y", fua=False))
        copying = asyncio.ensure_future(target.write_zeroes(0, 9, may_trim=True, fua=False))
        await asyncio.sleep(0)
        ends.far.shutdown(socket.SHUT_RDWR)
        await ends.until_lost("feed")
        for each in (waiting, copying):
            with pytest.raises(ExportError, match="closed the disk link"):
                await each
        with pytest.raises(ExportError, match="closed the disk link"):
            await target.trim(0, 1)

    play(tmp_path, scene)


def test_to_close_an_end_calls_nobody_there_and_is_a_loss_at_the_other(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        ends.feed.close()
        await ends.until_lost("intake")
        assert str(ends.lost[0][1]) == "the primary closed the disk link"
        with pytest.raises(ChannelLost, match="the disk link is closed"):
            await ends.feed.is_ready()

    play(tmp_path, scene)


def test_a_replica_that_fails_says_why_to_the_primary(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        await ends.in_step()
        ends.replicas[0]._fail(DiskError("root", "no space left", "/disk"))
        await ends.feed.write(0, 0, b"x")
        await ends.until_lost("feed", "intake")
        said = {side: str(error) for side, error in ends.lost}
        assert "the secondary cannot keep the disks" in said["feed"]
        assert "no space left" in said["feed"]
        assert isinstance(dict(ends.lost)["intake"], DiskError)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "word",
    [
        header(Kind.CUT, number=0),
        header(Kind.READY),
        header(Kind.WRITE, disk=2, length=0),
        header(Kind.COMPARE, offset=1, length=1) + bytes(16),
        b"nonsense" * 3,
    ],
)
def test_a_word_out_of_place_ends_the_link_at_the_secondary(tmp_path: Path, word: bytes) -> None:
    async def scene(ends: Ends) -> None:
        ends.feed._enqueue(word)
        await ends.until_lost("feed", "intake")
        assert isinstance(dict(ends.lost)["intake"], PeerError)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "word",
    [
        header(Kind.CUT, number=0),
        header(Kind.READY),
        header(Kind.TAKEN, number=1),
        header(Kind.DIFFER, number=9),
        header(Kind.WRITE, length=0),
        encode(Said(Kind.FAILED, length=3, payload=memoryview(b"why"))),
        b"nonsense" * 3,
    ],
)
def test_a_word_out_of_place_ends_the_link_at_the_primary(tmp_path: Path, word: bytes) -> None:
    async def scene(ends: Ends) -> None:
        ends.intake._say(word)
        await ends.until_lost("feed", "intake")
        assert isinstance(dict(ends.lost)["feed"], PeerError)

    play(tmp_path, scene)


def test_much_that_is_held_asks_for_a_checkpoint_once(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        await ends.in_step()
        for at in range(0, 40 * 65536, 65536):
            await ends.feed.write(0, at % (7 * 65536), noise(at, 65536))
        await ends.urged.wait()
        ends.urged.clear()
        await ends.checkpoint(0)
        await ends.intake.settled()  # it is merged, and makes room
        await ends.feed.write(0, 0, b"x")
        await ends.checkpoint(1)
        assert not ends.urged.is_set()
        assert ends.lost == []

    play(tmp_path, scene)


def test_a_mirror_target_is_all_there_and_is_not_read(tmp_path: Path) -> None:
    async def scene(ends: Ends) -> None:
        target = MirrorTarget(ends.feed, 0, "root", SIZE)
        (extent,) = await target.extents(5, 10)
        assert (extent.length, extent.allocated, extent.zero) == (10, True, False)
        await target.flush()
        with pytest.raises(ExportError):
            await target.read(0, 1)
        await target.write(0, memoryview(b"abc"), fua=True)
        await target.write_zeroes(1, 1, may_trim=False, fua=False)
        await target.trim(2, 1)
        await ends.in_step()
        assert ends.base()[:4] == b"a\0\0\0"

    play(tmp_path, scene)
