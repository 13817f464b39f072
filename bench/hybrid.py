"""Hybrid mode: what a client gets with a secondary VM, without one, and of an unprotected VM.

Two hosts and a client are network namespaces, and all of it shares this machine's processors.  Of
each load all ways take turns on the same running VM, each with colos of its own; it is on for a
while before it counts.  QEMU's own hybrid mode has a fresh VM each time, at the end of the round.
Beside the rates are those of two unprotected VMs at once, as many as hybrid mode has.  A
takeover's gap is the longest silence that a client has from the kill on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.errors import BenchError
from bench.loads import BULK, ECHO, LOADS, RATES, Samples, logged, play
from bench.machine import busy_share
from bench.memory import memory_mib
from bench.network import Scene, scene_of
from bench.pauses import stops_ms
from bench.qemus_hybrid import qemus_own
from bench.qmp import Monitor
from bench.stats import median, summarise

__all__ = ["measure"]

_BARE: Final = "unprotected"
_OWN: Final = "QEMU's own"
_WAYS: Final = (_BARE, "periodic", "hybrid", "auto", _OWN)
_SECONDS: Final = 6.0
_WARM_UP_S: Final = 2.0
_STATUS_S: Final = 0.5  # it is written several times a second
_LAST_S: Final = 1.0  # the last STOP's RESUME
_GAPS: Final = 3
_KILLED_S: Final = 3.0
_IN_STATUS: Final = ("compared", "alike", "spells")


@dataclass
class _Found:
    """Samples of one load and way; the names are those of the row.

    ``lost``: why a turn came to nothing: a client's offence, or lost protection.
    """

    samples: Samples = field(default_factory=dict)
    median_of: dict[int, float] = field(default_factory=dict)  # a round's, by its number
    counts: Counter[str] = field(default_factory=Counter)
    ended_by: Counter[str] = field(default_factory=Counter)
    differed: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def take(self, number: int, samples: Samples) -> None:
        """Take what a client said in that round."""
        for name, values in samples.items():
            self.samples.setdefault(name, []).extend(values)
            if name in ("round_trip_ms", "mib_per_s"):
                self.median_of[number] = median(values)


def measure(binary: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all of it.  ``others_share``: of the processors, what else ran before each round."""
    found = {(load, way): _Found() for load in LOADS for way in _WAYS}
    beside: dict[str, dict[int, float]] = {load: {} for load in RATES}
    others = []
    for number in range(rounds):
        others.append(busy_share())
        say(f"  others take {others[-1]:.0%} of the processors")
        for load, rates in beside.items():
            rates[number] = _side_by_side(binary, load)
            say(f"  {load}, two unprotected VMs: {rates[number]:.1f} MiB/s each")
        ways = [way for way in _WAYS if way != _OWN][:: 1 if number % 2 == 0 else -1]
        turns = [(load, way) for load in LOADS for way in ways]
        while turns:
            with scene_of(binary) as scene, scene.qemu():
                while turns:
                    load, way = turns.pop(0)
                    into = found[load, way]
                    try:
                        _turn(scene, load, way, into, number)
                    except BenchError as error:  # the VM may run on the other host now
                        into.lost.append(str(error))
                        say(f"  {load}, {way}: {error}")
                        break
                    say(f"  {load}, {way}: {_told(into)}")
        for load in LOADS:
            into = found[load, _OWN]
            try:
                _qemus_turn(binary, load, into, number)
                say(f"  {load}, {_OWN}: {_told(into)}")
            except BenchError as error:
                into.lost.append(str(error))
                say(f"  {load}, {_OWN}: {error}")
    rows = []
    for (load, way), each in found.items():
        row = {"load": load, "way": way, **_summed_up(each)}
        bare = found[load, _BARE].median_of
        if load in RATES:
            ratios = [rate / beside[load][number] for number, rate in each.median_of.items()]
            row["of_two"] = [round(ratio, 3) for ratio in ratios]
        elif bare and way != _BARE:
            added = [trip - bare[n] for n, trip in each.median_of.items() if n in bare]
            row["added_ms"] = [round(value, 3) for value in added]
        rows.append(row)
    return {
        "seconds": _SECONDS,
        "others_share": others,
        "side_by_side": {load: asdict(summarise([*beside[load].values()])) for load in RATES},
        "loads": rows,
        "gaps": [
            _gaps(binary, load, way, say) for load in (ECHO, BULK) for way in ("periodic", "hybrid")
        ],
    }


