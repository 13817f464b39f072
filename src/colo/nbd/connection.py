"""The server's side of one NBD connection: bytes in, requests out; answers in, bytes out.

Whoever carries the bytes receives into ``receive_buffer``, says so by ``received``, and takes
requests with ``next_request`` until there is none.  So requests are read only as fast as they are
taken, and it is the caller who limits how many are under way.  Each is answered once, by ``done``,
``data``, ``status`` or ``fail``, in any order.  What is to be sent is in ``data_to_send``.

What a client may not ask for is answered here, and no request comes of it.

The data of a long WRITE is received straight into memory of its own; that of a short one is copied
there, once, so that the buffer stays small and warm.

Source: «Transmission» and «Request types» of doc/proto.md (see ``protocol``).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from enum import Enum
from typing import Final

import numpy as np

from colo.errors import ColoError, LocalProtocolError, NbdError
from colo.migration.buffer import Parser, ReceiveBuffer
from colo.nbd.negotiation import OPTION_BYTES_MAX, Agreed, Negotiation, skip
from colo.nbd.protocol import (
    FLAGS_OF,
    PAYLOAD_BYTES_MAX,
    REQUEST,
    REQUEST_MAGIC,
    Command,
    ErrorCode,
    ExportInfo,
    Extent,
    Request,
)
from colo.nbd.replies import (
    pack_block_status,
    pack_chunk_done,
    pack_chunk_error,
    pack_data_header,
    pack_hole,
    pack_simple,
)

__all__ = ["Connection", "Phase"]

_BUFFER_BYTES: Final = 128 << 10
#: The data of a WRITE that is at most so long is waited for in the buffer, and copied.
_SHORT_BYTES: Final = 32 << 10
assert max(OPTION_BYTES_MAX, _SHORT_BYTES + REQUEST.size) < _BUFFER_BYTES

_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_DISC: Final = int(Command.DISC)
_FLUSH: Final = int(Command.FLUSH)
_BLOCK_STATUS: Final = int(Command.BLOCK_STATUS)
_CHANGING: Final = frozenset({_WRITE, int(Command.WRITE_ZEROES), int(Command.TRIM)})
_FILLING: Final = frozenset({_WRITE, int(Command.WRITE_ZEROES)})
_COMMANDS: Final = {int(command): command for command in Command}


class Phase(Enum):
    """Where a connection is."""

    HANDSHAKE = "handshake"
    TRANSMISSION = "transmission"
    #: The client has left in order: it is sent what is owed, and nothing more is read.
    ENDED = "ended"


class Connection:
    """One client's connection to a server that has ``exports``, by name."""

    def __init__(self, exports: Mapping[str, ExportInfo]) -> None:
        self._buffer = ReceiveBuffer(bytearray(_BUFFER_BYTES), "what an NBD client sent")
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._waiting: dict[Request, None] = {}  # in the order in which they came
        self._waiting_bytes = 0
        self._negotiation = Negotiation(self._buffer, exports, self._send)
        self._agreed: Agreed | None = None
        self._phase = Phase.HANDSHAKE
        self._shutting_down = False
        self._payload = memoryview(b"")  # of the WRITE that is being received, what is to come
        self._beside = 0  # bytes received that never were in the buffer
        self._refused: ColoError | None = None
        self._parser = self._parse()
        next(self._parser)  # it says hello

    @property
    def phase(self) -> Phase:
        """Where the connection is."""
        return self._phase

    @property
    def export(self) -> ExportInfo | None:
        """What the client has chosen, once it has."""
        return self._agreed.export if self._agreed else None

    @property
    def waiting(self) -> int:
        """How many requests have yet to be answered."""
        return len(self._waiting)

    @property
    def bytes_held(self) -> int:
        """What the unanswered requests write and read, and what is to be sent, in bytes."""
        return self._waiting_bytes + self._out_bytes

    @property
    def bytes_to_send(self) -> int:
        """How many bytes ``data_to_send`` would give."""
        return self._out_bytes

    # --- bytes in, requests out -------------------------------------------------------------

    def receive_buffer(self) -> memoryview:
        """Where to receive the next bytes; empty where requests have to be taken first."""
        if len(self._payload):
            return self._payload
        buffer = self._buffer
        return buffer.data[buffer.end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes have been received into ``receive_buffer()``."""
        if len(self._payload):
            self._payload = self._payload[count:]
            self._beside += count
        else:
            self._buffer.end += count

    def next_request(self) -> Request | None:
        """Take the next request that has come whole.

        Raises NbdError where the client breaks the protocol, from then on.  A DISC is the last
        request, and needs no answer.
        """
        if self._refused is not None:
            raise self._refused
        if self._phase is Phase.ENDED or len(self._payload):
            return None
        try:
            request = next(self._parser)
        except StopIteration:
            return None
        except ColoError as error:
            self._refused = error
            raise
        if request is None:
            self._buffer.rewind()
        return request

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Request]:
        """Receive a copy of ``data``, however long; return the requests that are whole now.

        Raises NbdError, once all requests before it were returned.
        """
        rest, requests = memoryview(data), []
        while True:
            try:
                while (request := self.next_request()) is not None:
                    requests.append(request)
            except NbdError:
                if requests:
                    return requests
                raise
            room = self.receive_buffer()
            count = min(len(room), len(rest))
            if not count or self._phase is Phase.ENDED:
                return requests
            room[:count] = rest[:count]
            self.received(count)
            rest = rest[count:]

    # --- answers in, bytes out --------------------------------------------------------------

    def done(self, request: Request) -> None:
        """Answer: it is done.  For all that have no data to bring."""
        self._close(request)
        self._send_done(request.cookie)

    def data(self, request: Request, data: bytes | memoryview) -> None:
        """Answer a READ.  ``data`` is sent from where it lies; it must not change any more."""
        if request.command is not Command.READ or len(data) != request.length:
            raise LocalProtocolError(
                f"{len(data)} bytes answer no {request.command.name} of {request.length}"
            )
        self._close(request)
        if not self._structured:
            self._send(pack_simple(request.cookie))
            self._send(data)
        elif not request.whole and _is_zero(data):
            self._send(pack_hole(request.cookie, request.offset, request.length))
        else:
            self._send(pack_data_header(request.cookie, request.offset, request.length))
            self._send(data)

    def status(self, request: Request, extents: Iterable[Extent]) -> None:
        """Answer a BLOCK_STATUS.  ``extents`` begin at its offset, and may be fewer or longer."""
        if request.command is not Command.BLOCK_STATUS:
            raise LocalProtocolError(f"extents answer no {request.command.name}")
        reply = pack_block_status(request.cookie, extents, request.length, request.only_one)
        if reply is None:
            raise LocalProtocolError("no extent answers a BLOCK_STATUS")
        self._close(request)
        self._send(reply)

    def fail(self, request: Request, error: ErrorCode, text: str = "") -> None:
        """Answer: it could not be done.  ``text`` is for humans."""
        self._close(request)
        # «The server SHOULD NOT return NBD_ENOTSUP except ... when NBD_CMD_FLAG_FAST_ZERO»
        if error is ErrorCode.ENOTSUP and not request.fast_zero:
            error = ErrorCode.EINVAL
        self._send_error(request.cookie, error, text)

    def shut_down(self) -> None:
        """Refuse what waits, and what may still come: the server is about to go."""
        self._shutting_down = True
        self._negotiation.shut_down()
        for request in list(self._waiting):
            self.fail(request, ErrorCode.ESHUTDOWN, "the server is about to go")

    def data_to_send(self) -> list[bytes | memoryview]:
        """Take what is to be sent: pieces, one after the other."""
        pieces = self._out
        self._out = []
        self._out_bytes = 0
        return pieces

    # --- the rest ---------------------------------------------------------------------------

    @property
    def _structured(self) -> bool:
        return self._agreed is not None and self._agreed.structured

    def _parse(self) -> Generator[Request | None, None, None]:
        agreed = yield from self._negotiation.run()
        if agreed is not None:
            self._agreed = agreed
            self._phase = Phase.TRANSMISSION
            yield from self._transmission(agreed)
        self._phase = Phase.ENDED

    def _transmission(self, agreed: Agreed) -> Generator[Request | None, None, None]:
        buffer = self._buffer
        while True:
            while buffer.end - buffer.start < REQUEST.size:
                yield None
            magic, flags, number, cookie, offset, length = REQUEST.unpack_from(
                buffer.data, buffer.start
            )
            if magic != REQUEST_MAGIC:
                raise NbdError(f"{magic:#010x} begins no request", buffer.position + self._beside)
            buffer.start += REQUEST.size
            if number == _DISC:
                self._phase = Phase.ENDED
                yield Request(Command.DISC, flags, cookie, offset, length)
                return
            refusal = _refuse(agreed, number, flags, offset, length)
            data: bytes | memoryview = b""
            if number == _WRITE:
                if refusal is not None:
                    yield from skip(buffer, length)
                elif length <= _SHORT_BYTES:
                    while buffer.end - buffer.start < length:
                        yield None
                    data = bytes(buffer.take(length))
                else:
                    data = yield from self._long(length)
            if self._shutting_down:
                refusal = ErrorCode.ESHUTDOWN, "the server is about to go"
            if refusal is not None:
                self._send_error(cookie, *refusal)
            elif not length and number != _FLUSH:
                self._send_done(cookie)  # there is nothing to do
            else:
                request = Request(_COMMANDS[number], flags, cookie, offset, length, data)
                self._waiting[request] = None
                if number <= _WRITE:  # READ and WRITE are those with data
                    self._waiting_bytes += length
                yield request

    def _long(self, length: int) -> Parser[memoryview]:
        """Receive the data of a long WRITE into memory of its own."""
        data = np.empty(length, np.uint8).data  # not filled with zeros first
        here = min(self._buffer.available, length)
        data[:here] = self._buffer.take(here)
        self._payload = data[here:]
        while len(self._payload):
            yield
        return data

    def _close(self, request: Request) -> None:
        """A request is answered: it must be one that waits."""
        if request not in self._waiting:
            raise LocalProtocolError(f"{request.command.name} waits for no answer")
        del self._waiting[request]
        if request.command <= _WRITE:
            self._waiting_bytes -= request.length

    def _send(self, data: bytes | memoryview) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def _send_done(self, cookie: int) -> None:
        self._send(pack_chunk_done(cookie) if self._structured else pack_simple(cookie))

    def _send_error(self, cookie: int, error: ErrorCode, text: str) -> None:
        if self._structured:
            self._send(pack_chunk_error(cookie, error, text))
        else:
            self._send(pack_simple(cookie, error))


def _refuse(
    agreed: Agreed, number: int, flags: int, offset: int, length: int
) -> tuple[ErrorCode, str] | None:
    """Why a request may not be, or None: «Error values», «Size constraints»."""
    allowed = FLAGS_OF.get(number)
    if allowed is None:
        return ErrorCode.EINVAL, f"there is no command {number}"
    if flags & ~allowed or (flags & 4 and not agreed.structured):
        return ErrorCode.EINVAL, f"flags {flags:#x} do not go with {_COMMANDS[number].name}"
    if number in _CHANGING and agreed.export.read_only:
        return ErrorCode.EPERM, "the export is read-only"
    if number == _FLUSH:
        # «For a flush request, length and offset are reserved, and MUST be set to all-zero»
        return (ErrorCode.EINVAL, "a FLUSH has no range") if offset or length else None
    if offset + length > agreed.export.size:
        beyond = ErrorCode.ENOSPC if number in _FILLING else ErrorCode.EINVAL
        return beyond, f"the export ends at {agreed.export.size}"
    if number == _WRITE and length > PAYLOAD_BYTES_MAX:
        return ErrorCode.EINVAL, f"a WRITE has at most {PAYLOAD_BYTES_MAX} bytes"
    if number == _READ and length > PAYLOAD_BYTES_MAX:
        # «permitted to reject large read requests up front with NBD_EOVERFLOW»
        return ErrorCode.EOVERFLOW, f"a READ has at most {PAYLOAD_BYTES_MAX} bytes"
    if number == _BLOCK_STATUS and not agreed.allocation:
        return ErrorCode.EINVAL, "base:allocation was not selected"
    if number == _BLOCK_STATUS and not length:
        return ErrorCode.EINVAL, "a BLOCK_STATUS has to ask for something"
    return None


def _is_zero(data: bytes | memoryview) -> bool:
    """Whether all bytes are zero; most data is not at its first or last one."""
    if data[0] or data[-1]:
        return False
    return not np.frombuffer(data, np.uint8).any()
