"""How long a checkpoint stops the VM: stock QEMU as the secondary, and colo.

The primary is a stock QEMU in both pairs and tells the times itself, by the timestamps of its
STOP and RESUME events.  The pairs take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.qmp import Event
from bench.stats import median, summarise
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

__all__ = ["CASES", "Case", "measure", "stops_ms"]

_WARM_UP_S: Final = 2.0

_Secondary = Callable[[Vm, str, Path], AbstractContextManager[Process]]


@dataclass(frozen=True)
class Case:
    """A guest and how often it is checkpointed."""

    mode: str
    memory_mib: int
    interval_ms: int


@dataclass(frozen=True)
class _Pair:
    """Who the secondary is, and whether the primary's stream goes through ``colo primary``."""

    secondary: _Secondary
    relayed: bool = False


_PAIRS: Final = {
    "stock": _Pair(stock_secondary),
    "colo": _Pair(colo_secondary),
    "relay": _Pair(stock_secondary, relayed=True),
}

CASES: Final = (Case("idle", 256, 100), Case("files", 512, 200))


@dataclass(frozen=True)
class _Run:
    """The time that each checkpoint stopped the VM, and what the guest did in all."""

    stopped_ms: list[float]
    work: int

    @property
    def median(self) -> float:
        return median(self.stopped_ms)


def stops_ms(events: Sequence[Event], since: float, until: float) -> Iterator[float]:
    """For each STOP within the time, the milliseconds to its RESUME."""
    stopped: float | None = None
    for event in events:
        if event.name == "STOP":
            stopped = event.at
        elif event.name == "RESUME" and stopped is not None:
            if since <= stopped < until:
                yield (event.at - stopped) * 1e3
            stopped = None


def measure(
    binary: str,
    transport: str,
    case: Case,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    rival: str = "colo",
) -> dict[str, Any]:
    """Measure two pairs in turn: ``stock`` and its rival, ``colo`` or ``relay``."""
    vm = Vm(binary, case.memory_mib, case.mode, case.interval_ms)
    runs: dict[str, list[_Run]] = {"stock": [], rival: []}
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(reversed(runs))
        for name in order:
            runs[name].append(_one_run(vm, transport, _PAIRS[name], case.interval_ms, seconds))
        say("  " + ", ".join(f"{name} {runs[name][-1].median:.2f} ms" for name in runs))
    pairs = zip(runs["stock"], runs[rival], strict=True)
    return {
        "transport": transport,
        **asdict(case),
        "rounds": rounds,
        "rival": rival,
        **{name: _sum_up(of_pair, seconds) for name, of_pair in runs.items()},
        "ratios": [round(other.median / stock.median, 3) for stock, other in pairs],
    }


def _sum_up(runs: Sequence[_Run], seconds: float) -> dict[str, Any]:
    """``work_per_s``: how often the guest did its work, which the checkpoints hold up."""
    stopped = [value for run in runs for value in run.stopped_ms]
    work = sum(run.work for run in runs) / len(runs) / seconds
    return {**asdict(summarise(stopped)), "work_per_s": round(work, 2)}


def _one_run(vm: Vm, transport: str, pair: _Pair, interval_ms: int, seconds: float) -> _Run:
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        address = free_address(transport, folder)
        with (
            primary(vm, folder) as (process, monitor),
            pair.secondary(vm, address, folder),
            colo_primary(vm, address, folder, "--stock")
            if pair.relayed
            else contextlib.nullcontext(),
        ):
            if not pair.relayed:
                protect(process, monitor, address, interval_ms)
            time.sleep(_WARM_UP_S)
            since, work = time.time(), progress(folder)
            time.sleep(seconds)
            until, work = time.time(), progress(folder) - work
            time.sleep(1.0)  # the last STOP's RESUME
            if monitor.execute("query-migrate").get("status") != "colo":
                raise BenchError("the primary left COLO during the measurement")
            samples = list(stops_ms(monitor.events, since, until))
    if not samples:
        raise BenchError("no checkpoint was made during the measurement")
    return _Run(samples, work)
