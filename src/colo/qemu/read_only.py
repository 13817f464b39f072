"""The drives that a guest only reads: nobody replicates them, so both hosts have to have the same.

They are told by their names, and compared by a digest of their files.  What is no file of this host
that we may read is not compared.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from colo.qemu.monitor import Monitor

__all__ = ["differences", "read_only_drives"]


async def read_only_drives(qemu: Monitor) -> dict[str, str]:
    """The digest of each drive's content, by the drive's name; "" where it cannot be told.

    Raises GuestError.
    """
    found = {}
    for entry in await qemu.execute("query-block"):
        inserted = entry.get("inserted")
        if inserted and inserted["ro"]:
            path = Path(inserted["image"]["filename"])
            found[_name(entry)] = await asyncio.to_thread(_digest_of, path)
    return found


def differences(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """What the primary's guest reads that is not the same here, as one line; "" where all is."""
    lines = [
        f"drive {name}, which the guest only reads, is another on this host"
        if name in ours
        else f"the primary's drive {name}, which the guest only reads, has nothing here"
        for name, digest in theirs.items()
        if name not in ours or (digest and ours[name] and digest != ours[name])
    ]
    return "; ".join(lines) + ": have the same on both hosts" if lines else ""


def _name(entry: dict[str, Any]) -> str:
    """What a drive is called on every host: as its user does, else by where its device is."""
    node = str(entry["inserted"]["node-name"])
    return str(entry["device"] or (entry.get("qdev") if node.startswith("#") else node) or node)


def _digest_of(path: Path) -> str:
    try:
        status = path.stat()
        return _digest(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _digest(path: Path, *version: int) -> str:
    """The digest of a file as it is; ``version`` changes with it.  Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
