"""The first line of a disk link: in pieces of any size, whole, and nothing behind it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from colo.errors import ChannelLost, PeerError
from colo.session.first_line import first_line

LINE = b'{"holds": [true]}'


def read(*pieces: bytes) -> bytes:
    """What is read where each piece is taken before the next one comes, and then the end."""

    async def run() -> bytes:
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            loop = asyncio.get_running_loop()
            reading = asyncio.create_task(first_line(near, "it has gone"))
            for piece in pieces:
                await loop.sock_sendall(far, piece)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            far.shutdown(socket.SHUT_WR)
            return await reading

    return asyncio.run(run())


def test_it_is_read_in_pieces_of_any_size() -> None:
    whole = LINE + b"\n"
    assert read(whole) == LINE
    assert read(*(whole[at : at + 1] for at in range(len(whole)))) == LINE


def test_an_end_within_it_is_told() -> None:
    for length in range(len(LINE) + 1):
        with pytest.raises(ChannelLost, match="it has gone"):
            read(LINE[:length])


def test_what_comes_behind_it_is_not_dropped() -> None:
    """Whoever goes on as if nothing had come would read the next words from their middle."""
    with pytest.raises(PeerError, match="says more on the disk link"):
        read(LINE + b"\n\x05")
