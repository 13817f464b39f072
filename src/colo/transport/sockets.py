"""What colo wants of its connections between hosts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = [
    "accept_one",
    "accepted",
    "bind_private",
    "hurry",
    "limit_sends",
    "listening",
    "notice_silence",
    "quick_acks",
    "readable",
    "soon",
    "take_off",
    "tune",
    "unacknowledged",
    "writable",
]

T = TypeVar("T")

#: A TCP peer whose host is gone is noticed within about so many seconds, also when idle.
_KEEPALIVE_IDLE_S: Final = 1
_KEEPALIVE_INTERVAL_S: Final = 1
_KEEPALIVE_PROBES: Final = 3
#: With less room between them the two ends wait for each other by turns.  The kernel may allow
#: less; TCP finds its own size.
_UNIX_BUFFER_BYTES: Final = 2 << 20
#: The highest that needs no privilege, and DSCP's class CS6, as in a header's byte.
_PRIORITY: Final = 6
_NETWORK_CONTROL: Final = 0xC0
#: Where a connection cannot be accepted now, that is tried again after so long.
_AGAIN_S: Final = 0.1
#: So long a thread stays awake for what is about to come.
_SOON_S: Final = 0.0003


def take_off(pieces: deque[bytes | memoryview], count: int) -> None:
    """Take ``count`` bytes, which are sent, off the beginning; what is left is not copied."""
    while pieces and count >= len(pieces[0]):
        count -= len(pieces.popleft())
    if count:
        pieces[0] = memoryview(pieces[0])[count:]


def unacknowledged(sock: socket.socket) -> int:
    """How many bytes that were sent the other end has not got yet: over TCP, its kernel."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def tune(sock: socket.socket) -> None:
    """Make a connection non-blocking; over TCP send at once, and notice a dead host."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER_BYTES)
        return
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_QUICKACK, 1),
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def notice_silence(sock: socket.socket, seconds: float) -> None:
    """Over TCP have a connection break whose other end takes nothing for so long.

    Without that the kernel sends again for a quarter of an hour.  Source: tcp(7).
    """
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def hurry(sock: socket.socket) -> None:
    """Have what is sent go before other traffic, where the host or the network knows a before."""
    with contextlib.suppress(OSError):  # it is a wish; and a unix socket has no network
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _NETWORK_CONTROL)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _NETWORK_CONTROL)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)  # TOS has set another


def bind_private(sock: socket.socket, path: str) -> None:
    """Bind a unix socket to ``path``, open to its owner only.  Raises OSError.

    The path gets the mode of the socket: there is no moment at which it is open to others, and no
    need to change the umask, which belongs to all threads.
    """
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(path)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path`` for one connection of our own QEMU's; the path goes with the socket."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.setblocking(False)
        try:
            bind_private(server, str(path))
            server.listen(1)
            yield server
        finally:
            path.unlink(missing_ok=True)


async def accept_one(server: socket.socket, over: set[asyncio.Future[Any]]) -> socket.socket | None:
    """Accept one connection, and close the server; None where one of ``over`` is done before."""
    accepting = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(server))
    try:
        await asyncio.wait({accepting, *over}, return_when=asyncio.FIRST_COMPLETED)
        return accepting.result()[0] if accepting.done() else None
    finally:
        if accepting.cancel():
            await asyncio.wait({accepting})  # it lets go of the server first
        server.close()


async def accepted(server: socket.socket) -> AsyncIterator[tuple[socket.socket, Any]]:
    """Accept connections for ever; yield each, and the peer's address."""
    loop = asyncio.get_running_loop()
    server.setblocking(False)
    while True:
        try:
            connection = await loop.sock_accept(server)
        except OSError:  # no descriptors, no memory, or it has gone again
            await asyncio.sleep(_AGAIN_S)
            continue
        yield connection


def quick_acks(sock: socket.socket) -> Callable[[], None]:
    """Return what has the kernel acknowledge at once: after every read, as it soon forgets."""
    if sock.family == socket.AF_UNIX:
        return lambda: None
    return partial(sock.setsockopt, socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def soon(receive: Callable[[], T]) -> T:
    """Receive what is about to come while a VM stands still for it.

    To sleep and be woken takes longer than a small checkpoint's whole way.  Raises OSError as
    ``receive`` does: BlockingIOError where nothing came in 0.3 ms.
    """
    until = time.monotonic() + _SOON_S
    while True:
        try:
            return receive()
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            os.sched_yield()


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read, or the end."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    """Wait until there is room to write."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_writer(sock)


def limit_sends(sock: socket.socket, limit_s: float) -> None:
    """Have a send that blocks for so long fail with EAGAIN."""
    whole_s = int(limit_s)
    limit = struct.pack("@ll", whole_s, int((limit_s - whole_s) * 1e6))  # struct timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
