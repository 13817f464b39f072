"""How long a checkpoint stops the VM, by the pages that it has: colo, stock QEMU, and the floor.

The floor is a secondary that keeps nothing.  The guest writes to a number of pages, or files, or
does as a build does.  All take turns, each with a fresh guest; the times are those of the primary
QEMU's own STOP and RESUME events.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.null_sink import null_secondary, what_came
from bench.pauses import stops_ms
from bench.qmp import Monitor
from bench.stats import Series, median, summarise
from bench.vm import (
    Process,
    Vm,
    colo_primary,
    colo_secondary,
    free_address,
    primary,
    progress,
    protect,
    stock_secondary,
)
from bench.ways import WAYS, Way

__all__ = ["CASES", "Case", "measure"]

_MEMORY_MIB: Final = 768
_WARM_UP_S: Final = 2.0
_LAST_S: Final = 1.0  # the last STOP's RESUME
#: At least so many checkpoints go by in a turn, where they take no longer than their interval.
_CHECKPOINTS_MIN: Final = 12
#: Checkpoints come as often as their interval says, and no sooner as they get long.
_STEADY: Final = "stop_goal_ms = 600000"
#: A guest has written all its pages between two checkpoints when it does so thrice as often.
_TIMES: Final = 3
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Case:
    """A guest, and how long its VM runs between two checkpoints.  ``pages``: that it writes to."""

    mode: str
    interval_ms: int
    pages: int = 0

    def vm(self, binary: str) -> Vm:
        """The VM."""
        every = self.interval_ms // _TIMES
        words = f"colo.pages={self.pages} colo.every={every}" if self.pages else ""
        return Vm(binary, _MEMORY_MIB, self.mode, self.interval_ms, words)


CASES: Final = (
    *(Case("pages", 150, pages) for pages in (1, 16, 256, 1024)),
    Case("pages", 300, 4096),
    Case("pages", 600, 16384),
    Case("pages", 1500, 65536),
    Case("files", 200),
    Case("build", 200),
)

_Secondary = Callable[[Vm, str, Path], AbstractContextManager[Process]]


@dataclass(frozen=True)
class _Pair:
    """Who the secondary is, and how ``colo primary`` is to take checkpoints where it is there.

    ``also``: migration capabilities of both QEMUs.
    """

    secondary: _Secondary
    way: Way | None = None
    also: tuple[str, ...] = ()


_MULTIFD: Final = ("multifd",)
#: From this major version on COLO may have it.
_MULTIFD_MAJOR: Final = 11
_NULL: Final = "null sink"
_PAIRS: Final = {
    _NULL: _Pair(null_secondary),
    "stock QEMU": _Pair(stock_secondary),
    "stock QEMU, multifd": _Pair(partial(stock_secondary, also=_MULTIFD), also=_MULTIFD),
    **{way.name: _Pair(colo_secondary, way) for way in WAYS},
}


@dataclass(frozen=True)
class _Run:
    """The time that each checkpoint stopped the VM, and how often the guest did its work."""

    stopped_ms: list[float]
    work_per_s: float


def measure(
    binary: str,
    version: int,
    case: Case,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure all pairs in turns; ``version``: QEMU's major one.

    ``sent``: what a checkpoint has, as the null sink saw it.
    """
    vm = case.vm(binary)
    seconds = max(seconds, _CHECKPOINTS_MIN * case.interval_ms / 1e3)
    pairs = [name for name, pair in _PAIRS.items() if not pair.also or version >= _MULTIFD_MAJOR]
    runs: dict[str, list[_Run]] = {name: [] for name in pairs}
    sent: list[dict[str, Any]] = []
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else list(reversed(runs)):
            run, came = _one_run(vm, _PAIRS[name], case.interval_ms, seconds)
            runs[name].append(run)
            sent += came
        say("  " + ", ".join(f"{name} {median(runs[name][-1].stopped_ms):.2f} ms" for name in runs))
    return {
        **asdict(case),
        "memory_mib": _MEMORY_MIB,
        "rounds": rounds,
        "sent": {
            "pages": median([each["pages"] for each in sent]),
            "mib": round(median([each["bytes"] for each in sent]) / _MIB, 2),
        },
        "stopped_ms": {name: asdict(_stopped(of_pair)) for name, of_pair in runs.items()},
        "work_per_s": {
            name: round(median([run.work_per_s for run in of_pair]), 2)
            for name, of_pair in runs.items()
        },
    }


def _stopped(runs: list[_Run]) -> Series:
    return summarise([value for run in runs for value in run.stopped_ms])


def _one_run(
    vm: Vm, pair: _Pair, interval_ms: int, seconds: float
) -> tuple[_Run, list[dict[str, Any]]]:
    """One pair's turn; with the null sink, what came there, once."""
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        with _protected(vm, pair, folder, interval_ms) as monitor:
            time.sleep(_WARM_UP_S)
            since, work = time.time(), progress(folder)
            time.sleep(seconds)
            until, work = time.time(), progress(folder) - work
            time.sleep(_LAST_S)
            if monitor.execute("query-migrate").get("status") != "colo":
                raise BenchError("the primary left COLO during the measurement")
            samples = list(stops_ms(monitor.events, since, until))
        came = [what_came(folder)] if pair.secondary is null_secondary else []
    if not samples:
        raise BenchError("no checkpoint was made during the measurement")
    return _Run(samples, work / seconds), came


@contextlib.contextmanager
def _protected(vm: Vm, pair: _Pair, folder: Path, interval_ms: int) -> Iterator[Monitor]:
    """Have the VM run and be protected, over a unix socket."""
    if pair.way is not None:
        vm = replace(vm, checkpoints=f"{_STEADY}\n{pair.way.checkpoints}", arbiter=True)
    address = free_address("unix", folder)
    with (
        primary(vm, folder) as (process, monitor),
        pair.secondary(vm, address, folder),
        colo_primary(vm, address, folder) if pair.way is not None else contextlib.nullcontext(),
    ):
        if pair.way is None:
            protect(process, monitor, address, interval_ms, pair.also)
        yield monitor
