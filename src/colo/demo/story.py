"""``colo demo``: a host dies in the middle of a checkpoint; its VM and a client go on.

Everything is real: a Linux guest on a stock QEMU, ``colo run`` and ``colo secondary`` as their own
processes on two hosts that are network namespaces, and a client on a third that holds one TCP
connection to the guest.  Whatever the story claims is checked, and the demo fails where it
was not so.
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
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from qemu.qmp import EventListener, QMPClient

from colo.config import load
from colo.demo.guest_image import KERNEL_WORDS, GuestImage, build
from colo.demo.lab import LAN_PREFIX, REPLICATION_ADDRESS, Lab, Place
from colo.demo.telling import DemoError, Event, begin, side_by_side
from colo.qemu.preload import cache_folder
from colo.qemu.process import plan

__all__ = ["tell"]

_MEMORY_MIB: Final = 256
_CHECKPOINTS: Final = 60
_GUEST_ADDRESS: Final = "10.77.0.5"
_PORT: Final = 9000
_LINE_MS: Final = 50
_BOOT_S: Final = 60.0
_STEP_S: Final = 30.0
_POLL_S: Final = 0.02
_END_S: Final = 5.0
_LINES_AFTER: Final = 20
_MID_CHECKPOINT: Final = ("REPLIED", "RECEIVING_RAM", "AWAITING_SIZE", "RECEIVING_DEVICES")
_APPEND: Final = (
    f"{KERNEL_WORDS} "
    f"colo.mode=table colo.pace=1000 colo.ip={_GUEST_ADDRESS}/{LAN_PREFIX} colo.line-ms={_LINE_MS}"
)
_COUNT: Final = re.compile(r"colo-guest: count=(\d+) .*\n")
_READY: Final = re.compile(r"colo-guest: ready mode=table records=(\d+) mib=(\d+)")
_VERIFIED: Final = re.compile(r"colo-guest: verified records=(\d+) ledger=(\d+)")

T = TypeVar("T")


async def tell() -> int:
    """Tell the story; return 0.  Raises ColoError where something was not as it should be."""
    console, say = begin(
        "A virtual machine survives the death of its host.",
        "Host A, host B and a client are network namespaces on this machine.",
    )
    image = build(cache_folder() / "guest", lambda text: say("", f"[dim]{text}[/dim]"))
    with tempfile.TemporaryDirectory(prefix="colo-demo-") as name, Lab() as lab:
        say("", "[dim]trying which accelerator works here[/dim]")
        files = _Files(Path(name))
        accelerator = await _write_vm_file(files, image)
        say("", f"[dim]the VM runs under {accelerator.upper()}[/dim]")
        with contextlib.ExitStack() as stack:
            story = _Story(say, files, _Cast(lab, files, stack))
            await story.run()
            console.print()
            for line in story.side_by_side():
                console.print(line)
            console.print()
            await story.verify()
            for line in story.figures():
                console.print(line)
    return 0


class _Files:
    """The files of the story, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vm = folder / "vm.toml"
        self.a, self.b = folder / "a", folder / "b"
        self.console_a, self.console_b = folder / "a.console", folder / "b.console"
        self.serial_b = folder / "b.serial"
        self.client = folder / "client.jsonl"


class _Cast:
    """The processes of the story, each where it belongs; ``stack`` ends them."""

    def __init__(self, lab: Lab, files: _Files, stack: contextlib.ExitStack) -> None:
        self._lab = lab
        self._files = files
        self._stack = stack

    def secondary(self) -> subprocess.Popen[Any]:
        address = f"tcp:{REPLICATION_ADDRESS[Place.HOST_B]}:{_PORT}"
        return self._colo(Place.HOST_B, "b", "secondary", "--listen", address)

    def primary(self) -> subprocess.Popen[Any]:
        address = f"tcp:{REPLICATION_ADDRESS[Place.HOST_B]}:{_PORT}"
        return self._colo(Place.HOST_A, "a", "run", "--to", address)

    def client(self) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", "colo.demo.clients", "stream", _GUEST_ADDRESS]
        command += ["--log", str(self._files.client), "--json"]
        return self._start(Place.CLIENT, "client", command, stdout=subprocess.PIPE)

    def _colo(self, place: Place, state: str, verb: str, *options: str) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", "colo", verb, str(self._files.vm), *options]
        command += ["--state-dir", str(self._files.folder / state)]
        return self._start(place, state, command)

    def _start(
        self, place: Place, name: str, command: list[str], **options: Any
    ) -> subprocess.Popen[Any]:
        path = self._files.folder / f"{name}.log"
        log = self._stack.enter_context(path.open("w"))
        process = self._lab.start(place, *command, **{"stdout": log, "stderr": log, **options})
        self._stack.callback(_end, process)
        return process


