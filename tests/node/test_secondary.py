"""The secondary's shell, with a QEMU that only seems to wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.config import VmConfig
from colo.failover.arbiter import make_arbiter
from colo.guest.qemu import LaunchPlan
from colo.node import secondary
from colo.node.address import Address
from colo.node.forwarding import Destination, Forwarding
from colo.node.secondary import OnLoss, SecondaryNode
from colo.node.statefolder import StateFolder

LIMIT_S = 5.0


class Waiting:
    """Stands in for WaitingQemu: it is there, and nothing happens to it."""

    def __init__(self, *_: Any) -> None:
        self.qemu = SimpleNamespace(pid=os.getpid(), qmp_socket=Path("qmp.sock"))
        self.trouble = None
        self.starts = 1

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


class Host:
    """A host with a ``colo secondary`` that listens at ``address``."""

    def __init__(self, folder: Path, forward: Destination | None) -> None:
        self.address = Address(path=str(folder / "door"))
        self.said: list[str] = []
        self.folder = StateFolder(folder / "state")
        self.node = SecondaryNode(
            VmConfig(name="web1", args=("-m", "1"), store_folder=folder),
            cast(LaunchPlan, None),
            self.address,
            self.folder,
            make_arbiter("none"),
            OnLoss.HOLD,
            self.said.append,
            forward,
        )

    def refusals(self) -> list[str]:
        return [line for line in self.said if "was refused" in line]

    def error(self) -> Any:
        """What the status file says went wrong last."""
        return json.loads(self.folder.status.read_text())["error"]

    async def visit(self, words: bytes) -> None:
        """Connect, say this, and see the door shut."""
        with await self.address.connect() as sock:
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, words)
            with contextlib.suppress(ConnectionResetError):
                while await loop.sock_recv(sock, 1024):
                    pass


@pytest.fixture(autouse=True)
def no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secondary, "WaitingQemu", Waiting)


@contextlib.asynccontextmanager
async def listening(folder: Path, forward: Destination | None = None) -> AsyncIterator[Host]:
    host = Host(folder, forward)
    running = asyncio.create_task(host.node.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            await until(lambda: host.said)
            yield host
        assert not running.done()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        host.folder.close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_a_forwarding_that_fails_does_not_end_the_protection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    async def run_and_fail(self: Forwarding) -> None:
        failed.append(self)
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(Forwarding, "run", run_and_fail)

    async def run() -> None:
        nowhere = Destination(Address(path=str(tmp_path / "nowhere")))
        async with listening(tmp_path, nowhere) as host:
            await until(lambda: failed)
            await host.visit(b"GET / HTTP/1.1")
            await until(host.refusals)

    asyncio.run(run())
