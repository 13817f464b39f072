"""What an operator plans: the VM goes over to the other host, or is powered down.

A switchover is a takeover whose moment is chosen.  Right behind a checkpoint that is safe, when all
that it covers has left, the VM is stopped and the other host told to take over from it.  What the
guest did since is undone, and nobody has heard of it.  Until the other host has the grant this one
keeps its VM, stopped: where nobody takes it, it goes on here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.errors import ChannelLost, GuestError, LocalError
from colo.membership.grant import Grant
from colo.membership.words import WordKind
from colo.node.orders import Answer
from colo.node.peer import Peer
from colo.node.standing import Standing
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.qemu_primary import Checkpointing

__all__ = ["Planned"]

_CHECKPOINT_S: Final = 10.0
_TAKEN_S: Final = 3.0
_LOOK_S: Final = 0.02
_QUIT_S: Final = 10.0


class Planned:
    """Carries an operator's plan for one VM out; ``gone`` is set once the VM has ended."""

    def __init__(
        self,
        qemu: Monitor,
        session: Checkpointing,
        gate: NetGate,
        peer: Peer,
        gone: asyncio.Event,
        say: Callable[[str], None],
    ) -> None:
        self._qemu = qemu
        self._session = session
        self._gate = gate
        self._peer = peer
        self._gone = gone
        self._say = say
        self._going: asyncio.Future[Answer] | None = None

    @property
    def is_going_over(self) -> bool:
        """Whether the other host has been told to take over."""
        return self._going is not None

    async def switch_over(
        self, standing: Standing, arbiter: Arbiter, lose: Callable[[ChannelLost], None]
    ) -> Answer:
        """Have the VM go over to the other host, and say whether.  ``lose`` ends the session."""
        if standing is not Standing.PROTECTED:
            return Answer(False, f"not now: the VM is {standing.name}: {standing.value}")
        if not arbiter.automatic:
            return Answer(
                False,
                "not with the manual arbiter, as nobody would grant it to the other host: end this "
                "VM and say `colo failover` there",
            )
        if self._going is not None:
            return Answer(False, "the VM is going over already")
        try:
            async with asyncio.timeout(_CHECKPOINT_S):
                await self._session.fresh()
                await self._gate.settle()
            await self._qemu.execute("stop")
        except (TimeoutError, GuestError) as error:
            why = str(error) or f"no checkpoint in {_CHECKPOINT_S:.0f} s"
            return Answer(False, f"the VM stays here: {why}")
        self._going = asyncio.get_running_loop().create_future()
        self._peer.say(WordKind.HANDOVER)
        lose(ChannelLost("the VM goes over to the other host, by order"))
        return await self._going

    async def taken(self, arbiter: Arbiter, ours: Grant) -> None:
        """Give the other host the time to get the grant that this one had."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_S):
                while True:
                    with contextlib.suppress(LocalError):
                        if (await reach(arbiter.current)).grant != ours:
                            return
                    await asyncio.sleep(_LOOK_S)

    def concluded(self, went: bool) -> None:
        """Answer the order: whether the VM went over, or goes on here."""
        going, self._going = self._going, None
        if going is not None and not going.done():
            where = "runs on the other host" if went else "goes on here: nobody took it"
            going.set_result(Answer(went, f"the VM {where}"))

    async def power_down(self, grace_s: float) -> Answer:
        """Have the guest shut down; one that does not within ``grace_s`` is ended."""
        try:
            await self._qemu.execute("system_powerdown")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace_s)
                return Answer(True, "the guest has shut down")
            self._say(f"the guest has not shut down in {grace_s:.0f} s: its QEMU is ended")
            await self._qemu.execute("quit")
            await asyncio.wait_for(self._gone.wait(), _QUIT_S)
        except TimeoutError:
            return Answer(False, f"QEMU did not end in {_QUIT_S:.0f} s")
        except GuestError as error:
            return Answer(False, str(error))
        return Answer(True, f"the guest did not shut down in {grace_s:.0f} s, and was ended")
