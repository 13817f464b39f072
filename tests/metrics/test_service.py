"""A colo that tells its figures: at which address, and that it does no more than that."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.arbiters.manual import ManualArbiter
from colo.cli import main
from colo.config import VmConfig
from colo.config.vm import Metrics
from colo.errors import UsageError
from colo.metrics.service import measured
from colo.node.state_folder import StateFolder
from tests.metrics.statuses import PRIMARY


def run(
    listen: str | None,
    tmp_path: Path,
    work: Callable[[StateFolder], Coroutine[Any, Any, int]],
    arbiter: Arbiter | None = None,
) -> int:
    config = VmConfig("web1", metrics=Metrics(listen))
    folder = StateFolder(tmp_path / "state")
    try:
        return asyncio.run(measured(config, arbiter or ManualArbiter(), work)(folder))
    finally:
        folder.close()


def file_arbiter(path: Path) -> Arbiter:
    return Arbiter(FileRegister(path))


def test_nothing_is_told_where_nobody_wants_it(tmp_path: Path) -> None:
    async def work(folder: StateFolder) -> int:
        return 7

    assert measured(VmConfig("web1"), ManualArbiter(), work) is work
    assert run(None, tmp_path, work) == 7


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_figures_are_told_while_it_runs(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = f"127.0.0.1:{free.getsockname()[1]}"
    listen = f"unix:{path}" if kind == "unix" else at
    arbiter = file_arbiter(tmp_path / "grant")

    async def work(folder: StateFolder) -> int:
        folder.write_status({**PRIMARY, "checkpoint": 1734})
        transport = httpx.AsyncHTTPTransport(uds=str(path)) if kind == "unix" else None
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{at}") as client:
            await asyncio.sleep(0.1)
            first = await client.get("/metrics")
            assert first.headers["content-type"].startswith("text/plain; version=")
            assert 'colo_checkpoint_number{vm="web1"} 1734.0\n' in first.text
            assert 'colo_arbiter_up{vm="web1"} 0.0\n' in first.text, "it was never begun with"
            assert "\nprocess_cpu_seconds_total " in first.text
            folder.write_status({**PRIMARY, "checkpoint": 1735})
            again = await client.get("/metrics")
            assert again.text == first.text, "however many ask, it is told so often at most"
            await asyncio.sleep(0.25)
            accept = {"accept": "application/openmetrics-text;version=1.0.0"}
            second = await client.get("/metrics", headers=accept)
            assert second.text.endswith("# EOF\n")
            assert 'colo_checkpoint_number{vm="web1"} 1735.0\n' in second.text
            third = await client.get("/metrics")
            assert 'colo_checkpoint_number{vm="web1"} 1735.0\n' in third.text
            found = [
                (await client.get("/")).status_code,
                (await client.get("/x")).status_code,
                (await client.post("/metrics")).status_code,
            ]
            assert found == [200, 404, 405]
        return 3

    assert run(listen, tmp_path, work, arbiter) == 3
    assert not path.exists()
    assert not (tmp_path / "grant").exists(), "asking changes nothing"


@pytest.mark.parametrize("listen", ["", "9633", "tcp:", "unix:", "h:x", "h:70000", "h\0:1"])
def test_an_address_that_is_none_is_told_before_all_else(listen: str, tmp_path: Path) -> None:
    async def work(_: StateFolder) -> int:
        raise AssertionError("it was begun")

    with pytest.raises(UsageError, match=r"^\[metrics\] listen"):
        run(listen, tmp_path, work)


def test_an_address_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        file = tmp_path / "vm.toml"
        file.write_text(
            f'name = "web1"\n[failover]\narbiter = "manual"\n[metrics]\nlisten = "{at}"\n'
        )
        command = ["primary", str(file), "--qmp", f"unix:{tmp_path}/q", "--to", "tcp:127.0.0.1:1"]
        result = CliRunner().invoke(main, [*command, "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 1, "a service manager tries again"
    (line,) = result.output.splitlines()
    assert line.startswith(f"colo: [metrics] listen: cannot listen on tcp:{at}: Address already in")
