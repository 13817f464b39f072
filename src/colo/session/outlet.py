"""What goes to the secondary next, of QEMU's stream that lies in an area of memory.

Of a first copy whatever lies there goes, read or not; of a checkpoint what has been read: so its
last byte does not go before it is known to be whole.  *Plain*, these are the stream's own bytes.
*Coded*, to a colo that takes frames, a checkpoint goes part by part: runs of pages, and its devices
in one piece once they are all here.

An outlet refers to places in the buffer.  So the buffer may be rewound only when the outlet says
``may_rewind``, and is told.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final, Protocol

from colo.migration.buffer import ReceiveBuffer
from colo.migration.ram import PageRun
from colo.session.primary_stream import Came, PrimaryReader
from colo.transport.sockets import take_off
from colo.wire.encoder import Encoder, Piece

__all__ = ["CodedOutlet", "Outlet", "PlainOutlet"]

#: Sent in one go, so that others get their turn; and so many pieces of it.
_PIECE: Final = 1 << 20
_TOGETHER: Final = 64


class Outlet(Protocol):
    """What a relay needs."""

    @property
    def unsent_bytes(self) -> int:
        """How much lies here that is not sent."""

    @property
    def may_rewind(self) -> bool:
        """Whether all that has been read is sent."""

    def pieces(self, is_short: bool) -> list[Piece]:
        """What is to be sent now, empty where nothing may.  ``is_short``: of room for more."""

    def took(self, count: int) -> None:
        """So many bytes of the pieces have been sent."""

    def rewound(self, by: int) -> None:
        """What lies in the buffer has been moved."""

    def on_pages(self, run: PageRun, size: int) -> None:
        """A run of a checkpoint's pages has been read: see PrimaryReader."""

    def came(self, came: Came, reader: PrimaryReader) -> None:
        """A part has been read whole."""


class PlainOutlet:
    """The stream's own bytes."""

    def __init__(self, buffer: ReceiveBuffer) -> None:
        self._buffer = buffer
        self._sent = 0  # as far as this
        self._is_copied = False

    @property
    def unsent_bytes(self) -> int:
        return self._buffer.end - self._sent

    @property
    def may_rewind(self) -> bool:
        return self._sent >= self._buffer.start

    def pieces(self, is_short: bool) -> list[Piece]:
        end = self._buffer.start if self._is_copied else self._buffer.end
        some = self._buffer.data[self._sent : end][:_PIECE]
        return [some] if some else []

    def took(self, count: int) -> None:
        self._sent += count

    def rewound(self, by: int) -> None:
        self._sent -= by

    def on_pages(self, run: PageRun, size: int) -> None:
        pass

    def came(self, came: Came, reader: PrimaryReader) -> None:
        self._is_copied |= came is Came.COPY


class CodedOutlet:
    """The stream in frames, as ``coder`` makes them."""

    def __init__(self, buffer: ReceiveBuffer, coder: Encoder) -> None:
        self._buffer = buffer
        self._coder = coder
        self._reader: PrimaryReader | None = None  # once the first copy has come by
        self._done = 0  # as far as this it is in ``out``, or sent
        self._out: deque[Piece] = deque()
        self._out_bytes = 0
        # What has been read and is more than bytes: from where to where.  None: devices.
        self._parts: deque[tuple[int, int, PageRun | None]] = deque()
        coder.reset()

    @property
    def unsent_bytes(self) -> int:
        return self._buffer.end - self._done + self._out_bytes

    @property
    def may_rewind(self) -> bool:
        return not self._out and not self._parts and self._done >= self._buffer.start

    def pieces(self, is_short: bool) -> list[Piece]:
        if not self._out:
            more = self._next(is_short)
            self._out.extend(more)
            self._out_bytes = sum(map(len, more))
        return list(islice(self._out, _TOGETHER))

    def took(self, count: int) -> None:
        take_off(self._out, count)
        self._out_bytes -= count

    def rewound(self, by: int) -> None:
        self._done -= by

    def on_pages(self, run: PageRun, size: int) -> None:
        end = self._buffer.start
        self._parts.append((end - size, end, run))

    def came(self, came: Came, reader: PrimaryReader) -> None:
        match came:
            case Came.COPY:
                self._coder.set_blocks(reader.blocks)
                self._reader = reader
            case Came.BEGINNING:
                self._coder.begin_checkpoint()
            case Came.CHECKPOINT:
                end = self._buffer.start
                if self._done <= end - reader.device_bytes:
                    self._parts.append((end - reader.device_bytes, end, None))

    def _next(self, is_short: bool) -> list[Piece]:
        """Code the next part, if there is one that may go."""
        while self._parts and self._parts[0][0] <= self._done:
            begin, end, run = self._parts.popleft()
            if run is None:
                self._done = end
                return self._coder.devices(self._buffer.data[begin:end])
            if begin < end and not run.is_fill:
                self._done = end
                return self._coder.pages(run, self._buffer.data[begin:end])
            self._coder.learn(run)  # its bytes go as such, or have gone
        done, end = self._done, self._readable(is_short)
        self._done = min(end, done + _PIECE)
        return self._coder.plain(self._buffer.data[done : self._done]) if self._done > done else []

    def _readable(self, is_short: bool) -> int:
        """How far what lies here may go as bytes."""
        reader = self._reader
        if reader is None:
            return self._buffer.end
        if self._parts:
            return self._parts[0][0]
        if reader.devices_left and not is_short:  # they wait until all of them are here
            return max(self._done, self._buffer.start - reader.device_bytes + reader.devices_left)
        return self._buffer.start
