"""Big VMs, and many: what they take of a host.

A big one is sparse: its guest has written little of its memory.  How long its first copy takes, how
much memory both colos have at their peak, how long a takeover takes.  Many are small ones,
protected at once on this machine, beside one of them alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.pauses import stops_ms
from bench.qmp import Event, Monitor
from bench.stats import median, summarise
from bench.takeover import kill_survivor
from bench.vm import (
    Process,
    Vm,
    colo_primary,
    colo_secondary,
    free_address,
    primary,
    read_status,
    wait_until,
)
from bench.ways import Way

__all__ = ["BIG_MIB", "COUNTS", "measure_big", "measure_many"]

BIG_MIB: Final = (4096, 8192, 16384)
COUNTS: Final = (1, 8, 16, 32)
_SMALL_MIB: Final = 256
#: The store takes the guest's size in full; so much more is to be free, for all the rest.
_REST_MIB: Final = 4096
_BIG_WORDS: Final = "colo.pages=16384 colo.every=1000"
_SAMPLE_S: Final = 0.05
_PROTECTED_S: Final = 5.0
_WARM_UP_S: Final = 5.0
_EVENT_S: Final = 30.0
_MIB: Final = 1 << 20
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


# -- big VMs ----------------------------------------------------------------------------


def measure_big(
    binary: str, memory_mib: int, way: Way, runs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Protect such a VM ``runs`` times, and lose it.  ``left_out`` says why it was not tried."""
    row: dict[str, Any] = {"memory_mib": memory_mib, "way": way.name}
    free = _free_mib()
    if free < memory_mib + _REST_MIB:
        say(f"  {memory_mib} MiB: left out, {free} MiB are free")
        return {**row, "left_out": f"{free} MiB were free, {memory_mib + _REST_MIB} are needed"}
    vm = Vm(binary, memory_mib, "pages", 1000, _BIG_WORDS, way.checkpoints, arbiter=True)
    taken = []
    for _ in range(runs):
        taken.append(_one_big(vm))
        say(f"  {memory_mib} MiB, {way.name}: {taken[-1]}")
    names = ("first_copy_s", "takeover_ms", "stopped_ms")
    row |= {name: round(median([each[name] for each in taken]), 2) for name in names}
    peaks = [each["peak_mib"] for each in taken]
    return {**row, "peak_mib": {name: max(each[name] for each in peaks) for name in peaks[0]}}


def _one_big(vm: Vm) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        address = free_address("tcp", folder)
        with (
            primary(vm, folder) as (process, monitor),
            colo_secondary(vm, address, folder, "takeover") as secondary,
        ):
            survivor = Monitor(folder / "state" / "qmp.sock")
            try:
                with colo_primary(vm, address, folder) as colo:
                    protected = time.time()
                    peak = _peaks({"primary": colo, "secondary": secondary}, _PROTECTED_S)
                    monitor.execute("query-status")
                    stopped = list(stops_ms(monitor.events, protected, time.time()))
                    killed = time.time()
                    for each in (colo, process):
                        each.popen.send_signal(signal.SIGKILL)
                    resumed = survivor.wait_for("RESUME").at
                    # until then colo would begin with another QEMU where this one dies
                    wait_until("the report", lambda: read_status(folder, "takeover"), _EVENT_S)
            finally:
                survivor.close()
                kill_survivor(folder)
        return {
            "first_copy_s": round(_first_copy_s(monitor.events), 3),
            "takeover_ms": round((resumed - killed) * 1e3, 2),
            "stopped_ms": round(median(stopped), 2),
            "peak_mib": peak,
        }


def _first_copy_s(events: list[Event]) -> float:
    """Under TCG the VM stands still for it: from its first STOP to its first RESUME."""
    first = {name: next(each.at for each in events if each.name == name) for name in _ENDS}
    return first["RESUME"] - first["STOP"]


_ENDS: Final = ("STOP", "RESUME")


