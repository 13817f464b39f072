"""The disks of a secondary VM: the replicas at their last commit, and over them what it writes.

What it reads and writes goes by a socket of ours, and what it writes is kept in memory beside the
replicas.  The next checkpoint ends it, and all that is forgotten.  Where a takeover goes on with
it, it stands still for a moment: what it wrote goes into the replicas' files, and it goes on
right upon those.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from colo.disks.extents import Extent, Extents, Source
from colo.disks.overlay import lay_over
from colo.disks.replica import Replica
from colo.errors import ColoError, ExportError
from colo.nbd.listener import Server, listen
from colo.nbd.protocol import Extent as Status
from colo.qemu.monitor import Monitor
from colo.qemu.process import disk_node
from colo.transport.address import Address

__all__ = ["SecondaryDisk", "SecondaryDisks"]

_NODE: Final = "colo-beside-"
_FILE: Final = "colo-file-"


class SecondaryDisk:
    """One of them, as its QEMU sees it: an NBD export.

    What is written takes up ``limit`` bytes at most: then ``on_full`` is called once, and writes
    wait, until ``let_go``.
    """

    def __init__(self, replica: Replica, limit: int, on_full: Callable[[], None]) -> None:
        self.name, self.size = replica.disk, replica.size
        self.read_only = False
        #: What it has written.
        self.written = Extents()
        self._replica = replica
        self._limit = limit
        self._on_full = on_full
        self._is_full = False
        self._room = asyncio.Event()
        self._room.set()

    async def read(self, offset: int, length: int) -> bytes:
        """What it has written, and what the last commit has elsewhere.  Raises ExportError."""
        pieces = list(self.written.overlaps(offset, offset + length))
        return await asyncio.to_thread(self._read, offset, length, pieces)

    def _read(self, offset: int, length: int, pieces: Sequence[Extent]) -> bytes:
        try:
            content = bytearray(self._replica.read_committed(offset, length))
        except ColoError as error:
            raise ExportError(errno.EIO, str(error)) from error
        lay_over(content, offset, pieces, _in_memory)
        return bytes(content)

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        """Keep it."""
        await self._put(offset, len(data), bytes(data))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool, fua: bool) -> None:
        """Keep that these are zeroes."""
        await self._put(offset, length, None)

    async def trim(self, offset: int, length: int) -> None:
        """What it reads as does not matter: zeroes, then."""
        await self._put(offset, length, None)

    async def _put(self, offset: int, length: int, source: Source | None) -> None:
        await self._room.wait()
        self.written.put(offset, offset + length, source)
        if self.written.memory_bytes > self._limit and not self._is_full:
            self._is_full = True
            self._room.clear()
            self._on_full()

    def let_go(self) -> None:
        """No write waits any more: it is about to have the disk for itself."""
        self._is_full = True
        self._room.set()

    async def flush(self) -> None:
        """Nothing of it is to last, unless it becomes the VM."""

    async def extents(self, offset: int, length: int) -> list[Status]:
        """All of it may hold something."""
        return [Status(length)]


class SecondaryDisks:
    """The disks of one secondary VM, over ``replicas``, whose files are at ``paths``.

    ``folder`` has the socket.  ``on_full``: see SecondaryDisk.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        paths: Sequence[Path],
        folder: Path,
        on_full: Callable[[], None],
    ) -> None:
        self.disks = [SecondaryDisk(each, each.limits.memory_bytes, on_full) for each in replicas]
        self._paths = paths
        self._socket = folder / "disks.sock"
        self._server: asyncio.Task[None] | None = None

    async def begin(self, qemu: Monitor) -> None:
        """Have a QEMU that waits for a state see them, not the files.  Raises GuestError."""
        if not self.disks:
            return
        self._socket.unlink(missing_ok=True)
        self._listener = listen(Address(path=str(self._socket)))
        self._server = asyncio.create_task(Server(self._listener, self.disks, _ignore).serve())
        for number, disk in enumerate(self.disks):
            at = {"type": "unix", "path": str(self._socket)}
            node = f"{_NODE}{number}"
            await qemu.execute(
                "blockdev-add", driver="nbd", node_name=node, server=at, export=disk.name
            )
            await self._reopen(qemu, number, node)

    def let_go(self) -> None:
        """The VM is about to be stopped: no write of it waits any more."""
        for disk in self.disks:
            disk.let_go()

    def written(self) -> dict[str, Extents]:
        """What it has written, by disk."""
        return {disk.name: disk.written for disk in self.disks}

    async def become_files(self, qemu: Monitor) -> None:
        """Have its QEMU go on upon the files, which have it all; the VM stands.

        Raises GuestError.
        """
        for number, (disk, path) in enumerate(zip(self.disks, self._paths, strict=True)):
            node = f"{_FILE}{number}"
            file = disk_node(disk.name, path)["file"]
            await qemu.execute("blockdev-add", node_name=node, **file)
            await self._reopen(qemu, number, node)
            await qemu.execute("blockdev-del", node_name=f"{_NODE}{number}")

    async def _reopen(self, qemu: Monitor, number: int, file: str) -> None:
        """Have a drive lie on another node: what it is called and how it is done stays."""
        node = {**disk_node(self.disks[number].name, self._paths[number]), "file": file}
        await qemu.execute("blockdev-reopen", options=[node])

    async def close(self) -> None:
        """Serve them no longer."""
        if self._server is not None:
            self._server.cancel()
            await asyncio.wait({self._server})
            self._server = None
            self._listener.close()  # one that has not begun to serve has not
            self._socket.unlink(missing_ok=True)


def _in_memory(source: Source) -> bytes:
    assert isinstance(source, bytes)
    return source


def _ignore(error: Exception) -> None:
    """A QEMU that was killed breaks off in the middle."""
