"""``colo demo``: a VM is protected, killed in the middle of a checkpoint, and goes on.

Everything is real: a Linux guest, a stock QEMU as the primary, ``colo secondary`` as its own
process.  Whatever the story claims is checked, and the demo fails where it was not so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast

from qemu.qmp import EventListener, QMPClient
from rich.console import Console
from rich.table import Table

from colo.config import VmConfig, load
from colo.demo.guest_image import GuestImage, build
from colo.errors import ColoError
from colo.guest.outgoing import ColoPrimary
from colo.guest.preload import cache_folder
from colo.guest.qemu import Qemu, plan

__all__ = ["DemoError", "tell"]

_MEMORY_MIB: Final = 256
_INTERVAL_MS: Final = 400
_CHECKPOINTS: Final = 15
_BOOT_S: Final = 60.0
_STEP_S: Final = 30.0
_POLL_S: Final = 0.02
_MID_CHECKPOINT: Final = ("REPLIED", "RECEIVING_RAM", "AWAITING_SIZE", "RECEIVING_DEVICES")
_APPEND: Final = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests "
    "colo.mode=table colo.pace=1000"
)
_COUNT: Final = re.compile(r"colo-guest: count=(\d+) .*\n")
_READY: Final = re.compile(r"colo-guest: ready mode=table records=(\d+) mib=(\d+)")
_VERIFIED: Final = re.compile(r"colo-guest: verified records=(\d+) ledger=(\d+)")


class DemoError(ColoError):
    """The story did not come true."""


class _Narrator:
    """Tells it line by line, with the time since the beginning."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._began = time.monotonic()

    def say(self, who: str, text: str) -> None:
        seconds = time.monotonic() - self._began
        self.console.print(f"[dim]{seconds:5.1f} s[/dim]  [bold]{who:<7}[/bold] {text}")

    def step(self, text: str) -> None:
        self.say("", f"[dim]{text}[/dim]")


async def tell() -> int:
    """Tell the story; return 0.  Raises ColoError where something was not as it should be."""
    narrator = _Narrator()
    narrator.console.print(
        "\n[bold]A virtual machine survives the death of its host.[/bold]\n"
        "Host A and host B are two sets of processes on this machine.\n"
    )
    image = build(cache_folder() / "guest", narrator.step)
    with tempfile.TemporaryDirectory(prefix="colo-demo-") as name:
        folder = Path(name)
        narrator.say("", "looking which accelerator works here")
        config = await _write_vm_file(folder, image)
        async with _secondary(folder) as host_b, _primary(folder, config) as primary:
            await _Story(narrator, folder, config, primary, host_b).run()
    return 0


