"""What protection costs by the link between the hosts: its rate, and its delay.

Two hosts and a client are network namespaces.  A rate is tbf's, on both hosts' ends of the
replication network; a delay is that of ``bench.delay``, through which host A reaches host B.  One
guest answers a client, another one writes files.  All links take turns, and on each of them, with
the same running VM, the ways to take a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from bench.errors import BenchError
from bench.network import Kind, Scene, scene_of
from bench.pauses import stops_ms
from bench.stats import median, summarise
from bench.vm import ROOT, progress, wait_until
from bench.ways import LINK_WAYS, Way
from colo.demo.lab import REPLICATION_ADDRESS, Place

__all__ = ["LINKS", "Link", "measure"]

_HOSTS: Final = (Place.HOST_A, Place.HOST_B)
_COLO_PORT, _PROBE_PORT = 9000, 9001
_FORWARDED: Final = 100  # above a port of host B, on host A
_QUEUE_MS: Final = 50
_PROBE_S: Final = 1.0
_PROBE_MIB_MAX: Final = 256
_PROTECTED_S: Final = 180.0
_WARM_UP_S: Final = 2.0
_SETTLE_S: Final = 0.5
#: A turn of the guest that writes files has so many checkpoints, or lasts so much longer.
_CHECKPOINTS_MIN: Final = 8
_LONGER: Final = 5
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Link:
    """``mbit``: its rate; ``burst_kib`` of which may pass at once.  ``delay_ms``: each way."""

    name: str
    mbit: int | None = None
    burst_kib: int = 0
    delay_ms: float | None = None


LINKS: Final = (
    Link("unlimited"),
    Link("10 Gbit/s", 10_000, 128),
    Link("1 Gbit/s", 1_000, 32),
    Link("200 Mbit/s", 200, 16),
    Link("0 ms, forwarded", delay_ms=0),
    Link("1 ms", delay_ms=1),
    Link("5 ms", delay_ms=5),
)

_SERVES: Final = Kind()
_WRITES: Final = Kind(mode="files", memory_mib=512)


@dataclass
class _Found:
    """Samples of one way on one link; the names are those of the row.

    ``lost``: why a turn came to nothing: the VM lost its protection.
    """

    round_trip_ms: list[float] = field(default_factory=list)
    bulk_mib_per_s: list[float] = field(default_factory=list)
    answering_stopped_ms: list[float] = field(default_factory=list)
    answering_kib: list[float] = field(default_factory=list)
    writing_stopped_ms: list[float] = field(default_factory=list)
    writing_mib: list[float] = field(default_factory=list)
    files_per_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass
class _Bare:
    """What the link itself is, as measured without colo."""

    round_trip_ms: list[float] = field(default_factory=list)
    mib_per_s: list[float] = field(default_factory=list)


def measure(
    binary: str, rounds: int, requests: int, mib: int, seconds: float, say: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each link and way, at the end of all turns."""
    found = {(link, way): _Found() for link in LINKS for way in LINK_WAYS}
    bare = {link: _Bare() for link in LINKS}
    unprotected = _Found()

    def answer(scene: Scene, link: Link, way: Way, to: str) -> None:
        into = found[link, way]
        with _protected(scene, way, to):
            _answers(scene, into, requests)
            into.bulk_mib_per_s.append(scene.bulk(mib))
        trip, stopped = median(into.round_trip_ms), median(into.answering_stopped_ms)
        say(f"  {link.name}, {way.name}: round trip {trip:.2f} ms, stopped {stopped:.2f} ms")

    def write(scene: Scene, link: Link, way: Way, to: str) -> None:
        into = found[link, way]
        with _protected(scene, way, to):
            _writes(scene, into, seconds)
        stopped = median(into.writing_stopped_ms)
        say(f"  {link.name}, {way.name}: {into.files_per_s[-1]:.2f} files/s, {stopped:.1f} ms")

    with _vm(binary, _SERVES) as scene:
        unprotected.round_trip_ms += scene.echo(requests)
        unprotected.bulk_mib_per_s.append(scene.bulk_with_open_gate(mib))
    with _vm(binary, _WRITES) as scene:
        began = progress(scene.folder)
        time.sleep(seconds)
        unprotected.files_per_s.append((progress(scene.folder) - began) / seconds)
    for number in range(rounds):
        for kind, turn in ((_SERVES, answer), (_WRITES, write)):
            for link in LINKS:
                left = list(LINK_WAYS if number % 2 == 0 else reversed(LINK_WAYS))
                while left:
                    with _vm(binary, kind) as scene, _linked(scene, link) as to:
                        _probe(scene, link, bare[link])
                        while left:
                            way = left.pop(0)
                            try:
                                turn(scene, link, way, to)
                            except BenchError as error:  # the VM may run on the other host now
                                found[link, way].lost.append(str(error))
                                say(f"  {link.name}, {way.name}: {error}")
                                break
    yield {"link": None, "way": "unprotected", **_summed_up(unprotected)}
    for (link, way), samples in found.items():
        probed = {name: median(values) for name, values in vars(bare[link]).items()}
        yield {"link": asdict(link), "way": way.name, "bare": probed, **_summed_up(samples)}


