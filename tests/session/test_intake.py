"""A secondary's session over a connection: what its table asks for is performed, or is an error."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from colo.errors import ColoError, LocalProtocolError
from colo.migration.ram import RamBlock
from colo.protocol.tables import Do
from colo.session.intake import Receiving
from colo.status.figures import Figures
from tests.node.pair import make_store


def test_what_no_shell_performs_is_an_error_and_not_forgotten(tmp_path: Path) -> None:
    """A table that asks for more than this secondary does would hang."""

    async def run() -> None:
        store = make_store(tmp_path / "store", RamBlock("memory", 1 << 20))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        lost: list[ColoError] = []
        with theirs:
            receiving = Receiving(
                "vm", store, Figures(), ours, time.monotonic, lambda: None, lost.append
            )
            receiving._session.requests.append(Do.SAVE_RAM)
            with pytest.raises(
                LocalProtocolError, match="a secondary without a VM cannot send the dirty pages"
            ):
                receiving._carry_out()
            receiving.close()
        store.remove()

    asyncio.run(run())