def _peaks(processes: dict[str, Process], seconds: float) -> dict[str, float]:
    """MiB of each process at its peak: all, and of that what is not the store's files."""
    own = dict.fromkeys(processes, 0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, process in processes.items():
            memory = _memory(process.popen.pid)
            own[name] = max(own[name], memory["RssAnon"] + memory["RssFile"])
        time.sleep(_SAMPLE_S)
    whole = {name: _memory(process.popen.pid)["VmHWM"] for name, process in processes.items()}
    return {
        **{name: _mib(size) for name, size in whole.items()},
        **{f"{name}_own": _mib(size) for name, size in own.items()},
    }


# -- many VMs ---------------------------------------------------------------------------


def measure_many(
    binary: str, count: int, way: Way, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Protect so many idle VMs at once, for so long.  CPU in percent of a core."""
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name, contextlib.ExitStack() as stack:
        vm = Vm(binary, _SMALL_MIB, "idle", checkpoints=way.checkpoints, arbiter=True)
        vms = []
        for number in range(count):
            folder = Path(name) / str(number)
            folder.mkdir()
            vms.append(stack.enter_context(_protected(replace(vm, name=f"bench-{number}"), folder)))
        time.sleep(_WARM_UP_S)
        since, began = time.time(), [each.cpu_s() for each in vms]
        time.sleep(seconds)
        until, ended = time.time(), [each.cpu_s() for each in vms]
        time.sleep(1.0)  # the last STOP's RESUME
        stopped = [value for each in vms for value in each.stops_ms(since, until)]
        row: dict[str, Any] = {
            "vms": count,
            "memory_mib": _SMALL_MIB,
            "way": way.name,
            "seconds": round(until - since, 1),
            "stopped_ms": asdict(summarise(stopped)),
            "cpu_percent": {
                name: asdict(
                    summarise(
                        [
                            100 * (after[name] - before[name]) / (until - since)
                            for before, after in zip(began, ended, strict=True)
                        ],
                        2,
                    )
                )
                for name in began[0]
            },
            "own_mib": {
                name: max(each.own_mib(name) for each in vms) for name in ("primary", "secondary")
            },
            "store_mib": max(each.store_mib() for each in vms),
        }
    stops, cpu = row["stopped_ms"], row["cpu_percent"]
    say(f"  {count} VMs, {way.name}: stopped {stops['median']:.2f} ms (p99 {stops['p99']:.2f})")
    say("  " + ", ".join(f"{name} {each['median']:.1f} % of a core" for name, each in cpu.items()))
    return row


@dataclass(frozen=True)
class _Protected:
    """A VM that is protected, and its processes by name."""

    folder: Path
    monitor: Monitor
    processes: dict[str, Process]

    def cpu_s(self) -> dict[str, float]:
        """What each process has had of the processors so far."""
        return {name: _cpu_s(process.popen.pid) for name, process in self.processes.items()}

    def stops_ms(self, since: float, until: float) -> list[float]:
        """How long each checkpoint within that time stopped it."""
        self.monitor.execute("query-status")
        return list(stops_ms(self.monitor.events, since, until))

    def own_mib(self, name: str) -> float:
        """The memory of a process without the store's files."""
        memory = _memory(self.processes[name].popen.pid)
        return _mib(memory["RssAnon"] + memory["RssFile"])

    def store_mib(self) -> float:
        """What the store's files take."""
        store = (self.folder / "state" / "store").resolve()
        return _mib(sum(path.stat().st_blocks * 512 for path in store.iterdir()))


@contextlib.contextmanager
def _protected(vm: Vm, folder: Path) -> Iterator[_Protected]:
    address = free_address("unix", folder)
    with (
        primary(vm, folder) as (process, monitor),
        colo_secondary(vm, address, folder) as secondary,
        colo_primary(vm, address, folder) as colo,
    ):
        wait_until("a checkpoint", lambda: read_status(folder, "checkpoint", "primary"), _EVENT_S)
        processes = {"primary": colo, "secondary": secondary, "QEMU": process}
        yield _Protected(folder, monitor, processes)


# -- what the kernel says ---------------------------------------------------------------


def _memory(pid: int) -> dict[str, int]:
    """Bytes, by the names of proc(5)'s status."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) << 10 for name, value in found}


def _cpu_s(pid: int) -> float:
    """utime and stime: fields 14 and 15 of proc(5)'s stat, whose second may have blanks in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _free_mib() -> int:
    """What processes may still take, and files in /dev/shm: the lesser."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    room = os.statvfs("/dev/shm")
    return min(int(found[1]) >> 10, room.f_bavail * room.f_frsize >> 20)


def _mib(size: float) -> float:
    return round(size / _MIB, 1)
