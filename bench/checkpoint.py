"""What a checkpoint costs beyond its bytes: both roles of colo, and a bare connection.

The guest is memory in the bench's own process, the secondary a second process.  Over two socket
pairs between these two, in turns: a checkpoint, and a plain ``sendall`` of as many bytes, which the
other end receives into a buffer of that size and answers with four bytes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.stats import median, summarise
from colo.guest.memory import MemoryGuest
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits, RamBlock
from colo.session.intake import Receiving
from colo.session.own_primary import Sending
from colo.status.figures import Figures
from colo.store.store import Store
from colo.transport.sockets import tune

__all__ = ["measure"]

#: Dirty pages, and how many pages lie from one to the next.
_CASES: Final = ((1, 1), (256, 1), (1024, 1), (1024, 2), (16384, 1), (16384, 2), (131072, 1))
_TURN_S: Final = 0.3  # about so long is a turn of either
_TURN_MIN: Final = 5
_TURN_MAX: Final = 500
_WARM_UP: Final = 3
_ANSWER: Final = b"here"
_MIB: Final = 1 << 20


def measure(rounds: int, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield one row for each number of pages."""
    for pages, stride in _CASES:
        row = _measure_case(pages, stride, rounds)
        stopped, bare = row["stopped_ms"]["median"], row["bare_ms"]["median"]
        say(f"  {pages} pages, stride {stride}: {stopped:.2f} ms, bare {bare:.2f} ms")
        yield row


def _measure_case(pages: int, stride: int, rounds: int) -> dict[str, Any]:
    size = pages * (8 + PAGE_SIZE)
    colo, theirs = socket.socketpair()
    bare, theirs_bare = socket.socketpair()
    for end in (bare, theirs_bare):  # as colo's own are
        tune(end)
        end.setblocking(True)
    block = MemoryGuest(pages * stride).block
    with tempfile.TemporaryDirectory(prefix="colo-bench-", dir="/dev/shm") as folder:
        store = Path(folder) / "store"
        arguments = (theirs, theirs_bare, store, block, size)
        secondary = multiprocessing.get_context("spawn").Process(target=_secondary, args=arguments)
        secondary.start()
        theirs.close()
        theirs_bare.close()
        try:
            with bare:
                return asyncio.run(_primary(colo, bare, pages, stride, rounds))
        finally:
            secondary.join()


# -- the primary's process ----------------------------------------------------------------


class _Guest(MemoryGuest):
    """It notes how long each checkpoint stopped it, in seconds."""

    def __init__(self, pages: int) -> None:
        super().__init__(pages)
        self.memory[:] = 1
        self.stopped: list[float] = []
        self._stopped_at = 0.0

    def mark(self, pages: int, stride: int) -> None:
        """Have pages be dirty; what writing them takes is not measured."""
        self._dirty[: pages * stride : stride] = True

    async def suspend(self) -> None:
        self._stopped_at = time.perf_counter()
        await super().suspend()

    async def resume(self) -> None:
        await super().resume()
        self.stopped.append(time.perf_counter() - self._stopped_at)


async def _primary(
    colo: socket.socket, bare: socket.socket, pages: int, stride: int, rounds: int
) -> dict[str, Any]:
    guest = _Guest(pages * stride)
    sending = Sending("bench", guest, colo)
    data = np.ones(pages * (8 + PAGE_SIZE), np.uint8)
    try:
        await sending.migrate()
        for _ in range(_WARM_UP):
            _send_bare(bare, data)
            await _checkpoint(sending, guest, pages, stride)
        turn = int(_TURN_S / _send_bare(bare, data))
        count = min(max(turn, _TURN_MIN), _TURN_MAX)
        taken: list[_Turn] = []
        for number in range(rounds):
            taken.append(await _turn(sending, guest, bare, data, pages, stride, count, number % 2))
    finally:
        sending.close()
    return _row(pages, stride, taken)


_Turn = dict[str, list[float]]


async def _turn(
    sending: Sending,
    guest: _Guest,
    bare: socket.socket,
    data: np.ndarray[Any, Any],
    pages: int,
    stride: int,
    count: int,
    first: int,
) -> _Turn:
    """So many of each, in ms: ``first`` says which begins."""
    found: _Turn = {}
    for which in (first, 1 - first):
        if which:
            found["bare"] = [_send_bare(bare, data) * 1e3 for _ in range(count)]
        else:
            guest.stopped.clear()
            found["cycle"] = [
                await _checkpoint(sending, guest, pages, stride) * 1e3 for _ in range(count)
            ]
            found["stopped"] = [each * 1e3 for each in guest.stopped]
    return found


async def _checkpoint(sending: Sending, guest: _Guest, pages: int, stride: int) -> float:
    """Seconds of a whole cycle: also until the one before is applied."""
    began = time.perf_counter()
    guest.mark(pages, stride)
    await sending.checkpoint()
    return time.perf_counter() - began


def _send_bare(bare: socket.socket, data: np.ndarray[Any, Any]) -> float:
    began = time.perf_counter()
    bare.sendall(data.data)
    answer = bare.recv(len(_ANSWER), socket.MSG_WAITALL)
    assert answer == _ANSWER
    return time.perf_counter() - began


def _row(pages: int, stride: int, taken: list[_Turn]) -> dict[str, Any]:
    series = {
        f"{name}_ms": asdict(summarise([each for turn in taken for each in turn[name]]))
        for name in ("stopped", "cycle", "bare")
    }
    ratios = {
        f"{name}_ratios": [round(median(turn[name]) / median(turn["bare"]), 3) for turn in taken]
        for name in ("stopped", "cycle")
    }
    mib = round(pages * PAGE_SIZE / _MIB, 1)
    return {"pages": pages, "stride": stride, "mib": mib, **series, **ratios}


# -- the secondary's process --------------------------------------------------------------


def _secondary(
    colo: socket.socket, bare: socket.socket, folder: Path, block: RamBlock, size: int
) -> None:
    store = Store(folder, (block,), Limits(block.length, device_bytes=1 << 16))
    with bare:
        asyncio.run(_serve(colo, bare, store, size))
    store.remove()


async def _serve(colo: socket.socket, bare: socket.socket, store: Store, size: int) -> None:
    """Receive checkpoints and bare bytes, until the primary is gone."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    receiving = Receiving(
        "bench", store, Figures(), colo, time.monotonic, lambda: None, lambda error: gone.set()
    )
    room = memoryview(bytearray(size))

    def receive() -> None:
        got = 0
        while got < size:
            count = bare.recv_into(room[got:])
            if not count:
                loop.remove_reader(bare)
                return
            got += count
        bare.sendall(_ANSWER)

    loop.add_reader(bare, receive)
    await gone.wait()
    await receiving.applied()
