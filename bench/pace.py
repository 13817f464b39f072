"""When a checkpoint is taken: so long after the last one, or by the model of what it will cost.

Two hosts and a client are network namespaces.  A client asks while the guest does nothing else, or
builds, or writes files; how long an answer takes, and how much the guest gets done, are of the same
time.  All ways take turns on the same running VM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.errors import BenchError
from bench.network import Kind, Scene, scene_of
from bench.pauses import stops_ms
from bench.stats import summarise
from bench.vm import progress
from bench.ways import Way

__all__ = ["measure"]

_WARM_UP_S: Final = 2.0
_LAST_S: Final = 1.5  # the last STOP's RESUME
_UNPROTECTED: Final = "unprotected"


def _fixed(spacing_ms: int) -> Way:
    """The VM runs so long between two, whether an answer waits, and whatever a checkpoint costs."""
    keys = f"run_min_ms = {spacing_ms}\nage_max_ms = {spacing_ms}\nstop_goal_ms = 600000"
    return Way(f"{spacing_ms} ms after the last", keys)


_WAYS: Final = (
    *map(_fixed, (5, 20, 100, 500)),
    Way("by the model"),
    *(Way(f"by the model, goal {goal} ms", f"latency_goal_ms = {goal}") for goal in (20, 100)),
)
#: What the guest does besides answering, and what of that is counted.
_GUESTS: Final = {
    "answers": Kind(),
    "builds": Kind(mode="build", memory_mib=512),
    "writes files": Kind(mode="files", memory_mib=512),
}


@dataclass
class _Found:
    """Samples of one guest and way; rates are one of each turn."""

    round_trip_ms: list[float] = field(default_factory=list)
    stopped_ms: list[float] = field(default_factory=list)
    checkpoints_per_s: list[float] = field(default_factory=list)
    stopped_share: list[float] = field(default_factory=list)
    work_per_s: list[float] = field(default_factory=list)


def measure(
    binary: str, rounds: int, seconds: float, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each guest and way, guest by guest."""
    for guest, kind in _GUESTS.items():
        found = {name: _Found() for name in (_UNPROTECTED, *(way.name for way in _WAYS))}
        with scene_of(binary, kind) as scene, scene.secondary("b"), scene.qemu():
            for number in range(rounds):
                _ask(scene, kind, found[_UNPROTECTED], seconds)
                for way in _WAYS if number % 2 == 0 else reversed(_WAYS):
                    with scene.primary("a", checkpoints=way.checkpoints):
                        time.sleep(_WARM_UP_S)
                        _watch(scene, kind, found[way.name], seconds)
                    say(f"  {guest}, {way.name}: {_told(found[way.name])}")
        for name, samples in found.items():
            series = {key: values for key, values in vars(samples).items() if values}
            summed_up = {key: asdict(summarise(values)) for key, values in series.items()}
            yield {"guest": guest, "way": name, **summed_up}


def _told(found: _Found) -> str:
    trip, rate = summarise(found.round_trip_ms), found.checkpoints_per_s[-1]
    return (
        f"{rate:.1f} checkpoints/s, round trip {trip.median:.2f} ms (p99 {trip.p99:.2f}), "
        f"work {found.work_per_s[-1]:.2f}/s"
    )


def _ask(scene: Scene, kind: Kind, into: _Found, seconds: float) -> None:
    """A client asks for so long: its round trips, and what the guest did."""
    began, work = time.monotonic(), progress(scene.folder)
    trips = scene.echo_for(seconds)
    took, work = time.monotonic() - began, progress(scene.folder) - work
    into.round_trip_ms += trips
    into.work_per_s.append(len(trips) / seconds if kind.mode == "serve" else work / took)


def _watch(scene: Scene, kind: Kind, into: _Found, seconds: float) -> None:
    """The same of a protected VM, and its checkpoints meanwhile."""
    grant = scene.status("a")["grant"]
    with scene.monitor() as monitor:
        since = time.time()
        _ask(scene, kind, into, seconds)
        until = time.time()
        time.sleep(_LAST_S)
        monitor.execute("query-status")
        stopped = list(stops_ms(monitor.events, since, until))
    status = scene.status("a")
    if status["state"] != "PROTECTED" or status["grant"] != grant or not stopped:
        raise BenchError(f"protection was lost: {status['error']} ({status['state']})")
    into.stopped_ms += stopped
    into.checkpoints_per_s.append(len(stopped) / (until - since))
    into.stopped_share.append(sum(stopped) / 1e3 / (until - since))
