"""The secondary's end of a disk link: what the primary's guest writes goes into the replicas.

While the disks are copied all of it goes straight into their files, in a thread, and no more is
read before that is done.  From IN_STEP on writes are staged, which takes no I/O of note, and a
checkpoint commits what the primary has said before its CUT, which may come before its pages.  What
is committed is merged in a thread of each replica's own while the VM runs on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from colo.disks.digests import BLOCK_SIZE, DIGEST_SIZE, digests
from colo.disks.replica import Replica
from colo.disks.standing import COPY, epoch_of
from colo.disks.words import Kind, Said, WordReader, blocks_of, encode, header
from colo.errors import ChannelLost, ColoError, DiskError, PeerError
from colo.transport.sockets import tune

__all__ = ["DiskIntake"]

_READ_BYTES: Final = 1 << 20


class DiskIntake:
    """The disk link over ``sock``, which it owns, whose hellos have been said.

    ``replicas`` are the hello's disks, in their order, and each is being copied.  ``on_cut`` is
    called when CUT is; ``on_lost`` once, with why, when the link is of no
    more use, or a replica.
    """

    def __init__(
        self,
        sock: socket.socket,
        replicas: Sequence[Replica],
        on_cut: Callable[[], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self._sock = sock
        self._replicas = replicas
        self._on_cut = on_cut
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = WordReader()
        self._buffer = bytearray(_READ_BYTES)
        self.taken = 0  # bytes since the link began
        self._cut = -1
        self._urged = False
        self._work: set[asyncio.Task[None]] = set()
        self._merging: set[Replica] = set()
        self._open = True
        self.in_step = False
        tune(sock)
        self._loop.add_reader(sock, self._readable)

    # -- checkpoints ----------------------------------------------------------------------

    def is_here(self, number: int) -> bool:
        """Whether all that the guest wrote before checkpoint ``number`` is here."""
        return self._cut == number

    def require(self, number: int) -> None:
        """Raise DiskError where checkpoint ``number`` cannot be committed to all replicas."""
        for replica in self._replicas:
            replica.require_commit(epoch_of(number))

    def commit(self, number: int) -> None:
        """What was cut is the disks at checkpoint ``number``; ``require`` comes before."""
        for replica in self._replicas:
            replica.commit(epoch_of(number))
        self._urged = False
        for replica in self._replicas:
            self._merge(replica)

    def _merge(self, replica: Replica) -> None:
        """Merge what waits, and what comes to wait meanwhile."""
        if replica not in self._merging and self._open:
            self._merging.add(replica)
            self._spawn(self._merge_all(replica))

    async def _merge_all(self, replica: Replica) -> None:
        try:
            while replica.lag:
                await asyncio.to_thread(replica.merge)
        finally:
            self._merging.discard(replica)

    # -- the link -------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the link is of use."""
        return self._open

    def close(self) -> None:
        """Close the link; nothing is called any more."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._sock.close()

    async def settled(self) -> None:
        """Wait for what is under way in threads; ``close`` comes first."""
        while self._work:
            await asyncio.wait(self._work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _readable(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(ChannelLost(f"the disk link broke: {error.strerror}"))
            return
        if not count:
            self._lose(ChannelLost("the primary closed the disk link"))
            return
        if not self.in_step:
            self._loop.remove_reader(self._sock)
            self._spawn(self._copy(count))
            return
        if any(replica.full and replica.lag for replica in self._replicas):
            self._loop.remove_reader(self._sock)
            self._spawn(self._take_later(count))
            return
        self._take_now(count)

    async def _take_later(self, count: int) -> None:
        """Take no more before what is committed is merged: the guest's writes wait meanwhile."""
        while self._open and any(replica.full and replica.lag for replica in self._replicas):
            await asyncio.wait(self._work - {asyncio.current_task()})
        if self._open:
            self._loop.add_reader(self._sock, self._readable)
            self._take_now(count)

    def _take_now(self, count: int) -> None:
        try:
            self._say(self._take(count))
        except (ColoError, MemoryError) as error:
            self._fail(error)
            return
        self._urge()

    async def _copy(self, count: int) -> None:
        """Take a part of the copy, and read on then."""
        self._say(await asyncio.to_thread(self._take, count))
        if self._open:
            self._loop.add_reader(self._sock, self._readable)

    def _take(self, count: int) -> bytes:
        """Do what was said; return what is to be answered.  Raises ColoError."""
        answers = []
        for said in self._reader.feed(memoryview(self._buffer)[:count]):
            if said.disk >= len(self._replicas):
                raise PeerError(f"the disk link has no disk {said.disk}")
            answers.append(self._obey(said))
        self.taken += count
        answers.append(header(Kind.TAKEN, number=self.taken))
        return b"".join(answers)

    def _obey(self, said: Said) -> bytes:
        replica = self._replicas[said.disk]
        match said.kind:
            case Kind.WRITE:
                replica.write(said.offset, said.payload)
            case Kind.ZERO:
                replica.zero(said.offset, said.length)
            case Kind.COMPARE if not self.in_step:
                return self._compared(replica, said)
            case Kind.IN_STEP if not self.in_step:
                self._step()
            case Kind.CUT if self.in_step:
                self._cut_at(said.number)
            case other:
                raise PeerError(f"the disk link says {other.name} out of place")
        return b""

    def _compared(self, replica: Replica, said: Said) -> bytes:
        count = blocks_of(said.offset, said.length)
        if said.offset % BLOCK_SIZE:
            raise PeerError(f"the disk link compares from {said.offset} on, within a block")
        theirs = (said.payload[at : at + DIGEST_SIZE] for at in range(0, count * DIGEST_SIZE, 16))
        ours = digests(replica.read, said.offset, said.length)
        differ = bytes(a != b for a, b in zip(theirs, ours, strict=True))
        answer = Said(
            Kind.DIFFER, said.disk, said.offset, said.length, said.number, memoryview(differ)
        )
        return encode(answer)

    def _step(self) -> None:
        """All is copied: what comes now is of an epoch."""
        for replica in self._replicas:
            replica.cut()
        self.in_step = True
        self._loop.call_soon_threadsafe(self._spawn, self._end_copies())

    async def _end_copies(self) -> None:
        """Have what was copied be kept for good, and say so."""
        for replica in self._replicas:
            await asyncio.to_thread(replica.end_copy, COPY)
        self._say(header(Kind.READY))

    def _cut_at(self, number: int) -> None:
        for replica in self._replicas:
            replica.cut()
        self._cut = number
        self._loop.call_soon(self._heard_cut)

    def _heard_cut(self) -> None:
        if self._open:
            self._on_cut()

    def _urge(self) -> None:
        """Ask for a checkpoint where much is held of this epoch, once."""
        if not self._urged and any(replica.wants_checkpoint for replica in self._replicas):
            self._urged = True
            self._say(header(Kind.URGE))

    def _say(self, data: bytes) -> None:
        """Send a few bytes.  A primary that does not read them is lost."""
        if not self._open or not data:
            return
        try:
            sent = self._sock.send(data)
        except OSError as error:
            self._lose(ChannelLost(f"the disk link broke: {error.strerror}"))
            return
        if sent < len(data):
            self._lose(ChannelLost("the primary does not read the disk link"))

    def _fail(self, error: BaseException) -> None:
        """A word cannot be obeyed, or a replica has failed: the primary gets to know why."""
        if not isinstance(error, ColoError):
            error = DiskError("", str(error) or "out of memory")
        if isinstance(error, DiskError):
            text = str(error).encode()
            self._say(encode(Said(Kind.FAILED, length=len(text), payload=memoryview(text))))
        self._lose(error)

    def _lose(self, error: ColoError) -> None:
        if self._open:
            self.close()
            self._on_lost(error)
