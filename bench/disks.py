"""What a guest's writes to its disk cost while it is protected, and what they cost its checkpoints.

Two guests: one writes in turns a MiB after the other, 4 KiB anywhere, and 4 KiB anywhere with an
fsync each, and says how many it wrote; the other is a server whose database is asked for as many
transactions as it can, and it says how many that were.  On the same running VM, in turns: without
colo, protected with its disk, and protected with its disk left out, which is the price of the
checkpoints alone.  Between those turns the same guest on QEMU's own replication: first alone, then
protected.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.replication import QuorumVm
from bench.stats import median, summarise
from bench.vm import ROOT, Process, colo_command, guest_image, read_status, wait_until
from colo.config import load
from colo.demo.guest_image import KERNEL_WORDS
from colo.qemu.process import plan

__all__ = [
    "IDLE",
    "SERVER",
    "SERVER_DISK",
    "WRITER",
    "Guest",
    "measure",
    "measure_idle",
    "measure_takeovers",
]

_START_S: Final = 400.0
_LINES: Final = 2
_KINDS: Final = ("with its disk", "disk left out")
_OWN: Final = "QEMU's own"
#: Between two checkpoints of a guest that says nothing to a network, as colo spaces them.
_INTERVAL_MS: Final = 1000
#: What their files and folders are called.
_SLUGS: Final = {"with its disk": "with", "disk left out": "without"}


@dataclass(frozen=True)
class Guest:
    """``words``: of its kernel.  ``line``: what it says on its console, a group for each way."""

    words: str
    ways: tuple[str, ...]
    line: re.Pattern[str]
    make_disk: Callable[[Path], None]
    memory_mib: int = 128


def _empty(path: Path) -> None:
    with path.open("wb") as disk:
        os.posix_fallocate(disk.fileno(), 0, 256 << 20)


def _server(path: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(SERVER_DISK), str(path)], check=True)


#: What `make server` builds.
SERVER_DISK: Final = ROOT / "build" / "server" / "disk.ext4"
WRITER: Final = Guest(
    "colo.mode=io",
    ("sequential", "random", "synced"),
    re.compile(r"sequential=([\d.]+) random=([\d.]+) synced=([\d.]+)\r?\n"),
    _empty,
)
IDLE: Final = Guest("colo.mode=idle", ("counts",), re.compile(r"count=(\d+)"), _empty)
SERVER: Final = Guest(
    "colo.ext4=/dev/vda colo.init=/lib/systemd/systemd colo.pgbench",
    ("transactions",),
    re.compile(r"tps = ([\d.]+) \(without"),
    _server,
    384,
)


def measure(binary: str, guest: Guest, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Rates in writes a second, ``ratios`` of each round; ``stopped_ms`` of a checkpoint."""
    rates: dict[str, dict[str, list[float]]] = {
        kind: {way: [] for way in guest.ways} for kind in ("unprotected", *_KINDS)
    }
    alone: dict[str, list[float]] = {way: [] for way in guest.ways}
    own: dict[str, list[float]] = {way: [] for way in guest.ways}
    stopped: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with _scene(binary, guest) as scene:
        for _ in range(rounds):
            for kind in rates:
                with ExitStack() as turn:
                    if kind in _KINDS:
                        turn.enter_context(scene.primary(kind))
                    for way, rate in scene.rates().items():
                        rates[kind][way].append(rate)
                        say(f"  {kind}: {way} {rate:.0f} writes a second")
                    if kind in _KINDS:
                        stopped[kind].append(scene.stopped_ms(kind))
            for found, into in zip(scene.replicated(), (alone, own), strict=True):
                for way, rate in found.items():
                    into[way].append(rate)
                    say(f"  {_OWN}{'' if into is own else ', unprotected'}: {way} {rate:.0f}")
    return {
        "own": {way: asdict(summarise(values)) for way, values in own.items()},
        "own_ratios": {
            way: median([a / b for a, b in zip(own[way], alone[way], strict=True)])
            for way in guest.ways
        },
        "rates": {
            kind: {way: asdict(summarise(values)) for way, values in ways.items()}
            for kind, ways in rates.items()
        },
        "ratios": {
            kind: {
                way: median(
                    [
                        a / b
                        for a, b in zip(rates[kind][way], rates["unprotected"][way], strict=True)
                    ]
                )
                for way in guest.ways
            }
            for kind in _KINDS
        },
        "stopped_ms": {kind: median(values) for kind, values in stopped.items()},
    }