class _Story:
    def __init__(self, say: Callable[[str, str], None], files: _Files, cast: _Cast) -> None:
        self._say = say
        self._files = files
        self._cast = cast
        self._killed_at = 0.0
        self._protected: dict[str, Any] = {}
        self._after: dict[str, Any] = {}

    async def run(self) -> None:
        """The story up to the point where all goes on."""
        self._cast.secondary()
        await self._until("host B", lambda: _status(self._files.b), _STEP_S)
        self._say("host B", "colo secondary: a QEMU waits to take over")
        primary = self._cast.primary()
        ready = await self._until("the guest to boot", self._booted, _BOOT_S)
        self._say(
            "host A",
            f"colo run: the guest has booted; it rewrites 20,000 of {int(ready[1]):,} checksummed "
            "records a second",
        )
        await self._until("protection", self._has_state("PROTECTED"), _STEP_S)
        self._say("host A", "[green]PROTECTED[/green]: its packets now wait for their checkpoint")
        client = self._cast.client()
        await self._until("the client", lambda: self._lines()[10:], _STEP_S)
        self._say("client", f"one TCP connection; the guest sends a line every {_LINE_MS} ms")
        reached = _status(self._files.a)["checkpoint"] + _CHECKPOINTS
        await self._until("checkpoints", lambda: self._checkpoint_reached(reached), _STEP_S)
        stopped = self._protected["phases_ms"]["stopped"]
        self._say(
            "host A",
            f"{self._protected['checkpoint']} checkpoints; the VM is stopped "
            f"{stopped['median']:.1f} ms for each (p99 {stopped['p99']:.1f})",
        )
        await self._kill_host_a(primary)
        self._after = await self._until("host B to take over", self._taken_over, _STEP_S)
        takeover = self._after["takeover"]
        self._say(
            "host B",
            f"drops the half checkpoint; from checkpoint {takeover['checkpoint']}: "
            f"[green]RUNNING[/green], {self._dark_ms():.0f} ms after the kill",
        )
        if self._after["lost_in"] not in _MID_CHECKPOINT:
            raise DemoError(f"the kill was not within a checkpoint: {self._after['lost_in']}")
        seen = len(self._lines())
        await self._until("the client", lambda: self._lines()[seen + _LINES_AFTER :], _STEP_S)
        client.send_signal(signal.SIGTERM)
        verdict = json.loads(client.communicate(timeout=_STEP_S)[0])
        if client.returncode:
            raise DemoError(f"the client's connection: {verdict}")

    async def _kill_host_a(self, primary: subprocess.Popen[Any]) -> None:
        """SIGKILL all that host A has, right after its VM was stopped for a checkpoint."""
        stops = EventListener("STOP")
        watcher = QMPClient()
        qemu = int((self._files.a / "qemu.pid").read_text())
        await watcher.connect(str(self._files.a / "qmp.sock"))
        with watcher.listen(stops):
            await asyncio.wait_for(stops.get(), _STEP_S)
            for pid in (primary.pid, qemu):  # colo has no last word
                os.kill(pid, signal.SIGKILL)
        self._killed_at = time.time()
        with contextlib.suppress(Exception):
            await watcher.disconnect()
        self._say("host A", "[red]SIGKILL to QEMU and colo, in the middle of a checkpoint[/red]")

    async def verify(self) -> None:
        """Check that the console counts on unbroken; have the guest check all of its memory."""
        _unbroken(_counts(self._files.console_a), _counts(self._files.console_b))
        # Only now: where a client leaves a console, QEMU may drop the character it is writing.
        _, writer = await asyncio.open_unix_connection(self._files.serial_b)
        writer.write(b"verify\n")
        await writer.drain()
        verified = await self._until(
            "the guest to verify its memory",
            lambda: _VERIFIED.search(_text(self._files.console_b)),
            _STEP_S,
        )
        writer.close()
        if "CORRUPT" in _text(self._files.console_b):
            raise DemoError("the guest found its memory corrupt")
        self._say(
            "guest",
            f"verified itself: {int(verified[1]):,} records, {int(verified[2]):,} updates, "
            "[green]not one wrong[/green]",
        )
        lines = self._lines()
        if [number for number, _ in lines] != list(range(len(lines))):
            raise DemoError("a line is missing or doubled")
        self._say(
            "client",
            f"{len(lines)} lines over one connection, [green]none missing, none doubled[/green]",
        )

    def side_by_side(self) -> Iterator[str]:
        """The client's view beside what happens, around the kill."""
        checkpoint = self._after["takeover"]["checkpoint"]
        events: list[Event] = [(at, f"line {number}", "") for number, at in self._lines()]
        events.append((self._killed_at, "", "[red]host A: SIGKILL[/red]"))
        running = f"[green]host B: RUNNING from checkpoint {checkpoint}[/green]"
        events.append((self._after["takeover"]["running_at"], "", running))
        yield from side_by_side(events, self._killed_at)

    def figures(self) -> Iterator[str]:
        """The figures at the end."""
        stopped = self._protected["phases_ms"]["stopped"]
        held = self._protected["network"]["n0"]["held_ms"]
        gaps = [(b - a) * 1e3 for (_, a), (_, b) in pairwise(self._lines())]
        yield ""
        for name, value in (
            ("checkpoints", str(self._protected["checkpoint"])),
            ("VM stopped for each", _three(stopped)),
            ("a packet waited", _three(held)),
            ("from kill to running", f"{self._dark_ms():.0f} ms"),
            (
                "the client's longest gap",
                f"{max(gaps):.0f} ms, with a line every {_LINE_MS} ms",
            ),
        ):
            yield f"  [bold]{name:<26}[/bold]{value}"

    def _dark_ms(self) -> float:
        return float(self._after["takeover"]["running_at"] - self._killed_at) * 1e3

    def _lines(self) -> list[tuple[int, float]]:
        """The numbers that the client has seen, and when; in seconds since the epoch."""
        lines = _text(self._files.client).splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [(record["n"], record["t"]) for record in records if "n" in record]

    def _booted(self) -> re.Match[str] | None:
        text = _text(self._files.console_a)
        return _READY.search(text) if _COUNT.search(text) else None

    def _has_state(self, state: str) -> Callable[[], bool]:
        return lambda: _status(self._files.a).get("state") == state

    def _checkpoint_reached(self, number: int) -> bool:
        self._protected = _status(self._files.a)
        return bool(self._protected["checkpoint"] >= number)

    def _taken_over(self) -> dict[str, Any] | None:
        status = _status(self._files.b)
        return status if "takeover" in status else None

    async def _until(self, what: str, look: Callable[[], T | None], seconds: float) -> T:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > deadline:
                logs = [_text(self._files.folder / f"{name}.log") for name in "ab"]
                words = " | ".join(log.strip().splitlines()[-1] for log in logs if log.strip())
                raise DemoError(f"waited {seconds:.0f} s for {what}; the hosts said: {words}")
            await asyncio.sleep(_POLL_S)
        return found


