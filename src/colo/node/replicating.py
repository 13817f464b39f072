"""What a primary does with its VM's disks for one secondary after the other.

QEMU mirrors each to an export of colo's own on this host, and what comes there goes to the other
host by the disk link.  A protection begins once all disks are in step there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from colo.config import VmConfig
from colo.disks.words import DiskHello, OneDisk
from colo.errors import ColoError, GuestError
from colo.nbd.listener import Server, listen
from colo.progress import bar
from colo.qemu.mirrors import Mirrors, Progress, Source, find_disks
from colo.qemu.monitor import Monitor
from colo.qemu.read_only import read_only_drives
from colo.session.disk_feed import DiskFeed, MirrorTarget, call_disks
from colo.transport.address import Address

__all__ = ["Replicating"]

_LOOK_S: Final = 0.1
_MIB: Final = 1 << 20


class Replicating:
    """The disks of ``qemu``'s VM, whose exports are at a socket in ``folder``.

    ``is_stock``: the secondary is a stock QEMU, which has none.  ``who`` gives the grant's number
    and holder.  ``urge`` is called when a checkpoint should come soon; ``lost`` with why the disks
    are replicated no more.
    """

    def __init__(
        self,
        config: VmConfig,
        qemu: Monitor,
        to: Address,
        folder: Path,
        is_stock: bool,
        who: Callable[[], tuple[int, str]],
        urge: Callable[[], None],
        lost: Callable[[ColoError], None],
        say: Callable[[str], None],
    ) -> None:
        self._vm_name = config.name
        self._ids = [disk.id for disk in config.disks]
        self._qemu = qemu
        self._to = to
        self._path = folder / "disks.sock"
        self._is_stock = is_stock
        self._who, self._urge, self._lost, self._say = who, urge, lost, say
        self._mirrors = Mirrors(qemu, self._ended)
        self._sources: tuple[Source, ...] = ()
        self._feed: DiskFeed | None = None
        self._server: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self._began_at = 0.0
        self._progress: Sequence[Progress] = ()
        self._in_step = False

    async def begin(self) -> None:
        """Have all disks in step on the other host.  Raises ColoError, OSError."""
        await self.is_out()
        if self._is_stock:
            return
        read_only = await read_only_drives(self._qemu)
        if not self._ids and not read_only:
            return
        await self._mirrors.clean()  # a colo that was killed may have left some
        self._sources = await find_disks(self._qemu, self._ids)
        disks = tuple(OneDisk(each.id, each.size) for each in self._sources)
        hello = DiskHello(self._vm_name, *self._who(), disks, read_only)
        sock, holds = await call_disks(self._to, hello)
        if not self._ids:
            sock.close()  # all that was to be said
            return
        self._feed = feed = DiskFeed(sock, holds, self._urge, self._lost)
        targets = [
            MirrorTarget(feed, number, each.id, each.size)
            for number, each in enumerate(self._sources)
        ]
        self._path.unlink(missing_ok=True)
        server = Server(listen(Address(path=str(self._path))), targets, self._broken)
        self._server = asyncio.create_task(server.serve())
        self._began_at, self._progress, self._in_step = time.monotonic(), (), False
        size = sum(each.size for each in self._sources)
        how = ", as far as they differ" if any(holds) else ""
        self._say(
            f"the disks are being copied{how}: {', '.join(self._ids)} ({size / _MIB:.0f} MiB)"
        )
        await self._mirrors.begin(self._sources, self._path)
        await self._copied()
        feed.in_step()
        await feed.is_ready()
        self._in_step = True
        took = time.monotonic() - self._began_at
        same = f", {feed.bytes_same / _MIB:.0f} MiB were there" if any(holds) else ""
        self._say(
            f"the disks are in step, after {took:.1f} s; {feed.bytes_sent / _MIB:.0f} MiB were "
            f"sent{same}"
        )

    def cut(self, number: int) -> None:
        """The VM stands still: all that it wrote so far is of checkpoint ``number``."""
        if self._feed is not None:
            self._feed.cut(number)

    async def _copied(self) -> None:
        total = sum(each.size for each in self._sources)
        with bar(f"{self._vm_name}: copying its disks", total) as show:
            while not self._progress or not all(each.ready for each in self._progress):
                await asyncio.sleep(_LOOK_S)
                self._progress = await self._mirrors.progress()
                show(min(total, sum(each.done for each in self._progress)))

    def close(self) -> None:
        """Nothing more goes to the other host; a write that waits for that goes on at once."""
        self._mirrors.forget()
        if self._feed is not None:
            self._feed.close()
        if self._server is not None:
            self._server.cancel()
            self._server = None
            self._cleaning = asyncio.create_task(self._clean())

    async def _clean(self) -> None:
        with contextlib.suppress(GuestError):  # whoever begins the next ones sees it
            await self._mirrors.clean()

    async def is_out(self) -> None:
        """Wait until nothing of this is left in QEMU."""
        cleaning, self._cleaning = self._cleaning, None
        if cleaning is not None:
            await cleaning

    def _ended(self, error: GuestError) -> None:
        """A mirror has ended: where the link broke, that is why."""
        if self._feed is not None and self._feed.error is None:
            self._lost(error)

    def _broken(self, error: Exception) -> None:
        self._lost(GuestError(f"QEMU's mirror broke NBD's protocol: {error}"))

    def status(self) -> list[dict[str, Any]]:
        """What the status file has of each disk."""
        if self._feed is None:
            return []
        found: list[dict[str, Any]] = []
        progress = self._progress or [Progress(0, each.size, False) for each in self._sources]
        for source, each in zip(self._sources, progress, strict=True):
            share = each.done / each.total if each.total else 1.0
            took = time.monotonic() - self._began_at
            found.append(
                {
                    "id": source.id,
                    "size": source.size,
                    "in_step": self._in_step,
                    "written_bytes": self._feed.bytes_of[len(found)],
                    "same_bytes": self._feed.bytes_same,
                    "by_digest": self._feed.holds[len(found)],
                    "share": 1.0 if self._in_step else share,
                    "left_s": took * (1 - share) / share
                    if share > 0 and not self._in_step
                    else None,
                }
            )
        return found
