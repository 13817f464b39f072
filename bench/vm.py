"""The VM that is measured, and the processes around it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from bench.errors import BenchError
from bench.qmp import Monitor
from colo.config import load
from colo.demo.guest_image import KERNEL_WORDS, GuestImage, build
from colo.qemu.process import LaunchPlan, plan

__all__ = [
    "ROOT",
    "Process",
    "Vm",
    "colo_command",
    "colo_primary",
    "colo_secondary",
    "free_address",
    "guest_image",
    "primary",
    "progress",
    "protect",
    "qemu",
    "read_status",
    "set_capabilities",
    "stock_secondary",
    "wait_until",
]

ROOT: Final = Path(__file__).resolve().parent.parent
_BOOT_S: Final = 120.0
_ENTER_S: Final = 120.0
_POLL_S: Final = 0.05
_RETURN_PATH_MAJOR: Final = 11
_BANDWIDTH: Final = 1 << 40

T = TypeVar("T")


@cache
def guest_image() -> GuestImage:
    """The guest's kernel and initramfs, built where they are not there yet."""
    return build(ROOT / "build" / "guest", lambda line: print(line, file=sys.stderr))


@dataclass(frozen=True)
class Vm:
    """``mode``: what the guest does, see ``colo.mode`` in src/colo/demo/guest/workload.c.

    ``interval_ms`` lies between two checkpoints that ``colo primary`` has made.  ``words``: more
    for the guest's kernel.  ``checkpoints``: more lines of the VM file's table of that name.
    ``arbiter``: with one, a file, as where both hosts are colo's.
    """

    binary: str
    memory_mib: int
    mode: str
    interval_ms: int = 1000
    words: str = ""
    checkpoints: str = ""
    name: str = "bench"
    arbiter: bool = False

    def plan(self, folder: Path) -> LaunchPlan:
        """How to start it, with a VM file and the consoles in ``folder``."""
        return plan(load(self.file(folder)))

    def file(self, folder: Path) -> Path:
        """Write the VM file."""
        image = guest_image()
        args = ["-machine", "pc", "-cpu", "qemu64", "-m", f"{self.memory_mib}"]
        args += ["-display", "none", "-nodefaults"]
        args += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        args += ["-append", f"{KERNEL_WORDS} colo.mode={self.mode} {self.words}".strip()]
        text = f'name = "{self.name}"\n[qemu]\nbinary = {json.dumps(self.binary)}\naccel = "tcg"\n'
        text += f"args = {json.dumps(args)}\n"
        for role in ("primary", "secondary"):
            serial = json.dumps(["-serial", f"file:{folder / role}.console"])
            text += f"[qemu.{role}]\nargs = {serial}\n"
        text += f"[checkpoints]\nage_max_ms = {self.interval_ms}\n{self.checkpoints}\n"
        if self.arbiter:
            text += f'[failover]\narbiter = "file:{folder}/grant"\n'
        path = folder / "vm.toml"
        path.write_text(text)
        return path


class Process:
    """A process of the bench; ``name`` stands in errors and is its log's name.

    It is started where the bench is, which ``python -m bench.…`` needs.
    """

    def __init__(
        self, name: str, command: list[str], folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=ROOT,
            )

    def check(self) -> None:
        """Raise BenchError if it has ended."""
        code = self.popen.poll()
        if code is not None:
            words = self._log.read_text(errors="replace").strip()[-500:]
            raise BenchError(f"{self.name} ended with code {code}: {words}")

    def kill(self) -> None:
        """End it at once."""
        self.popen.kill()
        self.popen.wait()

    def terminate(self, seconds: float = 10.0) -> None:
        """Ask it to end; twice, as a secondary that has the only copy of its VM asks back."""
        for limit in (1.0, seconds):
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(limit)
                return
        self.kill()


def wait_until(what: str, ready: Callable[[], T | None], seconds: float, *alive: Process) -> T:
    """Poll ``ready`` until it returns something; all the while ``alive`` have to be."""
    deadline = time.monotonic() + seconds
    while (result := ready()) is None:
        for process in alive:
            process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{what} took more than {seconds:.0f} s")
        time.sleep(_POLL_S)
    return result


def colo_command(name: str) -> list[str]:
    """One of colo's commands, as a user runs it."""
    return [str(Path(sys.executable).with_name("colo")), name]


@contextlib.contextmanager
def primary(vm: Vm, folder: Path) -> Iterator[tuple[Process, Monitor]]:
    """Run the VM on a stock QEMU until its workload is under way."""
    launch = vm.plan(folder)
    command = [*launch.primary(), "-qmp", f"unix:{folder / 'colo.qmp'},server=on,wait=off"]
    with qemu("primary", command, folder, launch.environment) as (process, monitor):
        wait_until("the guest's start", lambda: progress(folder) or None, _BOOT_S, process)
        yield process, monitor


