"""The server over sockets: what is performed, what waits, what is refused, what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pytest

from colo.errors import ChannelLost, ExportError, NbdError
from colo.nbd.protocol import Extent
from colo.nbd.server import Export, Limits, serve_connection
from tests.nbd.client import (
    DISC,
    EIO,
    ENOSPC,
    EPERM,
    ESHUTDOWN,
    FLUSH,
    FUA,
    GREETING,
    MAPPED,
    NO_HOLE,
    READ,
    STATUS,
    STRUCTURED_GO,
    TRIM,
    ZEROES,
    Answers,
    command,
    hello,
    option,
    write,
)
from tests.nbd.memory import MemoryExport, WaitingExport

LIMIT_S = 20


@dataclass
class Client:
    """The other end of a connection that is being served by ``served``."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    served: asyncio.Task[None]

    async def begin(self, start: bytes = STRUCTURED_GO) -> None:
        """Come to the transmission, and read all that the server says until then."""
        self.writer.write(start)
        await self.reader.readexactly(len(GREETING))
        while True:
            head = await self.reader.readexactly(20)
            await self.reader.readexactly(int.from_bytes(head[16:]))
            if head[8:16] == bytes([0, 0, 0, 7, 0, 0, 0, 1]):
                return

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def replies(self, count: int) -> list[str]:
        """The next structured replies, in words."""
        found = []
        for _ in range(count):
            head = await self.reader.readexactly(20)
            found += [head, await self.reader.readexactly(int.from_bytes(head[16:]))]
        return Answers(b"".join(found)).replies()

    async def rest(self) -> list[str]:
        """All replies up to the end of the connection."""
        return Answers(await self.reader.read()).replies()


@contextlib.asynccontextmanager
async def served(
    exports: Export | Collection[Export], limits: Limits | None = None
) -> AsyncIterator[Client]:
    """A client; whatever it leaves open is closed.  No task is left behind."""
    before = asyncio.all_tasks()
    here, there = socket.socketpair()
    listed = exports if isinstance(exports, Collection) else [exports]
    task = asyncio.create_task(serve_connection(there, listed, limits))
    reader, writer = await asyncio.open_connection(sock=here, limit=1 << 26)
    try:
        yield Client(reader, writer, task)
    finally:
        writer.close()
        await asyncio.wait({task})
        assert there.fileno() == -1, "its socket is closed"
        assert asyncio.all_tasks() <= before, "it leaves no task behind"


def play(scene: Callable[[], Awaitable[None]]) -> None:
    """Play a scene; nothing may fail where nobody sees it."""
    unseen: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unseen.append(what))
        async with asyncio.timeout(LIMIT_S):
            await scene()
        gc.collect()

    asyncio.run(run())
    assert unseen == []


def test_every_request_reaches_the_export() -> None:
    disk = MemoryExport()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin(MAPPED)
            client.send(
                write(4096, b"x" * 4096),
                write(0, b"y" * 100_000, FUA),
                command(READ, 4096, 5),
                command(ZEROES, 8192, 8192),
                command(ZEROES, 0, 1, NO_HOLE | FUA),
                command(TRIM, 16384, 4096),
                command(TRIM, 20480, 4096, FUA),
                command(FLUSH),
                command(STATUS, 0, 28672),
            )
            assert await client.replies(9) == [
                "7: none",
                "7: none",
                "7: data at 4096 5x79",
                *["7: none"] * 5,
                "7: status 8192:0 16384:3 4096:0",
            ]
            client.send(command(DISC))
            assert await client.rest() == []
            await client.served

    play(scene)
    assert disk.calls == [
        "write 4096 4096",
        "write 0 100000 fua",
        "read 4096 5",
        "zero 8192 8192 trim",
        "zero 0 1 fua",
        "trim 16384 4096",
        "trim 20480 4096",
        "flush",
        "flush",
        "extents 0 28672",
    ]


def test_the_export_that_was_chosen_is_the_one() -> None:
    disks = [MemoryExport(name) for name in ("other", "disk", "third")]

    async def scene() -> None:
        async with served(disks) as client:
            await client.begin()
            client.send(command(FLUSH))
            await client.replies(1)

    play(scene)
    assert [disk.calls for disk in disks] == [[], ["flush"], []]


