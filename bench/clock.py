"""How far the guest's clock falls behind while its VM is protected, and over a takeover.

A client asks the guest for its CLOCK_MONOTONIC, at both ends of a time in which it is silent, or
all through it, and holds that against the time that passed here.  A clock that goes back ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from bench.network import Scene, scene_of
from bench.stats import summarise

__all__ = ["measure"]

_EDGE: Final = 30  # questions: half of them are one reading of the guest's clock
_BUSY_PAUSE_MS: Final = 55
_BUSY_PER_S: Final = 15


@dataclass(frozen=True)
class _Case:
    """``busy``: the guest sends some 15 packets a second; ``library``: QEMU has colo's."""

    name: str
    protected: bool = True
    busy: bool = False
    library: bool = True


_CASES: Final = (
    _Case("unprotected", protected=False),
    _Case("protected, idle"),
    _Case("protected, 15 packets a second", busy=True),
    _Case("the same without colo's library", busy=True, library=False),
)


def measure(
    binary: str, seconds: float, takeovers: int, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each case, and one for takeovers; ``lost`` in ms, over ``span_s``."""
    for case in _CASES:
        row = _one(binary, case, seconds)
        say(f"  {case.name}: lost {row['lost_ms']:.1f} ms in {row['span_s']:.0f} s")
        yield {"case": case.name, **row}
    lost = []
    for number in range(takeovers):
        lost.append(_over_a_takeover(binary, number / takeovers))
        say(f"  takeover: lost {lost[-1]:.1f} ms")
    yield {"case": "over a takeover", "takeovers": asdict(summarise(lost, 1))}


def _one(binary: str, case: _Case, seconds: float) -> dict[str, Any]:
    with scene_of(binary) as scene, scene.secondary("b"), scene.qemu(case.library):
        protection = scene.primary("a") if case.protected else contextlib.nullcontext()
        with protection:
            stood = _stood_still(scene) if case.protected else 0.0
            verdict = scene.verdict(scene.start_client("clock", *_questions(case.busy, seconds)))
            stood = _stood_still(scene) - stood if case.protected else 0.0
    return {
        "span_s": verdict["span_s"],
        "lost_ms": verdict["lost_ms"],
        "stood_still_s": stood,
    }


def _questions(busy: bool, seconds: float) -> list[str]:
    if busy:
        count = int(_BUSY_PER_S * seconds)
        return ["--count", str(count), "--pause-ms", str(_BUSY_PAUSE_MS)]
    return ["--count", str(2 * _EDGE), "--pause-ms", "5", "--rest-s", str(seconds)]


def _stood_still(scene: Scene) -> float:
    time.sleep(0.5)  # the status is written several times a second
    return float(scene.status("a")["clock"]["stood_still_s"])


def _over_a_takeover(binary: str, offset: float) -> float:
    with (
        scene_of(binary) as scene,
        scene.secondary("b"),
        scene.qemu(),
        scene.primary("a") as colo,
    ):
        client = scene.start_client("clock", "--count", "200", "--pause-ms", "10")
        time.sleep(2 + offset)
        for pid in (scene.qemu_pid, colo.pid):
            os.kill(pid, signal.SIGKILL)
        return float(scene.verdict(client)["lost_ms"])
