"""A scene's VM: what goes into its VM file, and a QEMU that runs it, steered as colo steers it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from colo.config import VmConfig
from colo.demo.guest_image import KERNEL_WORDS, build
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.guest_clock import GivenBack, given_back
from colo.qemu.process import Qemu, plan
from tests.e2e.basics import ACCEL, POLL_S, ROOT, WAIT_S, Console
from tests.e2e.booted import booted

__all__ = ["KERNEL", "USUAL", "PrimaryVm", "VmFile"]

KERNEL: Final = f"{KERNEL_WORDS} colo.mode=table colo.tick=1"

T = TypeVar("T")


@dataclass(frozen=True)
class VmFile:
    """What goes into a scene's VM file; ``guest`` without a kernel ends in its firmware."""

    machine: str = "pc"
    memory_mib: int = 128
    guest: bool = True
    kernel_words: str = ""
    args: tuple[str, ...] = ()
    silence_s: float = 10.0
    store_folder: str = "/dev/shm"
    binary: str | None = None
    accel: str = ACCEL

    def write(self, path: Path, name: str, binary: str, primary: Console, other: Console) -> None:
        """Write it as TOML; JSON's texts and lists are TOML's."""
        args = ["-machine", self.machine, "-cpu", "qemu64", "-m", str(self.memory_mib)]
        args += ["-display", "none", "-nodefaults", "-no-reboot", *self.args]
        if self.guest:
            image = build(ROOT / "build" / "guest", lambda line: None)
            args += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append"]
            args += [f"{KERNEL} {self.kernel_words}".rstrip()]
        path.write_text(
            f"name = {json.dumps(name)}\n"
            f'[qemu]\nbinary = {json.dumps(self.binary or binary)}\naccel = "{self.accel}"\n'
            f"args = {json.dumps(args)}\n"
            f"[qemu.primary]\nargs = {json.dumps(primary.args)}\n"
            f"[qemu.secondary]\nargs = {json.dumps(other.args)}\n"
            f"[store]\nfolder = {json.dumps(self.store_folder)}\n"
            f"[failover]\nsilence_s = {self.silence_s}\n"
        )


#: What most scenarios play with.
USUAL: Final = VmFile()


class PrimaryVm:
    """A QEMU that runs the VM, steered as colo steers it, from a loop in a thread of its own."""

    def __init__(self, config: VmConfig, folder: Path, console: Console) -> None:
        self.console = console
        self._folder = folder
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._qemu: Qemu | None = None
        self._colo: ColoPrimary | None = None

    @property
    def qmp_socket(self) -> Path:
        """A QMP socket of its QEMU, for others."""
        return self._folder / "qmp.sock"

    def start(self) -> None:
        """Start QEMU and with it the VM, whose guest has booted."""
        self._folder.mkdir()
        self._do(self._start())

    def protect(self, uri: str, delay_ms: int = 100) -> None:
        """Start COLO to the secondary at ``uri``."""
        assert self._qemu is not None
        self._colo = ColoPrimary(self._qemu)
        self._do(self._colo.start(uri, delay_ms))

    def protect_by_hand(self, uri: str, *capabilities: str) -> None:
        """Start COLO as an operator without ``colo primary`` might, with these capabilities too."""
        assert self._qemu is not None
        self._colo = ColoPrimary(self._qemu)
        self._do(self._colo.check())
        needed = ["x-colo", *(["return-path"] if self._colo.return_path else [])]
        self.set_capabilities(*needed, *capabilities)
        self.execute("migrate-set-parameters", x_checkpoint_delay=100)
        self.execute("stop")  # see docs/operating.md, «Without KVM»
        self.execute("migrate", uri=uri)

    def begin_to_protect(self, uri: str) -> None:
        """Start COLO and do not wait until it is on."""
        assert self._qemu is not None
        self._colo = ColoPrimary(self._qemu)
        future = asyncio.run_coroutine_threadsafe(self._colo.start(uri, 100), self._loop)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def ended(self) -> str:
        """Wait until QEMU has left COLO, and return why."""
        assert self._colo is not None
        return self._do(self._colo.ended())

    def run_alone(self) -> None:
        """Have the VM run without a secondary."""
        assert self._colo is not None
        self._do(self._colo.run_alone())

    def given_back(self) -> GivenBack | None:
        """What the library that keeps the guest's clock says; None without it."""
        assert self._qemu is not None
        return given_back(self._qemu.pid)

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command."""
        assert self._qemu is not None
        return self._do(self._qemu.execute(command, **arguments))

    def set_capabilities(self, *names: str) -> None:
        """Switch migration capabilities on."""
        self.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in names],
        )

    def is_running(self) -> bool:
        """Whether the VM runs."""
        return bool(self.execute("query-status")["running"])

    def signal(self, number: int) -> None:
        """Send a signal to QEMU."""
        assert self._qemu is not None
        os.kill(self._qemu.pid, number)

    def kill(self) -> None:
        """End QEMU as a host's loss ends it, and wait for that."""
        if self._qemu is not None:
            self._do(self._qemu.kill())

    def close(self) -> None:
        """End all of it."""
        try:
            self.kill()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(WAIT_S)
            self._loop.close()

    async def _start(self) -> None:
        launch = plan(self._config)
        if "-kernel" not in self._config.qemu.args:
            self._qemu = Qemu(launch.primary(), self._folder, launch.environment)
            await self._qemu.start()
            return
        file = await asyncio.to_thread(booted, launch)
        command = [*launch.primary(), "-incoming", "defer"]
        self._qemu = Qemu(command, self._folder, launch.environment)
        await self._qemu.start()
        await self._qemu.execute("migrate-incoming", uri=f"exec:cat '{file}'")
        while (await self._qemu.execute("query-migrate")).get("status") != "completed":
            await asyncio.sleep(POLL_S)
        await self._qemu.execute("cont")

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)
