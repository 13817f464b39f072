"""Where clients come in: who may, how many, and what is left when the server closes."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from colo.errors import NbdError, UsageError
from colo.nbd.listener import Server, listen
from colo.nbd.server import Limits
from colo.transport.address import Address
from tests.nbd.client import ESHUTDOWN, FLUSH, GREETING, STRUCTURED_GO, Answers, command, hello
from tests.nbd.memory import MemoryExport, WaitingExport

LIMIT_S = 20
REPLIED_TO_GO = 18 + 20 + 32 + 34 + 20  # greeting, ACK, two informations, ACK

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def play(
    server: socket.socket,
    export: MemoryExport,
    scene: Callable[[Connect, asyncio.Task[None]], Awaitable[None]],
    limits: Limits | None = None,
) -> list[Exception]:
    """Play a scene with a server; return what it was told of."""
    told: list[Exception] = []
    address = server.getsockname()

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(address, str):
            return await asyncio.open_unix_connection(address)
        return await asyncio.open_connection(*address[:2])

    async def run() -> None:
        async with asyncio.timeout(LIMIT_S):
            serving = asyncio.create_task(Server(server, [export], told.append, limits).serve())
            await scene(connect, serving)
            serving.cancel()
            await asyncio.wait({serving})
            assert serving.cancelled() and server.fileno() == -1
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    return told


async def flush(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(STRUCTURED_GO + command(FLUSH))
    await reader.readexactly(REPLIED_TO_GO)
    assert Answers(await reader.readexactly(20)).replies() == ["7: none"]
    writer.close()


def test_a_unix_socket_is_for_its_owner_only_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "nbd"
    disk = MemoryExport()

    async def scene(connect: Connect, serving: asyncio.Task[None]) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for _ in range(3):
            await flush(connect)

    assert play(listen(Address(path=str(path))), disk, scene) == []
    assert disk.calls == ["flush"] * 3 and not path.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_loopback_is_served(host: str) -> None:
    disk = MemoryExport()

    async def scene(connect: Connect, serving: asyncio.Task[None]) -> None:
        await flush(connect)

    try:
        server = listen(Address(host=host))
    except UsageError as error:
        if host == "::1":
            pytest.skip(f"no IPv6 here: {error}")
        raise
    assert play(server, disk, scene) == [] and disk.calls == ["flush"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "example.org"])
def test_nobody_else_gets_there(host: str) -> None:
    with pytest.raises(UsageError, match="only a unix socket or the loopback"):
        listen(Address(host=host))


def test_only_so_many_are_served(tmp_path: Path) -> None:
    async def scene(connect: Connect, serving: asyncio.Task[None]) -> None:
        first, second = await connect(), await connect()
        for reader, _ in (first, second):
            assert await reader.readexactly(len(GREETING)) == GREETING
        reader, writer = await connect()
        assert await reader.read() == b""
        writer.close()
        first[1].close()
        while True:  # its place is free once the server has seen that
            reader, writer = await connect()
            if await reader.read(len(GREETING)):
                break
            writer.close()
        writer.close()
        second[1].close()

    server = listen(Address(path=str(tmp_path / "nbd")))
    assert play(server, MemoryExport(), scene, Limits(clients=2)) == []


def test_a_client_that_breaks_the_protocol_is_told_of_and_harms_nobody(tmp_path: Path) -> None:
    async def scene(connect: Connect, serving: asyncio.Task[None]) -> None:
        reader, writer = await connect()
        writer.write(hello(99))
        assert await reader.read() == GREETING
        writer.close()
        await flush(connect)

    told = play(listen(Address(path=str(tmp_path / "nbd"))), MemoryExport(), scene)
    assert [type(error) for error in told] == [NbdError]


def test_closing_ends_all_connections(tmp_path: Path) -> None:
    disk = WaitingExport()

    async def scene(connect: Connect, serving: asyncio.Task[None]) -> None:
        clients = []
        for _ in range(2):
            reader, writer = await connect()
            writer.write(STRUCTURED_GO + command(FLUSH))
            await reader.readexactly(REPLIED_TO_GO)
            clients.append((reader, writer))
        while disk.under_way < 2:
            await asyncio.sleep(0)
        serving.cancel()
        for reader, writer in clients:
            assert Answers(await reader.read()).replies() == [f"7: error {ESHUTDOWN} said"]
            writer.close()

    assert play(listen(Address(path=str(tmp_path / "nbd"))), disk, scene) == []
    assert disk.given_up == 2