def _turn(scene: Scene, load: str, way: str, into: _Found, number: int) -> None:
    if way == _BARE:
        play(scene, load, _WARM_UP_S)
        into.take(number, play(scene, load, _SECONDS))
        return
    scene.mode = way
    with scene.secondary(f"b-{time.monotonic_ns()}") as host_b, scene.primary("a"):
        play(scene, load, _WARM_UP_S)
        before = scene.status("a")
        with _measured(scene, load, host_b) as (samples, _):
            time.sleep(_STATUS_S)
            after = scene.status("a")
    if after["state"] != "PROTECTED" or after["grant"] != before["grant"]:
        raise BenchError(f"protection was lost: {after['error']} ({after['state']})")
    into.take(number, samples)
    if (now := after.get("hybrid")) is not None:
        was = before["hybrid"]
        into.counts.update({name: now[name] - was[name] for name in _IN_STATUS})
        into.ended_by.update(Counter(now["ended_by"]) - Counter(was["ended_by"]))
        into.differed.update(Counter(now["differed"]) - Counter(was["differed"]))


def _qemus_turn(binary: str, load: str, into: _Found, number: int) -> None:
    """The same with QEMU's own hybrid mode, on a VM of its own."""
    with scene_of(binary) as scene, scene.qemu(), qemus_own(scene) as host_b:
        play(scene, load, _WARM_UP_S)
        with _measured(scene, load, host_b) as (samples, monitor):
            if monitor.execute("query-migrate").get("status") != "colo":
                raise BenchError("QEMU's own hybrid mode has ended")
    into.take(number, samples)


@contextlib.contextmanager
def _measured(scene: Scene, load: str, host_b: int) -> Iterator[tuple[Samples, Monitor]]:
    """``with``: what a turn's client has said, and the VM's monitor; at the end, its stops too.

    ``host_b``: the process on host B whose memory, with its children's, is looked at.
    """
    with scene.monitor() as monitor:
        since = time.time()
        samples = play(scene, load, _SECONDS)
        until = time.time()
        samples["host_b_mib"] = [memory_mib(host_b)]
        yield samples, monitor
        time.sleep(_LAST_S)
        monitor.execute("query-status")
        stopped, seconds = list(stops_ms(monitor.events, since, until)), until - since
    samples["checkpoints_per_s"] = [len(stopped) / seconds]
    samples["stopped_share"] = [sum(stopped) / 1e3 / seconds]
    if stopped:
        samples["stopped_ms"] = stopped


def _summed_up(found: _Found) -> dict[str, Any]:
    series = {name: asdict(summarise(values, 4)) for name, values in found.samples.items()}
    names = ("counts", "ended_by", "differed", "lost")
    return {**series, **{name: value for name in names if (value := getattr(found, name))}}


def _told(found: _Found) -> str:
    series = {name: summarise(values) for name, values in found.samples.items()}
    shown = [f"{name} {each.median:.3f} (p99 {each.p99:.3f})" for name, each in series.items()]
    return ", ".join([*shown, *(f"{key} {each}" for key, each in found.counts.items())])


def _side_by_side(binary: str, load: str) -> float:
    """The rate of each of two unprotected VMs that do that at once: their mean."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        scenes = [stack.enter_context(scene_of(binary)) for _ in range(2)]
        for scene in scenes:
            stack.enter_context(scene.qemu())
        for seconds in (_WARM_UP_S, _SECONDS):
            said = list(pool.map(lambda scene, s=seconds: play(scene, load, s), scenes))
    return sum(rate for each in said for rate in each["mib_per_s"]) / len(scenes)


def _gaps(binary: str, load: str, way: str, say: Callable[[str], None]) -> dict[str, Any]:
    gaps, lost = [], []
    for turn in range(_GAPS):
        try:
            gaps.append(_one_gap(binary, load, way, turn / _GAPS))
            say(f"  takeover, {load}, {way}: {gaps[-1]:.0f} ms")
        except BenchError as error:
            lost.append(str(error))
            say(f"  takeover, {load}, {way}: {error}")
    found = {"gap_ms": asdict(summarise(gaps, 1))} if gaps else {}
    return {"load": load, "way": way, **found, **({"lost": lost} if lost else {})}


def _one_gap(binary: str, load: str, way: str, offset: float) -> float:
    with scene_of(binary) as scene:
        scene.mode, log = way, scene.folder / "gap.jsonl"
        with scene.secondary("b"), scene.qemu(), scene.primary("a") as colo:
            client = scene.start_client(
                *LOADS[load], "--seconds", str(2 * _KILLED_S), "--log", str(log)
            )
            time.sleep(_KILLED_S + offset)
            killed = time.time()
            for pid in (colo.pid, scene.qemu_pid):
                os.kill(pid, signal.SIGKILL)
            scene.verdict(client)
        at = [float(each["t"]) for each in logged(log)]
        return 1e3 * max(then - last for last, then in itertools.pairwise(at) if then >= killed)
