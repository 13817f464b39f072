"""A QEMU that is being started to wait: whatever happens meanwhile, none is left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.errors import GuestError
from colo.qemu import standby
from colo.qemu.process import LaunchPlan
from colo.qemu.standby import WaitingQemu

STEPS = ("await_stream", "execute", "read_only_drives", "ask_machine")


class Qemu:
    """Starts at once, and hangs or fails at one of the steps after that."""

    made: list[Qemu]
    step = ""
    fails = False

    def __init__(self, *_: object) -> None:
        self.is_killed = False
        self.hangs, self.goes_on = asyncio.Event(), asyncio.Event()
        self.pid = 0
        Qemu.made.append(self)

    async def start(self) -> None:
        pass

    async def wait(self) -> str:
        await asyncio.Event().wait()
        return "never"

    async def kill(self) -> None:
        self.is_killed = True

    async def reached(self, step: str) -> None:
        if step == Qemu.step:
            if Qemu.fails:
                raise GuestError("it has died")
            self.hangs.set()
            await self.goes_on.wait()

    async def execute(self, command: str, **arguments: Any) -> Any:
        await self.reached("execute")
        return {"running": True} if command == "query-status" else "pc-machine"


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WaitingQemu:
    def step(name: str, answer: object) -> None:
        async def perform(qemu: Qemu, *_: object) -> object:
            await qemu.reached(name)
            return answer

        monkeypatch.setattr(standby, name, perform)

    Qemu.made = []
    monkeypatch.setattr(standby, "Qemu", Qemu)
    step("await_stream", None)
    step("read_only_drives", {})
    step("ask_machine", None)
    plan = SimpleNamespace(waiting=lambda *_: [], environment={})
    return WaitingQemu(cast(LaunchPlan, plan), {}, tmp_path, lambda: None)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fails", [True, False])
def test_a_start_that_fails_or_is_given_up_leaves_none(
    waiting: WaitingQemu, step: str, fails: bool
) -> None:
    async def play() -> None:
        Qemu.step, Qemu.fails = step, fails
        start = asyncio.create_task(waiting.start())
        if fails:
            with pytest.raises(GuestError, match="it has died"):
                await start
        else:
            while not Qemu.made:
                await asyncio.sleep(0)
            await Qemu.made[0].hangs.wait()
            start.cancel()
            await asyncio.wait({start})
            assert start.cancelled()
        assert [each.is_killed for each in Qemu.made] == [True]

    asyncio.run(play())


@pytest.mark.parametrize("step", STEPS)
def test_one_that_is_renewed_while_it_is_started_is_another(
    waiting: WaitingQemu, step: str
) -> None:
    """It may have looked at what has changed by then, or not."""

    async def play() -> None:
        Qemu.step, Qemu.fails = step, False
        start = asyncio.create_task(waiting.start())
        while not Qemu.made:
            await asyncio.sleep(0)
        first = Qemu.made[0]
        await first.hangs.wait()
        waiting.renew()
        Qemu.step = ""
        first.goes_on.set()
        await start
        assert [each.is_killed for each in Qemu.made] == [True, False]
        assert waiting.is_ready and waiting.qemu is cast(Any, Qemu.made[1])
        await waiting.stop()

    asyncio.run(play())


def test_one_that_runs_the_vm_is_not_renewed(
    waiting: WaitingQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, number: killed.append(pid))

    async def play() -> None:
        Qemu.step = ""
        await waiting.start()
        await waiting.run()
        waiting.renew()

    asyncio.run(play())
    assert killed == []
