"""HTTP/1.1, as much of it as a page and figures need: one request for each connection.

It runs beside a VM's protection, so nothing that a client does takes long or takes much: heads,
bodies, times and the number of connections are bounded, nothing waits for a client that does not
read, and what goes wrong ends that one connection.  Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

__all__ = ["Handler", "HttpServer", "Request", "Response", "refusal"]

_HEAD_BYTES: Final = 16 << 10
_BODY_BYTES: Final = 4 << 10
_FIELDS: Final = 100
_REQUEST_S: Final = 5.0
_TAKE_S: Final = 10.0
_LINGER_S: Final = 1.0
#: So many clients at once; a browser has six for a page.
_CLIENTS: Final = 32
#: So many are taken in one turn of the event loop, which others need too.
_AT_ONCE: Final = 8
_METHODS: Final = ("GET", "HEAD", "POST")


@dataclass(frozen=True)
class Request:
    """What a client asks for; the names of ``fields`` are in small letters."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """What it gets: ``body``, or ``stream`` for as long as there is more of it."""

    body: bytes = b""
    kind: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    fields: dict[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class _Bad(Exception):
    """A request that is none, and how that is answered."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


def refusal(status: HTTPStatus, why: str = "") -> Response:
    """An answer that says why not."""
    return Response(f"{why or status.phrase}\n".encode(), status=status)


class HttpServer:
    """Answers by ``handler`` at a socket that listens, which it closes in the end."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self, sock: socket.socket) -> None:
        """Begin to answer."""
        is_unix = sock.family == socket.AF_UNIX
        start = asyncio.start_unix_server if is_unix else asyncio.start_server
        self._server = await start(self._serve, sock=sock, limit=_HEAD_BYTES, backlog=_AT_ONCE)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)
        task = asyncio.current_task()
        assert task is not None
        is_full = len(self._clients) >= _CLIENTS
        self._clients.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
                if is_full:
                    await _send(writer, refusal(HTTPStatus.SERVICE_UNAVAILABLE), True)
                else:
                    await self._answer(reader, writer)
        finally:
            self._clients.discard(task)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        has_body = True
        try:
            async with asyncio.timeout(_REQUEST_S):
                request = await _read(reader)
            has_body = request.method != "HEAD"
            response = await self._handler(request)
        except _Bad as bad:
            await _send(writer, refusal(bad.status), has_body)
            async with asyncio.timeout(_LINGER_S):  # or what it still says takes the answer away
                while await reader.read(_HEAD_BYTES):
                    pass
            return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except TimeoutError:
            response = refusal(HTTPStatus.REQUEST_TIMEOUT)
        except Exception:
            logging.getLogger("colo").info("a request could not be answered", exc_info=True)
            response = refusal(HTTPStatus.INTERNAL_SERVER_ERROR)
        await _send(writer, response, has_body)


async def _read(reader: asyncio.StreamReader) -> Request:
    """Read a request.  Raises _Bad where it is none that is answered."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not target.startswith("/"):
        raise _Bad(HTTPStatus.BAD_REQUEST)
    if method not in _METHODS:
        raise _Bad(HTTPStatus.NOT_IMPLEMENTED)
    if len(lines) > _FIELDS:
        raise _Bad(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name.strip() != name:
            raise _Bad(HTTPStatus.BAD_REQUEST)
        key = name.lower()
        if key in fields and key in ("host", "content-length", "authorization"):
            raise _Bad(HTTPStatus.BAD_REQUEST)
        fields[key] = value.strip()
    if "transfer-encoding" in fields:
        raise _Bad(HTTPStatus.LENGTH_REQUIRED)
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _Bad(HTTPStatus.BAD_REQUEST)
    if len(length) > 9 or int(length) > _BODY_BYTES:
        raise _Bad(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    body = await reader.readexactly(int(length))
    try:
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, max_num_fields=_FIELDS))
    except ValueError:
        raise _Bad(HTTPStatus.BAD_REQUEST) from None
    return Request(method, url.path, query, fields, body)


async def _send(writer: asyncio.StreamWriter, response: Response, has_body: bool) -> None:
    """Send an answer, as fast as it is taken.  Raises OSError or TimeoutError where it is not."""
    status = response.status
    fields = {
        "Content-Type": response.kind,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Connection": "close",
        **response.fields,
    }
    if response.stream is None:
        fields["Content-Length"] = f"{len(response.body)}"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(head.encode("latin-1") + b"\r\n")
    if has_body:
        writer.write(response.body)
    await _taken(writer)
    if response.stream is None or not has_body:
        writer.write_eof()
        return
    async with contextlib.aclosing(response.stream) as pieces:
        async for piece in pieces:
            writer.write(piece)
            await _taken(writer)


async def _taken(writer: asyncio.StreamWriter) -> None:
    """Wait until the kernel has all of it.  Raises TimeoutError where the client does not read."""
    async with asyncio.timeout(_TAKE_S):
        await writer.drain()
