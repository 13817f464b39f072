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

from colo.arbiters.manual import NoArbiter
from colo.config import VmConfig
from colo.config.vm import QemuArgs, StoreRoom
from colo.membership.member import OnLoss
from colo.membership.words import Hello
from colo.node import keeping
from colo.node.keeping import SecondaryNode
from colo.node.state_folder import StateFolder
from colo.qemu.process import LaunchPlan
from colo.session.chain import Destination, Forwarding
from colo.transport.address import Address
from colo.transport.control_link import call
from tests.node.fakes import FitsAnything

LIMIT_S = 5.0
HTTP = b"GET / HTTP/1.1"
MULTIFD = b"\x11\x22\x33\x44"


class Waiting(FitsAnything):
    """Stands in for WaitingQemu: it is there, and nothing happens to it."""

    def __init__(self, *_: Any) -> None:
        self.qemu = SimpleNamespace(pid=os.getpid(), qmp_socket=Path("qmp.sock"))
        self.trouble = None

    async def start(self) -> None:
        pass

    def renew(self) -> None:
        pass

    read_only: dict[str, str] = {}  # noqa: RUF012

    async def stop(self) -> None:
        pass

    def status(self) -> dict[str, Any]:
        return {"qemu": None, "clock": None}


class Host:
    """A host with a ``colo secondary`` that listens at ``address``."""

    def __init__(self, folder: Path, forward: Destination | None) -> None:
        self.address = Address(path=str(folder / "door"))
        self.said: list[str] = []
        self.folder = StateFolder(folder / "state")
        self.config = VmConfig(
            "web1", qemu=QemuArgs(args=("-m", "1")), store=StoreRoom(folder=folder)
        )
        self.node = SecondaryNode(
            self.config,
            cast(LaunchPlan, None),
            self.address,
            self.folder,
            NoArbiter(),
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
    monkeypatch.setattr(keeping, "WaitingQemu", Waiting)


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
        host.node.stop()
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
            await host.visit(HTTP)
            await until(host.refusals)

    asyncio.run(run())


def test_who_is_refused_again_and_again_is_told_of_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with listening(tmp_path) as host:
            for _ in range(3):
                await host.visit(HTTP)
            for _ in range(3):
                await host.visit(MULTIFD)
            await host.visit(HTTP)
            first, second = host.refusals()
            assert first.endswith("neither a QEMU migration nor a colo, it begins with 'GET '")
            assert "multifd" in second
            assert first.endswith(host.error()), "the status has the last one"

    asyncio.run(run())


def test_it_is_told_of_anew_once_somebody_was_taken_in(tmp_path: Path) -> None:
    async def run() -> None:
        async with listening(tmp_path) as host:
            await host.visit(HTTP)
            with await host.address.connect() as primary:
                await asyncio.get_running_loop().sock_sendall(primary, b"QEVM")
                await until(lambda: "a primary has connected" in host.said[-1])
                await host.visit(HTTP)
                assert len(host.refusals()) == 2

    asyncio.run(run())


def test_it_is_told_of_anew_once_a_control_link_was_taken_in(tmp_path: Path) -> None:
    async def run() -> None:
        async with listening(tmp_path) as host:
            await host.visit(HTTP)
            sock, _ = await call(host.address, Hello.ours(host.config), LIMIT_S)
            with sock:
                await host.visit(HTTP)
            assert len(host.refusals()) == 2

    asyncio.run(run())