def test_a_read_only_export_is_not_written() -> None:
    disk = MemoryExport(read_only=True)

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x"))
            assert await client.replies(1) == [f"7: error {EPERM} said"]

    play(scene)
    assert disk.calls == []


def test_what_need_not_wait_costs_no_task() -> None:
    made: list[object] = []

    class Watched(MemoryExport):
        async def flush(self) -> None:
            assert asyncio.current_task() is None

    async def scene() -> None:
        async with served(Watched()) as client:
            await client.begin()
            loop = asyncio.get_running_loop()

            def factory(loop: asyncio.AbstractEventLoop, work: object) -> asyncio.Task[object]:
                made.append(work)
                return asyncio.Task(work, loop=loop)  # type: ignore[arg-type]

            loop.set_task_factory(factory)  # type: ignore[arg-type]
            client.send(write(0, b"x"), command(FLUSH), command(READ, 0, 1))
            assert len(await client.replies(3)) == 3
            loop.set_task_factory(None)

    play(scene)
    assert made == []


def test_what_waits_holds_up_nothing_else() -> None:
    class Slow(WaitingExport):
        async def flush(self) -> None:
            self.say("flush")

    disk = Slow()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x", 0, 1), command(FLUSH, cookie=2), command(READ, 0, 1, 0, 3))
            assert await client.replies(1) == ["2: none"]
            disk.go.set()
            assert await client.replies(2) == ["1: none", "3: data at 0 1x78"]

    play(scene)
    assert disk.most == 2


def test_an_export_may_wait_as_often_and_as_it_likes() -> None:
    class Winding(MemoryExport):
        async def flush(self) -> None:
            await asyncio.sleep(0)
            async with asyncio.timeout(LIMIT_S):
                await asyncio.sleep(0.001)
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(asyncio.sleep(0))
            loop = asyncio.get_running_loop()
            failing = loop.create_future()
            loop.call_soon(failing.set_exception, OSError(errno.EDQUOT, "full"))
            try:
                await failing
            except OSError as error:
                self.calls.append(str(error.strerror))
            done = loop.create_future()
            loop.call_soon(done.set_result, "result")
            self.calls.append(await done)

    disk = Winding()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(command(FLUSH, cookie=1), command(FLUSH, cookie=2))
            assert sorted(await client.replies(2)) == ["1: none", "2: none"]

    play(scene)
    assert sorted(disk.calls) == ["full", "full", "result", "result"]


# --- limits -----------------------------------------------------------------------------------


def test_only_so_many_requests_are_under_way() -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk, Limits(requests=3)) as client:
            await client.begin()
            client.send(*(command(READ, n, 1, 0, n) for n in range(10)))
            await disk.begun.wait()
            disk.go.set()
            assert len(await client.replies(10)) == 10

    play(scene)
    assert disk.most == 3


@pytest.mark.parametrize("kind", ["read", "write"])
def test_only_so_many_bytes_are_under_way(kind: str) -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk, Limits(bytes=100_000)) as client:
            await client.begin()
            for n in range(6):
                data = b"x" * 60_000
                client.send(
                    command(READ, 0, 60_000, 0, n) if kind == "read" else write(0, data, 0, n)
                )
            while disk.under_way < 2:
                await asyncio.sleep(0)
            disk.go.set()
            assert len(await client.replies(6)) == 6

    play(scene)
    assert disk.most == 2


@pytest.mark.parametrize("waits", [False, True])
def test_answers_that_nobody_takes_stop_the_requests(waits: bool) -> None:
    class Counting(MemoryExport):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if waits:
                await asyncio.sleep(0)
            self.say("read")
            return b"A" * length

    disk = Counting()
    count, length = 200, 50_000

    async def scene() -> None:
        async with served(disk, Limits(bytes=1 << 20)) as client:
            await client.begin()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(*(command(READ, 0, length, 0, n) for n in range(count)))
            seen = -1
            while len(disk.calls) != seen:  # until nothing happens any more
                seen = len(disk.calls)
                for _ in range(50):
                    await asyncio.sleep(0)
            held = (1 << 20) + (4 << 20)  # and what the kernel and the client's reader hold
            assert 0 < seen <= held // length + 1 < count
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            replies = await client.replies(count)
            assert replies == [f"{n}: data at 0 {length}x41" for n in range(count)]

    play(scene)


