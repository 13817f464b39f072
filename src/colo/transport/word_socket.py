"""A socket for words: those that are said wait here until it takes them, and hold nobody up."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from colo.errors import ChannelLost, ColoError
from colo.transport.sockets import take_off, tune

__all__ = ["WordSocket"]

#: So many parts of words go together.
_TOGETHER: Final = 64


class WordSocket:
    """The socket ``sock``, which it owns; ``called`` is what a user knows the link by.

    ``on_data`` gets what comes, up to ``read_bytes`` at once, and may raise ColoError; ``on_lost``
    is called once, with why, when it is of no more use, and ``closed`` says that the other side has
    closed it.
    """

    def __init__(
        self,
        sock: socket.socket,
        called: str,
        closed: str,
        read_bytes: int,
        on_data: Callable[[bytes], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self._sock = sock
        self._called, self._closed = called, closed
        self._read_bytes = read_bytes
        self._on_data, self._on_lost = on_data, on_lost
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes | memoryview] = deque()
        self._sending = False
        self.is_open = True
        self.bytes_sent = 0
        #: How much waits to be sent.
        self.waiting_bytes = 0
        tune(sock)
        self._loop.add_reader(sock, self._readable)

    def say(self, *parts: bytes | memoryview) -> None:
        """Have them sent, now or when the socket takes them; nobody changes them any more."""
        if not self.is_open:
            return
        self._queue += parts
        self.waiting_bytes += sum(map(len, parts))
        if not self._sending:
            self._send()

    def _send(self) -> None:
        while self._queue:
            some = list(islice(self._queue, _TOGETHER))
            try:
                sent = self._sock.sendmsg(some)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._broke(error)
                return
            self.bytes_sent += sent
            self.waiting_bytes -= sent
            take_off(self._queue, sent)
            if sent < sum(map(len, some)):
                if not self._sending:
                    self._sending = True
                    self._loop.add_writer(self._sock, self._send)
                return
        if self._sending:
            self._sending = False
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(self._read_bytes)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(error)
            return
        if not data:
            self.lose(ChannelLost(self._closed))
            return
        try:
            self._on_data(data)
        except ColoError as error:
            self.lose(error)

    def _broke(self, error: OSError) -> None:
        self.lose(ChannelLost(f"{self._called} broke: {error.strerror}"))

    def lose(self, error: ColoError) -> None:
        """It is of no more use."""
        if self.is_open:
            self.close()
            self._on_lost(error)

    def close(self) -> None:
        """Close it; nothing is called any more."""
        if self.is_open:
            self.is_open = False
            self._loop.remove_reader(self._sock)
            if self._sending:
                self._loop.remove_writer(self._sock)
            self._sock.close()
            self._queue.clear()
