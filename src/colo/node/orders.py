"""Orders to a running colo: one line of JSON over ``control.sock``, answered by one.

The answer to «export» and «inspect» is preceded by what was ordered, in streams: pieces, each a u32
length and so many bytes, and a length of 0 after the last of each stream.  The first is the
checkpoint; of «export» one follows for each disk.  The answer tells whether all of it was good.  A
refusal may come without all that: no length begins as an answer does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Final, TypeAlias

from colo.errors import ColoError, LocalError
from colo.transport.sockets import bind_private

__all__ = [
    "GRACE_S",
    "Answer",
    "Obey",
    "Order",
    "OrderServer",
    "Pending",
    "fetch_checkpoint",
    "fetch_streams",
    "give_order",
    "ordered",
    "serve_orders",
]

_ORDER_BYTES: Final = 4096
_ANSWERED_S: Final = 1.0
_READ_S: Final = 1.0
_ANSWER_S: Final = 120.0
#: How long a guest may take to shut down where nobody says another time, and the longest.
GRACE_S: Final = 60.0
_GRACE_MAX_S: Final = 86_400.0
_TAKE_S: Final = 30.0
#: What an operator saw when he gave an order may not hold any more after so long.
_FRESH_S: Final = 5.0
_SOCKET: Final = "control.sock"
_LENGTH: Final = struct.Struct(">I")
_PIECE_MAX: Final = 16 << 20
_BEGIN: Final = b"{"  # of an answer; as a length it would be far over what a piece may have


@dataclass(frozen=True)
class Order:
    """What an operator wants.

    ``grace_s``: how long a guest may take to shut down.  ``given_at``: the machine's monotonic
    clock when it was given, in seconds; None where whoever gives it does not say.
    """

    name: str
    force: bool = False
    grace_s: float = GRACE_S
    given_at: float | None = None

    @classmethod
    def of(cls, line: bytes) -> Order:
        """Read one.  Raises ValueError, KeyError or TypeError where it is none."""
        content = json.loads(line[:_ORDER_BYTES])
        grace_s = float(content.get("grace_s", GRACE_S))
        if not 0 <= grace_s < _GRACE_MAX_S:
            raise ValueError(grace_s)
        given_at = content.get("given_at")
        given_at = None if given_at is None else float(given_at)
        return cls(str(content["order"]), bool(content.get("force")), grace_s, given_at)

    def line(self) -> bytes:
        """The line that says it."""
        content = asdict(self)
        return json.dumps({"order": content.pop("name"), **content}).encode() + b"\n"


@dataclass(frozen=True)
class Answer:
    """Whether the order was carried out, and a line about it; ``streams`` go before it.

    ``close`` is called once it has been given.
    """

    ok: bool
    text: str
    streams: tuple[Iterator[bytes], ...] = ()
    close: Callable[[], object] = lambda: None


class Pending:
    """An operator's order that waits for its answer; whoever gives it again gets the same."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Answer] | None = None

    async def answered(self, begin: Callable[[], object]) -> Answer:
        """Have the order begun, and wait until it is answered."""
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        begin()
        return await asyncio.shield(answer)

    def answer(self, ok: bool, text: str) -> None:
        """Answer the one that waits, if there is one."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(Answer(ok, text))


Obey: TypeAlias = Callable[[Order], Awaitable[Answer]]


class OrderServer:
    """Takes orders until it is closed; those that have been taken are still answered."""

    def __init__(self) -> None:
        self.server: asyncio.Server | None = None
        self.under_way: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> OrderServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.answered()

    def has_begun(self) -> None:
        """The task that calls this answers an order."""
        task = asyncio.current_task()
        assert task is not None
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def close(self) -> None:
        """Take no more."""
        if self.server is not None:
            self.server.close()

    async def answered(self) -> None:
        """Wait until those that are under way are answered: for a moment, then they are not."""
        self.close()
        if self.under_way:
            await asyncio.wait(self.under_way, timeout=_ANSWERED_S)


async def serve_orders(path: Path, obey: Obey) -> OrderServer:
    """Serve orders at ``path``: ``obey`` carries each out and answers.  Raises LocalError."""
    orders = OrderServer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        orders.has_begun()
        try:
            line = await asyncio.wait_for(reader.readline(), _READ_S)
            order = Order.of(line)
        except (ValueError, KeyError, TypeError, AttributeError, TimeoutError):
            answer = Answer(False, "that is not an order")
        else:
            answer = _refusal(order) or await obey(order)
        with contextlib.suppress(OSError), contextlib.closing(answer):
            for stream in answer.streams:
                answer = await _send_stream(writer, stream, answer)
            writer.write(json.dumps({"ok": answer.ok, "text": answer.text}).encode() + b"\n")
            await writer.drain()
        writer.close()

    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            path.unlink(missing_ok=True)  # whoever makes it has the folder's lock
            bind_private(sock, str(path))
            orders.server = await asyncio.start_unix_server(serve, sock=sock)
        except OSError as error:
            raise LocalError(f"{path}: {error.strerror or error}") from error
        stack.pop_all()
    return orders


def _refusal(order: Order) -> Answer | None:
    """Refuse an order that has waited: this colo stood still, and all may be different now."""
    waited_s = 0.0 if order.given_at is None else time.monotonic() - order.given_at
    if waited_s <= _FRESH_S:
        return None
    text = f"the order is {waited_s:.0f} s old: look at `colo status`, and give it again"
    return Answer(False, text)


async def _send_stream(
    writer: asyncio.StreamWriter, stream: Iterator[bytes], answer: Answer
) -> Answer:
    """Send one of an answer's streams, as fast as it is taken; return how that went."""
    loop = asyncio.get_running_loop()
    try:
        while answer.ok and (piece := await loop.run_in_executor(None, next, stream, b"")):
            writer.write(_LENGTH.pack(len(piece)) + piece)
            async with asyncio.timeout(_TAKE_S):
                await writer.drain()
    except ColoError as error:
        answer = Answer(False, str(error))
    writer.write(_LENGTH.pack(0))
    return answer


