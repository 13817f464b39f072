"""What is put into a running QEMU for one network card, by names of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from colo.errors import GuestError
from colo.qemu.monitor import Monitor
from colo.transport.sockets import listening

__all__ = ["PREFIX", "CardEnds"]

_CONNECT_S: Final = 5.0
#: Of the name of whatever colo puts into a QEMU.
PREFIX: Final = "colo-"


class CardEnds:
    """Character devices and filters of the card that ``netdev`` serves.  ``vnet``: see Gate."""

    def __init__(
        self, qemu: Monitor, folder: Path, netdev: str, number: int, vnet: bool = False
    ) -> None:
        self.netdev = netdev
        # Not of the netdev's name: one that QEMU gave itself, such as #net042, can be no id.
        self.id = f"{PREFIX}net{number}"
        self.qemu = qemu
        self._folder = folder
        self._vnet = vnet
        self._made: list[tuple[str, str]] = []

    async def chardev(self, which: str) -> socket.socket:
        """Have QEMU connect a character device to us; return our end."""
        name = f"{self.id}-{which}"
        path = self._folder / f"gate-{which}.sock"  # one after another
        with listening(path) as server:
            accepted = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(server))
            try:
                backend: dict[str, Any] = {
                    "addr": {"type": "unix", "data": {"path": str(path)}},
                    "server": False,
                }
                await self.qemu.execute(
                    "chardev-add", id=name, backend={"type": "socket", "data": backend}
                )
                self._made.append(("chardev-remove", name))
                sock, _ = await asyncio.wait_for(accepted, _CONNECT_S)
            except TimeoutError:
                raise GuestError(f"QEMU did not connect to {path}") from None
            finally:
                accepted.cancel()
        sock.setblocking(False)
        return sock

    async def nowhere(self, which: str) -> None:
        """A character device that throws away what it gets.

        One of type ``null`` does not count as connected, and a filter would lead nothing there.
        """
        name = f"{self.id}-{which}"
        backend = {"type": "file", "data": {"out": "/dev/null"}}
        await self.qemu.execute("chardev-add", id=name, backend=backend)
        self._made.append(("chardev-remove", name))

    async def filter(
        self, which: str, queue: str = "rx", kind: str = "filter-redirector", **ends: Any
    ) -> None:
        """Add a filter behind those that are there, as seen from the network."""
        name = f"{self.id}-{which}-filter"
        if self._vnet:
            ends["vnet_hdr_support"] = True
        await self.qemu.execute(
            "object-add", qom_type=kind, id=name, netdev=self.netdev, queue=queue, **ends
        )
        self._made.append(("object-del", name))

    async def take_out(
        self, what: str, before: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Take out the filters, or the devices: ``object-del`` or ``chardev-remove``."""
        with contextlib.suppress(GuestError):
            for kind, name in reversed(self._made):
                if kind == what:
                    if before is not None:
                        await before()
                    await self.qemu.execute(kind, id=name)
        self._made = [each for each in self._made if each[0] != what]
