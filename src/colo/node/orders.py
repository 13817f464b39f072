"""Orders to a running colo: one line of JSON over ``control.sock``, answered by one.

The answer to «export» is preceded by what was ordered: pieces, each a u32 length and so many bytes,
and a length of 0 after the last.  So the answer tells whether all of it was good.  A refusal may
come without all that: no length begins as an answer does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeAlias

from colo.errors import ColoError, LocalError, StoreError
from colo.store.export import export_stream
from colo.store.store import Store
from colo.transport.sockets import bind_private

__all__ = ["Answer", "Obey", "exported", "fetch_checkpoint", "give_order", "serve_orders"]

_ORDER_BYTES: Final = 4096
_READ_S: Final = 1.0
_ANSWER_S: Final = 120.0
_TAKE_S: Final = 30.0
_LENGTH: Final = struct.Struct(">I")
_PIECE_MAX: Final = 16 << 20
_BEGIN: Final = b"{"  # of an answer; as a length it would be far over what a piece may have


@dataclass(frozen=True)
class Answer:
    """Whether the order was carried out, and a line about it; ``pieces`` go before it."""

    ok: bool
    text: str
    pieces: Iterator[bytes] | None = None


Obey: TypeAlias = Callable[[str, bool], Awaitable[Answer]]


async def serve_orders(path: Path, obey: Obey) -> asyncio.Server:
    """Serve orders at ``path``; ``obey`` gets an order's name and whether it is forced.

    Raises LocalError.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _READ_S)
            content = json.loads(line[:_ORDER_BYTES])
            order, force = str(content["order"]), bool(content.get("force"))
        except (ValueError, KeyError, TypeError, AttributeError, TimeoutError):
            answer = Answer(False, "that is not an order")
        else:
            answer = await obey(order, force)
        with contextlib.suppress(OSError):
            if answer.pieces is not None:
                answer = await _send_pieces(writer, answer)
            writer.write(json.dumps({"ok": answer.ok, "text": answer.text}).encode() + b"\n")
            await writer.drain()
        writer.close()

    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            path.unlink(missing_ok=True)  # whoever makes it has the folder's lock
            bind_private(sock, str(path))
            server = await asyncio.start_unix_server(serve, sock=sock)
        except OSError as error:
            raise LocalError(f"{path}: {error.strerror or error}") from error
        stack.pop_all()
    return server


async def exported(store: Store, settled: Callable[[], Awaitable[None]]) -> Answer:
    """Answer an order to export the last checkpoint of ``store``, once that has settled."""
    try:
        await settled()
        return Answer(True, "", export_stream(store))
    except StoreError as error:
        return Answer(False, str(error))


async def _send_pieces(writer: asyncio.StreamWriter, answer: Answer) -> Answer:
    """Send an answer's pieces, each as fast as it is taken; return how that went."""
    assert answer.pieces is not None
    loop = asyncio.get_running_loop()
    try:
        while piece := await loop.run_in_executor(None, next, answer.pieces, b""):
            writer.write(_LENGTH.pack(len(piece)) + piece)
            async with asyncio.timeout(_TAKE_S):
                await writer.drain()
    except ColoError as error:
        answer = Answer(False, str(error))
    writer.write(_LENGTH.pack(0))
    return answer


def give_order(state_dir: Path, order: str, force: bool = False) -> Answer:
    """Give an order to the colo of a state folder and wait for its answer.  Raises ColoError."""
    with _order(state_dir, order, force) as stream:
        return _answer(stream)


def fetch_checkpoint(state_dir: Path) -> Iterator[bytes]:
    """Yield the last checkpoint of a running ``colo secondary`` as a QEMU migration stream.

    It is whole when this ends without an error.  Raises ColoError.
    """
    with _order(state_dir, "export") as stream:
        while length := _length(head := _exactly(stream, _LENGTH.size)):
            yield _exactly(stream, length)
        answer = _answer(stream, head if head.startswith(_BEGIN) else b"")
    if not answer.ok:
        raise ColoError(answer.text)


@contextlib.contextmanager
def _order(state_dir: Path, order: str, force: bool = False) -> Iterator[IO[bytes]]:
    path = state_dir / "control.sock"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_ANSWER_S)
            sock.connect(str(path))
            sock.sendall(json.dumps({"order": order, "force": force}).encode() + b"\n")
            with sock.makefile("rb") as stream:
                yield stream
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise ColoError(f"no colo runs with the state folder {state_dir}") from None
    except (OSError, ValueError) as error:
        raise ColoError(f"{path}: {error}") from error


def _answer(stream: IO[bytes], begun: bytes = b"") -> Answer:
    content = json.loads(begun + stream.readline())
    try:
        return Answer(bool(content["ok"]), str(content["text"]))
    except (KeyError, TypeError):
        raise ValueError("this is no answer of colo's") from None


def _length(head: bytes) -> int:
    """The length of the next piece; 0 where the answer follows, or begins already."""
    if head.startswith(_BEGIN):
        return 0
    (length,) = _LENGTH.unpack(head)
    if length > _PIECE_MAX:
        raise ValueError(f"a piece of {length} bytes")
    return int(length)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ConnectionResetError("colo ended before all was here")
    return data