def give_order(state_dir: Path, order: Order) -> Answer:
    """Give an order to the colo of a state folder and wait for its answer.  Raises ColoError."""
    with _order(state_dir, order) as stream:
        return _answer(stream)


async def ordered(state_dir: Path, order: Order) -> Answer:
    """The same for who has more to do meanwhile; an error is an answer too.

    It has a thread of its own, for which nobody waits at the end of the program.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Answer] = loop.create_future()

    def settle(found: Answer) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        try:
            found = give_order(state_dir, order)
        except ColoError as error:
            found = Answer(False, str(error))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=ask, name="order", daemon=True).start()
    return await answer


def fetch_checkpoint(state_dir: Path) -> Iterator[bytes]:
    """Yield the last checkpoint of a running ``colo secondary`` as a QEMU migration stream.

    It is whole when this ends without an error.  Raises ColoError.
    """
    for pieces in fetch_streams(state_dir, "inspect"):
        yield from pieces


def fetch_streams(state_dir: Path, order: str) -> Iterator[Iterator[bytes]]:
    """Yield what is ordered, stream by stream: each is to be read to its end before the next.

    All of it is good when this ends without an error.  Raises ColoError.
    """
    with _order(state_dir, Order(order)) as stream:
        while not (head := _exactly(stream, _LENGTH.size)).startswith(_BEGIN):
            yield _pieces(stream, head, state_dir)
        answer = _answer(stream, head)
    if not answer.ok:
        raise ColoError(answer.text)


def _pieces(stream: IO[bytes], head: bytes, state_dir: Path) -> Iterator[bytes]:
    """Yield a stream's pieces; ``head`` is the first one's length.  Raises ColoError."""
    with _told(state_dir):
        while length := _length(head):
            yield _exactly(stream, length)
            head = _exactly(stream, _LENGTH.size)


@contextlib.contextmanager
def _order(state_dir: Path, order: Order) -> Iterator[IO[bytes]]:
    with _told(state_dir), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_ANSWER_S + order.grace_s)
        sock.connect(str(state_dir / _SOCKET))
        sock.sendall(replace(order, given_at=time.monotonic()).line())
        with sock.makefile("rb") as stream:
            yield stream


@contextlib.contextmanager
def _told(state_dir: Path) -> Iterator[None]:
    """What goes wrong with a state folder's colo, as one line."""
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise ColoError(f"no colo runs with the state folder {state_dir}") from None
    except (OSError, ValueError) as error:
        raise ColoError(f"{state_dir / _SOCKET}: {error}") from error


def _answer(stream: IO[bytes], begun: bytes = b"") -> Answer:
    line = begun + stream.readline()
    if not line:
        raise ConnectionResetError("colo gave no answer: see its log")
    content = json.loads(line)
    try:
        return Answer(bool(content["ok"]), str(content["text"]))
    except (KeyError, TypeError):
        raise ValueError("this is no answer of colo's") from None


def _length(head: bytes) -> int:
    """The length of the next piece; 0 where the stream has ended."""
    (length,) = _LENGTH.unpack(head)
    if length > _PIECE_MAX:
        raise ValueError(f"a piece of {length} bytes")
    return int(length)


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise ConnectionResetError("colo ended before all was here")
    return data