async def _write_vm_file(files: _Files, image: GuestImage) -> str:
    """Write the VM file; return the accelerator that works here."""
    args = ["-machine", "pc", "-cpu", "qemu64", "-m", str(_MEMORY_MIB), "-nodefaults"]
    args += ["-display", "none", "-no-reboot", "-kernel", str(image.kernel)]
    args += ["-initrd", str(image.initrd), "-append", _APPEND]
    args += ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
    args += ["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:c0:10:05"]

    def write(accelerator: str) -> None:
        serial = {
            host: json.dumps(
                [
                    "-chardev",
                    f"socket,id=s0,path={files.folder}/{host}.serial,server=on,wait=off,"
                    f"logfile={files.folder}/{host}.console",
                    "-serial",
                    "chardev:s0",
                ]
            )
            for host in ("a", "b")
        }
        files.vm.write_text(
            f'name = "demo"\n[qemu]\naccel = "{accelerator}"\nargs = {json.dumps(args)}\n'
            f"[qemu.primary]\nargs = {serial['a']}\n[qemu.secondary]\nargs = {serial['b']}\n"
            f'[failover]\narbiter = "file:{files.folder}/grant"\n'
        )

    write("auto")
    chosen = await asyncio.to_thread(plan, load(files.vm))
    write(chosen.accelerator)
    return chosen.accelerator


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process in good order, so that it removes what it made."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _status(state: Path) -> dict[str, Any]:
    content = json.loads(_text(state / "status.json") or "{}")
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


def _three(summary: dict[str, float]) -> str:
    return f"median {summary['median']:.1f} ms, p99 {summary['p99']:.1f}, max {summary['max']:.1f}"
