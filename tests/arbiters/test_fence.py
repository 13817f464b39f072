"""A fence says that the other host is off, or the takeover waits."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from colo.arbiters import fence as module
from colo.arbiters.fence import Fence
from colo.errors import LocalError
from tests.arbiters.processes import HANGING, pid_in, until_gone


def script(folder: Path, text: str) -> Fence:
    path = folder / "fence"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Fence((str(path), "first"), "web1")


def test_it_is_told_the_vm_and_the_host(tmp_path: Path) -> None:
    fence = script(tmp_path, f'printf "%s," "$@" >{tmp_path}/args')
    asyncio.run(fence.off("a"))
    assert (tmp_path / "args").read_text() == "first,web1,a,"
    asyncio.run(fence.off(""))
    assert (tmp_path / "args").read_text() == "first,web1,,"


def test_any_exit_but_0_is_not_sure_and_its_last_word_is_shown(tmp_path: Path) -> None:
    fence = script(tmp_path, "echo trying >&2; echo no such outlet >&2; exit 4")
    with pytest.raises(LocalError, match=r"the fence .*: exit 4: no such outlet$"):
        asyncio.run(fence.off("a"))


def test_one_that_says_much_and_leaves_somebody_behind_is_done_when_it_exits(
    tmp_path: Path,
) -> None:
    text = "head -c 300000 /dev/zero >&2; echo >&2; echo last >&2; exit 1"
    with pytest.raises(LocalError, match=r"exit 1: last$"):
        asyncio.run(script(tmp_path, f"sleep 1000 & echo $! >{tmp_path}/pid; {text}").off("a"))
    os.kill(pid_in(tmp_path / "pid"), signal.SIGKILL)


def test_one_that_is_not_there_is_not_sure() -> None:
    with pytest.raises(LocalError, match="the fence /none: No such file"):
        asyncio.run(Fence(("/none",), "web1").off("a"))


def test_one_that_hangs_is_killed_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LIMIT_S", 2.0)
    with pytest.raises(LocalError, match="no answer in"):
        asyncio.run(script(tmp_path, HANGING.format(tmp_path / "pid")).off("a"))
    until_gone(pid_in(tmp_path / "pid"))


def test_one_that_is_not_waited_for_any_more_is_killed(tmp_path: Path) -> None:
    async def run() -> None:
        fence = script(tmp_path, HANGING.format(tmp_path / "pid"))
        asking = asyncio.create_task(fence.off("a"))
        while not (tmp_path / "pid").exists():
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(run())
    until_gone(pid_in(tmp_path / "pid"))
