"""What protection costs a client, and what it sees of a takeover.

Two hosts and a client are network namespaces; the client's programs are those of the demo and
the tests.  Protected and unprotected take turns on the same running VM: ``colo primary`` is
attached to it, and ended again, round after round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.qmp import Monitor
from bench.stats import summarise
from bench.vm import ROOT, wait_until
from colo.config import load
from colo.demo.guest_image import KERNEL_WORDS, build
from colo.demo.lab import LAN_PREFIX, REPLICATION_ADDRESS, Lab, Place
from colo.qemu.monitor import AttachedQemu
from colo.qemu.packet_filters import NetGate
from colo.qemu.preload import CLOCK_LIBRARY
from colo.qemu.process import plan

__all__ = ["GUEST", "Kind", "Scene", "measure_costs", "measure_gaps", "scene_of"]

GUEST: Final = "10.77.0.5"
_PLACES: Final = {"a": Place.HOST_A, "b": Place.HOST_B}
_TO: Final = f"tcp:{REPLICATION_ADDRESS[Place.HOST_B]}:9000"
_PAUSE_MS: Final = 20
_LINE_MS: Final = 10
_START_S: Final = 60.0
_CLIENT_S: Final = 120.0
_HOLD_LIMIT: Final = 64 << 20
_PROCESSORS: Final = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Kind:
    """A kind of VM and hosts.

    ``lean``: a VM whose devices have little state.  ``tuned``: QEMU and colo have processors of
    their own, QEMU all but the last one, and colo keeps them awake while a client is answered.
    ``words``: more for the guest's kernel.  ``arbiter``: a file where it is "".  ``mode``: what the
    guest does besides its services.
    """

    lean: bool = False
    tuned: bool = False
    accel: str = "tcg"
    words: str = ""
    arbiter: str = ""
    mode: str = "serve"
    memory_mib: int = 256


_AS_THEY_COME: Final = Kind()
_KINDS: Final = {
    "as they come": _AS_THEY_COME,
    "lean devices": Kind(lean=True),
    "tuned hosts": Kind(tuned=True),
    "tuned hosts, lean devices": Kind(lean=True, tuned=True),
}


def measure_costs(
    binary: str, rounds: int, requests: int, mib: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Round trips of one byte, and bulk out of the guest, protected and not, in turns.

    Times in milliseconds, rates in MiB/s; ``ratios`` and ``added`` are of each round.  The round
    trips are of each kind of VM and host in ``_KINDS``, as far as this machine can be one.
    """
    rates: dict[str, list[float]] = {"open": [], "protected": []}
    with _protected_by_turns(binary, _AS_THEY_COME, rounds) as turns:
        for scene, protected in turns:
            gate = "protected" if protected else "open"
            rates[gate].append(scene.bulk(mib) if protected else scene.bulk_with_open_gate(mib))
            say(f"  bulk {rates[gate][-1]:.0f} MiB/s ({gate})")
    trips = []
    for name, kind in _KINDS.items():
        if kind.tuned and len(_PROCESSORS) < 2:
            continue
        row = _RoundTrips(requests)
        with _protected_by_turns(binary, kind, rounds) as turns:
            for scene, protected in turns:
                trip = row.take(scene, protected)
                say(f"  {name}: round trip {trip:.2f} ms{' protected' if protected else ''}")
        trips.append({"kind": name, **row.row()})
    return {
        "round_trips": trips,
        "bulk": {
            **{name: asdict(summarise(values)) for name, values in rates.items()},
            "ratios": [
                round(p / o, 3) for p, o in zip(rates["protected"], rates["open"], strict=True)
            ],
        },
    }


@contextlib.contextmanager
def _protected_by_turns(
    binary: str, kind: Kind, rounds: int
) -> Iterator[Iterator[tuple[Scene, bool]]]:
    """One VM, for each round first unprotected and then protected."""

    def turns(scene: Scene) -> Iterator[tuple[Scene, bool]]:
        for _ in range(rounds):
            yield scene, False
            with scene.primary("a"):
                yield scene, True

    with scene_of(binary, kind) as scene, scene.secondary("b"), scene.qemu():
        yield turns(scene)


