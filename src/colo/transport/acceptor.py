"""Who is at the door: one address takes checkpoint channels, control links and disk links.

They are told apart by their first four bytes, which are looked at and left where they are: «QEVM»
begins a migration, «CWIR» one in frames, «COLO» a control link, «CDSK» a disk link, «CHYB» a hybrid
link.  Whoever says nothing is shown the door.  Where the VM file has [tls], nobody gets so far who
has not proved who they are.

However many come, they cost nobody else anything: only so many are let in who have not said what
they want, and who has been silent for longest leaves for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from colo.disks.words import DISK_MAGIC
from colo.errors import ChannelLost
from colo.membership.words import LINK_MAGIC
from colo.migration.format import FILE_MAGIC, MULTIFD_MAGIC
from colo.packets.hybrid_words import HYBRID_MAGIC
from colo.transport.sockets import accepted, readable
from colo.transport.tls import Tls
from colo.wire.frames import WIRE_MAGIC

__all__ = ["Reception", "Refusals"]

_FIRST_WORD_S: Final = 2.0
_MAGIC_BYTES: Final = 4
_REFUSALS_MAX: Final = 100
#: How many may be at the door at once: far fewer than the descriptors that a process has.
_VISITS_MAX: Final = 128
_TLS_MAGIC: Final = b"\x16\x03"


class Reception:
    """Accepts connections on ``server``.

    ``on_channel``, ``on_link``, ``on_disks`` and ``on_hybrid`` get a connection and the peer's
    name, and own it once they have returned; the first also whether it carries frames.
    ``on_stranger`` gets the peer's name and what it is.
    """

    def __init__(
        self,
        server: socket.socket,
        on_channel: Callable[[socket.socket, str, bool], Awaitable[None]],
        on_link: Callable[[socket.socket, str], None],
        on_disks: Callable[[socket.socket, str], Awaitable[None]],
        on_hybrid: Callable[[socket.socket, str], Awaitable[None]],
        on_stranger: Callable[[str, str], None],
        tls: Tls | None = None,
    ) -> None:
        self._server = server
        self._on_channel = on_channel
        self._on_link = on_link
        self._on_disks = on_disks
        self._on_hybrid = on_hybrid
        self._on_stranger = on_stranger
        self._tls = tls
        self._visits: dict[asyncio.Task[None], None] = {}  # in the order in which they came

    async def serve(self) -> None:
        """Accept until cancelled."""
        try:
            async for sock, peer in accepted(self._server):
                if len(self._visits) >= _VISITS_MAX:
                    self._end(next(iter(self._visits)))
                visit = asyncio.create_task(self._receive(sock, _name(peer)))
                self._visits[visit] = None
                visit.add_done_callback(self._end)
        finally:
            for visit in list(self._visits):
                self._end(visit)

    def _end(self, visit: asyncio.Task[None]) -> None:
        self._visits.pop(visit, None)
        visit.cancel()

    async def _receive(self, sock: socket.socket, peer: str) -> None:
        if self._tls is not None:
            try:
                sock = await self._tls.accept(sock)
            except ChannelLost as error:
                self._on_stranger(peer, str(error))
                return
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            try:
                async with asyncio.timeout(_FIRST_WORD_S):
                    magic = await _peek(sock, _MAGIC_BYTES)
            except (TimeoutError, OSError):
                self._on_stranger(peer, "it said nothing")
                return
            if magic in (FILE_MAGIC.to_bytes(4, "big"), WIRE_MAGIC):
                if is_coded := magic == WIRE_MAGIC:
                    sock.recv(_MAGIC_BYTES)
                await self._on_channel(sock, peer, is_coded)
                stack.pop_all()
            elif magic == LINK_MAGIC:
                sock.recv(_MAGIC_BYTES)
                stack.pop_all()
                self._on_link(sock, peer)
            elif magic == DISK_MAGIC:
                sock.recv(_MAGIC_BYTES)
                await self._on_disks(sock, peer)
                stack.pop_all()
            elif magic == HYBRID_MAGIC:
                sock.recv(_MAGIC_BYTES)
                await self._on_hybrid(sock, peer)
                stack.pop_all()
            elif magic == MULTIFD_MAGIC.to_bytes(4, "big"):
                why = "it is a multifd channel: switch the capability multifd off"
                self._on_stranger(peer, why)
            elif magic.startswith(_TLS_MAGIC):
                self._on_stranger(peer, "it speaks TLS: both VM files need [tls], or neither")
            elif not magic:
                self._on_stranger(
                    peer, "it ended the connection without a word: a colo there says why itself"
                )
            else:
                text = magic.decode("latin-1")
                self._on_stranger(
                    peer, f"it is neither a QEMU migration nor a colo, it begins with {text!r}"
                )


class Refusals:
    """Who was refused and why: who tries again every second is to be told of once."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def is_new(self, peer: str, why: str) -> bool:
        """Whether this host was not refused for this reason since ``clear``."""
        host, _, _ = peer.rpartition(":")  # each connection has a port of its own
        if (host, why) in self._told:
            return False
        if len(self._told) >= _REFUSALS_MAX:
            self.clear()
        self._told.add((host, why))
        return True

    def clear(self) -> None:
        """Something else has happened: any refusal is news again."""
        self._told.clear()


async def _peek(sock: socket.socket, count: int) -> bytes:
    """Wait for ``count`` bytes and return them without taking them; fewer at the stream's end."""
    sock.setblocking(False)
    before = -1
    while True:
        await readable(sock)
        data = sock.recv(count, socket.MSG_PEEK)
        if len(data) >= count or not data:
            return data
        if len(data) == before:  # readable stays readable: give the rest time to arrive
            await asyncio.sleep(0.01)
        before = len(data)


def _name(peer: Any) -> str:
    return f"tcp:{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "a unix socket"
