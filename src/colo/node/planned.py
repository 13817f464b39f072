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
from typing import Any, Final

from colo.errors import GuestError, QemuRefusal
from colo.membership.states import Event, State
from colo.node.orders import Answer
from colo.node.performer import Outcome
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.qemu_primary import Checkpointing

__all__ = ["Planned"]

_CHECKPOINT_S: Final = 10.0
_QUIT_S: Final = 10.0


class Planned:
    """Carries an operator's plan for one VM out; ``gone`` is set once the VM has ended."""

    def __init__(
        self,
        qemu: Monitor,
        session: Checkpointing,
        gate: NetGate,
        gone: asyncio.Event,
        say: Callable[[str], None],
    ) -> None:
        self._qemu = qemu
        self._session = session
        self._gate = gate
        self._gone = gone
        self._say = say
        self._going: asyncio.Future[Answer] | None = None
        self._rests = False

    @property
    def is_going_over(self) -> bool:
        """Whether the other host is told to take over, or soon will be."""
        return self._going is not None

    async def switch_over(
        self, state: State, automatic: bool, tell: Callable[[Event], Any]
    ) -> Answer:
        """Have the VM go over to the other host, and say whether."""
        if self._going is not None:
            return Answer(False, "the VM is going over already")
        if state is not State.PROTECTED:
            return Answer(False, f"not now: the VM is {state.name}: {state.value}")
        if not automatic:
            return Answer(
                False,
                "not with the manual arbiter, as nobody would grant it to the other host: end this "
                "VM and say `colo failover` there",
            )
        going: asyncio.Future[Answer]
        going = self._going = asyncio.get_running_loop().create_future()
        tell(Event.SWITCHOVER)
        return await going

    async def rest(self) -> Outcome:
        """Stop the VM right behind a checkpoint that is safe, when all that it covers has left."""
        self._rests = True
        try:
            async with asyncio.timeout(_CHECKPOINT_S):
                await self._session.fresh()
                await self._gate.settle()
            await self._qemu.execute("stop")
        except (TimeoutError, GuestError) as error:
            why = str(error) or f"no checkpoint in {_CHECKPOINT_S:.0f} s"
            self._conclude(Answer(False, f"the VM stays here: {why}"))
            return Event.NOT_AT_REST, {}
        finally:
            self._rests = False
        return Event.AT_REST, {}

    def concluded(self, went: bool) -> None:
        """Answer the order, if one waits: whether the VM went over, or goes on here."""
        if not self._rests:
            where = "runs on the other host" if went else "goes on here: nobody took it"
            self._conclude(Answer(went, f"the VM {where}"))

    def _conclude(self, answer: Answer) -> None:
        going, self._going = self._going, None
        if going is not None and not going.done():
            going.set_result(answer)

    async def _quit(self) -> None:
        """Have QEMU end.  Raises QemuRefusal; where it ends before it answers, it has done so."""
        try:
            await self._qemu.execute("quit")
        except QemuRefusal:
            raise
        except GuestError:
            pass  # whether it has ended is seen by its end

    async def power_down(self, grace_s: float) -> Answer:
        """Have the guest shut down; one that does not within ``grace_s`` is ended."""
        try:
            await self._qemu.execute("system_powerdown")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace_s)
                return Answer(True, "the guest has shut down")
            self._say(f"the guest has not shut down in {grace_s:.0f} s: its QEMU is ended")
            await self._quit()
            await asyncio.wait_for(self._gone.wait(), _QUIT_S)
        except TimeoutError:
            return Answer(False, f"QEMU did not end in {_QUIT_S:.0f} s")
        except GuestError as error:
            return Answer(False, str(error))
        return Answer(True, f"the guest did not shut down in {grace_s:.0f} s, and was ended")
