"""Two simulated hosts and their arbiter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from colo.membership.grant import Grant
from colo.membership.member import Means, Member
from colo.membership.states import State
from tests.sim.arbiter import SimArbiter
from tests.sim.checks import Checks, Moment, Violation
from tests.sim.colo import Colo
from tests.sim.shell import Shell
from tests.sim.talking_vm import TalkingVm
from tests.sim.vm import Vm, nothing
from tests.sim.world import World

__all__ = ["Cluster", "Day", "Host"]


@dataclass(frozen=True)
class Day:
    """What is unusual about a run.

    ``stock``: the primary's QEMU speaks for itself, and there is no control link.  ``holds``: no
    secondary asks by itself.  ``unfit``: how likely what can be refused is refused.  ``eager``: how
    likely a fault comes right behind a change of state.  ``hybrid``: secondary VMs run, whether
    they pay or not where it ``is_always``; ``differs``: how likely a VM draws something at a word.
    """

    stock: bool = False
    holds: bool = False
    unfit: float = 0.0
    eager: float = 0.0
    hybrid: bool = False
    is_always: bool = True
    differs: float = 0.0


class Cluster:
    """Two hosts, their arbiter, and what sees everything."""

    def __init__(
        self,
        world: World,
        automatic: bool = True,
        fence: bool = False,
        day: Day = Day(),
        make: Callable[..., Member] = Member,
    ) -> None:
        self.world, self.checks, self.day = world, Checks(), day
        self.entered: Callable[[Host], object] = nothing
        automatic &= not day.stock
        self.arbiter = SimArbiter(world, automatic)
        self.means = Means(automatic, not day.holds, fence, day.stock, node=automatic)
        self.make = make
        self.was_shut_down = False
        self._outlived: list[Moment] = []
        self._forced: tuple[Vm, int] | None = None
        self.hosts = {name: Host(self, name) for name in ("a", "b")}

    def other(self, host: Host) -> Host:
        return self.hosts["b" if host.name == "a" else "a"]

    def new_vm(self, host: Host, name: str) -> Vm:
        """A QEMU on this host."""
        if self.day.hybrid:
            return self.new_talking_vm(host, name)
        return Vm(self.world, host.name, name, self.checks)

    def new_talking_vm(self, host: Host, name: str) -> TalkingVm:
        """One for hybrid mode."""
        vm = TalkingVm(self.world, host.name, name, self.checks)
        vm.differs = self.day.differs
        return vm

    def is_refused(self) -> bool:
        """Whether what can be refused is refused now."""
        return self.world.random.random() < self.day.unfit

    def is_forced(self, vm: Vm, known: int) -> None:
        """An operator has it run, whatever the arbiter says; its host knows of grant ``known``."""
        self._forced = vm, known

    def check_end(self, vm: Vm) -> None:
        """A host ends its VM by itself.  Raises Violation where an operator's word still counts."""
        record = self.arbiter.record
        if vm.is_alive and record is not None and self._forced == (vm, record.number):
            raise Violation("a VM is ended that an operator has had run, and nobody has said more")

    def check_silenced(self, host: Host, vm: Vm) -> None:
        """In hybrid mode: a host has lost its VM to the other one, which has to have it.

        Raises Violation where that one knew that it had not, when it asked for it.
        """
        other = self.other(host).colo
        if other is None or other.beside is None or not vm.is_alive or self.copies():
            return
        knew = other.state in (State.ORPHANED, State.TAKING_OVER) and other.beside.lacked
        if knew and not other.member.facts.forced and self.checks.covers(vm.now):
            raise Violation("a VM is silenced, and the host that asked for it knew that it lacks")

    def copies(self) -> bool:
        """Whether a whole checkpoint is anywhere, from which the VM could go on."""
        return any(
            host.colo is not None
            and host.colo.is_alive
            and host.colo.store is not None
            and not self._is_outlived(host.colo.store)
            and self.has_copy(host.colo)
            for host in self.hosts.values()
        )

    def has_copy(self, colo: Shell) -> bool:
        """Whether it could have the VM go on with all that was heard."""
        vm = colo.beside.vm if colo.beside is not None else None
        if vm is not None and vm.is_alive and self.checks.covers(vm.now):
            return True
        return self.checks.covers(colo.store)

    def runs_alone(self, vm: Vm) -> None:
        """A VM runs alone by right: by that, what the other host keeps of it is old."""
        self._outlived.append(vm.now)

    def _is_outlived(self, store: Moment) -> bool:
        return any(store.life == at.life and store.position <= at.position for at in self._outlived)

    def must_stay_off(self, host: Host) -> bool:
        """Whether an operator has said that this host is off, and the arbiter does not know yet."""
        vm, record = self._forced[0] if self._forced else None, self.arbiter.record
        if vm is None or not vm.is_alive or vm is host.vm or record is None:
            return False
        return record.left_by != vm.name

    def runs_elsewhere(self, vm: Vm | None) -> bool:
        return any(
            host.vm is not None and host.vm is not vm and host.vm.is_alive and host.vm.has_run
            and self.checks.covers(host.vm.now)
            for host in self.hosts.values()
        )  # fmt: skip


