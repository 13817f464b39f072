"""One host of ``colo demo --embedded``: first a secondary, then where the guest runs, then dead.

A process of its own.  With ``--listen`` it keeps the checkpoints of whoever connects, and takes
the guest over when that is lost; without, it begins a guest.  With ``--to`` it then protects the
guest at the next host.  It dies there: in the middle of its last checkpoint's memory it stands
still, and waits to be killed.  What happens it says on stdout, one JSON object a line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Final

from colo.demo.workload import Outlet, Workload
from colo.errors import ColoError
from colo.guest.memory import MemoryGuest
from colo.migration.ram import Limits
from colo.protocol.tables import SecondaryEvent
from colo.session.intake import Receiving
from colo.session.own_primary import Sending
from colo.status.figures import Figures
from colo.store.store import Store
from colo.transport.address import parse_address

__all__ = ["main"]

_NAME: Final = "demo"
_PAGES: Final = 4096
_RUN_S: Final = 0.01  # between two checkpoints
_ALONE_S: Final = 0.1  # before the guest is protected
_NEXT_HOST_S: Final = 10.0


def main() -> int:
    """Live as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", required=True, help="where the guest's output goes")
    parser.add_argument("--folder", type=Path, required=True, help="for the store")
    parser.add_argument("--listen", help="where checkpoints come from")
    parser.add_argument("--to", help="where checkpoints go")
    parser.add_argument("--checkpoints", type=int, default=0, help="to die in the last one")
    parser.add_argument("--fraction", type=float, default=0.0, help="and so far in its memory")
    try:
        asyncio.run(_live(parser.parse_args()))
    except ColoError as error:
        _tell("failed", text=str(error))
        return 1
    return 0


async def _live(options: argparse.Namespace) -> None:
    guest = _Guest(_PAGES)
    client = await parse_address(options.client).connect()
    client.setblocking(True)
    outlet = Outlet(client.sendall)
    if options.listen:
        await _stand_by(guest, options.listen, options.folder)
    else:
        await guest.run()
    workload = Workload(guest, outlet.say, random.getrandbits(64))
    running = asyncio.create_task(workload.run())
    _tell("running", at=time.monotonic(), line=workload.steps)
    await asyncio.sleep(_ALONE_S)
    workload.verify()
    _tell("verified", steps=workload.steps, pages=_PAGES)
    if options.to:
        await _protect(guest, outlet, options)
    await running


async def _stand_by(guest: MemoryGuest, listen: str, folder: Path) -> None:
    """Keep a primary's checkpoints until it is lost, and take its guest over."""
    loop = asyncio.get_running_loop()
    store = Store(folder, (guest.block,), Limits(2 * guest.block.length))
    gone: asyncio.Future[ColoError] = loop.create_future()
    try:
        with parse_address(listen).listen() as server:
            server.setblocking(False)
            _tell("waiting")
            sock, _ = await loop.sock_accept(server)
        receiving = Receiving(
            _NAME, store, Figures(), sock, time.monotonic, lambda: None, gone.set_result
        )
        await gone
        lost_in = receiving.state.name
        receiving.handle(SecondaryEvent.LOST)
        receiving.handle(SecondaryEvent.FAILOVER)
        await receiving.applied()
        await guest.load(store)
        await guest.run()
        receiving.handle(SecondaryEvent.RESUMED)
        assert store.checkpoint is not None
        _tell("taken over", checkpoint=store.checkpoint.number, lost_in=lost_in)
    finally:
        store.remove()


async def _protect(guest: _Guest, outlet: Outlet, options: argparse.Namespace) -> None:
    """Checkpoint the guest to the next host, and die within the last one."""
    sending = _Dying(_NAME, guest, await _next_host(options.to), release=outlet.release)
    sending.last, sending.fraction = options.checkpoints, options.fraction
    outlet.holding = True
    await sending.migrate()
    _tell("protected")
    for _ in range(options.checkpoints):
        await asyncio.sleep(_RUN_S)
        await sending.checkpoint()
        _tell("checkpoint", stopped_ms=guest.stopped_ms)


async def _next_host(address: str) -> socket.socket:
    """Connect to it; it may be about to start."""
    async with asyncio.timeout(_NEXT_HOST_S):
        while True:
            try:
                return await parse_address(address).connect()
            except OSError:
                await asyncio.sleep(_RUN_S)


class _Guest(MemoryGuest):
    """It notes how long the last checkpoint stopped it."""

    stopped_ms = 0.0
    _stopped_at = 0.0

    async def suspend(self) -> None:
        self._stopped_at = time.monotonic()
        await super().suspend()

    async def resume(self) -> None:
        await super().resume()
        self.stopped_ms = (time.monotonic() - self._stopped_at) * 1e3


class _Dying(Sending):
    """A primary that stands still for good ``fraction`` into the memory of checkpoint ``last``."""

    last = 0
    fraction = 0.0

    async def _save_ram(self) -> None:
        await super()._save_ram()
        if self.machine.number != self.last:
            return
        pages, _ = self._out
        assert not isinstance(pages, bytes)
        memory = b"".join(self._ram.pages(run) for run in pages)
        sent = int(self.fraction * len(memory))
        self._out = [memory[:sent]]
        await self._flush()
        _tell("dying", checkpoint=self.last, sent=sent, size=len(memory))
        while True:
            signal.pause()


def _tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
