"""The primary's end of a disk link: what QEMU mirrors goes to the secondary, in its order.

A write of the guest is done, for the guest, once it is in its own disk and lies here to be sent.
That is enough: nobody hears of it before the checkpoint that covers it is safe, and the secondary
commits that only with all that was said before CUT.  QEMU stops the VM for a checkpoint once no
write of it is under way, so while it stands still all have been said.

What lies here is bounded: a write that finds too much of it waits until the secondary has taken
some.  Where the secondary has an older copy of a disk, only what differs by digest is sent.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from colo.disks.digests import BLOCK_SIZE, digest, is_zeroes
from colo.disks.words import (
    DISK_MAGIC,
    DiskHello,
    Kind,
    Said,
    WordReader,
    header,
    read_answer,
)
from colo.errors import ChannelLost, ColoError, ExportError, PeerError
from colo.nbd.protocol import Extent
from colo.session.first_line import first_line
from colo.transport.address import Address
from colo.transport.word_socket import WordSocket

__all__ = ["DiskFeed", "MirrorTarget", "call_disks"]

_CALL_S: Final = 10.0
_READ_BYTES: Final = 64 << 10
#: So much may be on its way, or wait to be sent.
_ROOM_BYTES: Final = 32 << 20


async def call_disks(to: Address, hello: DiskHello) -> tuple[socket.socket, tuple[bool, ...]]:
    """Open a disk link; return it and of which disks the secondary has something to compare with.

    Raises ChannelLost, or PeerError where no further try changes it.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CALL_S):
            sock = await to.connect()
            try:
                await loop.sock_sendall(sock, DISK_MAGIC + hello.encode())
                closed = f"{to} closed the disk link: are its [[disks]] the same?"
                return sock, read_answer(await first_line(sock, closed))
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        raise ChannelLost(f"{to} does not answer on the disk link") from None
    except OSError as error:
        raise ChannelLost(f"the disk link to {to}: {error.strerror or error}") from error