def test_one_request_is_begun_however_little_is_allowed() -> None:
    disk = MemoryExport()

    async def scene() -> None:
        async with served(disk, Limits(requests=1, bytes=1)) as client:
            await client.begin()
            client.send(write(0, b"x" * 70_000), command(READ, 0, 70_000), write(1, b"yy"))
            assert await client.replies(3) == ["7: none", "7: data at 0 70000x78", "7: none"]

    play(scene)


def test_a_client_that_chooses_nothing_has_to_go() -> None:
    async def scene() -> None:
        for sent in (b"", hello(), hello() + option(8)):
            async with served(MemoryExport(), Limits(handshake_s=0.01)) as client:
                client.send(sent)
                with pytest.raises(ChannelLost, match=r"within 0\.01 s"):
                    await client.served

    play(scene)


def test_a_client_that_has_chosen_may_be_silent() -> None:
    async def scene() -> None:
        async with served(MemoryExport(), Limits(handshake_s=0.01)) as client:
            await client.begin()
            await asyncio.wait({client.served}, timeout=0.05)
            assert not client.served.done()
            client.send(command(FLUSH))
            assert await client.replies(1) == ["7: none"]

    play(scene)


# --- ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(), Limits(requests=2)])
def test_a_client_that_goes_away_leaves_nothing_behind(limits: Limits) -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk, limits) as client:
            await client.begin()
            client.send(*(write(0, b"x" * n) for n in range(1, 6)))
            await disk.begun.wait()
            client.writer.close()
            await client.served

    play(scene)
    assert disk.given_up == min(5, limits.requests) and disk.under_way == 0
    assert disk.calls == []


def test_a_client_that_goes_away_at_once() -> None:
    async def scene() -> None:
        for sent in (b"", hello(), STRUCTURED_GO, STRUCTURED_GO + write(0, b"x" * 50_000)[:40_000]):
            async with served(MemoryExport()) as client:
                client.send(sent)
                client.writer.close()
                await client.served

    play(scene)


def test_what_a_given_up_request_waits_for_is_cancelled_even_if_its_task_never_began() -> None:
    cancelled: list[bool] = []
    held: list[asyncio.Future[None]] = []

    class Holding(MemoryExport):
        async def flush(self) -> None:
            held.append(asyncio.get_running_loop().create_future())
            serving[0].cancel()  # in the very step that begins this one
            await held[0]

    serving: list[asyncio.Task[None]] = []

    async def scene() -> None:
        async with served(Holding()) as client:
            serving.append(client.served)
            await client.begin()
            client.send(command(FLUSH))
            assert await client.rest() == [f"7: error {ESHUTDOWN} said"]
            await asyncio.wait({client.served})
        cancelled.append(held[0].cancelled())

    play(scene)
    assert cancelled == [True]


def test_after_a_disc_everything_is_done_to_its_end() -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x"), command(FLUSH), command(DISC), command(FLUSH))
            while disk.under_way < 2:
                await asyncio.sleep(0)
            assert not client.served.done()
            disk.go.set()
            assert await client.rest() == ["7: none", "7: none"]
            await client.served

    play(scene)
    assert disk.calls == ["write 0 1", "flush"] and disk.given_up == 0


def test_an_abort_is_acknowledged() -> None:
    async def scene() -> None:
        async with served(MemoryExport()) as client:
            client.send(hello() + option(2))
            said = await client.reader.read()
            assert Answers(said.removeprefix(GREETING)).option_replies() == ["2 ack"]
            await client.served

    play(scene)


def test_a_broken_request_ends_it_once_what_was_right_is_answered() -> None:
    disk = MemoryExport()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x"), bytes(28), write(1, b"x"))
            with pytest.raises(NbdError, match="begins no request"):
                await client.served
            # What it has not read any more may be told by a reset.
            with contextlib.suppress(ConnectionResetError):
                assert await client.rest() == ["7: none"]

    play(scene)
    assert disk.calls == ["write 0 1"]


def test_closing_refuses_what_waits() -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x", 0, 1), command(FLUSH, cookie=2))
            while disk.under_way < 2:
                await asyncio.sleep(0)
            client.served.cancel()
            assert await client.rest() == [f"{n}: error {ESHUTDOWN} said" for n in (1, 2)]
            await asyncio.wait({client.served})
            assert client.served.cancelled()

    play(scene)
    assert disk.given_up == 2 and disk.calls == []


