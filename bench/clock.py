"""How far the guest's clock falls behind while its VM is protected, and over a takeover.

A client asks the guest for its CLOCK_MONOTONIC, at both ends of a time in which it is silent, or
all through it, and holds that against the time that passed here.  A clock that goes back ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.network import Kind, Scene, scene_of

__all__ = ["CLOCKS", "main", "measure"]

_EDGE: Final = 30  # questions: half of them are one reading of the guest's clock
_BUSY_PAUSE_MS: Final = 55
_BUSY_PER_S: Final = 15


@dataclass(frozen=True)
class _Case:
    """``busy``: the guest sends some 15 packets a second."""

    name: str
    protected: bool = True
    busy: bool = False


_CASES: Final = (
    _Case("unprotected", protected=False),
    _Case("protected, idle"),
    _Case("protected, 15 packets a second", busy=True),
)
_TAKEOVER: Final = "over a takeover"
#: By accelerator: the guest's clocksource and what chooses it.
CLOCKS: Final = {
    "tcg": {"its own choice": ""},
    "kvm": {"kvm-clock": "", "tsc": "clocksource=tsc tsc=reliable"},
}


def measure(
    binary: str, accel: str, seconds: float, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each clock and case, with colo's library in QEMU and without."""
    for clock in CLOCKS[accel]:
        for library in (True, False):
            for row in _measure_one(binary, accel, clock, library, seconds):
                where = f"{clock}, {'with' if library else 'without'} the library"
                say(f"  {where}, {row['case']}: lost {row['lost_ms']:.1f} ms")
                yield row


def _measure_one(
    binary: str, accel: str, clock: str, library: bool, seconds: float
) -> Iterator[dict[str, Any]]:
    what = {"accelerator": accel, "clock": clock, "library": library}
    for row in _one_vm(binary, Kind(accel=accel, words=CLOCKS[accel][clock]), library, seconds):
        yield {**what, **row}


def main() -> int:
    """Measure one kind of VM, and print a row of JSON for each case."""
    parser = argparse.ArgumentParser(prog="python -m bench.clock", description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("accel", choices=CLOCKS)
    parser.add_argument("clock")
    parser.add_argument("--bare", action="store_true", help="without colo's library in QEMU")
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    rows = _measure_one(given.binary, given.accel, given.clock, not given.bare, given.seconds)
    for row in rows:
        print(json.dumps(row), flush=True)
    return 0


def _one_vm(binary: str, kind: Kind, library: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """All cases with one VM, which is lost at the end."""
    with scene_of(binary, kind) as scene, scene.secondary("b"), scene.qemu(library):
        yield _row(scene, _CASES[0], seconds)
        with scene.primary("a") as colo:
            for case in _CASES[1:]:
                yield _row(scene, case, seconds)
            yield _take_over(scene, colo.pid)


def _row(scene: Scene, case: _Case, seconds: float) -> dict[str, Any]:
    stood = _stood_still(scene) if case.protected else 0.0
    verdict = scene.verdict(scene.start_client("clock", *_questions(case.busy, seconds)))
    return {
        "case": case.name,
        "span_s": verdict["span_s"],
        "lost_ms": verdict["lost_ms"],
        "stood_still_s": _stood_still(scene) - stood if case.protected else 0.0,
    }


def _questions(busy: bool, seconds: float) -> list[str]:
    if busy:
        return ["--count", str(int(_BUSY_PER_S * seconds)), "--pause-ms", str(_BUSY_PAUSE_MS)]
    return ["--count", str(2 * _EDGE), "--pause-ms", "5", "--rest-s", str(seconds)]


def _stood_still(scene: Scene) -> float:
    time.sleep(0.5)  # the status is written several times a second
    return float(scene.status("a")["clock"]["stood_still_s"])


def _take_over(scene: Scene, colo: int) -> dict[str, Any]:
    client = scene.start_client("clock", "--count", "200", "--pause-ms", "10")
    time.sleep(2)
    for pid in (colo, scene.qemu_pid):
        os.kill(pid, signal.SIGKILL)
    verdict = scene.verdict(client)
    return {"case": _TAKEOVER, "span_s": verdict["span_s"], "lost_ms": verdict["lost_ms"]}


if __name__ == "__main__":
    sys.exit(main())
