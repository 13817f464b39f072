"""A QEMU that waits to run the VM: started early, listening, its RAM the store's images."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from colo.errors import GuestError, Misfit
from colo.migration.fitting import Machine, check_blocks, check_devices
from colo.migration.ram import RamBlock
from colo.migration.reader import Header, Migration
from colo.qemu.guest_clock import given_back, tell_since
from colo.qemu.hardware import ask_machine
from colo.qemu.identity import instance
from colo.qemu.incoming import await_stream, load_stream
from colo.qemu.process import LaunchPlan, Qemu
from colo.qemu.read_only import read_only_drives
from colo.store.export import migration_stream
from colo.store.store import Store

__all__ = ["WaitingQemu"]

_log = logging.getLogger("colo.waiting")

_READY_S: Final = 10.0
_RESUME_S: Final = 10.0
#: A waiting QEMU that dies is started again, at first at once and then ever more slowly.
_RESTART_FIRST_S: Final = 0.1
_RESTART_MOST_S: Final = 10.0
_MACHINE_SUFFIX: Final = "-machine"


class WaitingQemu:
    """Keeps one QEMU ready, whatever happens to it, until it is told to run the VM.

    ``trouble`` says why there is none just now, or is None.  ``taps``: those that are open for all
    of this VM's QEMUs.  ``is_shared``: what it writes to its memory is in the images.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        images: Mapping[str, Path],
        folder: Path,
        on_change: Callable[[], None],
        taps: Mapping[str, int] | None = None,
        is_shared: bool = True,
    ) -> None:
        self._plan = plan
        self._taps = {} if taps is None else taps
        self._is_shared = is_shared
        self._images = images
        self.folder = folder
        self._incoming = folder / "incoming.sock"
        self._on_change = on_change
        self._machine = ""
        self.read_only: dict[str, str] = {}  # what its guest would only read
        self._parts = Machine()
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._renewals = 0
        self._was_renewed = False  # the one that ends next does so for that
        self.qemu: Qemu | None = None
        self.trouble: str | None = None
        self.starts = 0

    async def start(self) -> None:
        """Start the first one and keep it.  Raises GuestError with QEMU's last words."""
        self.qemu = await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    @property
    def pid(self) -> int:
        """The process that waits, or runs the VM; 0 where there is none."""
        return self.qemu.pid if self.qemu is not None else 0

    def instance(self, host: str) -> str:
        """Its name as the holder of a grant."""
        return instance(self.pid, host)

    def check_header(self, header: Header) -> None:
        """Raise Misfit where the primary's machine is not this QEMU's."""
        if header.machine != self._machine:
            raise Misfit(
                f"the primary's machine is {header.machine}, the waiting QEMU's is "
                f"{self._machine}: name the version in -machine, the same on both sides"
            )

    def check_blocks(self, blocks: tuple[RamBlock, ...]) -> None:
        """Raise Misfit where this QEMU could not take the primary's memory."""
        check_blocks(self._parts, blocks)

    def check_devices(self, migration: Migration) -> None:
        """Raise Misfit where this QEMU could not take the state of the primary's devices."""
        check_devices(self._parts, migration)

    async def load(self, store: Store) -> None:
        """Hand the VM over: the store's image is its memory already, the rest is sent.

        Raises GuestError; then another QEMU is being made ready, and this can be called again.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), _READY_S)
        except TimeoutError:
            raise GuestError(f"no QEMU is ready to run the VM: {self.trouble}") from None
        backends = self._plan.config.backends
        mapped = {each.block.name: each.address for each in backends}
        async with self._taking() as qemu:
            assert store.checkpoint is not None
            since = store.checkpoint.since
            if since is not None:
                tell_since(qemu.pid, since.stood, since.saved)
            stream = migration_stream(store, mapped, is_shared=self._is_shared)
            await load_stream(qemu, self._incoming, stream)

    async def run(self) -> None:
        """Have the VM run, and keep no other QEMU ready any more.  Raises GuestError, as above.

        The state in the stream says whether the VM ran when its *first* migration ended.  It
        did not where it was stopped for that; so it is not left to QEMU to start it.
        """
        async with self._taking() as qemu:
            if not (await qemu.execute("query-status"))["running"]:
                await qemu.execute("cont")
        self._release()

    @contextlib.asynccontextmanager
    async def _taking(self) -> AsyncIterator[Qemu]:
        """A part of the takeover; a QEMU that fails in it is ended."""
        qemu = self.qemu
        assert qemu is not None
        try:
            async with asyncio.timeout(_RESUME_S):
                yield qemu
        except (OSError, TimeoutError, GuestError) as error:
            self._ready.clear()
            await qemu.kill()
            what = "it took too long" if isinstance(error, TimeoutError) else str(error)
            raise GuestError(f"the waiting QEMU did not take the VM: {what}") from error

    def status(self) -> dict[str, Any]:
        """What the status file has of this, and of the clock of the guest that runs in it."""
        if self.qemu is None:
            return {"qemu": None, "clock": None}
        qemu = {
            "pid": self.qemu.pid,
            "qmp": str(self.qemu.qmp_socket),
            "starts": self.starts,
            "trouble": self.trouble,
        }
        given = given_back(self.qemu.pid)
        return {"qemu": qemu, "clock": None if given is None else asdict(given)}

    @property
    def is_ready(self) -> bool:
        """Whether one waits just now."""
        return self._ready.is_set()

    def give(self) -> Qemu:
        """Give the one that waits away, to run whatever; keep no other.  One has to wait."""
        assert self.qemu is not None and self.is_ready
        self._release()
        qemu, self.qemu = self.qemu, None
        return qemu

    async def replace(self, qemu: Qemu) -> None:
        """The VM runs in another one: that is this one from now on."""
        await self.stop()
        qemu.move_to(self.folder)
        self.qemu = qemu

    def renew(self) -> None:
        """Have another QEMU wait: what it is to run on is not what this one has found.

        One that is being started has not, either, or nobody knows.
        """
        self._renewals += 1
        if self.qemu is not None and self._ready.is_set():
            self._ready.clear()
            self._was_renewed = True
            with contextlib.suppress(ProcessLookupError):  # it has just died by itself
                os.kill(self.qemu.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the waiting QEMU."""
        self._release()
        if self.qemu is not None:
            await self.qemu.kill()

    def _release(self) -> None:
        """None waits, and none is kept or renewed, any more."""
        self._ready.clear()
        self._was_renewed = False
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    async def _launch(self) -> Qemu:
        """Start one that waits, which is of now.  Raises GuestError."""
        while True:
            renewals = self._renewals
            qemu = await self._try_launch()
            if renewals == self._renewals:
                self.starts += 1
                self._ready.set()
                return qemu
            try:
                await qemu.kill()
            except asyncio.CancelledError:  # it is in nobody else's hands
                await qemu.kill()
                raise

    async def _try_launch(self) -> Qemu:
        command = self._plan.waiting(self._images, self._is_shared, self._taps)
        files = tuple(self._taps.values())
        qemu = Qemu(command, self.folder, self._plan.environment, files)
        await qemu.start()
        try:
            await await_stream(qemu, self._incoming, self._is_shared)
            machine = await qemu.execute("qom-get", path="/machine", property="type")
            drives = await read_only_drives(qemu)
            parts = await ask_machine(qemu, _log.warning)
        except BaseException:  # a takeover, or an end, which need no other one, too
            await qemu.kill()
            raise
        self.read_only, self._parts = drives, parts
        self._machine = str(machine).removesuffix(_MACHINE_SUFFIX)
        return qemu

    async def _keep(self) -> None:
        """Start QEMU again whenever it ends."""
        pause = _RESTART_FIRST_S
        while True:
            assert self.qemu is not None
            began = time.monotonic()
            how = await self.qemu.wait()
            self._ready.clear()
            if self._was_renewed:
                self._was_renewed, self.trouble = False, "the next QEMU is being started"
            else:
                self._trouble(f"no QEMU waits: {how}: {self.qemu.last_words()}")
            await self.qemu.detach()
            if time.monotonic() - began > _RESTART_MOST_S:
                pause = _RESTART_FIRST_S
            while self.trouble:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RESTART_MOST_S)
                try:
                    self.qemu = await self._launch()
                    self._trouble(None)
                except GuestError as error:
                    self._trouble(str(error))

    def _trouble(self, text: str | None) -> None:
        self.trouble = text
        if text:
            _log.error("%s", text)
        else:
            assert self.qemu is not None
            _log.info("a QEMU waits again, pid %d", self.qemu.pid)
        self._on_change()