def _summed_up(samples: _Found) -> dict[str, Any]:
    series = {name: values for name, values in vars(samples).items() if values and name != "lost"}
    lost = {"lost": samples.lost} if samples.lost else {}
    return {**{name: asdict(summarise(values)) for name, values in series.items()}, **lost}


@contextlib.contextmanager
def _vm(binary: str, kind: Kind) -> Iterator[Scene]:
    with scene_of(binary, kind) as scene, scene.secondary("b"), scene.qemu():
        host, port = REPLICATION_ADDRESS[Place.HOST_B], str(_PROBE_PORT)
        with _helper(scene, Place.HOST_B, "answer", host, port):
            yield scene


@contextlib.contextmanager
def _linked(scene: Scene, link: Link) -> Iterator[str]:
    """Have that link be between the hosts; where host B is then for host A."""
    with _limited(scene, link), _delayed(scene, link) as (host, ports):
        yield f"tcp:{host}:{ports + _COLO_PORT}"


@contextlib.contextmanager
def _limited(scene: Scene, link: Link) -> Iterator[None]:
    """Have both hosts send no faster than the link's rate."""
    device = ("dev", "replication", "root")
    if link.mbit is None:
        yield
        return
    rate = ("rate", f"{link.mbit}mbit", "burst", f"{link.burst_kib}kb", "latency", f"{_QUEUE_MS}ms")
    for host in _HOSTS:
        scene.lab.run(host, "tc", "qdisc", "add", *device, "tbf", *rate)
    try:
        yield
    finally:
        for host in _HOSTS:
            scene.lab.run(host, "tc", "qdisc", "del", *device)


@contextlib.contextmanager
def _delayed(scene: Scene, link: Link) -> Iterator[tuple[str, int]]:
    """The address by which host A reaches host B, and what is to be added to its ports."""
    there = REPLICATION_ADDRESS[Place.HOST_B]
    if link.delay_ms is None:
        yield there, 0
        return
    here = REPLICATION_ADDRESS[Place.HOST_A]
    ports = [f"{port + _FORWARDED}:{port}" for port in (_COLO_PORT, _PROBE_PORT)]
    with _helper(scene, Place.HOST_A, "forward", here, there, str(link.delay_ms), *ports):
        yield here, _FORWARDED