@contextlib.contextmanager
def stock_secondary(
    vm: Vm, address: str, folder: Path, also: Sequence[str] = ()
) -> Iterator[Process]:
    """A stock QEMU that waits for a COLO primary at ``address``; it needs no preload.

    ``also``: capabilities that both need.
    """
    command = [
        f"file:{folder / 'secondary.console'}" if part.startswith("file:") else part
        for part in vm.plan(folder).primary()
    ]
    command += ["-incoming", "defer"]
    with qemu("stock-secondary", command, folder) as (process, monitor):
        set_capabilities(monitor, also)
        monitor.execute("migrate-incoming", uri=address)
        yield process


@contextlib.contextmanager
def colo_secondary(vm: Vm, address: str, folder: Path, on_loss: str = "hold") -> Iterator[Process]:
    """``colo secondary``, as a user runs it, with the state folder ``folder``/state."""
    state = folder / "state"
    command = [*colo_command("secondary"), str(vm.file(folder))]
    command += ["--listen", address, "--state-dir", str(state), "--on-loss", on_loss]
    process = Process("colo-secondary", command, folder)
    try:
        wait_until("colo's start", lambda: read_status(folder, "qemu"), _BOOT_S, process)
        yield process
    finally:
        process.terminate()


@contextlib.contextmanager
def colo_primary(vm: Vm, address: str, folder: Path, *options: str) -> Iterator[Process]:
    """``colo primary`` attached to the primary, with the state folder ``folder``/primary.

    With the option ``--stock`` it is before a stock secondary at ``address``.
    """
    state = folder / "primary"
    command = [*colo_command("primary"), str(vm.file(folder))]
    command += ["--qmp", f"unix:{folder / 'colo.qmp'}", "--to", address, *options]
    process = Process("colo-primary", [*command, "--state-dir", str(state)], folder)
    try:
        wait_until(
            "protection",
            lambda: read_status(folder, "state", "primary") == "PROTECTED" or None,
            _ENTER_S,
            process,
        )
        yield process
    finally:
        process.terminate()


def protect(
    process: Process, monitor: Monitor, address: str, interval_ms: int, also: Sequence[str] = ()
) -> None:
    """Start COLO from this primary to ``address`` and wait until it is on."""
    set_capabilities(monitor, also)
    monitor.execute(
        "migrate-set-parameters", x_checkpoint_delay=interval_ms, max_bandwidth=_BANDWIDTH
    )
    # 7.2 under TCG may miss pages in the first migration of a running VM; COLO starts it again
    monitor.execute("stop")
    monitor.execute("migrate", uri=address)
    wait_until("the first migration", lambda: _entered(monitor), _ENTER_S, process)


def progress(folder: Path) -> int:
    """How often the primary's guest has done its work, by its own count on the console."""
    with contextlib.suppress(OSError):
        counts = re.findall(rb"count=(\d+)", (folder / "primary.console").read_bytes())
        return int(counts[-1]) if counts else 0
    return 0


def free_address(transport: str, folder: Path) -> str:
    """An address to listen on, by transport: unix or tcp, the latter on the loopback."""
    if transport == "unix":
        return f"unix:{folder / 'colo.sock'}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"tcp:127.0.0.1:{server.getsockname()[1]}"


def read_status(folder: Path, key: str, state: str = "state") -> Any:
    """A value from the status file in a state folder, or None as long as there is none."""
    try:
        return json.loads((folder / state / "status.json").read_text()).get(key)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def qemu(
    name: str, command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[tuple[Process, Monitor]]:
    """Run a QEMU, and have its monitor."""
    qmp = folder / f"{name}.qmp"
    command = [*command, "-qmp", f"unix:{qmp},server=on,wait=off"]
    process = Process(name, command, folder, environment)
    try:
        monitor = Monitor(qmp)
        try:
            yield process, monitor
        finally:
            monitor.close()
    finally:
        process.kill()


def set_capabilities(monitor: Monitor, also: Sequence[str] = ()) -> None:
    """Switch on what a QEMU of this version needs for COLO, and these."""
    names = ["x-colo", *also]
    if monitor.execute("query-version")["qemu"]["major"] >= _RETURN_PATH_MAJOR:
        names.append("return-path")
    monitor.execute(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": True} for name in names],
    )


def _entered(monitor: Monitor) -> bool | None:
    status = monitor.execute("query-migrate").get("status")
    if status in ("failed", "cancelled", "completed"):
        raise BenchError(f"COLO did not start, the migration {status}")
    return True if status == "colo" else None
