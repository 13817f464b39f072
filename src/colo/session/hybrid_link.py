"""The hybrid link over a socket: words out, words in, nobody held up, memory bounded."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from colo.errors import ChannelLost, ColoError, LimitExceeded, PeerError
from colo.packets.hybrid_words import HYBRID_MAGIC, HYBRID_VERSION, Said, WordReader, encode
from colo.session.first_line import HYBRID, first_line
from colo.transport.address import Address
from colo.transport.sockets import notice_silence
from colo.transport.word_socket import WordSocket

__all__ = ["HybridHello", "HybridLink", "answer_hybrid", "call_hybrid"]

_CALL_S: Final = 5.0
#: Over TCP: whoever takes nothing for so long is gone.
_SILENCE_S: Final = 5.0
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class HybridHello:
    """How a primary begins the link: its VM, its grant, how many cards the VM has."""

    vm: str
    grant: int
    holder: str
    cards: int
    version: int = HYBRID_VERSION

    def encode(self) -> bytes:
        """The line that says it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> HybridHello:
        """Read that line.  Raises PeerError."""
        try:
            hello = cls(**json.loads(line))
            texts, numbers = (hello.vm, hello.holder), (hello.grant, hello.cards, hello.version)
            if {type(each) for each in texts} != {str} or {type(each) for each in numbers} != {int}:
                raise TypeError
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise PeerError("the hybrid link does not begin with a hello") from None
        return hello


def answer_hybrid(why: str | None) -> bytes:
    """The secondary's line: taken in, or why not."""
    return json.dumps({} if why is None else {"why": why}).encode() + b"\n"


async def call_hybrid(to: Address, hello: HybridHello) -> socket.socket:
    """Open a hybrid link.  Raises ChannelLost."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CALL_S):
            sock = await to.connect()
            try:
                await loop.sock_sendall(sock, HYBRID_MAGIC + hello.encode())
                said = json.loads(await first_line(sock, f"{to} closed the hybrid link", HYBRID))
                if not isinstance(said, dict) or "why" in said:
                    why = said.get("why") if isinstance(said, dict) else said
                    raise ChannelLost(f"the secondary refused the hybrid link: {why}")
            except BaseException:
                sock.close()
                raise
            return sock
    except TimeoutError:
        raise ChannelLost(f"{to} does not answer on the hybrid link") from None
    except (OSError, ValueError) as error:
        raise ChannelLost(f"the hybrid link to {to}: {error}") from error


class HybridLink:
    """The link over ``sock``, which it owns, whose hellos have been said.

    ``limit``: the most bytes that wait to be sent; ``on_lost`` is called once, with why, when it is
    of no more use, also where that is exceeded.
    """

    def __init__(
        self,
        sock: socket.socket,
        cards: int,
        limit: int,
        on_word: Callable[[Said], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self._limit = limit
        self._on_word = on_word
        self._reader = WordReader(cards)
        notice_silence(sock, _SILENCE_S)
        called, closed = "the hybrid link", "the other host closed the hybrid link"
        self._socket = WordSocket(sock, called, closed, _READ_BYTES, self._take, on_lost)

    @property
    def is_open(self) -> bool:
        """Whether it is of use."""
        return self._socket.is_open

    def say(self, said: Said) -> None:
        """Have a word sent."""
        if not self.is_open:
            return
        self._socket.say(encode(said))
        if (waits := self._socket.waiting_bytes) > self._limit:
            self._socket.lose(LimitExceeded("the hybrid link's queue", waits, self._limit))

    def _take(self, data: bytes) -> None:
        for said in self._reader.feed(data):
            if self.is_open:
                self._on_word(said)

    def close(self) -> None:
        """Close it; nothing is called any more."""
        self._socket.close()
