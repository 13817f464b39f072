"""``colo run``: the primary of a VM whose QEMU was started for it, and stands still.

A VM that runs is heard.  So it runs from the moment on at which it may, and not before: the
grant is claimed, nothing stands in the way, and the secondary has been asked.  A secondary that
runs the VM, or holds a checkpoint of one that was lost, refuses whoever comes; then this VM may
not start, whatever the arbiter says.  A secondary that is out of reach says nothing: then the
grant decides, and where the arbiter is an operator, the operator does, by ``--claim``.

Until then the QEMU is ours alone: it ends with whatever ends ``run``.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import ChannelLost, Refused, UsageError
from colo.guest.qemu import Qemu
from colo.node.link import call
from colo.node.primary import PrimaryNode

__all__ = ["StartingNode"]

_ASK_S: Final = 3.0


class StartingNode(PrimaryNode):
    """A primary that starts its VM, once that may be; the rest is as with any other."""

    def __init__(self, config: VmConfig, qemu: Qemu, *args: Any, **options: Any) -> None:
        super().__init__(config, qemu, *args, **options)
        self._own = qemu
        self._started = False
        self._running: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Ask to end: cancels ``run`` where the VM has not started, and its protection later."""
        if self._started:
            super().stop()
        elif self._running is not None:
            self._running.cancel()

    async def run(self) -> int:
        """Start the VM, and protect it until it ends.  Returns the exit code; raises ColoError.

        Where it raises before the VM has started, no QEMU is left.
        """
        self._running = asyncio.current_task()
        try:
            return await super().run()
        except BaseException:
            await self._end_unstarted()
            raise

    async def _prepare(self) -> None:
        try:
            await super()._prepare()
            self._write_status()
            if not self._stock:
                await self._ask_secondary()
            await self._qemu.execute("cont")
            self._started = True
        except BaseException:
            await self._end_unstarted()
            raise

    async def _ask_secondary(self) -> None:
        """Say hello to the secondary, and no more.  Raises UsageError where the VM may not start.

        PeerError where it can never be protected there.
        """
        try:
            sock, _ = await call(self._to, self._hello(), _ASK_S)
            sock.close()
        except Refused as error:
            raise UsageError(f"{error}; the VM is not started here") from error
        except ChannelLost as error:
            if not self._arbiter.automatic and not self._claim:
                raise UsageError(
                    f"{self._to} is out of reach, so nobody can say whether the VM runs there "
                    f"({error}); if it certainly does not, say --claim"
                ) from error

    async def _end_unstarted(self) -> None:
        """End the QEMU of a VM that has not started, and give its grant back."""
        if not self._started:
            await self._own.kill()
            await self._give_back()

    async def _give_back(self) -> None:
        """Also where the VM has not started, unless the grant was claimed from another holder.

        That one may well be alive, and nobody may start this VM as if it were not.
        """
        if self._started or not self._claim:
            await super()._give_back()
