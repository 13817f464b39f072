"""Both roles joined in one process over a real connection, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from colo.errors import ColoError
from colo.guest.interface import Saved
from colo.guest.memory import MemoryGuest
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.protocol.tables import SecondaryEvent
from colo.session.intake import Receiving
from colo.session.own_primary import Sending
from colo.status.figures import Figures
from colo.store.store import Store
from colo.transport.address import Address
from colo.transport.tls import Tls
from tests.certificates import Authority

NAME = "pair"


class Watched(MemoryGuest):
    """A guest that notes in ``calls`` what is asked of it, and in ``whole`` what it saved."""

    def __init__(self, pages: int) -> None:
        super().__init__(pages)
        self.calls: list[str] = []
        self.whole: list[tuple[bytes, bytes]] = []
        self.running.set()

    async def suspend(self) -> None:
        self.calls.append("suspend")
        await super().suspend()

    async def save(self, everything: bool) -> Saved:
        assert not self.running.is_set()
        self.calls.append("save")
        self.whole.append(contents(self))
        return await super().save(everything)

    async def resume(self) -> None:
        self.calls.append("resume")
        await super().resume()

    def scribble(self, numbers: list[int], seed: int) -> None:
        """Write these pages, each differently, and the blob."""
        random = np.random.default_rng(seed)
        content = random.integers(0, 256, (len(numbers), PAGE_SIZE), np.uint8)
        self.write(np.array(numbers, np.int64), content)
        self.blob = random.bytes(seed % 100)


class Uniform(Watched):
    """A guest whose pages are one byte repeated, and saved as such: its checkpoints are short."""

    async def save(self, everything: bool) -> Saved:
        saved = await super().save(everything)
        runs = [PageRun(run.block, run.offsets, run.content[:, :1]) for run in saved.pages]
        return Saved(runs, saved.device_state, saved.description)

    def scribble(self, numbers: list[int], seed: int) -> None:
        super().scribble(numbers, seed)
        self.memory[numbers] = self.memory[numbers, :1]


def contents(guest: MemoryGuest) -> tuple[bytes, bytes]:
    """All that a guest is."""
    return guest.memory.tobytes(), guest.blob


def make_store(folder: Path, block: RamBlock) -> Store:
    return Store(folder, (block,), Limits(2 * block.length, device_bytes=1 << 16))


async def connected(kind: str, folder: Path) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection: ``pair``, ``unix``, ``tcp`` or ``tls``."""
    if kind == "pair":
        return socket.socketpair()
    tls = Tls(Authority.make(folder / "ca").issue("a")) if kind == "tls" else None
    if kind == "unix":
        address = Address(path=str(folder / "listening"))
        server = address.listen()
    else:
        server = Address(host="127.0.0.1", port=0).listen()
        address = Address(host="127.0.0.1", port=server.getsockname()[1], tls=tls)
    with server:
        server.setblocking(False)
        connecting = asyncio.create_task(address.connect())
        accepted, _ = await asyncio.get_running_loop().sock_accept(server)
        other = await tls.accept(accepted) if tls is not None else accepted
    return await connecting, other


class Pair:
    """A primary with ``guest`` and a secondary with ``store``.  ``lost``: what ended it, if so."""

    def __init__(
        self, guest: Watched, store: Store, ends: tuple[socket.socket, socket.socket]
    ) -> None:
        self.guest = guest
        self.store = store
        self.released = 0
        self.lost: list[ColoError] = []
        self.gone = asyncio.Event()
        self.sending = Sending(NAME, guest, ends[0], release=self._release)
        self.receiving = Receiving(
            NAME,
            store,
            Figures(),
            ends[1],
            asyncio.get_running_loop().time,
            lambda: None,
            self._lose,
        )

    async def taken_over(self) -> MemoryGuest:
        """What a takeover has run, once the primary is gone."""
        await self.gone.wait()
        await self.receiving.applied()
        guest = MemoryGuest(self.guest.block.pages)
        await guest.load(self.store)
        await guest.run()
        return guest

    def _release(self) -> None:
        self.released += 1

    def _lose(self, error: ColoError) -> None:
        self.lost.append(error)
        self.receiving.handle(SecondaryEvent.LOST)
        self.gone.set()

    def close(self) -> None:
        self.sending.close()
        self.receiving.close()


@contextlib.asynccontextmanager
async def paired(guest: Watched, folder: Path, kind: str = "pair") -> AsyncIterator[Pair]:
    store = make_store(folder / "store", guest.block)
    pair = Pair(guest, store, await connected(kind, folder))
    try:
        yield pair
    finally:
        pair.close()
        await pair.receiving.applied()
        store.remove()
