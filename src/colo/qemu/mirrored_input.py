"""What the network brings for a VM, for a second one too.

``Mirrors`` copies it out of the primary VM's QEMU, and ``Feeds`` gives it to the secondary VM's
cards, in the place of what the network brings there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from colo.errors import GuestError
from colo.packets.gate import WholeFrames
from colo.qemu.card_ends import CardEnds
from colo.qemu.monitor import Monitor

__all__ = ["Feeds", "Mirrors"]

_CHUNK: Final = 1 << 20


class Mirrors:
    """What the network brings for the VM's cards, copied to us while the VM gets it.

    ``on_input`` gets a card's number and whole frames, with the virtio-net headers that it has.
    """

    def __init__(self, qemu: Monitor, folder: Path, on_input: Callable[[int, bytes], None]) -> None:
        self._qemu, self._folder, self._on_input = qemu, folder, on_input
        self._ends: list[CardEnds] = []
        self._socks: list[socket.socket] = []
        self._frames: list[WholeFrames] = []

    async def install(self, netdevs: Sequence[str], with_headers: Collection[str]) -> None:
        """Put a mirror before each netdev.  Raises GuestError and leaves nothing behind.

        ``with_headers``: those whose cards have virtio-net headers.
        """
        loop = asyncio.get_running_loop()
        try:
            for number, netdev in enumerate(netdevs):
                vnet = netdev in with_headers
                ends = CardEnds(self._qemu, self._folder, netdev, number, vnet)
                self._ends.append(ends)
                self._socks.append(await ends.chardev("in"))
                self._frames.append(WholeFrames(vnet))
                name = f"{ends.id}-in"
                await ends.filter("mirror", queue="tx", kind="filter-mirror", outdev=name)
                loop.add_reader(self._socks[-1], self._take, number)
        except GuestError:
            await self.remove()
            raise

    def drain(self) -> None:
        """Take all that QEMU has written."""
        for number in range(len(self._socks)):
            while self._take(number):
                pass

    def _take(self, number: int) -> bool:
        try:
            data = self._socks[number].recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socks[number])
            return False
        whole, _ = self._frames[number].feed(data)
        if whole:
            self._on_input(number, whole)
        return True

    async def remove(self) -> None:
        """Take the mirrors out of QEMU again, as far as there is a QEMU."""
        for ends in self._ends:
            await ends.take_out("object-del")
        for sock in self._socks:
            asyncio.get_running_loop().remove_reader(sock)
        for ends in self._ends:
            await ends.take_out("chardev-remove")
        for sock in self._socks:
            sock.close()
        self._ends, self._socks, self._frames = [], [], []


class Feeds:
    """The cards of a secondary VM: they get what we write, and nothing of the network's."""

    def __init__(self, qemu: Monitor, folder: Path) -> None:
        self._qemu, self._folder = qemu, folder
        self._ends: list[CardEnds] = []
        self._socks: list[socket.socket] = []
        self._unsent: list[bytearray] = []

    async def install(self, netdevs: Sequence[str], with_headers: Collection[str]) -> None:
        """Put them before each netdev, as Mirrors are.  Raises GuestError: of no use then."""
        for number, netdev in enumerate(netdevs):
            ends = CardEnds(self._qemu, self._folder, netdev, number, netdev in with_headers)
            self._ends.append(ends)
            await ends.nowhere("network")
            self._socks.append(await ends.chardev("in"))
            self._unsent.append(bytearray())
            # What the network brings is led away before it gets to where we come in.
            await ends.filter("network", queue="tx", outdev=f"{ends.id}-network")
            await ends.filter("in", queue="tx", indev=f"{ends.id}-in")

    def feed(self, card: int, data: bytes | memoryview) -> None:
        """Give a card whole frames."""
        unsent = self._unsent[card]
        if unsent:
            unsent += data
            return
        unsent += data
        self._flush(card)

    @property
    def unsent_bytes(self) -> int:
        """How much the VM has not taken yet."""
        return sum(map(len, self._unsent))

    def _flush(self, card: int) -> None:
        sock, unsent = self._socks[card], self._unsent[card]
        loop = asyncio.get_running_loop()
        try:
            while unsent:
                with memoryview(unsent) as view:
                    sent = sock.send(view[:_CHUNK])
                del unsent[:sent]
        except BlockingIOError:
            loop.add_writer(sock, self._flush, card)
            return
        except OSError:
            unsent.clear()  # it has died: who watches it sees that
        loop.remove_writer(sock)

    async def remove(self) -> None:
        """Have the cards get what the network brings."""
        for ends in self._ends:
            await ends.take_out("object-del")
            await ends.take_out("chardev-remove")
        self.close()

    def close(self) -> None:
        """Close our ends; QEMU keeps its own."""
        for sock in self._socks:
            asyncio.get_running_loop().remove_writer(sock)
            sock.close()
        self._socks.clear()
        self._unsent.clear()
