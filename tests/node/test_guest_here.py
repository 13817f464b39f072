"""The end of a guest: what its QEMU said last counts, also where its process ended before."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from colo.config import VmConfig
from colo.membership.states import Event
from colo.node.guest_here import GuestHere
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.monitor import Monitor


class DeadQemu(Monitor):
    """Its process has ended; what it had said is read only when it is heard out."""

    def __init__(self, last: str | None) -> None:
        super().__init__()
        self.last = last
        self.guest: GuestHere | None = None

    async def wait(self) -> str:
        return "it ended"

    async def heard_out(self, limit_s: float) -> None:
        assert self.guest is not None
        self.guest.shutdown = self.last


@pytest.mark.parametrize(
    ("last", "told"), [("guest-shutdown", Event.SHUT_DOWN), (None, Event.DIED)]
)
def test_what_a_dead_qemu_said_last_decides_how_it_ended(last: str | None, told: Event) -> None:
    heard = list[Event]()

    async def scene() -> None:
        qemu = DeadQemu(last)
        qemu.guest = GuestHere(VmConfig("web1"), qemu, cast(ColoPrimary, None))
        await asyncio.wait_for(qemu.guest.see_death(heard.append), 10)

    asyncio.run(scene())
    assert heard == [told]
