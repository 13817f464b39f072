"""A stream sent to a QEMU that waits for one, and whether it has taken it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.errors import GuestError
from colo.migration.format import IGNORE_SHARED
from colo.qemu.process import Qemu

__all__ = ["await_stream", "load_stream"]

_LAST_WORDS_S: Final = 1.0


async def await_stream(qemu: Qemu, at: Path, is_shared: bool) -> None:
    """Have QEMU wait for a stream at a socket.  ``is_shared``: its memory.  Raises GuestError."""
    at.unlink(missing_ok=True)
    wanted = (IGNORE_SHARED, "events") if is_shared else ("events",)
    await qemu.execute(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": True} for name in wanted],
    )
    await qemu.execute("migrate-incoming", uri=f"unix:{at}")
    with contextlib.suppress(OSError):  # the folder keeps others out too
        at.chmod(0o600)


async def load_stream(qemu: Qemu, at: Path, stream: Iterable[bytes]) -> None:
    """Send it there, and see it loaded.  Raises GuestError with QEMU's last words."""
    progress = EventListener("MIGRATION")
    qemu.listen(progress)
    loaded = asyncio.ensure_future(_completed(progress))
    death = asyncio.ensure_future(qemu.wait())
    try:
        with contextlib.suppress(ConnectionError):  # it has refused: its last words say why
            await _send(at, stream)
        await asyncio.wait({loaded, death}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loaded.cancel()
        death.cancel()
    if qemu.exited or not loaded.result():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(qemu.wait(), _LAST_WORDS_S)
        raise GuestError("it refused the state", qemu.last_words())


async def _send(at: Path, stream: Iterable[bytes]) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(at))
        for piece in stream:
            await loop.sock_sendall(sock, piece)


async def _completed(progress: EventListener) -> bool:
    """Follow a migration's events to its end; return whether it was a good one."""
    async for event in progress:
        status = cast(dict[str, Any], event["data"])["status"]
        if status in ("completed", "failed"):
            return bool(status == "completed")
    return False
