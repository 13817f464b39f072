"""What a status says, as Prometheus wants to have it.

Names and units follow its conventions: base units, ``_total`` of what only grows, a state as one
series for each name that it may have.  What a status does not tell of is left out: a secondary
has no stops of its VM, and who has no disks has no series of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)

from colo import __version__
from colo.disks.standing import Condition
from colo.membership.states import State
from colo.metrics.arbiter import Reached
from colo.packets.gate import GateState
from colo.packets.other_vm import Other
from colo.status.figures import BOUNDS_S, PHASES
from colo.status.history import Line

__all__ = ["families"]

#: The values of a series' labels.
_Of: TypeAlias = tuple[str, ...]

_ROLES: Final = ("node", "primary", "secondary")
_LINKS: Final = ("UP", "LOST", "NONE")
_BOUNDS: Final = (*(f"{bound}" for bound in BOUNDS_S), "+Inf")

#: By its place in the status: a gauge's name, and what it is.
_GAUGES: Final = {
    "checkpoint": ("checkpoint_number", "Number of the last checkpoint that is safe"),
    "checkpoint_at": ("checkpoint_timestamp_seconds", "When the last checkpoint was safe"),
    "grant": ("grant_number", "Number of the grant to run the VM, as far as it is known here"),
    "aside.lag_s": ("lag_seconds", "Age of the state that the secondary has"),
    "aside.held_bytes": ("aside_bytes", "What is held here for the secondary while the VM runs"),
    "aside.room_bytes": ("aside_limit_bytes", "How much of it may be held"),
    "aside.memory_bytes": ("aside_memory_bytes", "Memory that is taken for it"),
    "clock.stopped_share": ("stopped_ratio", "Share of the last minute that the VM stood still"),
    "clock.stopped_share_max": ("stopped_ratio_limit", "The share that stopped_share_max allows"),
    "wire.rate": (
        "wire_rate_bytes_per_second",
        "Rate of the link to the secondary; none where it is as fast as QEMU",
    ),
    "wire.is_coded": ("wire_coding", "1 where what is sent is coded now"),
    "hybrid.link": ("hybrid_link", "1 while the hybrid link to the secondary is there"),
    "guest_bytes": ("guest_memory_bytes", "The VM's main memory"),
    "store_bytes": ("store_bytes", "What the store takes on this host"),
    "forward.checkpoint": ("forward_checkpoint_number", "The checkpoint that was handed on"),
    "awake": ("processors_awake", "1 while colo keeps this host's processors awake"),
    "written_at": ("status_timestamp_seconds", "When these figures were taken"),
}
_COUNTERS: Final = {
    "pages_total": ("received_pages", "Pages that came in checkpoints"),
    "wire.stream_bytes": ("wire_stream_bytes", "Bytes of checkpoints that were to be sent"),
    "wire.wire_bytes": ("wire_sent_bytes", "Bytes as which they were sent"),
    "wire.work_s": ("wire_work_seconds", "Processor time spent on sending less"),
    "hybrid.compared": ("hybrid_packets_compared", "Packets that both VMs' output had"),
    "hybrid.alike": ("hybrid_packets_alike", "Of them, those that left as both said the same"),
    "hybrid.spells": ("hybrid_spells", "How often a secondary VM has run beside this one"),
    "clock.stood_still_s": ("stood_still_seconds", "Time that the VM stood still"),
    "clock.given_back_s": ("clock_given_back_seconds", "Of that, what its guest was given back"),
    "clock.lost_s": ("clock_lost_seconds", "Time that the guest's clock has lost"),
    "forward.bytes": ("forward_bytes", "Bytes that were handed on to a further secondary"),
}
#: The same of each disk, by the status of a primary's or a secondary's.
_DISK_GAUGES: Final = {
    "size": ("size_bytes", "Size of the disk"),
    "in_step": ("in_step", "1 once the other host's copy is in step"),
    "share": ("copied_ratio", "How much of its first copy is done, 0 to 1"),
    "epoch_bytes": ("checkpoint_bytes", "What came since the last checkpoint"),
    "held_bytes": ("held_bytes", "What is committed or staged, and not in the file yet"),
    "merge_lag": ("merge_lag_checkpoints", "Checkpoints that are being written into the file"),
}
#: And of each network card's gate.
_GATE_COUNTERS: Final = {
    "frames": ("packets", "Packets of the guest that were taken"),
    "bytes": ("packet_bytes", "Bytes of them"),
    "dropped": ("packets_dropped", "Packets that were dropped: too much was held, or it is shut"),
}
_GATE_GAUGES: Final = {
    "held_bytes": ("held_bytes", "Output that waits for its checkpoint"),
    "held_max_bytes": ("held_max_bytes", "The most that has waited at once"),
}


def families(
    vm: str, status: Mapping[str, Any], last: Line | None, reached: Reached | None
) -> Iterator[Metric]:
    """All that there is to say of a VM on this host.

    ``last``: its history's last line.  ``reached``: what came of asking the arbiter, if it is.
    """
    info = InfoMetricFamily("colo", "Which colo this is, and who grants it the VM", labels=["vm"])
    arbiter = str(status.get("arbiter", "")).partition(":")[0]
    info.add_metric([vm], {"version": __version__, "arbiter": arbiter})
    yield info
    yield from _stands(vm, status)
    yield from _numbers(GaugeMetricFamily, vm, status, _GAUGES)
    yield from _numbers(CounterMetricFamily, vm, status, _COUNTERS)
    yield from _checkpoints(vm, status)
    yield from _hybrid(vm, status.get("hybrid") or {})
    yield from _network(vm, status.get("network") or {})
    yield from _disks(vm, status.get("disks") or ())
    yield from _takeovers(vm, last)
    yield from _arbiter(vm, reached)


def _stands(vm: str, status: Mapping[str, Any]) -> Iterator[Metric]:
    """The role, the state and the link, as enums."""
    for name, doc, values, value in (
        ("role", "The role that this host plays for the VM", _ROLES, status.get("role")),
        ("state", "How the VM stands on this host", State.__members__, status.get("state")),
        ("link", "The control link to the primary", _LINKS, status.get("link")),
    ):
        if value is not None:
            yield _one_of(f"colo_{name}", doc, ["vm"], {(vm,): value}, values)


def _one_of(
    name: str,
    doc: str,
    labels: list[str],
    found: Mapping[_Of, str],
    values: Iterable[str],
) -> Metric:
    family = StateSetMetricFamily(name, doc, labels=labels)
    for of, value in found.items():
        family.add_metric(list(of), {each: each == value for each in values})
    return family


def _at(status: Mapping[str, Any], place: str) -> float | None:
    """The number at a place in the status, or None."""
    value: Any = status
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _numbers(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    vm: str,
    status: Mapping[str, Any],
    places: Mapping[str, tuple[str, str]],
) -> Iterator[Metric]:
    for place, (name, doc) in places.items():
        if (value := _at(status, place)) is not None:
            family = kind(f"colo_{name}", doc, labels=["vm"])
            family.add_metric([vm], value)
            yield family


def _checkpoints(vm: str, status: Mapping[str, Any]) -> Iterator[Metric]:
    times = status.get("times") or {}
    for role, phase, doc in (
        ("primary", "covered", "Checkpoints that were safe on the other host"),
        ("secondary", "received", "Checkpoints that came whole"),
    ):
        if status.get("role") == role and phase in times:
            name = "colo_checkpoints"
            family = CounterMetricFamily(name, doc, labels=["vm"])
            family.add_metric([vm], times[phase]["counts"][-1])
            yield family
    for phase, counted in times.items():
        doc = f"A checkpoint's {phase}: {PHASES[phase]}"
        yield _histogram(f"colo_checkpoint_{phase}_seconds", doc, ["vm"], {(vm,): counted})
    is_primary = status.get("role") == "primary"
    if (total := _at(status, "bytes_total")) is not None:
        name = "colo_sent_bytes" if is_primary else "colo_received_bytes"
        doc = "Bytes that went to the secondary" if is_primary else "Bytes of checkpoints that came"
        family = CounterMetricFamily(name, doc, labels=["vm"])
        family.add_metric([vm], total)
        yield family


def _hybrid(vm: str, hybrid: Mapping[str, Any]) -> Iterator[Metric]:
    """The secondary VM, and why it and this one parted."""
    if not hybrid:
        return
    doc = "The secondary VM of hybrid mode, as the primary's host knows of it"
    yield _one_of("colo_hybrid", doc, ["vm"], {(vm,): hybrid["other"]}, Other.__members__)
    for place, label, name, doc in (
        ("differed", "protocol", "differences", "Differences between what both VMs said"),
        ("ended_by", "cause", "ends", "How often a secondary VM was given up"),
    ):
        family = CounterMetricFamily(f"colo_hybrid_{name}", doc, labels=["vm", label])
        for of, count in hybrid[place].items():
            family.add_metric([vm, str(of)], count)
        yield family


def _histogram(
    name: str, doc: str, labels: list[str], found: Mapping[_Of, Mapping[str, Any]]
) -> Metric:
    family = HistogramMetricFamily(name, doc, labels=labels)
    for of, counted in found.items():
        buckets = list(zip(_BOUNDS, counted["counts"], strict=True))
        family.add_metric(list(of), buckets, counted["sum_s"])
    return family


def _network(vm: str, gates: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    if not gates:
        return
    labels = ["vm", "netdev"]
    states: dict[_Of, str] = {(vm, netdev): gate["gate"] for netdev, gate in gates.items()}
    doc = "What happens to packets of the guest"
    yield _one_of("colo_gate", doc, labels, states, GateState.__members__)
    for kind, places in (
        (CounterMetricFamily, _GATE_COUNTERS),
        (GaugeMetricFamily, _GATE_GAUGES),
    ):
        for place, (name, doc) in places.items():
            family = kind(f"colo_{name}", doc, labels=labels)
            for netdev, gate in gates.items():
                family.add_metric([vm, netdev], gate[place])
            yield family
    held: dict[_Of, Any] = {(vm, netdev): gate["held"] for netdev, gate in gates.items()}
    yield _histogram("colo_packets_held_seconds", "How long output has waited", labels, held)


def _disks(vm: str, disks: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    disks, labels = list(disks), ["vm", "disk"]
    for place, (name, doc) in _DISK_GAUGES.items():
        found = {disk["id"]: value for disk in disks if (value := _at(disk, place)) is not None}
        if found:
            gauge = GaugeMetricFamily(f"colo_disk_{name}", doc, labels=labels)
            for disk, value in found.items():
                gauge.add_metric([vm, disk], value)
            yield gauge
    written = {disk["id"]: disk["written_bytes"] for disk in disks if "written_bytes" in disk}
    if written:
        doc = "Bytes of the disk that went to the other host"
        counter = CounterMetricFamily("colo_disk_sent_bytes", doc, labels=labels)
        for disk, value in written.items():
            counter.add_metric([vm, disk], value)
        yield counter
    replicas: dict[_Of, str] = {
        (vm, disk["id"]): disk["condition"] for disk in disks if "condition" in disk
    }
    if replicas:
        doc = "What the replica of the disk on this host is"
        yield _one_of("colo_disk_replica", doc, labels, replicas, Condition.__members__)


def _takeovers(vm: str, last: Line | None) -> Iterator[Metric]:
    doc = "How often this host has taken the VM over, by its state folder"
    counter = CounterMetricFamily("colo_takeovers", doc, labels=["vm"])
    counter.add_metric([vm], last.takeovers if last is not None else 0)
    yield counter
    if last is not None and last.takeover_at is not None:
        doc = "When this host took the VM over last"
        gauge = GaugeMetricFamily("colo_takeover_timestamp_seconds", doc, labels=["vm"])
        gauge.add_metric([vm], last.takeover_at)
        yield gauge


def _arbiter(vm: str, reached: Reached | None) -> Iterator[Metric]:
    if reached is None:
        return
    asked = CounterMetricFamily("colo_arbiter_asked", "How often it was asked", labels=["vm"])
    asked.add_metric([vm], reached.asked)
    failed = CounterMetricFamily("colo_arbiter_failures", "How often in vain", labels=["vm"])
    failed.add_metric([vm], reached.failed)
    yield from (asked, failed)
    for name, doc, value in (
        ("up", "1 where the arbiter answered when it was last asked", reached.is_up),
        ("answer_seconds", "How long its last answer took", reached.answer_s),
    ):
        if value is not None:
            gauge = GaugeMetricFamily(f"colo_arbiter_{name}", doc, labels=["vm"])
            gauge.add_metric([vm], float(value))
            yield gauge