class DiskFeed:
    """The disk link over ``sock``, which it owns.

    ``holds``: of which disks the secondary has an older copy.  ``on_urge`` is called when it wants
    a checkpoint soon; ``on_lost`` once, with why, when the link is of no more use.
    """

    def __init__(
        self,
        sock: socket.socket,
        holds: tuple[bool, ...],
        on_urge: Callable[[], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self.holds = holds
        self._on_urge = on_urge
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = WordReader()
        self._queued = self._taken = 0  # bytes since the link began
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._count = 0
        self._copying = True
        self.error: ColoError | None = None  # why it is of no more use
        self._open = True
        self._ready: asyncio.Future[None] = self._loop.create_future()
        #: What the guest wrote, and the copy, by disk.
        self.bytes_of = [0] * len(holds)
        #: What the copy did not need to send, as the secondary had it.
        self.bytes_same = 0
        called, closed = "the disk link", "the secondary closed the disk link"
        self._socket = WordSocket(sock, called, closed, _READ_BYTES, self._take, self._lose)

    @property
    def bytes_sent(self) -> int:
        """How much has been sent since the link began."""
        return self._socket.bytes_sent

    # -- what the guest writes ------------------------------------------------------------

    async def write(self, disk: int, offset: int, data: memoryview | bytes) -> None:
        """Say that the guest has written ``data``, which nobody changes any more.

        Raises ChannelLost, or what ended the link.
        """
        self.bytes_of[disk] += len(data)
        if self._copying:
            await self._copy(disk, offset, bytes(data))
        else:
            await self._put(header(Kind.WRITE, disk, offset, len(data)), data)

    async def zero(self, disk: int, offset: int, length: int, needs_no_room: bool) -> None:
        """Say that it has written zeroes.  Raises as ``write`` does."""
        await self._put(header(Kind.ZERO, disk, offset, length, int(needs_no_room)))

    async def is_ready(self) -> None:
        """Wait until the secondary has said so.  Raises what ended the link."""
        await self._ready

    def in_step(self) -> None:
        """All disks are copied: what comes now belongs to epochs."""
        self._copying = False
        self._enqueue(header(Kind.IN_STEP))

    def cut(self, number: int) -> None:
        """What was said so far is of checkpoint ``number``, for which the VM stands still."""
        self._enqueue(header(Kind.CUT, number=number))

    async def _copy(self, disk: int, offset: int, data: bytes) -> None:
        """Send of a copy what is not zero, and not there already."""
        start = min(-offset % BLOCK_SIZE, len(data))
        whole = (len(data) - start) // BLOCK_SIZE * BLOCK_SIZE
        await self._send_run(disk, offset, data[:start])
        blocks = [data[at : at + BLOCK_SIZE] for at in range(start, start + whole, BLOCK_SIZE)]
        differ = b"\1" * len(blocks)
        if blocks and self.holds[disk]:
            differ = await self._compare(disk, offset + start, blocks)
            self.bytes_same += differ.count(0) * BLOCK_SIZE
        for at, block in enumerate(blocks):
            if differ[at]:
                await self._send_run(disk, offset + start + at * BLOCK_SIZE, block)
        await self._send_run(disk, offset + start + whole, data[start + whole :])

    async def _send_run(self, disk: int, offset: int, data: bytes) -> None:
        if not data:
            return
        if is_zeroes(data):
            await self.zero(disk, offset, len(data), needs_no_room=True)
        else:
            await self._put(header(Kind.WRITE, disk, offset, len(data)), data)

    async def _compare(self, disk: int, offset: int, blocks: list[bytes]) -> bytes:
        """Ask which of these blocks are others there."""
        self._count += 1
        number, answer = self._count, self._loop.create_future()
        self._asked[number] = answer
        length = len(blocks) * BLOCK_SIZE
        head = header(Kind.COMPARE, disk, offset, length, number)
        await self._put(head, b"".join(map(digest, blocks)))
        differ: bytes = await answer
        if len(differ) != len(blocks):
            raise PeerError("the disk link compares other blocks than were asked for")
        return differ

    # -- the link -------------------------------------------------------------------------

    async def _put(self, *parts: bytes | memoryview) -> None:
        """Have a word sent, once there is room for it."""
        if self.error is not None:
            raise self.error
        while self._waiting or self._queued - self._taken > _ROOM_BYTES:
            turn = self._loop.create_future()
            self._waiting.append(turn)
            await turn
            if self._queued - self._taken <= _ROOM_BYTES:
                break
        self._enqueue(*parts)

    def _enqueue(self, *parts: bytes | memoryview) -> None:
        self._queued += sum(map(len, parts))
        self._socket.say(*parts)

    def _take(self, data: bytes) -> None:
        for said in self._reader.feed(data):
            self._hear(said)

    def _hear(self, said: Said) -> None:
        """Take a word of the secondary.  Raises PeerError."""
        match said.kind:
            case Kind.TAKEN if self._taken <= said.number <= self._queued:
                self._taken = said.number
                self._let_in()
            case Kind.DIFFER if said.number in self._asked:
                answer = self._asked.pop(said.number)
                if not answer.done():
                    answer.set_result(bytes(said.payload))
            case Kind.READY if not self._copying:
                if not self._ready.done():
                    self._ready.set_result(None)
            case Kind.URGE:
                self._on_urge()
            case Kind.FAILED:
                text = bytes(said.payload).decode(errors="replace")
                raise PeerError(f"the secondary cannot keep the disks: {text}")
            case other:
                raise PeerError(f"the disk link says {other.name} out of place")

    def _let_in(self) -> None:
        """The writes that wait have their turn, one after the other."""
        if self._waiting and self._queued - self._taken <= _ROOM_BYTES:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
            self._loop.call_soon(self._let_in)

    def close(self) -> None:
        """Close the link; nothing is called any more, and whoever waits gets an error."""
        if self._open:
            self._open = False
            self._socket.close()
            error = self.error = self.error or ChannelLost("the disk link is closed")
            awaited: list[asyncio.Future[Any]] = [*self._waiting, *self._asked.values()]
            for each in (*awaited, self._ready):
                if not each.done():
                    each.set_exception(error)
                    each.exception()  # whoever waits for it sees it; nobody need
            self._waiting.clear()
            self._asked.clear()

    def _lose(self, error: ColoError) -> None:
        if self._open:
            self.error = error
            self.close()
            self._on_lost(error)


class MirrorTarget:
    """A disk as QEMU's mirror sees it: an NBD export whose writes are said on the link."""

    def __init__(self, feed: DiskFeed, disk: int, name: str, size: int) -> None:
        self._feed = feed
        self._disk = disk
        self.name = name
        self.size = size
        self.read_only = False

    async def read(self, offset: int, length: int) -> bytes:
        """A mirror reads nothing back: it is on the other host.  Raises ExportError."""
        raise ExportError(errno.EOPNOTSUPP, "nobody reads here: the other host has it")

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        """Say it to the other host.  Raises ExportError."""
        try:
            await self._feed.write(self._disk, offset, data)
        except ColoError as error:
            raise ExportError(errno.EIO, str(error)) from error

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool, fua: bool) -> None:
        """Say it to the other host.  Raises ExportError."""
        try:
            await self._feed.zero(self._disk, offset, length, may_trim)
        except ColoError as error:
            raise ExportError(errno.EIO, str(error)) from error

    async def trim(self, offset: int, length: int) -> None:
        """What it reads as does not matter: zeroes, then."""
        await self.write_zeroes(offset, length, may_trim=True, fua=False)

    async def flush(self) -> None:
        """A checkpoint makes it safe, and nothing before that."""

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """All of it may hold something."""
        return [Extent(length)]
