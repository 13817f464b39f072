"""The secondary's end of the connection from the primary.

The receiver reads greedily, straight into the staging area, and answers with a few bytes at a
time.  Over TCP two things would each cost 40 ms at every turn of the conversation: Nagle's
algorithm on our answers, and delayed acknowledgements of the primary's small messages, which
QEMU sends without TCP_NODELAY.  So answers go at once, and every read asks for a quick ACK.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from colo.errors import ChannelLost, ColoError
from colo.session.secondary import Incoming
from colo.transport.sockets import quick_acks, soon, tune

__all__ = ["Channel"]

#: Parsed in one go: many reads, for fewer and longer runs.  Each such go costs some 20 µs.
_BATCH_BYTES: Final = 2 << 20
#: After so long in one go the event loop gets its turn: a slow link always has a little more.
_TURN_S: Final = 0.005


class Channel:
    """Feeds ``incoming`` from ``sock``.

    ``on_progress`` is called when bytes were taken; ``on_lost`` once, with what went wrong,
    when the connection is of no more use.
    """

    def __init__(
        self,
        sock: socket.socket,
        incoming: Incoming,
        clock: Callable[[], float],
        on_progress: Callable[[], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self._sock = sock
        self._incoming = incoming
        self._clock = clock
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._deaf: ChannelLost | None = None  # the primary does not hear us any more
        self.last_heard = clock()
        tune(sock)
        self._acknowledge = quick_acks(sock)
        self._loop.add_reader(sock, self._readable)

    def flush(self) -> None:
        """Send what the session has to say.

        The answers are a few bytes, and the primary reads each before it goes on: a socket
        that does not take them at once is a peer that does not listen.  What it had sent
        before is still read to its end, because it counts.
        """
        data = self._incoming.to_send()
        if not data or not self._open or self._deaf is not None:
            return
        try:
            if self._sock.send(data) < len(data):
                self._deaf = ChannelLost("the primary does not read the answers")
        except OSError as error:
            self._deaf = ChannelLost(f"the primary is gone: {error.strerror}")
            self._deaf.__cause__ = error
        if self._deaf is not None:
            self._loop.call_soon(self._readable)

    def close(self) -> None:
        """Close the connection; nothing is called any more."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        until = time.monotonic() + _TURN_S
        try:
            while self._open and time.monotonic() < until:
                waits = self._incoming.vm_waits
                count = soon(self._receive) if waits else self._receive()
                if not count:
                    cut = self._incoming.closed()
                    self._lose(ChannelLost("the primary closed the connection"), cut)
                    return
                self._incoming.received(count)
                self.flush()
                self._acknowledge()
        except BlockingIOError:
            if self._deaf is not None:
                self._lose(self._deaf, self._deaf.__cause__)
                return
        except OSError as error:
            self._lose(ChannelLost(f"the primary is gone: {error.strerror}"), error)
            return
        except ColoError as error:
            self._lose(error, error.__cause__)
            return
        if self._open:
            self.last_heard = self._clock()
            self._on_progress()

    def _receive(self) -> int:
        """Receive what there is, up to a batch; return how much, 0 at the end of the stream.

        What came before an error counts: the error shows again at the next call, or as the end.
        """
        room, count = self._incoming.writable(_BATCH_BYTES), 0
        try:
            while count < len(room) and (got := self._sock.recv_into(room[count:])):
                count += got
        except OSError:
            if not count:
                raise
        return count

    def _lose(self, error: ColoError, cause: BaseException | None) -> None:
        if self._open:
            self.close()
            self._on_progress()  # what came whole before the loss counts
            error.__cause__ = cause
            self._on_lost(error)
