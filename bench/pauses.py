"""How long a checkpoint stops the VM: stock QEMU as the secondary, and colo.

The primary is a stock QEMU in both pairs and tells the times itself, by the timestamps of its
STOP and RESUME events.  The pairs take turns, so that what else the machine does meets both.
"""

from __future__ import annotations

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
    colo_secondary,
    free_address,
    primary,
    protect,
    stock_secondary,
)

__all__ = ["CASES", "Case", "measure", "stops_ms"]

_WARM_UP_S: Final = 2.0

_Secondary = Callable[[Vm, str, Path], AbstractContextManager[Process]]
_PAIRS: Final[dict[str, _Secondary]] = {"stock": stock_secondary, "colo": colo_secondary}


@dataclass(frozen=True)
class Case:
    """A guest and how often it is checkpointed."""

    mode: str
    memory_mib: int
    interval_ms: int


CASES: Final = (Case("idle", 256, 100), Case("files", 512, 200))


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
) -> dict[str, Any]:
    """Measure both pairs in turn."""
    vm = Vm(binary, case.memory_mib, case.mode)
    samples: dict[str, list[list[float]]] = {name: [] for name in _PAIRS}
    for number in range(rounds):
        order = list(_PAIRS) if number % 2 == 0 else list(reversed(_PAIRS))
        for name in order:
            samples[name].append(_one_run(vm, transport, _PAIRS[name], case.interval_ms, seconds))
        medians = {name: median(samples[name][-1]) for name in _PAIRS}
        say("  " + ", ".join(f"{name} {value:.2f} ms" for name, value in medians.items()))
    ratios = [
        median(colo) / median(stock)
        for stock, colo in zip(samples["stock"], samples["colo"], strict=True)
    ]
    return {
        "transport": transport,
        **asdict(case),
        "rounds": rounds,
        **{
            name: asdict(summarise([value for run in runs for value in run]))
            for name, runs in samples.items()
        },
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _one_run(
    vm: Vm, transport: str, secondary: _Secondary, interval_ms: int, seconds: float
) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        address = free_address(transport, folder)
        with primary(vm, folder) as (process, monitor), secondary(vm, address, folder):
            protect(process, monitor, address, interval_ms)
            time.sleep(_WARM_UP_S)
            since = time.time()
            time.sleep(seconds)
            until = time.time()
            time.sleep(1.0)  # the last STOP's RESUME
            if monitor.execute("query-migrate").get("status") != "colo":
                raise BenchError("the primary left COLO during the measurement")
            samples = list(stops_ms(monitor.events, since, until))
    if not samples:
        raise BenchError("no checkpoint was made during the measurement")
    return samples
