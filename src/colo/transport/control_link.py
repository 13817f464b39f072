"""The control link's shell: a connection, its words, and heartbeats both ways."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from colo.errors import ChannelLost, PeerError, Refused
from colo.membership.words import LINK_MAGIC, Hello, LinkReader, Word, WordKind
from colo.transport.address import Address
from colo.transport.sockets import hurry, quick_acks, tune

__all__ = ["Link", "call"]

_READ_BYTES = 64 << 10
_NS = 1e9


class Link:
    """One control link.

    ``figures`` gives what goes with a heartbeat.  ``on_word`` gets each word but those that beat;
    ``on_lost`` is called once, with why, when the other side is gone, or silent for longer than
    ``limits_s``: the first until the first copy is whole, which ``be_strict`` is told, the second
    from then on.  A first copy makes both hosts busy, and before its end nobody could take over.
    ``waiting``: nothing is said by itself, and no silence is too long, before ``begin``.
    """

    def __init__(
        self,
        sock: socket.socket,
        every_s: float,
        limits_s: tuple[float, float],
        figures: Callable[[], dict[str, Any]],
        on_word: Callable[[Word], None],
        on_lost: Callable[[PeerError], None],
        waiting: bool = False,
    ) -> None:
        self._sock = sock
        self._every_s = every_s
        self._limit_s, self._strict_s = limits_s
        self._figures = figures
        self._on_word = on_word
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._reader = LinkReader()
        self._heard = self._beaten = self._certain = time.monotonic()
        self._beat_ns = 0
        self._is_strict = False
        self._open = True
        self._is_taking = False
        self._unheard: PeerError | None = None  # why nothing can be said any more
        self.peer_figures: dict[str, Any] = {}
        #: When something else was heard of the other side: on a busy wire beats queue behind that.
        self.also_heard: Callable[[], float] = lambda: 0.0
        tune(sock)
        hurry(sock)
        self._acknowledge = quick_acks(sock)
        self._loop.add_reader(sock, self._readable)
        self._timer = self._loop.call_later(every_s, self._beat)
        if waiting:
            self._timer.cancel()

    def begin(self) -> None:
        """Beat from now on, and hear whether the other side does."""
        if self._open:
            self._heard = self._beaten = self._certain = time.monotonic()
            self._timer = self._loop.call_later(self._every_s, self._beat)

    def be_strict(self) -> None:
        """The first copy is whole: from now on a silence may mean a takeover."""
        self._heard, self._limit_s = time.monotonic(), self._strict_s
        self._is_strict = True

    def silence_s(self) -> float:
        """For how long the other side may have heard nothing, while that may mean a takeover.

        Since what it has certainly heard was sent, a beat or something else; before it is strict,
        since this side has sent one.
        """
        return time.monotonic() - (self._certain if self._is_strict else self._beaten)

    def was_heard(self, at: float) -> None:
        """What was sent then, by the monotonic clock, has certainly been heard, on another way."""
        self._certain = max(self._certain, at)

    def say(self, word: Word) -> None:
        """Say a word.  A peer that does not take it at once is lost."""
        if not self._open:
            return
        data = word.encode()
        try:
            sent = self._sock.send(data)
        except OSError as error:
            self._unheard = ChannelLost(f"the control link broke: {error.strerror}")
            if not self._is_taking:
                self._hear_last_words()
            return
        if sent < len(data):
            self._lose(ChannelLost("the other side does not read the control link"))

    def close(self) -> None:
        """Close the link; nothing is called any more."""
        if self._open:
            self._open = False
            self._timer.cancel()
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _beat(self) -> None:
        now = time.monotonic()
        silence, stood = now - max(self._heard, self.also_heard()), now - self._beaten
        if silence > self._limit_s:
            self._lose(ChannelLost(f"the other side was silent for {silence:.1f} s"))
            return
        if stood > self._limit_s:  # what it has heard meanwhile is old, and so are we to it
            self._lose(ChannelLost(f"this host stood still for {stood:.1f} s"))
            return
        self._beaten = now
        self._timer = self._loop.call_later(self._every_s, self._beat)
        self._beat_ns = int(now * _NS)
        self.say(Word(WordKind.HEARTBEAT, {**self._figures(), "beat": self._beat_ns}))

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
            self._acknowledge()
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(ChannelLost(f"the control link broke: {error.strerror}"))
            return
        if not data:
            self._lose(ChannelLost("the other side closed the control link"))
            return
        self._take(data)
        if self._unheard is not None:
            self._hear_last_words()

    def _hear_last_words(self) -> None:
        """The other side hears nothing any more: what it said before may still be unread."""
        with contextlib.suppress(OSError):
            while self._open and (data := self._sock.recv(_READ_BYTES)):
                self._take(data)
        assert self._unheard is not None
        self._lose(self._unheard)

    def _take(self, data: bytes) -> None:
        self._heard = time.monotonic()
        self._is_taking = True
        try:
            for word in self._reader.feed(data):
                match word.kind:
                    case WordKind.HEARTBEAT:
                        self._answer(word)
                    case WordKind.HEARD:
                        self._was_heard(word)
                    case _:
                        self._on_word(word)
                if not self._open:
                    return
        except PeerError as error:
            self._lose(error)
        finally:
            self._is_taking = False

    def _answer(self, heartbeat: Word) -> None:
        self.peer_figures = {
            name: value for name, value in heartbeat.content.items() if name != "beat"
        }
        if heartbeat.beat is not None:
            self.say(Word(WordKind.HEARD, {"beat": heartbeat.beat}))

    def _was_heard(self, word: Word) -> None:
        beat = word.beat or 0
        if beat > self._beat_ns:
            raise PeerError("the other side says that it has heard what was never said")
        self._certain = max(self._certain, beat / _NS)

    def _lose(self, error: PeerError) -> None:
        if self._open:
            self.close()
            self._on_lost(error)


async def call(address: Address, ours: Hello, limit_s: float) -> tuple[socket.socket, Hello]:
    """Connect to a secondary and exchange hellos; return the connection and its hello.

    Raises ChannelLost where nobody answers in ``limit_s``, Refused where it refuses for now,
    PeerError where it will always refuse.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limit_s):
            sock = await address.connect()
            try:
                await loop.sock_sendall(sock, LINK_MAGIC + ours.word().encode())
                reader = LinkReader()
                while data := await loop.sock_recv(sock, _READ_BYTES):
                    for word in reader.feed(data):
                        if word.kind is WordKind.REFUSED:
                            raise _refusal(address, word)
                        return sock, Hello.of(word)
                raise ConnectionResetError
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        raise ChannelLost("no answer") from None
    except ConnectionResetError:
        raise ChannelLost(
            f"{address} closed the connection: is it a colo secondary, with [tls] in both VM files "
            "or in neither?"
        ) from None
    except OSError as error:
        raise ChannelLost(str(error.strerror or error)) from error


def _refusal(address: Address, word: Word) -> PeerError:
    text = f"{address} refuses: {word.content.get('why', 'no reason given')}"
    return PeerError(text) if word.content.get("final", True) else Refused(text)