def measure_idle(binary: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """``stopped_ms``: medians of a checkpoint of a guest that writes nothing, and their ratio."""
    stopped: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with _scene(binary, IDLE) as scene:
        for _ in range(rounds):
            for kind in _KINDS:
                with scene.primary(kind):
                    scene.rates()
                    stopped[kind].append(scene.stopped_ms(kind))
                    say(f"  {kind}, idle: stopped {stopped[kind][-1]:.1f} ms")
    return _paired(stopped)


def measure_takeovers(
    binary: str, guest: Guest, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Milliseconds from the decision to the VM running, and their ratio."""
    took: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for _ in range(rounds):
        for kind in _KINDS:
            with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
                took[kind].append(_Scene(Path(name), binary, guest).takeover(kind))
                say(f"  {kind}: taken over in {took[kind][-1]:.1f} ms")
    return _paired(took)


@contextmanager
def _scene(binary: str, guest: Guest) -> Iterator[_Scene]:
    """The guest runs, and a secondary of each kind waits for its VM."""
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name, ExitStack() as stack:
        scene = _Scene(Path(name), binary, guest)
        for kind in _KINDS:
            stack.enter_context(scene.secondary(kind))
        stack.enter_context(scene.guest())
        yield scene


def _paired(values: dict[str, list[float]]) -> dict[str, Any]:
    pairs = zip(*(values[kind] for kind in _KINDS), strict=True)
    return {
        "ms": {kind: asdict(summarise(each)) for kind, each in values.items()},
        "ratio": median([with_it / without for with_it, without in pairs]),
    }


class _Scene:
    """A VM whose guest writes to its disk, and a secondary for each way to protect it."""

    def __init__(self, folder: Path, binary: str, guest: Guest) -> None:
        self.folder = folder
        self._guest = guest
        self._binary = binary
        self._files = {kind: self._file(kind) for kind in _KINDS}
        for name in ("a", "b-without"):
            guest.make_disk(folder / f"{name}.raw")

    def _machine(self) -> str:
        """The machine, as the VM file has it."""
        image = guest_image()
        args = [
            "-machine",
            "pc",
            "-cpu",
            "qemu64",
            "-m",
            str(self._guest.memory_mib),
            "-display",
            "none",
            "-nodefaults",
        ]
        args += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        args += ["-append", f"{KERNEL_WORDS} {self._guest.words}"]
        args += ["-device", "virtio-blk-pci,drive=disk0"]
        text = f'name = "bench"\n[qemu]\nbinary = {json.dumps(self._binary)}\naccel = "tcg"\n'
        return f"{text}args = {json.dumps(args)}\n"

    def _bare(self, folder: Path) -> Path:
        """A VM file of which only the machine counts."""
        path = folder / "vm.toml"
        path.write_text(f'{self._machine()}[failover]\narbiter = "manual"\n')
        return path

    def _file(self, kind: str) -> Path:
        drive = "if=none,id=disk0,format=raw,discard=unmap,file="
        a, b = self.folder / "a.raw", self.folder / "b-without.raw"
        roles = {"primary": ["-drive", f"{drive}{a}"], "secondary": []}
        text, disks = self._machine(), ""
        if kind == _KINDS[0]:
            replica = self.folder / "b.raw"
            disks = f'[[disks]]\nid = "disk0"\nprimary = "{a}"\nsecondary = "{replica}"\n'
        else:
            roles["secondary"] = ["-drive", f"{drive}{b}"]
        for role, more in roles.items():
            console = self.folder / f"{role}-{_SLUGS[kind]}.console"
            text += f"[qemu.{role}]\nargs = {json.dumps([*more, '-serial', f'file:{console}'])}\n"
        path = self.folder / f"{_SLUGS[kind]}.toml"
        path.write_text(f'{text}[failover]\narbiter = "manual"\n{disks}')
        return path

    @contextmanager
    def guest(self) -> Iterator[None]:
        """Have the guest run."""
        launch = plan(load(self._files[_KINDS[1]]))
        qmp = f"unix:{self.folder / 'qmp'},server=on,wait=off"
        command = [*launch.primary(), "-qmp", qmp]
        self._qemu = Process("qemu", command, self.folder, launch.environment)
        try:
            self.rates()
            yield
        finally:
            self._qemu.kill()

    @contextmanager
    def secondary(self, kind: str) -> Iterator[None]:
        """Have a secondary wait for this kind of protection."""
        slug = _SLUGS[kind]
        state = self.folder / f"b-{slug}"
        command = [*colo_command("secondary"), str(self._files[kind]), "--on-loss", "hold"]
        command += ["--listen", f"unix:{self.folder / slug}.sock", "--state-dir", str(state)]
        process = Process(f"secondary-{slug}", command, self.folder)
        try:
            wait_until(
                "a secondary's start",
                lambda: read_status(self.folder, "qemu", f"b-{slug}"),
                _START_S,
                process,
            )
            yield
        finally:
            process.terminate()

    @contextmanager
    def primary(self, kind: str) -> Iterator[None]:
        """Have the VM protected."""
        slug = _SLUGS[kind]
        state = f"a-{slug}"
        command = [*colo_command("primary"), str(self._files[kind])]
        command += [
            "--qmp",
            f"unix:{self.folder / 'qmp'}",
            "--to",
            f"unix:{self.folder / slug}.sock",
        ]
        command += ["--state-dir", str(self.folder / state), "--unprotected-disks"]
        process = Process(f"primary-{slug}", command, self.folder)
        try:
            wait_until(
                "protection",
                lambda: read_status(self.folder, "state", state) == "PROTECTED" or None,
                _START_S,
                process,
                self._qemu,
            )
            yield
        finally:
            process.terminate()

    def stopped_ms(self, kind: str) -> float:
        """How long the VM stands still for a checkpoint now: the median."""
        phases = read_status(self.folder, "phases_ms", f"a-{_SLUGS[kind]}")
        return float(phases["stopped"]["median"])

    def takeover(self, kind: str) -> float:
        """How long a takeover of the VM takes, from the decision to the VM running."""
        state = self.folder / f"b-{_SLUGS[kind]}"
        with self.secondary(kind), self.guest():
            try:
                with self.primary(kind):
                    self.rates()
                    self._qemu.kill()
                    command = [*colo_command("failover"), "--state-dir", str(state)]
                    subprocess.run(command, check=True, capture_output=True)
                    return float(read_status(self.folder, "takeover", state.name)["total_ms"])
            finally:
                with suppress(OSError, ValueError):
                    os.kill(int((state / "qemu.pid").read_text()), signal.SIGKILL)

    def rates(self) -> dict[str, float]:
        """The rates that the guest says from now on."""
        return self._rates(self.folder / f"primary-{_SLUGS[_KINDS[1]]}.console", self._qemu)

    def replicated(self) -> tuple[dict[str, float], dict[str, float]]:
        """The rates of a guest on a quorum: alone, and with QEMU's own replication."""
        folder = self.folder / "own"
        folder.mkdir()
        try:
            launch = plan(load(self._bare(folder)))
            self._guest.make_disk(folder / "a.raw")
            console = folder / "console"
            vm = QuorumVm(launch, folder, console)
            with vm.running() as qemu:
                alone = self._rates(console, qemu)
                with vm.protected(_INTERVAL_MS):
                    return alone, self._rates(console, qemu)
        finally:
            shutil.rmtree(folder)

    def _rates(self, console: Path, qemu: Process) -> dict[str, float]:
        """The rates of some whole lines that a guest says from now on: their medians."""

        def lines() -> list[tuple[str, ...]]:
            text = console.read_text(errors="replace") if console.exists() else ""
            found = self._guest.line.findall(text)
            return [each if isinstance(each, tuple) else (each,) for each in found]

        skipped = len(lines()) + 1  # one is under way
        whole = skipped + _LINES

        def said() -> list[tuple[str, ...]] | None:
            found = lines()
            return found[skipped:whole] if len(found) >= whole else None

        found = wait_until("the guest's writes", said, _START_S, qemu)
        return {
            way: median([float(line[at]) for line in found])
            for at, way in enumerate(self._guest.ways)
        }
