"""The primary's shell, as far as it goes without a QEMU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from colo.arbiters.manual import ManualArbiter
from colo.config import VmConfig
from colo.errors import ColoError
from colo.inspection.source import load_source
from colo.node.orders import fetch_checkpoint, serve_orders
from colo.node.protecting import PrimaryNode
from colo.node.state_folder import StateFolder
from colo.qemu.monitor import Monitor
from colo.transport.address import Address


class NoQemu(Monitor):
    """Nobody is asked anything here."""


def test_whoever_asks_the_primary_for_a_checkpoint_is_told_where_it_is(tmp_path: Path) -> None:
    def ask() -> None:
        with pytest.raises(ColoError) as caught:
            list(fetch_checkpoint(tmp_path))
        assert str(caught.value) == (
            f"{tmp_path} is the primary's state folder; "
            "the checkpoint is on the secondary's host (tcp:b:9000): ask there"
        )
        (tmp_path / "status.json").write_text("{}")
        with pytest.raises(ColoError, match=r"is the primary's state folder"):
            load_source(tmp_path, fetch_checkpoint)

    async def run() -> None:
        folder = StateFolder(tmp_path)
        node = PrimaryNode(
            VmConfig(name="web1"),
            NoQemu(),
            Address(host="b", port=9000),
            folder,
            ManualArbiter(),
            lambda line: None,
        )
        async with await serve_orders(folder.control, node._obey):
            await asyncio.get_running_loop().run_in_executor(None, ask)
        folder.close()

    asyncio.run(run())