class _Story:
    def __init__(
        self, narrator: _Narrator, folder: Path, config: VmConfig, primary: Qemu, host_b: Path
    ) -> None:
        self._say = narrator.say
        self._console = narrator.console
        self._folder = folder
        self._config = config
        self._primary = primary
        self._host_b = host_b
        self._console_a = folder / "a.console"
        self._console_b = folder / "b.console"

    async def run(self) -> None:
        """The story from beginning to end."""
        accelerator = self._config.accel.upper()
        self._say("host B", f"colo secondary is ready: QEMU waits to take over ({accelerator})")
        self._say("host A", f"QEMU boots the VM: Linux, {_MEMORY_MIB} MiB")
        ready = await self._until("the guest to boot", self._booted, _BOOT_S)
        self._say(
            "guest",
            f"{int(ready[1]):,} checksummed records in {ready[2]} MiB, 20,000 rewritten a second",
        )
        await self._protect()
        await self._watch_checkpoints()
        killed_at = await self._kill_within_checkpoint()
        status = await self._until("host B to take over", self._taken_over, _STEP_S)
        await self._check(status, killed_at)

    async def _protect(self) -> None:
        began = time.monotonic()
        await ColoPrimary(self._primary).start(f"unix:{self._folder / 'b.sock'}", _INTERVAL_MS)
        await self._until("the first copy", self._checkpoint_reached(0), _STEP_S)
        took = time.monotonic() - began
        self._say("host A", f"copied to host B in {took:.1f} s: [green]PROTECTED[/green]")

    async def _watch_checkpoints(self) -> None:
        for number in range(5, _CHECKPOINTS + 1, 5):
            status = await self._until("checkpoints", self._checkpoint_reached(number), _STEP_S)
            stopped = status["phases_ms"]["stopped"]["median"]
            self._say(
                "guest",
                f"count={_counts(self._console_a)[-1]}, checkpoint {status['checkpoint']}: "
                f"{status['pages']['median']:,.0f} pages, VM stopped {stopped:.1f} ms",
            )

    async def _kill_within_checkpoint(self) -> float:
        """SIGKILL the primary's QEMU right after its VM was stopped for a checkpoint."""
        stops = EventListener("STOP")
        with self._primary.qmp.listen(stops):
            await asyncio.wait_for(stops.get(), _STEP_S)
            os.kill(self._primary.pid, signal.SIGKILL)
        killed_at = time.time()
        self._say("host A", "[red]SIGKILL, in the middle of a checkpoint[/red]")
        return killed_at

    async def _check(self, status: dict[str, Any], killed_at: float) -> None:
        takeover = status["takeover"]
        if status["lost_in"] not in _MID_CHECKPOINT:
            raise DemoError(f"the kill was not within a checkpoint but in {status['lost_in']}")
        dark_ms = (status["takeover"]["running_at"] - killed_at) * 1e3
        self._say(
            "host B",
            f"drops the half checkpoint; from checkpoint {takeover['checkpoint']}: "
            f"[green]RUNNING[/green], {dark_ms:.0f} ms after the kill",
        )
        verified = await self._verify()
        await self._until("the guest to count on", lambda: len(_counts(self._console_b)) > 5, 10)
        before, after = _counts(self._console_a), _counts(self._console_b)
        self._console.print(_two_consoles(before, after))
        _unbroken(before, after)
        if "CORRUPT" in _text(self._console_b):
            raise DemoError("the guest found its memory corrupt")
        self._say(
            "guest",
            f"verified itself: {int(verified[1]):,} records, {int(verified[2]):,} updates, "
            "[green]not one wrong[/green]",
        )
        self._console.print(_figures(status, dark_ms))

    async def _verify(self) -> re.Match[str]:
        """Have the guest check all of its memory now."""
        _, writer = await asyncio.open_unix_connection(self._folder / "b.serial")
        writer.write(b"verify\n")
        await writer.drain()
        writer.close()
        verified = await self._until(
            "the guest to verify its memory",
            lambda: _VERIFIED.search(_text(self._console_b)),
            _STEP_S,
        )
        return cast(re.Match[str], verified)

    def _booted(self) -> re.Match[str] | None:
        text = _text(self._console_a)
        return _READY.search(text) if _COUNT.search(text) else None

    def _checkpoint_reached(self, number: int) -> Callable[[], dict[str, Any] | None]:
        def look() -> dict[str, Any] | None:
            status = _status(self._host_b)
            reached = status.get("checkpoint")
            return status if reached is not None and reached >= number else None

        return look

    def _taken_over(self) -> dict[str, Any] | None:
        status = _status(self._host_b)
        return status if "takeover" in status else None

    async def _until(self, what: str, look: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                raise DemoError(
                    f"waited {seconds:.0f} s for {what}; host A's QEMU: "
                    f"{self._primary.last_words() or 'silent'}; host B: "
                    f"{_text(self._folder / 'b.log').strip().splitlines()[-1:]}"
                )
            await asyncio.sleep(_POLL_S)
        return found


async def _write_vm_file(folder: Path, image: GuestImage) -> VmConfig:
    """Write the VM file, with the accelerator that works here."""
    args = ["-machine", "pc", "-cpu", "qemu64", "-m", str(_MEMORY_MIB), "-nodefaults"]
    args += ["-display", "none", "-no-reboot", "-kernel", str(image.kernel)]
    args += ["-initrd", str(image.initrd), "-append", _APPEND]
    file = folder / "vm.toml"

    def write(accelerator: str) -> VmConfig:
        serial = [
            json.dumps(
                [
                    "-chardev",
                    f"socket,id=s0,path={folder}/{host}.serial,server=on,wait=off,"
                    f"logfile={folder}/{host}.console",
                    "-serial",
                    "chardev:s0",
                ]
            )
            for host in ("a", "b")
        ]
        file.write_text(
            f'name = "demo"\n[qemu]\naccel = "{accelerator}"\nargs = {json.dumps(args)}\n'
            f"[qemu.primary]\nargs = {serial[0]}\n[qemu.secondary]\nargs = {serial[1]}\n"
        )
        return load(file)

    chosen = await asyncio.to_thread(plan, write("auto"))
    return write(chosen.accelerator)


@contextlib.asynccontextmanager
async def _secondary(folder: Path) -> AsyncIterator[Path]:
    """``colo secondary`` as its own process; yields its state folder."""
    state = folder / "b"
    command = [sys.executable, "-m", "colo", "secondary", str(folder / "vm.toml")]
    command += ["--listen", f"unix:{folder / 'b.sock'}", "--state-dir", str(state)]
    with open(folder / "b.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while "LISTENING" not in json.dumps(_status(state)):
            if process.poll() is not None:
                raise DemoError(f"host B: {_text(folder / 'b.log').strip()}")
            await asyncio.sleep(_POLL_S)
        yield state
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        await _quit(state / "qmp.sock")


@contextlib.asynccontextmanager
async def _primary(folder: Path, config: VmConfig) -> AsyncIterator[Qemu]:
    """The VM on host A."""
    state = folder / "a"
    state.mkdir()
    launch = plan(config)
    qemu = Qemu(launch.primary(), state, launch.environment)
    await qemu.start()
    try:
        yield qemu
    finally:
        await qemu.kill()


async def _quit(qmp: Path) -> None:
    """End a QEMU that was left running, if it is there."""
    with contextlib.suppress(Exception):
        client = QMPClient()
        await client.connect(str(qmp))
        await client.execute("quit")
        await client.disconnect()


def _status(state: Path) -> dict[str, Any]:
    try:
        content = json.loads((state / "status.json").read_text())
    except FileNotFoundError:
        return {}
    assert isinstance(content, dict)
    return content


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _counts(console: Path) -> list[int]:
    """The numbers on a console, in order, of whole lines only."""
    return [int(number) for number in _COUNT.findall(_text(console))]


def _unbroken(before: list[int], after: list[int]) -> None:
    """Raise DemoError unless the two consoles together count by one with nothing missing.

    The numbers said after the last checkpoint are said again: a console is not held back.
    """
    for counts in (before, after):
        if any(b - a != 1 for a, b in pairwise(counts)):
            raise DemoError(f"a console does not count by one: {counts[-20:]}")
    if not before[0] <= after[0] <= before[-1] + 1:
        raise DemoError(f"host A counted to {before[-1]}, host B went on with {after[0]}")


def _two_consoles(before: list[int], after: list[int]) -> Table:
    table = Table(box=None, padding=(0, 4), title="what the guest says", title_style="dim")
    table.add_column("console on host A")
    table.add_column("console on host B")
    for count in range(max(after[0] - 2, before[-1] - 8), before[-1] + 3):
        left = f"count={count}" if count in before else ""
        if count == before[-1]:
            left += "  [red]✗ killed[/red]"
        table.add_row(left, f"[green]count={count}[/green]" if count in after else "")
    return table


def _figures(status: dict[str, Any], dark_ms: float) -> Table:
    stopped = status["phases_ms"]["stopped"]
    table = Table(box=None, padding=(0, 2), show_header=False)
    for name, value in (
        ("checkpoints", f"{status['takeover']['checkpoint']}"),
        (
            "VM stopped per checkpoint",
            f"median {stopped['median']:.1f} ms, p99 {stopped['p99']:.1f}, "
            f"max {stopped['max']:.1f}",
        ),
        ("pages per checkpoint", f"median {status['pages']['median']:,.0f}"),
        ("from kill to running", f"{dark_ms:.0f} ms"),
        ("memory on host B", f"{status['store_bytes'] >> 20} MiB for a {_MEMORY_MIB} MiB guest"),
    ):
        table.add_row(f"[bold]{name}[/bold]", value)
    return table
