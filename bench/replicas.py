"""A disk's replica without a guest: how fast it merges, and what a second copy puts on the wire."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

from bench.stats import median
from colo.disks.blockfile import RealFile
from colo.disks.replica import Replica
from colo.disks.standing import Limits
from colo.errors import ColoError
from colo.session.disk_feed import DiskFeed
from colo.session.disk_intake import DiskIntake

__all__ = ["measure"]

_MIB: Final = 1 << 20
_JOURNAL_MIB: Final = 256
_MERGED_MIB: Final = 64
_WRITE_BYTES: Final = (4096, 65536, _MIB)
_PAGE: Final = 4096


def measure(rounds: int, gib: int, say: Callable[[str], None]) -> dict[str, Any]:
    """``merge``: seconds, by the size of writes, beside dd's; ``resync`` of ``gib`` GiB."""
    with tempfile.TemporaryDirectory(prefix="colo-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        merge = []
        for size in _WRITE_BYTES:
            pairs = [(_merged_s(folder, size, seed), _dd_s(folder)) for seed in range(rounds)]
            merge.append(
                {
                    "write_bytes": size,
                    "merge_s": median([ours for ours, _ in pairs]),
                    "dd_s": median([dd for _, dd in pairs]),
                    "ratio": median([ours / dd for ours, dd in pairs]),
                }
            )
            say(f"  merged, {size} bytes a write: {merge[-1]['ratio']:.2f} of dd")
        resync = asyncio.run(_resync(folder, gib << 30))
        say(f"  resync: {resync['sent_bytes']} bytes in {resync['seconds']:.1f} s")
    return {"merge": merge, "resync": resync}


def _file(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, mib << 20)
        os.fsync(file.fileno())
    return path


def _merged_s(folder: Path, size: int, seed: int) -> float:
    """How long it takes to merge an epoch of writes of that size, anywhere."""
    random, mib = Random(seed), 4 * _MERGED_MIB
    base = RealFile(_file(folder / "base", mib), "vda")
    journal = RealFile(_file(folder / "journal", _JOURNAL_MIB), "vda")
    replica = Replica.create("vda", base, journal, uuid4(), Limits(2 * _MERGED_MIB * _MIB))
    replica.end_copy(0)
    for _ in range(_MERGED_MIB * _MIB // size):
        replica.write(random.randrange(mib * _MIB // size) * size, random.randbytes(size))
    replica.cut()
    replica.commit(1)
    began = time.monotonic()
    replica.merge()
    took = time.monotonic() - began
    replica.close()
    return took


def _dd_s(folder: Path) -> float:
    """How long dd takes to write as much, in order, until it is durable."""
    target = _file(folder / "dd", _MERGED_MIB)
    command = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={_MERGED_MIB}"]
    began = time.monotonic()
    subprocess.run([*command, "conv=notrunc,fdatasync", "status=none"], check=True)
    return time.monotonic() - began


async def _resync(folder: Path, size: int) -> dict[str, Any]:
    """Copy a disk of which one block of 4 KiB in a hundred differs, in runs of 16."""
    random, ours, theirs = Random(1), folder / "ours", folder / "theirs"
    with ours.open("wb") as one, theirs.open("wb") as two:
        for _ in range(0, size, _MIB):
            data = bytearray(random.randbytes(_MIB))
            two.write(data)
            if random.random() < 0.16:
                data[: 16 * _PAGE] = random.randbytes(16 * _PAGE)
            one.write(data)
    lost: list[ColoError] = []
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.setblocking(False)
    journal = RealFile(_file(folder / "journal", _JOURNAL_MIB), "vda")
    replica = Replica.create("vda", RealFile(theirs, "vda"), journal, uuid4())
    intake = DiskIntake(right, [replica], lambda: None, lost.append)
    feed = DiskFeed(left, (True,), lambda: None, lost.append)
    began = time.monotonic()
    with ours.open("rb") as file:
        for offset in range(0, size, _MIB):
            await feed.write(0, offset, file.read(_MIB))
    feed.in_step()
    await feed.is_ready()
    took = time.monotonic() - began
    feed.close()
    intake.close()
    await intake.settled()
    same = subprocess.run(["cmp", str(ours), str(theirs)], check=False).returncode == 0
    replica.close()
    assert same and not lost, lost
    return {"disk_bytes": size, "sent_bytes": feed.bytes_sent, "seconds": took}
