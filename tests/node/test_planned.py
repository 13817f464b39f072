"""What an operator plans for a VM, and what stands in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from colo.errors import GuestError, QemuRefusal
from colo.membership.states import Event, State
from colo.node import planned
from colo.node.orders import Answer
from colo.node.planned import Planned
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.qemu_primary import Checkpointing


class Scene:
    """A VM on host a; ``did`` is all that is done to it and said of it, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.said: list[str] = []
        self.refuses = ""
        self.hangs = self.dies = False
        self.gone = asyncio.Event()
        me: Any = self
        self.planned = Planned(
            cast(Monitor, me),
            cast(Checkpointing, me),
            cast(NetGate, me),
            self.gone,
            self.said.append,
        )

    async def execute(self, command: str) -> None:
        self.did.append(command)
        if command == self.refuses:
            raise QemuRefusal(f"QEMU refuses {command}")
        if command == "quit":
            self.gone.set()
            if self.dies:
                raise GuestError("QEMU died at quit")

    async def fresh(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        self.did.append("checkpoint")

    async def settle(self) -> None:
        self.did.append("what it covers has left")

    def tell(self, event: Event) -> None:
        """The machine asks for the rest."""
        assert event is Event.SWITCHOVER
        self.resting = asyncio.ensure_future(self.planned.rest())

    async def order(self, state: State = State.PROTECTED) -> Answer:
        return await self.planned.switch_over(state, True, self.tell)


def play(scene: Callable[[Scene], Awaitable[object]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(scene(Scene()), 10)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_the_vm_goes_over_right_behind_a_checkpoint_whose_output_has_left() -> None:
    async def scene(s: Scene) -> None:
        order = asyncio.ensure_future(s.order())
        await until(lambda: s.planned.is_going_over)
        await until(lambda: "stop" in s.did)
        assert await s.resting == (Event.AT_REST, {})
        assert s.did == ["checkpoint", "what it covers has left", "stop"]
        s.planned.concluded(went=True)
        assert await order == Answer(True, "the VM runs on the other host")
        assert not s.planned.is_going_over

    play(scene)


def test_where_nobody_takes_it_that_is_the_answer() -> None:
    async def scene(s: Scene) -> None:
        order = asyncio.ensure_future(s.order())
        await until(lambda: "stop" in s.did)
        await s.resting
        s.planned.concluded(went=False)
        assert await order == Answer(False, "the VM goes on here: nobody took it")

    play(scene)


@pytest.mark.parametrize("state", [each for each in State if each is not State.PROTECTED])
def test_only_a_protected_vm_goes_over(state: State) -> None:
    async def scene(s: Scene) -> None:
        answer = await s.order(state)
        assert not answer.ok and answer.text.startswith(f"not now: the VM is {state.name}: ")
        assert s.did == []

    play(scene)


def test_a_vm_that_is_not_checkpointed_or_not_stopped_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planned, "_CHECKPOINT_S", 0.01)

    async def hangs(s: Scene) -> None:
        s.hangs = True
        assert await s.order() == Answer(False, "the VM stays here: no checkpoint in 0 s")
        assert s.did == []

    async def refuses(s: Scene) -> None:
        s.refuses = "stop"
        assert await s.order() == Answer(False, "the VM stays here: QEMU refuses stop")
        assert await s.resting == (Event.NOT_AT_REST, {})

    play(hangs)
    play(refuses)


def test_a_guest_that_shuts_down_is_waited_for() -> None:
    async def scene(s: Scene) -> None:
        order = asyncio.ensure_future(s.planned.power_down(60))
        await until(lambda: s.did)
        s.gone.set()
        assert await order == Answer(True, "the guest has shut down")
        assert s.did == ["system_powerdown"]

    play(scene)


@pytest.mark.parametrize("dies", [False, True])
def test_one_that_does_not_is_ended(dies: bool) -> None:
    """Also where QEMU was quicker to end than to answer."""

    async def scene(s: Scene) -> None:
        s.dies = dies
        answer = await s.planned.power_down(0.01)
        assert answer.ok and "was ended" in answer.text
        assert s.did == ["system_powerdown", "quit"]

    play(scene)
