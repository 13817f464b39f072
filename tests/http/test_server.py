"""Requests as they come on a wire: good ones, bad ones, none at all, and too many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from colo.http import server as module
from colo.http.server import HttpServer, Request, Response
from colo.transport.address import Address, parse_address

GET = b"GET /x?a=1&b=%20 HTTP/1.1\r\nHost: h\r\n\r\n"


async def echo(request: Request) -> Response:
    """Answers with what it was asked."""
    if request.path == "/fail":
        raise KeyError("nobody foresaw it")
    if request.path == "/stream":
        return Response(stream=pieces())
    return Response(repr((request.method, request.path, request.query, request.body)).encode())


async def pieces() -> AsyncGenerator[bytes, None]:
    for number in range(3):
        yield f"{number};".encode()


@asynccontextmanager
async def serving(address: Address) -> AsyncIterator[None]:
    server = HttpServer(echo)
    await server.start(address.listen())
    try:
        yield
    finally:
        await server.close()


async def asked(address: Address, request: bytes, eof: bool = False) -> tuple[bytes, bytes]:
    """The head and the body of what comes back."""
    reader, writer = await asyncio.open_connection(sock=await address.connect())
    writer.write(request)
    if eof:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


def ask(tmp_path: Path, request: bytes, eof: bool = False) -> tuple[bytes, bytes]:
    address = Address(path=str(tmp_path / "s"))

    async def run() -> tuple[bytes, bytes]:
        async with serving(address):
            return await asked(address, request, eof)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (GET, b"('GET', '/x', {'a': '1', 'b': ' '}, b'')"),
        (b"GET / HTTP/1.0\r\n\r\n", b"('GET', '/', {}, b'')"),
        (b"HEAD / HTTP/1.1\r\n\r\n", b""),
        (b"HEAD /stream HTTP/1.1\r\n\r\n", b""),
        (b"POST /o HTTP/1.1\r\ncontent-LENGTH: 3\r\n\r\nabc", b"('POST', '/o', {}, b'abc')"),
        (b"GET /stream HTTP/1.1\r\n\r\n", b"0;1;2;"),
    ],
)
def test_a_request_is_answered(request_: bytes, body: bytes, tmp_path: Path) -> None:
    head, found = ask(tmp_path, request_)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close" in head
    assert found == body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 4097\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 1" + b"0" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\na: " + b"x" * 2_000_000 + b"\r\n\r\n", 431),
        (b"DELETE / HTTP/1.1\r\n\r\n", 501),
        (b"GET /fail HTTP/1.1\r\n\r\n", 500),
    ],
)
def test_what_is_no_request_is_told_so(request_: bytes, status: int, tmp_path: Path) -> None:
    head, _ = ask(tmp_path, request_)
    assert head.split()[1] == b"%d" % status


@pytest.mark.parametrize("cut", [0, 3, len(GET) - 1])
def test_half_a_request_is_not_answered(cut: int, tmp_path: Path) -> None:
    assert ask(tmp_path, GET[:cut], eof=True) == (b"", b"")


def test_who_says_nothing_is_waited_for_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REQUEST_S", 0.01)
    head, _ = ask(tmp_path, GET[:9])
    assert head.split()[1] == b"408"


def test_who_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKE_S", 0.05)
    address = Address(path=str(tmp_path / "s"))

    async def much(_: Request) -> Response:
        return Response(b"x" * (32 << 20))

    async def run() -> int:
        server = HttpServer(much)
        await server.start(address.listen())
        reader, writer = await asyncio.open_connection(sock=await address.connect(), limit=1024)
        writer.write(GET)
        await asyncio.sleep(0.3)
        try:
            got = len(await reader.read())
        except ConnectionError:
            got = 0
        writer.close()
        await server.close()
        return got

    assert asyncio.run(run()) < 32 << 20


def test_more_than_so_many_are_refused_and_the_next_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CLIENTS", 2)
    address = Address(path=str(tmp_path / "s"))

    async def run() -> list[bytes]:
        statuses = []
        async with serving(address):
            idle = [await asyncio.open_connection(sock=await address.connect()) for _ in range(2)]
            await asyncio.sleep(0.01)
            statuses.append((await asked(address, b""))[0].split()[1])
            for _, writer in idle:
                writer.close()
            await asyncio.sleep(0.01)
            statuses.append((await asked(address, GET))[0].split()[1])
        return statuses

    assert asyncio.run(run()) == [b"503", b"200"]


def test_over_tcp_too_and_who_is_connected_is_let_go_at_the_end() -> None:
    async def run() -> bytes:
        server = HttpServer(echo)
        sock = parse_address("tcp:127.0.0.1:0").listen()
        address = Address(host="127.0.0.1", port=sock.getsockname()[1])
        await server.start(sock)
        head, _ = await asked(address, GET)
        reader, writer = await asyncio.open_connection(sock=await address.connect())
        await asyncio.sleep(0.01)
        await server.close()
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        with pytest.raises(OSError):
            await address.connect()
        return head

    assert asyncio.run(run()).startswith(b"HTTP/1.1 200 ")
