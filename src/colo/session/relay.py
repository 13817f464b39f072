"""The relay between a primary QEMU and the secondary: bytes one way, messages the other.

What QEMU sends goes to the secondary byte for byte, unparsed and not even seen: the kernel moves
it from one socket to the other, by way of a pipe.  What the secondary answers is a handful of
messages; each is shown to ``on_message`` before it is passed on, so that packets are released, and
the gate's socket drained, while the VM is certainly still stopped.

QEMU does not set TCP_NODELAY, so over plain TCP every turn of its conversation with a secondary
meets delayed acknowledgements.  QEMU's end of this relay is a unix socket, and the relay's own
connection sends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Final

from colo.errors import ChannelLost, ColoError
from colo.migration.returnpath import ReturnPathDecoder
from colo.protocol.messages import Message, MessageDecoder, encode
from colo.transport.sockets import quick_acks, tune

__all__ = ["Relay"]

_CHUNK: Final = 256 << 10
_ANSWER_BYTES: Final = 4096
#: After so many bytes in one go the event loop gets its turn.
_TURN: Final = 8 << 20


class Relay:
    """Joins two connected sockets until one of them ends.

    ``return_path``: the secondary first speaks the return-path protocol, as it does with QEMU
    11.  When one side ends it, ``on_lost`` is called, or ``on_qemu_lost``, once and with why.
    """

    def __init__(
        self,
        qemu: socket.socket,
        secondary: socket.socket,
        return_path: bool,
        on_message: Callable[[Message], bool],
        on_lost: Callable[[ColoError], None],
        on_qemu_lost: Callable[[str], None],
    ) -> None:
        self._qemu = qemu
        self._secondary = secondary
        self._return_path = ReturnPathDecoder() if return_path else None
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_qemu_lost = on_qemu_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = MessageDecoder()
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a smaller one does too
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, _CHUNK)
        self._unsent = 0  # the bytes in the pipe
        self._answers = bytearray()  # for QEMU
        self._hearing = False
        self._open = True
        self.bytes_sent = 0
        tune(qemu)
        tune(secondary)
        self._acknowledge = quick_acks(secondary)
        self._loop.add_reader(qemu, self._from_qemu)
        self._loop.add_reader(secondary, self._from_secondary)

    def close(self) -> None:
        """Close both connections; nothing is called any more."""
        if self._open:
            self._open = False
            for sock in (self._qemu, self._secondary):
                self._loop.remove_reader(sock)
            self._loop.remove_writer(self._secondary)
            self._qemu.close()
            self._secondary.close()
            for end in self._pipe:
                os.close(end)

    def send(self, message: Message) -> None:
        """Pass a message of the secondary on to QEMU; those that came together go together."""
        self._answers += encode(message)
        if not self._hearing:
            self._answer()

    def _answer(self) -> None:
        """Send what QEMU is to have: a few bytes, and it reads each before it goes on."""
        answers, self._answers = self._answers, bytearray()
        if not answers or not self._open:
            return
        try:
            taken = self._qemu.send(answers)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._lose_qemu(f"QEMU ended COLO's connection: {error.strerror}")
            return
        if taken < len(answers):
            self._lose_qemu("QEMU does not read the secondary's answers")

    def _from_qemu(self) -> None:
        taken = 0
        while self._open and taken < _TURN:
            try:
                count = os.splice(self._qemu.fileno(), self._pipe[1], _CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose_qemu(f"QEMU ended COLO's connection: {error.strerror}")
                return
            if not count:
                self._lose_qemu("QEMU ended COLO's connection")
                return
            taken += count
            self._unsent = count
            if not self._send():
                return

    def _send(self) -> bool:
        """Pass on what is unsent; False, and QEMU is not read, until all of it is gone."""
        try:
            sent = os.splice(self._pipe[0], self._secondary.fileno(), self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lose(f"the secondary ended the connection: {error.strerror}")
            return False
        self.bytes_sent += sent
        self._unsent -= sent
        if self._unsent:
            self._loop.remove_reader(self._qemu)
            self._loop.add_writer(self._secondary, self._writable)
            return False
        return True

    def _writable(self) -> None:
        if self._send() and self._open:
            self._loop.remove_writer(self._secondary)
            self._loop.add_reader(self._qemu, self._from_qemu)

    def _from_secondary(self) -> None:
        try:
            data = self._secondary.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"the secondary ended the connection: {error.strerror}")
            return
        if not data:
            self._lose("the secondary ended the connection")
            return
        self._hearing = True
        try:
            if self._return_path is not None and self._return_path.status is None:
                path, data = self._return_path.feed(data)
                self._answers += path
            for message in self._decoder.feed(data):
                if self._on_message(message):
                    self.send(message)
        except ColoError as error:
            self._end(error)
        finally:
            self._hearing = False
        self._answer()
        if self._open:
            self._acknowledge()

    def _lose(self, why: str) -> None:
        self._end(ChannelLost(why))

    def _lose_qemu(self, why: str) -> None:
        if self._open:
            self._on_qemu_lost(why)
            self.close()

    def _end(self, error: ColoError) -> None:
        """Say so first: QEMU may run its VM again the moment that its end is closed."""
        if self._open:
            self._on_lost(error)
            self.close()