class Host:
    """A machine: its colo, and the QEMU that may outlive that."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.is_up = True
        self.vm: Vm | None = None
        self.colo: Colo | None = None
        self.known = 0  # on its disk, as what follows
        self.overridden: int | None = None
        self.granted: Grant | None = None
        self.drift = cluster.world.random.choice([0.9, 1.0, 1.0, 1.1])
        self._count = 0

    def begin(self) -> None:
        """The service manager starts colo, where it does not run."""
        if not self.is_up or (self.colo is not None and self.colo.is_alive):
            return
        part = State.LOOKING if self.cluster.means.node else self._part()
        self.colo = Colo(self, part)
        self.colo.begin()

    def _part(self) -> State:
        """Without an arbiter an operator begins each part, and knows where the VM is."""
        other = self.cluster.other(self)
        if self.vm is not None and (not self.vm.is_alive or not self.vm.has_run):
            self.vm.kill()
            self.vm = None
        elsewhere = (other.vm is not None and other.vm.is_alive and other.vm.has_run) or (
            other.colo is not None and other.colo.is_alive and other.colo.store is not None
        )
        if self.vm is not None and (not elsewhere or self.cluster.checks.is_newest(self.vm.now)):
            return State.STARTING
        if self.vm is not None:
            self.vm.kill()
            self.vm = None
        return State.LISTENING if elsewhere or self.name == "b" else State.STARTING

    def new_name(self) -> str:
        self._count += 1
        return f"{self.name}/{self._count}/1"

    def end_colo(self) -> None:
        if self.colo is not None and self.colo.is_alive:
            self._end_beside()
            self.colo.kill()
            if self.vm is not None:
                self.vm.is_deaf = True
                self.vm.cut_off()
                self.vm.died = self.vm.shut_down = self.vm.on_held = nothing

    @property
    def secondary_vm(self) -> TalkingVm | None:
        """The VM that runs beside that of the other host."""
        beside = self.colo.beside if self.colo is not None else None
        return beside.vm if beside is not None else None

    def _end_beside(self) -> None:
        """The secondary VM is nothing without its colo."""
        vm = self.secondary_vm
        if vm is not None:
            vm.died = nothing
            vm.kill()

    def power_off(self) -> None:
        """All that runs here is gone, and nobody is told."""
        self.is_up = False
        if self.colo is not None:
            self._end_beside()
            self.colo.kill(with_host=True)
        if self.vm is not None:
            self.vm.died = nothing
            self.vm.kill(with_host=True)
            self.vm = None

    def power_on(self) -> None:
        if self.cluster.must_stay_off(self):
            self.cluster.world.after(1.0, self.power_on)
            return
        self.is_up = True
        self.begin()
