"""Handing on: a further secondary gets what the store has; without one nothing is disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.guest.memory import MemoryGuest
from colo.protocol.tables import SecondaryEvent
from colo.session.chain import Destination, Forwarding
from colo.session.intake import Receiving
from colo.status.figures import Figures
from colo.transport.address import Address
from tests.node.pair import NAME, Pair, Watched, contents, make_store, paired

PAGES = 64
LIMIT_S = 5.0


@dataclass(frozen=True)
class Broken(Address):
    """An address whose next connections raise ``errors``."""

    errors: list[Exception] = field(default_factory=list)

    async def connect(self) -> socket.socket:
        if self.errors:
            raise self.errors.pop()
        return await super().connect()


class Further:
    """A further secondary: it takes in one primary after the other, once it listens."""

    def __init__(self, folder: Path) -> None:
        self.address = Address(path=str(folder / "further"))
        self.store = make_store(folder / "further-store", MemoryGuest(PAGES).block)
        self.receiving: Receiving | None = None
        self.lost: list[ColoError] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        with self.address.listen() as server:
            server.setblocking(False)
            serving = asyncio.create_task(self._serve(server))
            try:
                yield
            finally:
                serving.cancel()
                await asyncio.wait([serving])  # before another socket can get this one's number
                await self.leave()

    async def leave(self) -> None:
        """End the connection."""
        if self.receiving is not None:
            self.receiving.close()
            await self.receiving.applied()

    async def check(self, guest: Watched) -> None:
        """It holds the guest's last checkpoint."""
        assert self.receiving is not None
        await self.receiving.applied()
        copy = MemoryGuest(PAGES)
        await copy.load(self.store)
        assert contents(copy) == guest.whole[-1]

    def number(self) -> int | None:
        return self.store.checkpoint.number if self.store.checkpoint is not None else None

    async def _serve(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(server)
            self.receiving = Receiving(
                NAME, self.store, Figures(), sock, loop.time, lambda: None, self._lose
            )

    def _lose(self, error: ColoError) -> None:
        assert self.receiving is not None
        self.receiving.handle(SecondaryEvent.LOST)
        self.lost.append(error)


class Chain:
    """A guest, its secondary, and what hands on from there to ``further``."""

    def __init__(self, pair: Pair, further: Further, to: Address | None = None) -> None:
        self.pair = pair
        self.further = further
        self.said: list[str] = []
        self.pauses_s: list[float] = []
        self.handing = Forwarding(
            NAME,
            pair.store,
            pair.receiving.applied,
            Destination(to or further.address),
            LIMIT_S,
            self.said.append,
            self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        """Sleep not at all, and note how long it should have been."""
        self.pauses_s.append(seconds)
        await asyncio.sleep(0)

    async def migrate(self) -> None:
        await self.pair.sending.migrate()
        self.handing.fresh.set()

    def holds(self, number: int) -> bool:
        """Whether the further secondary has that checkpoint of the store."""
        return bool(self.handing.status()["checkpoint"] == number)

    async def checkpoint(self, seed: int) -> None:
        """The guest does something, and a checkpoint follows."""
        self.pair.guest.scribble([seed % PAGES, 7 * seed % PAGES], seed)
        await self.pair.sending.checkpoint()
        self.handing.fresh.set()


@contextlib.asynccontextmanager
async def refusing(address: Address) -> AsyncIterator[None]:
    """A host that takes every connection and ends it."""

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_unix_server(end, address.path):
        yield


@contextlib.asynccontextmanager
async def chained(folder: Path, to: Address | None = None) -> AsyncIterator[Chain]:
    async with paired(Watched(PAGES), folder) as pair:
        further = Further(folder)
        chain = Chain(pair, further, to)
        task = asyncio.create_task(chain.handing.run())
        try:
            yield chain
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            further.store.remove()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0)


def test_each_checkpoint_is_handed_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain, chain.further.listening():
            chain.pair.guest.scribble(list(range(20)), 1)
            await chain.migrate()
            await until(lambda: chain.holds(0))
            await chain.further.check(chain.pair.guest)
            for number in range(1, 20):
                await chain.checkpoint(number)
                await until(lambda: chain.holds(number))  # noqa: B023
                assert chain.further.number() == number
                await chain.further.check(chain.pair.guest)
            assert chain.handing.status()["error"] is None
            assert chain.said == [f"checkpoints are handed on to {chain.further.address}"]

    asyncio.run(run())


def test_nobody_there_is_said_once_and_tried_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain:
            await chain.migrate()
            for number in range(1, 6):
                await chain.checkpoint(number)
            await until(lambda: chain.said)
            for _ in range(100):
                await asyncio.sleep(0)
            (line,) = chain.said
            assert line.startswith(f"nothing is handed on to {chain.further.address}: ")
            assert chain.handing.status()["checkpoint"] is None
            assert chain.handing.status()["error"] in line
            async with chain.further.listening():
                await until(lambda: chain.holds(5))
                await chain.further.check(chain.pair.guest)
                assert chain.handing.status()["error"] is None

    asyncio.run(run())


def test_a_host_that_can_be_no_name_is_said_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with chained(tmp_path, Address(host="c..example", port=9000)) as chain:
            await chain.migrate()
            await until(lambda: chain.said)
            for _ in range(100):
                await asyncio.sleep(0)
            (line,) = chain.said
            assert line.startswith("nothing is handed on to tcp:c..example:9000: ")
            assert "can be no host's name" in line

    asyncio.run(run())


def test_an_error_that_nobody_foresaw_is_said_once_and_it_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        errors: list[Exception] = [KeyError("what") for _ in range(3)]
        address = Broken(path=str(tmp_path / "further"), errors=errors)
        async with chained(tmp_path, address) as chain, chain.further.listening():
            await chain.migrate()
            await until(lambda: chain.holds(0))
            first, second = chain.said
            assert f"{address}: an error of colo's own, see colo.log: KeyError('what'); " in first
            assert second == f"checkpoints are handed on to {address}"

    caplog.set_level(logging.ERROR, "colo")
    asyncio.run(run())
    (record,) = caplog.records
    assert record.exc_info is not None


def test_each_copy_in_vain_makes_the_pause_longer_and_a_good_one_short_again(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain:
            async with refusing(chain.further.address):
                await chain.migrate()
                await until(lambda: len(chain.pauses_s) > 7)
                assert chain.pauses_s[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
                (line,) = chain.said
                assert "it did not take the first copy: " in line
                assert line.endswith("; trying again ever later, every 60 s at last")
            async with chain.further.listening():
                await until(lambda: chain.holds(0))
                chain.pauses_s.clear()
            async with refusing(chain.further.address):
                await until(lambda: 2 in chain.pauses_s)
                assert set(chain.pauses_s[:-1]) == {1}

    asyncio.run(run())


def test_to_find_nobody_costs_nothing_and_is_tried_every_second(tmp_path: Path) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain:
            await chain.migrate()
            await until(lambda: len(chain.pauses_s) > 9)
            assert set(chain.pauses_s) == {1}
            assert chain.said[0].endswith("; trying again every 1 s")

    asyncio.run(run())


def test_a_further_secondary_that_is_back_gets_what_is_held_without_a_new_checkpoint(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain:
            async with chain.further.listening():
                await chain.migrate()
                await chain.checkpoint(3)
                await until(lambda: chain.holds(1))
            chain.pair.sending.close()
            await chain.pair.gone.wait()  # the store holds its checkpoint, and no other will come
            await until(lambda: chain.handing.status()["error"])
            async with chain.further.listening():
                await until(lambda: chain.holds(1) and chain.handing.status()["error"] is None)
                await chain.further.check(chain.pair.guest)

    asyncio.run(run())


def test_a_vm_that_runs_here_is_not_handed_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with chained(tmp_path) as chain:
            await chain.migrate()
            await chain.checkpoint(3)
            chain.pair.store.give_up()
            async with chain.further.listening():
                await until(lambda: chain.said and "its VM runs" in chain.said[-1])
                assert chain.further.receiving is None
            assert chain.further.number() is None

    asyncio.run(run())


def test_a_silent_one_does_not_hold_the_protection_up(tmp_path: Path) -> None:
    """It takes the connection and reads nothing."""

    async def run() -> None:
        async with chained(tmp_path) as chain:
            with chain.further.address.listen():
                await chain.migrate()
                for number in range(1, 30):
                    await chain.checkpoint(number)
                await until(lambda: chain.handing.status()["state"] == "AWAITING_READY")
                await chain.checkpoint(30)
                assert chain.pair.lost == []

    asyncio.run(run())
