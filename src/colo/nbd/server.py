"""The NBD server's shell: a client's socket, and the exports that do what it asks for.

A connection's requests are begun in the order in which they came, and answered as they end.  Most
of them need not wait, as an export only passes on what it got: such a one is performed at once,
without a task.  Any other goes on in a task of its own.

The socket is the loop's to watch and ours to use: a transport of asyncio would copy what is read
once more before it sends it, which takes three times as long.

Rules
- What is under way is bounded by ``Limits``; beyond them no request is begun.  Then little more
  than a buffer is read, so that a client that goes away is noticed all the same.
- Whoever goes away leaves nothing behind: what is under way for it is cancelled, and waited for.
- After a DISC all that is under way is performed to its end: «Request types» of doc/proto.md.
- An error that an export does not document is a mistake of ours: it ends the connection, and
  ``serve_connection`` raises it.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import types
from collections import deque
from collections.abc import Collection, Coroutine, Generator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from colo.errors import ChannelLost, ColoError, ExportError, NbdError
from colo.nbd.connection import Connection, Phase
from colo.nbd.protocol import Command, ErrorCode, ExportInfo, Extent, Request, error_code
from colo.transport.sockets import take_off, tune

__all__ = ["Export", "Limits", "serve_connection"]

#: So long what is owed to a client may take to be sent when the server closes.
_LINGER_S: Final = 1.0
#: So often in a row one connection is read from, before others have their turn.
_READS_MAX: Final = 16
#: So many pieces are given to the kernel at once; it takes 1024.
_PIECES_MAX: Final = 512


@dataclass(frozen=True)
class Limits:
    """``requests`` under way on a connection, and the ``bytes`` that they hold with the answers.

    One request more than ``bytes`` may be received.  ``handshake_s``: within so long a client
    has to have chosen an export.  ``clients``: so many are served at a time.
    """

    requests: int = 64
    bytes: int = 64 << 20
    handshake_s: float = 10.0
    clients: int = 32


class Export(Protocol):
    """A disk that clients see.  All connections share it.

    Offsets and lengths are in bytes, within the size, and not 0.  A method that cannot do as asked
    raises ExportError, or OSError: the client is told its errno.  A method that is cancelled has
    lost its client.  Several may be under way at a time.

    What a method does before it waits for the first time is done outside of any task: there is no
    ``asyncio.timeout`` before that, and no ``TaskGroup``.
    """

    @property
    def name(self) -> str:
        """By which clients choose it."""

    @property
    def size(self) -> int:
        """In bytes; it does not change while a client is there."""

    @property
    def read_only(self) -> bool:
        """Nothing is written, then."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return ``length`` bytes, which nobody changes until they are sent."""

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        """Write ``data``, which may be kept; with ``fua``, it is stable on return."""

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool, fua: bool) -> None:
        """Have a range read as zeros; ``may_trim``: it need take no room.

        This is to be faster than to write them.
        """

    async def trim(self, offset: int, length: int) -> None:
        """Forget a range: what it reads as does not matter any more."""

    async def flush(self) -> None:
        """Make all stable that was answered before, over any connection."""

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Tell of what there is from ``offset`` on; at least of a part, and of more if need be."""


async def serve_connection(
    sock: socket.socket, exports: Collection[Export], limits: Limits | None = None
) -> None:
    """Serve the client at the other end of ``sock``, and own it, until the client has left.

    Raises NbdError where the client broke the protocol, ChannelLost where it chose no export in
    time.  Cancelled, it refuses what waits with ESHUTDOWN, and is gone within a second.
    """
    await _Client(sock, exports, limits or Limits()).serve()


class _Client:
    """One connection: it carries bytes and performs requests."""

    def __init__(self, sock: socket.socket, exports: Collection[Export], limits: Limits) -> None:
        self._sock = sock
        self._limits = limits
        self._exports = {export.name: export for export in exports}
        self._connection = Connection(
            {
                name: ExportInfo(name, export.size, export.read_only, multi_conn=True)
                for name, export in self._exports.items()
            }
        )
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsent: deque[bytes | memoryview] = deque()
        self._unsent_bytes = 0
        self._reading = self._writing = False
        self._leaving = False  # no answer is wanted any more
        self._mistake: Exception | None = None

    async def serve(self) -> None:
        """Until the client has left; see ``serve_connection``."""
        timer = self._loop.call_later(self._limits.handshake_s, self._too_late)
        try:
            tune(self._sock)
            self._work()
            await asyncio.wait({self._over})
            self._over.result()
        except OSError:
            return  # it had gone again before it was served
        except asyncio.CancelledError:
            await self._shut_down()
            raise
        finally:
            timer.cancel()
            await self._leave()

    async def _shut_down(self) -> None:
        """Refuse what waits, and see that the client gets to know."""
        self._leaving = True
        self._connection.shut_down()
        self._work()
        await asyncio.wait({self._over}, timeout=_LINGER_S)
        if self._over.done():
            self._over.exception()  # it does not matter any more

    async def _leave(self) -> None:
        """Leave nothing behind."""
        self._leaving = True
        self._end()
        self._watch()
        try:
            if self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks)
        finally:
            self._sock.close()

    def _too_late(self) -> None:
        if self._connection.phase is Phase.HANDSHAKE:
            limit = f"{self._limits.handshake_s:g} s"
            self._end(ChannelLost(f"an NBD client chose no export within {limit}"))
            self._watch()

    def _end(self, error: Exception | None = None) -> None:
        """The connection is over, for this reason or for none."""
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    # --- bytes ------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Have the loop call for what can be done next; end what has nothing left to do."""
        connection = self._connection
        if self._mistake is not None or self._leaving or connection.phase is Phase.ENDED:
            reading = False
            if not self._unsent and (self._mistake is not None or not connection.waiting):
                self._end(self._mistake)
        else:
            reading = len(connection.receive_buffer()) > 0
        over = self._over.done()
        reading, writing = reading and not over, bool(self._unsent) and not over
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sock, self._work)
            else:
                self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        connection = self._connection
        for _ in range(_READS_MAX):
            room = connection.receive_buffer()
            if not len(room):
                break
            try:
                count = self._sock.recv_into(room)
            except BlockingIOError:
                break
            except OSError:
                count = 0
            if not count:
                self._end()
                break
            connection.received(count)
            self._work()
            if count < len(room) or not self._reading:
                return
        self._watch()

    def _work(self) -> None:
        """Begin what may be begun, and send what there is to send."""
        try:
            while not self._over.done():
                while self._mistake is None and not self._is_full():
                    request = self._connection.next_request()
                    if request is None:
                        break
                    if request.command is not Command.DISC:
                        self._begin(request)
                was_full = self._is_full()
                self._send()
                if not was_full or self._is_full():
                    break
        except NbdError as error:
            self._send()
            self._end(error)
        self._watch()

    def _is_full(self) -> bool:
        connection = self._connection
        return (
            connection.waiting >= self._limits.requests
            or connection.bytes_held + self._unsent_bytes >= self._limits.bytes
        )

    def _send(self) -> None:
        """Send as much as the client takes now."""
        self._unsent_bytes += self._connection.bytes_to_send
        self._unsent += self._connection.data_to_send()
        while self._unsent:
            try:
                sent = self._sock.sendmsg(list(islice(self._unsent, _PIECES_MAX)))
            except BlockingIOError:
                return
            except OSError:  # it has gone
                self._unsent.clear()
                self._unsent_bytes = 0
                self._end()
                return
            self._unsent_bytes -= sent
            if not self._unsent_bytes:
                self._unsent.clear()
                return
            take_off(self._unsent, sent)

    # --- requests ---------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        """Perform a request, in a task where it has to wait."""
        work = self._perform(request)
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        task = self._loop.create_task(self._go_on(work, waits_for))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _go_on(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        await _resume(work, waits_for)
        self._work()

    async def _perform(self, request: Request) -> None:
        """Perform a request and answer it."""
        connection = self._connection
        failed: tuple[ErrorCode, str] | None = None
        data: bytes | memoryview | None = None
        extents: list[Extent] | None = None
        try:
            assert connection.export is not None
            export = self._exports[connection.export.name]
            offset, length = request.offset, request.length
            match request.command:
                case Command.WRITE:
                    await export.write(offset, request.data, fua=request.fua)
                case Command.READ:
                    data = await export.read(offset, length)
                    if len(data) != length:
                        raise ValueError(f"{len(data)} bytes were read instead of {length}")
                case Command.FLUSH:
                    await export.flush()
                case Command.WRITE_ZEROES:
                    may_trim = not request.no_hole
                    await export.write_zeroes(offset, length, may_trim=may_trim, fua=request.fua)
                case Command.TRIM:
                    await export.trim(offset, length)
                    if request.fua:
                        await export.flush()
                case Command.BLOCK_STATUS:
                    extents = await export.extents(offset, length)
                    if not any(extent.length > 0 for extent in extents):
                        raise ValueError(f"no extent at {offset}")
        except asyncio.CancelledError:
            if self._leaving:
                raise
            failed = ErrorCode.EIO, "it was given up"
        except (ExportError, OSError) as error:
            failed = error_code(error.errno or errno.EIO), str(error)
        except ColoError as error:
            failed = ErrorCode.EIO, str(error)
        except Exception as error:
            failed = ErrorCode.EIO, "a mistake of this server"
            self._mistake = error
        if self._leaving:
            return
        if failed is not None:
            connection.fail(request, *failed)
        elif data is not None:
            connection.data(request, data)
        elif extents is not None:
            connection.status(request, extents)
        else:
            connection.done(request)


@types.coroutine
def _resume(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Perform the rest of ``work``, which was begun outside of a task, and waits."""
    try:
        while True:
            try:
                yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(None)
    except StopIteration:
        return