def test_closing_refuses_what_was_received_and_not_begun() -> None:
    disk = WaitingExport()

    async def scene() -> None:
        async with served(disk, Limits(requests=1)) as client:
            await client.begin()
            client.send(*(command(FLUSH, cookie=n) for n in range(5)))
            await disk.begun.wait()
            client.served.cancel()
            assert await client.rest() == [f"{n}: error {ESHUTDOWN} said" for n in range(5)]

    play(scene)


@pytest.mark.parametrize("closing", [False, True])
def test_what_is_finished_although_it_was_given_up_is_not_answered(closing: bool) -> None:
    class Stubborn(WaitingExport):
        async def flush(self) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.wait()
            await asyncio.sleep(0)
            self.say("flush")

    disk = Stubborn()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(command(FLUSH))
            await disk.begun.wait()
            if closing:
                client.served.cancel()
                assert await client.rest() == [f"7: error {ESHUTDOWN} said"]
            else:
                client.writer.close()
            await asyncio.wait({client.served})

    play(scene)
    assert disk.calls == ["flush"]


def test_closing_waits_for_no_client_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colo.nbd.server._LINGER_S", 0.01)

    disk = MemoryExport(size=32 << 20)

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.send(write(0, b"x"), command(READ, 0, 32 << 20))
            while len(disk.calls) < 2:
                await asyncio.sleep(0)
            client.served.cancel()
            await asyncio.wait({client.served})
            assert client.served.cancelled()

    play(scene)


# --- errors -----------------------------------------------------------------------------------


@dataclass
class Failing(MemoryExport):
    """Fails with ``error``, at once or later."""

    error: BaseException = field(default_factory=Exception)
    later: bool = False

    async def flush(self) -> None:
        if self.later:
            await asyncio.sleep(0)
        if len(self.calls) == 0:
            self.calls.append("failed")
            raise self.error


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ExportError(errno.ENOSPC), ENOSPC),
        (ExportError(errno.ESHUTDOWN, "the other host is gone"), ESHUTDOWN),
        (ExportError(12345), EIO),
        (OSError(errno.EDQUOT, "quota"), ENOSPC),
        (OSError("without a number"), EIO),
        (ConnectionResetError(errno.ECONNRESET, "reset"), EIO),
        (ChannelLost("the other host is gone"), EIO),
        (asyncio.CancelledError(), EIO),
    ],
    ids=repr,
)
def test_an_error_of_the_export_is_told(error: BaseException, code: int, later: bool) -> None:
    async def scene() -> None:
        async with served(Failing(error=error, later=later)) as client:
            await client.begin()
            client.send(command(FLUSH, cookie=1))
            assert await client.replies(1) == [f"1: error {code} said"]
            client.send(command(FLUSH, cookie=2))
            assert await client.replies(1) == ["2: none"]

    play(scene)


class Short(MemoryExport):
    """Keeps no promise."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        return b"x"

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return [Extent(0)]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("disk", "sent", "mistake"),
    [
        (Failing(error=KeyError("a mistake")), command(FLUSH), "a mistake"),
        (Short(), command(READ, 0, 5), "1 bytes were read instead of 5"),
        (Short(), command(STATUS, 3, 5), "no extent at 3"),
    ],
    ids=["error", "read", "extents"],
)
def test_a_mistake_of_ours_ends_the_connection(
    disk: MemoryExport, sent: bytes, mistake: str, later: bool
) -> None:
    disk.calls.clear()
    if isinstance(disk, Failing):
        disk.later = later

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin(MAPPED)
            client.send(sent)
            assert await client.rest() == [f"7: error {EIO} said"]
            with pytest.raises((KeyError, ValueError), match=mistake):
                await client.served

    play(scene)


def test_a_mistake_gives_up_what_waits_for_something_else() -> None:
    class Both(WaitingExport):
        async def flush(self) -> None:
            raise KeyError("a mistake")

    disk = Both()

    async def scene() -> None:
        async with served(disk) as client:
            await client.begin()
            client.send(write(0, b"x"), command(FLUSH))
            with pytest.raises(KeyError):
                await client.served

    play(scene)
    assert disk.given_up == 1
