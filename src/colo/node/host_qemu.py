"""The QEMU that has the VM on this host: found running, or started, by colo or by somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from colo.config import VmConfig
from colo.errors import DiskError
from colo.membership.grant import Record
from colo.membership.roles import host_of, runs_by_right
from colo.node.first_start import Start
from colo.node.left_here import qemu_left
from colo.node.replicas import run_on, runs_on
from colo.node.state_folder import StateFolder
from colo.qemu.identity import instance, living
from colo.qemu.killing import kill
from colo.qemu.monitor import Monitor
from colo.qemu.process import LaunchPlan, Qemu
from colo.qemu.running import NotRunning, Running

__all__ = ["HostQemu"]


class HostQemu:
    """At most one ``qemu``, and whose it is.  ``adopted``: the one that somebody else starts, which
    is never started here.  ``spawn`` keeps a task that ends one."""

    def __init__(
        self,
        config: VmConfig,
        host: str,
        plan: LaunchPlan,
        folder: StateFolder,
        adopted: Running | None,
        say: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._config, self._host, self._plan, self._folder = config, host, plan, folder
        self.adopted = adopted
        self._say, self._spawn = say, spawn
        self.qemu: Monitor | None = None
        self.is_adopted = False  # the one that is here now
        self._started: Qemu | None = None  # by prepare, and nothing runs in it yet
        self._ending: asyncio.Task[None] | None = None

    @property
    def holder(self) -> str:
        """Its name as the holder of a grant; "" where there is none."""
        return "" if self.qemu is None else instance(self.qemu.pid, self._host)

    async def settled(self) -> None:
        """Wait for the end of one that is being ended."""
        if self._ending is not None:
            await self._ending

    # -- one that runs --------------------------------------------------------------------

    async def find(self, record: Record) -> bool:
        """Whether one runs the VM on this host; one that is of no use is ended.

        One that somebody else has begun anew is let go of: it is adopted once it has a grant, like
        one that is started.  Raises LibvirtError and SilentQemu where nobody can say so.
        """
        self.is_adopted, self._started = False, None
        self.qemu = await self._find(record)
        if self.is_adopted and not self.has_right(record) and self._is_anew(record):
            await self.let_go()
        return self.qemu is not None

    async def _find(self, record: Record) -> Monitor | None:
        if self.adopted is not None:
            try:
                qemu = await self.adopted.attach(self._say)
            except NotRunning:
                pass
            else:
                self.is_adopted = True
                return qemu
        return await qemu_left(self._folder, partial(self._has_right, record), self._say)

    def has_right(self, record: Record) -> bool:
        """Whether there is one, and the VM is its to run."""
        return self.qemu is not None and self._has_right(record, self.qemu.pid)

    def _has_right(self, record: Record, pid: int) -> bool:
        holder = instance(pid, self._host)
        return runs_by_right(record, holder, self._folder.overridden, self._folder.granted)

    def _is_anew(self, record: Record) -> bool:
        """Whether the VM ran on this host last, and has ended: who runs it here has begun anew."""
        is_ours = host_of(record.left_by) == self._host
        return is_ours and living(record.left_by, self._host) is None

    def took(self, qemu: Monitor | None) -> None:
        """The VM was taken over, and runs in that one; None: it runs nowhere here."""
        self.qemu, self._started = qemu, None

    # -- one that is to run the VM --------------------------------------------------------

    async def prepare(self) -> None:
        """Have one in which nothing runs yet, or the one that somebody else starts, which runs.

        Raises DiskError; NotRunning and LibvirtError, where it is not there yet; GuestError.
        """
        if self.adopted is not None:
            self.qemu = await self._attach(self.adopted)
            return
        self._folder.clean_start()
        await asyncio.to_thread(run_on, self._config, self._folder.path)
        qemu = Qemu(self._plan.unstarted(), self._folder.path, self._plan.environment)
        await qemu.start()
        self.qemu = self._started = qemu

    async def _attach(self, adopted: Running) -> Monitor:
        try:
            qemu = await adopted.attach(self._say)
        except NotRunning:
            self.is_adopted = False
            await asyncio.to_thread(run_on, self._config, self._folder.path)
            raise
        self.is_adopted = True
        try:
            runs_on(self._config, self._folder.path)
        except DiskError:
            await qemu.detach()
            raise
        return qemu

    def take_start(self) -> Start | None:
        """How the VM is to be started in the one that was prepared; None where it runs, or has."""
        started, self._started = self._started, None
        return None if started is None else Start(started)

    # -- the end --------------------------------------------------------------------------

    async def let_go(self) -> None:
        """Have none: one that was prepared here is ended, any other goes on by itself."""
        qemu, self.qemu = self.qemu, None
        started, self._started = self._started, None
        if started is not None:
            await started.kill()
        elif qemu is not None:
            await qemu.detach()

    def end(self) -> None:
        """End one whose VM is not ours to run, or has ended.

        One that was adopted may be past then: whatever runs here from now on is of our own.
        """
        if self.is_adopted and self.adopted is not None and not self.adopted.comes_back:
            self.adopted = None
        qemu, self.qemu = self.qemu, None
        if qemu is not None:
            self._ending = self._spawn(_end(qemu))


async def _end(qemu: Monitor) -> None:
    """End it, whoever started it.  Raises GuestError where it stays."""
    if isinstance(qemu, Qemu):
        await qemu.kill()
        return
    pid, gone = qemu.pid, qemu.exited
    await qemu.detach()
    if not gone:
        await asyncio.to_thread(kill, pid)
