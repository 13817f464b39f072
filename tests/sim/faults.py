"""What goes wrong, and what people do at the worst time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from colo.membership.grant import Grant
from colo.membership.states import Do, Event, State
from tests.sim.cluster import Cluster, Host
from tests.sim.colo import Colo
from tests.sim.shell import HEARTBEAT_LIMIT_S
from tests.sim.vm import nothing
from tests.sim.world import Connection, End, Process

__all__ = ["FAULTS", "SUDDEN", "heal", "is_nowhere"]

#: How old an order may be: see colo.node.orders.
ORDER_S: Final = 5.0
#: The faults by name: each is done to one of the hosts, and undoes itself after a while.
FAULTS: Final[dict[str, Callable[[Cluster, Host], None]]] = {}


def _fault(do: Callable[[Cluster, Host], None]) -> Callable[[Cluster, Host], None]:
    FAULTS[do.__name__] = do
    return do


def _later(cluster: Cluster, least_s: float, most_s: float, act: Callable[[], object]) -> None:
    cluster.world.after(cluster.world.some(least_s, most_s), act)


@_fault
def colo_dies(cluster: Cluster, host: Host) -> None:
    host.end_colo()
    _later(cluster, 0.2, 4.0, host.begin)


@_fault
def host_dies(cluster: Cluster, host: Host) -> None:
    if host.is_up:
        host.power_off()
        _later(cluster, 0.5, 15.0, host.power_on)


@_fault
def qemu_dies(cluster: Cluster, host: Host) -> None:
    if host.vm is not None:
        host.vm.kill()


@_fault
def guest_hangs(cluster: Cluster, host: Host) -> None:
    """And goes on, unless somebody has ended it."""
    vm = host.vm
    if vm is not None and vm.is_alive and not vm.is_paused:
        vm.pause()
        _later(cluster, 0.05, 30.0, vm.resume)


@_fault
def colo_hangs(cluster: Cluster, host: Host) -> None:
    colo = host.colo
    if colo is not None and colo.is_alive and not colo.is_paused:
        colo.pause()
        _later(cluster, 0.05, 8.0, colo.resume)


@_fault
def host_hangs(cluster: Cluster, host: Host) -> None:
    """Its colo and its QEMU, as long as a paused machine may be."""
    colo, vm, beside = host.colo, host.vm, host.secondary_vm
    for process in (colo, vm, beside):
        if process is not None and process.is_alive and not process.is_paused:
            process.pause()
    least_s = cluster.world.some(0.05, 20.0)

    def go_on() -> None:
        for process in (vm, beside, colo):
            if process is not None and process.is_paused:
                process.resume()

    cluster.world.after(least_s, go_on)


def _cut(cluster: Cluster, *wires: tuple[str, str]) -> None:
    world = cluster.world

    def mend() -> None:
        world.cut.difference_update(wires)
        world.changed()

    world.cut.update(wires)
    world.changed()
    _later(cluster, 0.05, 10.0, mend)


@_fault
def hosts_are_cut_off(cluster: Cluster, host: Host) -> None:
    _cut(cluster, ("a", "b"), ("b", "a"))


@_fault
def one_way_is_cut(cluster: Cluster, host: Host) -> None:
    _cut(cluster, (host.name, cluster.other(host).name))


@_fault
def arbiter_is_cut_off(cluster: Cluster, host: Host) -> None:
    """From one host, or its answers are lost."""
    way = (host.name, "arbiter") if cluster.world.random.random() < 0.5 else ("arbiter", host.name)
    _cut(cluster, way)


@_fault
def host_is_cut_off(cluster: Cluster, host: Host) -> None:
    other = cluster.other(host).name
    wires = [(host.name, other), (other, host.name), (host.name, "arbiter"), ("arbiter", host.name)]
    _cut(cluster, *wires)


@_fault
def network_is_slow(cluster: Cluster, host: Host) -> None:
    cluster.world.slow_s = 0.3
    _later(cluster, 0.5, 6.0, lambda: setattr(cluster.world, "slow_s", 0.0))


@_fault
def arbiter_dies(cluster: Cluster, host: Host) -> None:
    arbiter = cluster.arbiter
    arbiter.is_up = False
    _later(cluster, 0.1, 10.0, lambda: setattr(arbiter, "is_up", True))


@_fault
def arbiter_is_slow(cluster: Cluster, host: Host) -> None:
    arbiter = cluster.arbiter
    arbiter.slow_s, arbiter.loses = 4.0, 0.3

    def mend() -> None:
        arbiter.slow_s, arbiter.loses = 0.0, 0.0

    _later(cluster, 0.5, 10.0, mend)


@_fault
def connection_breaks(cluster: Cluster, host: Host) -> None:
    open_now = [each for each in cluster.world.connections if each.is_open]
    if open_now:
        broken = cluster.world.random.choice(open_now)
        for end in broken.ends:
            end.process.take(lambda end=end: broken.lose(end))  # type: ignore[misc]


@_fault
def stranger_connects(cluster: Cluster, host: Host) -> None:
    """A channel that nobody has asked for, and that brings nothing."""
    colo = host.colo
    if colo is None or not colo.is_alive:
        return
    stranger = Process(cluster.world, "elsewhere")
    if not cluster.means.automatic and cluster.world.random.random() < 0.5:
        says = End(stranger, nothing, nothing)
        colo.take(lambda: _says_hello(colo, says))
        _later(cluster, 0.1, 1.0, stranger.kill)
        return
    theirs = End(colo, colo._from_primary, colo._channel_lost)
    made = Connection(cluster.world, End(stranger, nothing, nothing), theirs, None)
    colo.take(lambda: colo._channel_up(made, theirs))


def _says_hello(colo: Colo, stranger: End) -> None:
    """With a grant that nobody can see to be none."""
    if not stranger.process.is_alive or not colo.listens:
        return
    if Do.REFUSE not in colo.tell(Event.LINK_UP, grant=Grant(0, "x/1/1")):
        theirs = End(colo, colo._hear, colo._link_lost)
        colo.link = Connection(colo.world, stranger, theirs, HEARTBEAT_LIMIT_S), theirs


def _told(
    host: Host, event: Event, still: Callable[[], bool] = lambda: True, **facts: bool
) -> None:
    """Have somebody say it; ``still``: what he has seen is so when it is heard."""
    colo = host.colo
    if colo is None or not colo.is_alive:
        return
    state, given_at = colo.state, colo.world.now

    def give() -> None:
        """Whoever gives an order gives it for what he sees: an old one is not obeyed."""
        fresh = colo.state is state and colo.world.now - given_at < ORDER_S and still()
        if colo.can(event) and (event is not Event.ORDER or fresh):
            colo.tell(event, **facts)

    colo.take(give)


@_fault
def order_failover(cluster: Cluster, host: Host) -> None:
    """An operator, who is wrong about nothing but the time.

    Without an arbiter he sees to it himself that only one side runs the VM: he ends the other's.
    """
    other = cluster.other(host)
    if host.colo is None:
        return
    if host.colo.state in (State.LISTENING, State.WAITING):
        if cluster.means.automatic and is_nowhere(cluster):
            _told(host, Event.ORDER, partial(is_nowhere, cluster))
        return
    if not cluster.means.automatic:
        if host.colo.state not in (State.LOST, State.ORPHANED):
            return
        if other.vm is not None and other.vm.is_alive:
            if other.colo is None or other.colo.state is not State.LOST:
                return
            other.vm.kill()
        if other.colo is not None and other.colo.state is State.ORPHANED:
            other.end_colo()
            other.begin()
    _told(host, Event.ORDER)


def is_nowhere(cluster: Cluster) -> bool:
    """An operator sees that the VM runs nowhere, and that there is no copy of it."""
    runs = any(
        host.vm is not None and host.vm.is_alive and host.vm.has_run
        for host in cluster.hosts.values()
    )
    return not runs and not cluster.copies()


@_fault
def order_failover_by_force(cluster: Cluster, host: Host) -> None:
    """Only where the other host is certainly off, as the documentation asks for."""
    if not cluster.other(host).is_up:
        _told(host, Event.ORDER, force=True)


@_fault
def host_dies_and_the_other_is_forced(cluster: Cluster, host: Host) -> None:
    """The operator is quicker than any limit."""
    host_dies(cluster, host)
    order_failover_by_force(cluster, cluster.other(host))


@_fault
def a_host_is_forced_without_the_arbiter_and_begins_anew(cluster: Cluster, host: Host) -> None:
    """What an operator has said outlives the colo that was told."""
    other = cluster.other(host)
    arbiter_dies(cluster, host)
    host_dies_and_the_other_is_forced(cluster, host)
    _later(cluster, 0.1, 2.0, other.end_colo)
    _later(cluster, 2.0, 4.0, other.begin)


@_fault
def secondary_says_no(cluster: Cluster, host: Host) -> None:
    """Also at a time at which no secondary that we know says that."""
    ours, other = host.colo, cluster.other(host).colo
    if ours is None or other is None or not (ours.is_alive and other.is_alive):
        return

    def reject() -> None:
        if ours.state is State.RECEIVING:
            ours._reject_copy()

    if ours.state is State.RECEIVING:
        ours.take(reject)
    elif ours.state is State.KEEPING and other.state is State.PROTECTED:
        ours.take(ours.do_reject)


@_fault
def order_switchover(cluster: Cluster, host: Host) -> None:
    _told(host, Event.SWITCHOVER)


@_fault
def colo_is_told_to_end(cluster: Cluster, host: Host) -> None:
    _told(host, Event.INTERRUPT)
    _later(cluster, 0.2, 3.0, host.begin)


@_fault
def guest_shuts_down(cluster: Cluster, host: Host) -> None:
    """Seldom, as nothing comes after it."""
    vm = host.vm
    often = 0.5 if cluster.day.eager else 0.05
    if vm is not None and vm.runs and cluster.world.random.random() < often:
        vm.power_down()


#: What comes right behind a change of state on some days.
SUDDEN: Final = (
    qemu_dies, guest_shuts_down, guest_hangs, host_hangs, connection_breaks, hosts_are_cut_off,
    one_way_is_cut, colo_is_told_to_end, order_failover, order_switchover,
    host_dies_and_the_other_is_forced,
)  # fmt: skip


def heal(cluster: Cluster) -> None:
    """From now on nothing goes wrong any more, and everybody does what is to be done."""
    world = cluster.world
    cluster.day, cluster.entered = replace(cluster.day, unfit=0.0), nothing
    world.cut.clear()
    world.slow_s = 0.0
    for connection in world.connections:
        connection.deaf.clear()
        connection.lag_s = 0.0
    world.changed()
    cluster.arbiter.is_up, cluster.arbiter.slow_s, cluster.arbiter.loses = True, 0.0, 0.0
    for host in cluster.hosts.values():
        for process in (host.vm, host.secondary_vm, host.colo):
            if process is not None and process.is_alive and process.is_paused:
                process.resume()
        if not host.is_up:
            host.power_on()
        host.begin()