@contextlib.contextmanager
def _helper(scene: Scene, place: Place, *words: str) -> Iterator[None]:
    """Run ``bench.delay`` on a host."""
    command = [sys.executable, "-m", "bench.delay", *words]
    process = scene.lab.start(place, *command, stdin=subprocess.DEVNULL, cwd=ROOT)
    time.sleep(_SETTLE_S)  # it listens
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _probe(scene: Scene, link: Link, into: _Bare) -> None:
    """Measure the link without colo."""
    host, port = REPLICATION_ADDRESS[Place.HOST_B], _PROBE_PORT
    if link.delay_ms is not None:
        host, port = REPLICATION_ADDRESS[Place.HOST_A], _PROBE_PORT + _FORWARDED
    mib = _PROBE_MIB_MAX
    if link.mbit is not None:
        mib = min(mib, int(link.mbit * 1e6 / 8 * _PROBE_S / _MIB))
    command = [sys.executable, "-m", "bench.delay", "ask", host, str(port), str(mib)]
    process = scene.lab.start(Place.HOST_A, *command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    output, _ = process.communicate(timeout=60.0)
    if process.returncode:
        raise BenchError(f"the link {link.name} could not be measured: {output}")
    for name, value in json.loads(output).items():
        getattr(into, name).append(value)


@contextlib.contextmanager
def _protected(scene: Scene, way: Way, to: str) -> Iterator[None]:
    with scene.primary("a", to, way.checkpoints, _PROTECTED_S):
        time.sleep(_WARM_UP_S)
        yield


def _answers(scene: Scene, into: _Found, requests: int) -> None:
    """A client asks: round trips, and the checkpoints meanwhile."""
    with _checkpoints(scene) as checkpoints:
        into.round_trip_ms += scene.echo(requests)
    into.answering_stopped_ms += checkpoints.stopped_ms
    into.answering_kib.append(checkpoints.bytes_each / 1024)


def _writes(scene: Scene, into: _Found, seconds: float) -> None:
    """The guest writes files: how many, and the checkpoints meanwhile."""
    with _checkpoints(scene) as checkpoints:
        first, began, work = checkpoints.number(), time.monotonic(), progress(scene.folder)
        while (took := time.monotonic() - began) < seconds * _LONGER:
            if took >= seconds and checkpoints.number() - first >= _CHECKPOINTS_MIN:
                break
            time.sleep(_SETTLE_S)
        into.files_per_s.append((progress(scene.folder) - work) / took)
    into.writing_stopped_ms += checkpoints.stopped_ms
    into.writing_mib.append(checkpoints.bytes_each / _MIB)


class _Checkpoints:
    """Those of a span of time, afterwards: how long each stopped the VM, and its bytes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.stopped_ms: list[float] = []
        self.bytes_each = 0.0

        self._grant = scene.status("a")["grant"]

    def number(self) -> int:
        """That of the last one.  Raises BenchError where protection was lost meanwhile."""
        status = self._scene.status("a")
        if status["state"] != "PROTECTED" or status["grant"] != self._grant:
            raise BenchError(f"protection was lost: {status['error']} ({status['state']})")
        return int(status["checkpoint"] or 0)

    def next(self) -> tuple[int, int]:
        """Wait for the end of one: its number, and all that host A has sent until then.

        Of a checkpoint that takes long there is no part then that counts to the wrong one.
        """
        before = self.number()
        wait_until("a checkpoint", lambda: self.number() != before or None, _PROTECTED_S)
        command = ("ip", "-json", "-stats", "link", "show", "dev", "replication")
        (device,) = json.loads(self._scene.lab.run(Place.HOST_A, *command))
        return self.number(), int(device["stats64"]["tx"]["bytes"])


@contextlib.contextmanager
def _checkpoints(scene: Scene) -> Iterator[_Checkpoints]:
    found = _Checkpoints(scene)
    with scene.monitor() as monitor:
        first, before = found.next()
        since = time.time()
        yield found
        until = time.time()
        last, after = found.next()
        found.bytes_each = (after - before) / (last - first)

        def ended() -> list[float] | None:
            """The last STOP's RESUME is here, and there was one."""
            monitor.execute("query-status")
            names = [event.name for event in monitor.events if event.name in ("STOP", "RESUME")]
            stopped = list(stops_ms(monitor.events, since, until))
            return stopped if stopped and names[-1] == "RESUME" else None

        found.stopped_ms = wait_until("a checkpoint", ended, _PROTECTED_S)