class _RoundTrips:
    """Series of round trips, by turns unprotected and protected."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._taken: dict[bool, list[list[float]]] = {False: [], True: []}

    def take(self, scene: Scene, protected: bool) -> float:
        """Take a series; return its median, in ms."""
        series = scene.echo(self._requests)
        self._taken[protected].append(series)
        return summarise(series).median

    def row(self) -> dict[str, Any]:
        bare, protected = self._taken[False], self._taken[True]
        return {
            "unprotected": asdict(summarise([each for series in bare for each in series])),
            "protected": asdict(summarise([each for series in protected for each in series])),
            "added": [
                round(summarise(with_it).median - summarise(without).median, 3)
                for without, with_it in zip(bare, protected, strict=True)
            ],
        }


def measure_gaps(binary: str, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """How long the client sees nothing: after a kill, and after host A freezes; in ms."""
    gaps: dict[str, list[float]] = {"kill": [], "freeze": []}
    for number in range(runs):
        for kind, found in gaps.items():
            found.append(_one_gap(binary, kind, number / runs))
            say(f"  {kind}: {found[-1]:.0f} ms")
    return {kind: asdict(summarise(found, 1)) for kind, found in gaps.items()}


def _one_gap(binary: str, kind: str, offset: float) -> float:
    with scene_of(binary) as scene, scene.secondary("b"), scene.qemu(), scene.primary("a") as colo:
        client = scene.start_client("stream", "--count", "600", "--gap-ms", "60000")
        time.sleep(2 + offset)
        number = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
        for pid in (colo.pid, scene.qemu_pid):
            os.kill(pid, number)
        try:
            return float(scene.verdict(client)["gap_ms_max"])
        finally:
            for pid in (colo.pid, scene.qemu_pid):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def scene_of(binary: str, kind: Kind = _AS_THEY_COME) -> Iterator[Scene]:
    with Lab() as lab, tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        yield Scene(lab, Path(name), binary, kind)


class Scene:
    """A VM on host A, and who protects it."""

    def __init__(self, lab: Lab, folder: Path, binary: str, kind: Kind) -> None:
        self.lab = lab
        self.folder = folder
        self._tuned = kind.tuned
        self._mode = kind.mode
        self._qmp = folder / "colo.qmp"
        self._other_qmp = folder / "bench.qmp"
        self._vm = folder / "vm.toml"
        self.qemu_pid = 0
        self.mode = "periodic"  # of who is started from now on
        image = build(ROOT / "build" / "guest", lambda line: None)
        args = ["-machine", "pc", "-cpu", "qemu64", "-m", f"{kind.memory_mib}"]
        args += ["-display", "none", "-nodefaults"]
        args += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        mode = f"colo.mode={kind.mode} colo.ip={GUEST}/{LAN_PREFIX} colo.line-ms={_LINE_MS}"
        args += ["-append", f"{KERNEL_WORDS} {mode} {kind.words}".strip()]
        args += ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
        card = "virtio-net-pci,netdev=n0,mac=52:54:00:c0:10:06"
        if kind.lean:
            card += ",disable-modern=on,disable-legacy=off"
            for option in ("acpi-root-pci-hotplug", "acpi-pci-hotplug-with-bridge-support"):
                args += ["-global", f"PIIX4_PM.{option}=off"]
        args += ["-device", card]
        roles = [
            f'[qemu.{role}]\nargs = ["-serial", "file:{folder / role}.console"]\n'
            for role in ("primary", "secondary")
        ]
        self._tuning = "cpu_latency_us = 0\n" if kind.tuned else ""
        self._text = (
            f"[qemu]\nbinary = {json.dumps(binary)}\naccel = {json.dumps(kind.accel)}\n"
            f"args = {json.dumps(args)}\n{''.join(roles)}"
            f'[failover]\narbiter = "{kind.arbiter or f"file:{folder}/grant"}"\n'
            "[hosts]\n"
            + "".join(
                f'{name} = "tcp:{REPLICATION_ADDRESS[place]}:9000"\n'
                for name, place in _PLACES.items()
            )
        )
        self._write("")

    def _write(self, checkpoints: str) -> None:
        """Write the VM file; ``checkpoints``: more lines of the table of that name."""
        top = f'name = "bench"\nmode = "{self.mode}"\n'
        self._vm.write_text(f"{top}{self._text}[checkpoints]\n{self._tuning}{checkpoints}\n")

    @contextlib.contextmanager
    def qemu(self, keeps_clock: bool = True) -> Iterator[None]:
        """The VM, with its services up; ``keeps_clock``: with colo's library for that."""
        launch = plan(load(self._vm))
        libraries = launch.environment["LD_PRELOAD"].split(":")
        given = [path for path in libraries if keeps_clock or CLOCK_LIBRARY.name not in path]
        environment = {**launch.environment, "LD_PRELOAD": ":".join(given)}
        command = launch.primary()
        for path in (self._qmp, self._other_qmp):
            command += ["-qmp", f"unix:{path},server=on,wait=off"]
        command = [*self._on(_PROCESSORS[:-1]), *command]
        with self._process(Place.HOST_A, "qemu", command, env=environment) as process:
            self.qemu_pid = process.pid
            console, ready = self.folder / "primary.console", f"ready mode={self._mode}"
            wait_until("the guest", lambda: _holds(console, ready), _START_S)
            yield

    @contextlib.contextmanager
    def qemus_secondary(self) -> Iterator[tuple[int, Path]]:
        """A QEMU on host B that waits for this VM, as its own secondary; its pid and monitor."""
        launch, qmp = plan(load(self._vm)), self.folder / "own.qmp"
        command = [each.replace("primary.console", "own.console") for each in launch.primary()]
        command += ["-incoming", "defer", "-qmp", f"unix:{qmp},server=on,wait=off"]
        with self._process(Place.HOST_B, "own", command, env=launch.environment) as process:
            yield process.pid, qmp

    @contextlib.contextmanager
    def secondary(self, state: str) -> Iterator[int]:
        """``colo secondary`` on host B; yields its pid."""
        self._write("")
        with self._colo(Place.HOST_B, state, "secondary", "--listen", _TO) as process:
            wait_until("host B", lambda: self._state(state), _START_S)
            try:
                yield process.pid
            finally:
                with contextlib.suppress(OSError, ValueError):
                    os.kill(int((self.folder / state / "qemu.pid").read_text()), signal.SIGKILL)

    @contextlib.contextmanager
    def primary(
        self, state: str, to: str = _TO, checkpoints: str = "", seconds: float = _START_S
    ) -> Iterator[subprocess.Popen[Any]]:
        """``colo primary``, attached to the VM and ended in good order.

        ``checkpoints``: more of what its VM file says of them.  It is protected within ``seconds``.
        """
        self._write(checkpoints)
        options = ("--qmp", f"unix:{self._qmp}", "--to", to)
        with self._colo(Place.HOST_A, state, "primary", *options) as process:
            wait_until("protection", lambda: self._state(state) == "PROTECTED" or None, seconds)
            yield process
        shutil.rmtree(self.folder / state, ignore_errors=True)

    @contextlib.contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """QEMU's events from now on."""
        monitor = Monitor(self._other_qmp)
        try:
            yield monitor
        finally:
            monitor.close()

    @contextlib.contextmanager
    def node(self, host: str) -> Iterator[subprocess.Popen[Any]]:
        """``colo node`` on a host, which is called a or b; its state folder is called so too."""
        with self._colo(_PLACES[host], host, "node", "--host", host) as process:
            yield process

    def order(self, host: str, order: str) -> None:
        """Give an order to the colo of a host."""
        command = [sys.executable, "-m", "colo", order, "--state-dir", str(self.folder / host)]
        self.lab.run(_PLACES[host], *command)

    def echo(self, requests: int) -> list[float]:
        """Round trips of one byte, in milliseconds."""
        return self._echo("--count", str(requests))

    def echo_for(self, seconds: float) -> list[float]:
        """The same, as many as there are in that time."""
        return self._echo("--seconds", str(seconds))

    def _echo(self, *until: str) -> list[float]:
        log = self.folder / "echo.jsonl"
        options = [*until, "--pause-ms", str(_PAUSE_MS), "--log", str(log)]
        self.verdict(self.start_client("echo", *options))
        return [json.loads(line)["rtt_ms"] for line in log.read_text().splitlines()]

    def bulk(self, mib: int) -> float:
        """The rate of a transfer out of the guest, in MiB/s."""
        return float(self.verdict(self.start_client("bulk", "--mib", str(mib)))["mib_per_s"])

    def bulk_with_open_gate(self, mib: int) -> float:
        """The same through the same filters and sockets, with nothing held."""

        async def transfer() -> float:
            qemu = AttachedQemu(self._other_qmp)
            await qemu.attach()
            gate = NetGate(qemu, self.folder, _HOLD_LIMIT)
            await gate.install(["n0"])
            try:
                return await asyncio.to_thread(self.bulk, mib)
            finally:
                await gate.remove()
                await qemu.detach()

        return asyncio.run(transfer())

    def start_client(self, kind: str, *options: str) -> subprocess.Popen[Any]:
        """A client of the demo's, towards the guest."""
        command = [sys.executable, "-m", "colo.demo.clients", kind, GUEST, "--json", *options]
        return self.lab.start(Place.CLIENT, *command, stdout=subprocess.PIPE, text=True)

    def status(self, state: str) -> dict[str, Any]:
        """The status file of a colo."""
        content = json.loads((self.folder / state / "status.json").read_text())
        assert isinstance(content, dict)
        return content

    def verdict(self, client: subprocess.Popen[Any]) -> dict[str, Any]:
        """Wait for a client's end.  Raises BenchError where it lost anything."""
        output, _ = client.communicate(timeout=_CLIENT_S)
        if client.returncode:
            raise BenchError(f"the client failed: {output}")
        verdict = json.loads(output)
        assert isinstance(verdict, dict)
        return verdict

    def _on(self, processors: list[int]) -> list[str]:
        """What has a command run on these, on tuned hosts."""
        return ["taskset", "-c", ",".join(map(str, processors))] if self._tuned else []

    def _state(self, state: str) -> str | None:
        try:
            return str(json.loads((self.folder / state / "status.json").read_text())["state"])
        except (OSError, ValueError):
            return None

    def _colo(
        self, place: Place, state: str, verb: str, *options: str
    ) -> contextlib.AbstractContextManager[subprocess.Popen[Any]]:
        command = [*self._on(_PROCESSORS[-1:]), sys.executable, "-m", "colo"]
        command += [verb, str(self._vm), *options]
        return self._process(
            place, f"colo-{verb}", [*command, "--state-dir", str(self.folder / state)]
        )

    @contextlib.contextmanager
    def _process(
        self, place: Place, name: str, command: list[str], **options: Any
    ) -> Iterator[subprocess.Popen[Any]]:
        with (self.folder / f"{name}.log").open("a") as log:
            process = self.lab.start(
                place, *command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def _holds(path: Path, text: str) -> bool | None:
    with contextlib.suppress(OSError):
        return text in path.read_text(errors="replace") or None
    return None
