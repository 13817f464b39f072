"""Host B's part of hybrid mode, simulated: the real decisions, and VMs that speak and die."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from colo.packets.gate import Gate
from colo.packets.hybrid_words import Kind, Said
from colo.packets.stand_in import GoesOn, Phase, StandIn
from tests.sim.checks import Moment
from tests.sim.comparing import LIMIT
from tests.sim.talking_vm import TalkingVm
from tests.sim.vm import nothing
from tests.sim.world import Connection, End

if TYPE_CHECKING:
    from tests.sim.following import Follows

__all__ = ["Beside"]

_TRIES: Final = 3


class Beside:
    """What ``colo.node.beside`` does, for one part of a secondary."""

    def __init__(self, colo: Follows) -> None:
        self.colo, self.world = colo, colo.world
        self.stand_in = StandIn(LIMIT)
        self.vm: TalkingVm | None = None
        self.link: tuple[Connection, End] | None = None
        self._is_heard = self._is_over = False
        self.lacked = False  # what it takes to go on, when the primary was lost
        self._is_ready = True

    # -- the link -------------------------------------------------------------------------

    def take(self, made: Connection, end: End) -> None:
        """A primary has connected."""
        self._drop_link()
        end.heard, end.lost = self._hear, self._drop_link
        self.link = made, end

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link[0].close(self.link[1])
            self.link = None
        self.stand_in.unlinked()
        self._is_heard = False

    def _note(self, text: str) -> None:
        self.world.say(self.colo.host, f"  beside: {text}")

    def _say(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        if kind is not Kind.SAID:
            self._note(f"says {kind.name} {number}")
        if self.link is not None:
            self.link[0].send(self.link[1], Said(kind, 0, number, payload))

    def _say_ready(self) -> None:
        if self._is_ready and self._is_heard:
            self._say(Kind.READY)

    def _hear(self, said: Said) -> None:
        match said.kind:
            case Kind.INPUT:
                self._input(said.card, said.payload)
            case Kind.CUT:
                self.stand_in.cut(said.number)
            case Kind.START:
                self._start(said.number)
            case Kind.HEARD:
                if self.vm is not None and self.vm.gate is not None:
                    self.vm.release_nothing(said.number)
        if not self._is_heard:
            self._is_heard = True
            self._say_ready()

    def _input(self, card: int, data: bytes) -> None:
        if not self.stand_in.input(card, data):
            self._end()
        elif self.vm is not None and self.stand_in.phase is Phase.RUNS:
            vm, number = self.vm, int.from_bytes(data, "big")
            vm.take(lambda: vm.feed(number))

    # -- the secondary VM -----------------------------------------------------------------

    def _prepare_next(self) -> None:
        def ready() -> None:
            self._is_ready = not self._is_over
            self._say_ready()

        self.colo.after(self.world.some(0.02, 0.6), ready)

    def _start(self, number: int) -> None:
        if self.stand_in.refusal(number, self._is_ready) is not None:
            self._say(Kind.GONE, number)
            return
        self._is_ready = False
        self.stand_in.begins(number)
        vm = self.vm = self.colo.cluster.new_talking_vm(self.colo.it, "")
        vm.is_beside = True
        self.colo.after(self.world.some(0.005, 0.1), partial(self._begin, vm, number))

    def _begin(self, vm: TalkingVm, number: int) -> None:
        """What the store holds is loaded."""
        self._prepare_next()
        if vm is not self.vm:
            return
        if not vm.is_alive:
            self._died(vm)
            return
        vm.gate = Gate(LIMIT, vnet=True)
        vm.gate.hold()
        vm.gate.rule = partial(self._said, number)
        vm.start(self.colo.store)
        self.colo.after(self.world.some(0.0, 0.03), partial(self._begun, vm, number))

    def _begun(self, vm: TalkingVm, number: int) -> None:
        """It may have spoken by the time its colo knows that it runs, or that it does not."""
        if vm is not self.vm:
            return
        if not vm.is_alive or self.world.random.random() < 0.03:
            vm.kill()
            self._died(vm)
            return
        vm.died = lambda: self.colo.soon(lambda: self._died(vm))
        for _, data in self.stand_in.runs():
            vm.feed(int.from_bytes(data, "big"))
        self.colo.cluster.checks.beside += 1
        self._say(Kind.RUNS, number)
        self.colo.cluster.entered(self.colo.it)

    def _said(self, number: int, data: bytes, now: float) -> int:
        """Its colo may stand still: then it is heard later."""
        self.colo.take(partial(self._tell, number, data))
        return 0

    def _tell(self, number: int, data: bytes) -> None:
        if self.vm is not None and self.stand_in.number == number:
            if not self.stand_in.has_spoken:
                self._note(f"life {self.vm.life} speaks, of checkpoint {number}")
            self.stand_in.speaks(self.link is not None)
            self._say(Kind.SAID, number, data)

    def _died(self, vm: TalkingVm) -> None:
        if vm is self.vm:
            self.stand_in.died()
            self._say(Kind.GONE, self.stand_in.number)

    def _end(self) -> None:
        """It is of no use for comparing; where it has spoken, it is still what a takeover needs."""
        stand_in = self.stand_in
        number = stand_in.committed if self.vm is None else stand_in.number
        self._say(Kind.GONE, max(0, number))
        if self.vm is not None and not stand_in.is_needed:
            self._drop_vm()

    def _drop_vm(self) -> None:
        vm, self.vm = self.vm, None
        self.stand_in.ended()
        if vm is not None:
            vm.died = nothing
            vm.kill()

    def committed(self, number: int) -> None:
        """A checkpoint is whole."""
        if self.stand_in.commits(number):
            self._drop_vm()
        self._say_ready()

    def forget(self) -> None:
        """The primary's session is over, and nothing of it counts."""
        self.stand_in.forget()
        self._drop_vm()
        self._drop_link()

    def close(self) -> None:
        """Nothing runs beside any more."""
        self._is_over, self._is_ready = True, False
        self._drop_vm()
        self._drop_link()

    @property
    def has_nothing(self) -> bool:
        """Whether there is nothing to go on with, nor anything that begins.

        As ``StandIn.lacks``, which may be broken on purpose.
        """
        stand_in = self.stand_in
        begins = stand_in.phase is Phase.BEGINS
        return stand_in.goes_on_with() is GoesOn.NOTHING and not begins

    # -- a takeover -----------------------------------------------------------------------

    def load(self, name: str, store: Moment, ran: Callable[[TalkingVm | None], object]) -> None:
        """Have what is to run run; tell which VM that is, or None where it cannot."""
        self.stand_in.take_over()
        self._try(name, store, ran, _TRIES)

    def _try(
        self, name: str, store: Moment, ran: Callable[[TalkingVm | None], object], left: int
    ) -> None:
        def again() -> None:
            self._try(name, store, ran, left - 1)

        colo = self.colo
        if left == 0:
            ran(None)
            return
        if self.stand_in.phase is Phase.BEGINS:
            colo.after(0.005, lambda: self._try(name, store, ran, left))
            return
        self._note(f"goes on with {self.stand_in.goes_on_with().name}")
        if self.vm is not None and not self.vm.is_alive:
            self.stand_in.died()
        match self.stand_in.goes_on_with():
            case GoesOn.VM:
                self._run(name, ran, again)
            case GoesOn.NOTHING:
                again()
            case GoesOn.CHECKPOINT:
                if colo.member.facts.forced:
                    colo.cluster.checks.undone()  # also what a VM was heard of that died just now
                self._drop_vm()
                vm = colo.cluster.new_talking_vm(colo.it, name)
                delay_s = self.world.some(0.005, 0.05)
                colo.after(delay_s, lambda: self._run(name, ran, again, vm, store))

    def _run(
        self,
        name: str,
        ran: Callable[[TalkingVm | None], object],
        again: Callable[[], object],
        loaded: TalkingVm | None = None,
        store: Moment | None = None,
    ) -> None:
        """Have it run: the secondary VM where there is one."""
        vm = self.vm
        fails = self.world.random.random() < 0.05 or self.colo.cluster.is_refused()
        if vm is not None:
            if not vm.is_alive:
                again()
                return
            self.stand_in.let_out()
            if vm.gate is not None:
                vm.gate.rule = None
                vm.open()
            if fails:
                vm.kill()
            if vm.is_paused or not vm.is_alive:
                self.colo.after(self.world.some(0.0, 2.0), again)
                return
            self.vm = None
            vm.name, vm.is_beside, vm.died = name, False, nothing
            self.colo.cluster.checks.went_on += 1
        elif loaded is None or not loaded.is_alive or fails:
            if loaded is not None:
                loaded.kill()
            again()
            return
        else:
            vm = loaded
            vm.start(store)
        self.close()
        ran(vm)
