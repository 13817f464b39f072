"""The line with which each end of a disk link begins, and of a hybrid link."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from colo.disks.words import take_line
from colo.errors import ChannelLost, PeerError

__all__ = ["HYBRID", "first_line"]

#: What a user knows that link by.
HYBRID: Final = "the hybrid link"

_READ_BYTES: Final = 4096


async def first_line(sock: socket.socket, closed: str, link: str = "the disk link") -> bytes:
    """Read it, and see that nothing is behind it.

    Raises ChannelLost, which says ``closed``, where it ends before that; PeerError, OSError.
    """
    data = bytearray()
    while (line := take_line(data)) is None:
        part = await asyncio.get_running_loop().sock_recv(sock, _READ_BYTES)
        if not part:
            raise ChannelLost(closed)
        data += part
    if data:
        raise PeerError(f"it says more on {link} before it is answered")
    return line
