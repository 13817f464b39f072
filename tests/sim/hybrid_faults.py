"""What goes wrong in hybrid mode besides all the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.sim.cluster import Cluster, Host
from tests.sim.faults import host_dies, hosts_are_cut_off, qemu_dies
from tests.sim.talking_vm import TalkingVm
from tests.sim.world import Connection

__all__ = ["HYBRID_FAULTS", "HYBRID_SUDDEN"]

#: The faults by name, as ``faults.FAULTS``.
HYBRID_FAULTS: Final[dict[str, Callable[[Cluster, Host], None]]] = {}


def _fault(do: Callable[[Cluster, Host], None]) -> Callable[[Cluster, Host], None]:
    HYBRID_FAULTS[do.__name__] = do
    return do


def _beside(cluster: Cluster) -> tuple[Host, TalkingVm] | None:
    """The host with the secondary VM, and that."""
    for host in cluster.hosts.values():
        vm = host.secondary_vm
        if vm is not None and vm.is_alive:
            return host, vm
    return None


def _link(cluster: Cluster) -> Connection | None:
    for host in cluster.hosts.values():
        comparing = host.colo.comparing if host.colo is not None else None
        if comparing is not None and comparing.link is not None:
            return comparing.link[0]
    return None


def _later(cluster: Cluster, least_s: float, most_s: float, act: Callable[[], object]) -> None:
    cluster.world.after(cluster.world.some(least_s, most_s), act)


@_fault
def secondary_vm_dies(cluster: Cluster, host: Host) -> None:
    if (there := _beside(cluster)) is not None:
        there[1].kill()


@_fault
def secondary_vm_hangs(cluster: Cluster, host: Host) -> None:
    there = _beside(cluster)
    if there is not None and not there[1].is_paused:
        there[1].pause()
        _later(cluster, 0.05, 10.0, there[1].resume)


@_fault
def secondary_vm_dies_and_then_its_primary(cluster: Cluster, host: Host) -> None:
    """Or they are cut off from each other, or the way between the VMs was cut before."""
    there = _beside(cluster)
    if there is None:
        return
    here, vm = there
    other, dice = cluster.other(here), cluster.world.random
    what = dice.choice([host_dies, qemu_dies, hosts_are_cut_off])
    vm.kill()
    _later(cluster, 0.0, dice.choice([0.005, 0.1]), lambda: what(cluster, other))


@_fault
def primary_dies_beside_a_secondary_vm(cluster: Cluster, host: Host) -> None:
    if (there := _beside(cluster)) is not None:
        what = cluster.world.random.choice([host_dies, qemu_dies])
        what(cluster, cluster.other(there[0]))


@_fault
def hybrid_link_breaks(cluster: Cluster, host: Host) -> None:
    link = _link(cluster)
    if link is not None:
        for end in link.ends:
            end.process.take(lambda end=end: link.lose(end))  # type: ignore[misc]


@_fault
def hybrid_link_is_silent(cluster: Cluster, host: Host) -> None:
    """One way or both; what was said comes later, if it is still open."""
    link = _link(cluster)
    if link is None:
        return
    dice = cluster.world.random
    deaf = dice.choice([link.ends, link.ends[:1], link.ends[1:]])

    def mend() -> None:
        link.deaf.difference_update(deaf)
        cluster.world.changed()

    link.deaf.update(deaf)
    _later(cluster, 0.05, 5.0, mend)


@_fault
def words_lag(cluster: Cluster, host: Host) -> None:
    link = _link(cluster)
    if link is not None:
        link.lag_s = cluster.world.random.choice([0.02, 0.1, 0.5])
        _later(cluster, 0.5, 8.0, lambda: setattr(link, "lag_s", 0.0))


@_fault
def vms_differ(cluster: Cluster, host: Host) -> None:
    """For a while they draw a lot."""
    vms = [each for each in (host.vm, host.secondary_vm) if isinstance(each, TalkingVm)]
    for vm in vms:
        vm.differs = 0.5
        _later(cluster, 0.1, 2.0, lambda vm=vm: setattr(vm, "differs", cluster.day.differs))  # type: ignore[misc]


#: What comes right behind a change of state on some days.
HYBRID_SUDDEN: Final = (
    secondary_vm_dies, secondary_vm_dies_and_then_its_primary, primary_dies_beside_a_secondary_vm,
    hybrid_link_breaks, hybrid_link_is_silent, words_lag,
)  # fmt: skip
