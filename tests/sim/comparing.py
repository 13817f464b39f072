"""Host A's part of hybrid mode, simulated: the real decisions, and a link that comes and goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from colo.packets.costs import Costs
from colo.packets.hybrid_words import Kind, Said
from colo.packets.other_vm import OtherVm
from colo.packets.pace import Pace
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import Do, Effect
from tests.sim.shell import HEARTBEAT_LIMIT_S
from tests.sim.talking_vm import TalkingVm
from tests.sim.vm import nothing
from tests.sim.world import Connection, End, Timer

if TYPE_CHECKING:
    from tests.sim.leading import Leads

__all__ = ["LIMIT", "Comparing"]

LIMIT: Final = 1 << 20
_AGAIN_S: Final = 1.0
_PATIENCE_S: Final = 0.1
_AGE_MAX_S: Final = 2.0
_SIZE: Final = 1 << 16
_STUCK_S: Final = 2.0
#: A host that is not heard for longer releases nothing.
CERTAIN_S: Final = 0.75 * HEARTBEAT_LIMIT_S


class Comparing:
    """What ``colo.session.comparing`` does, for one session of a primary."""

    def __init__(self, colo: Leads, vm: TalkingVm) -> None:
        self.colo, self.world, self.vm = colo, colo.world, vm
        always = colo.cluster.day.is_always
        self.other_vm = OtherVm(always, LIMIT, _PATIENCE_S, _AGE_MAX_S, self)
        self.link: tuple[Connection, End] | None = None
        self._pace, self._costs = Pace(), Costs()
        self._is_over = self._is_urged = False
        self._due: Timer | None = None
        self._resumed_at = self._stopped_at = self._stopped_s = self._ran_s = 0.0
        assert vm.gate is not None
        self.other_vm.begin([True])
        assert colo.link is not None
        self._control = colo.link
        vm.gate.rule = self._says
        vm.on_input = lambda number: colo.take(partial(self._input, number))
        self._call()

    # -- the link -------------------------------------------------------------------------

    def _call(self) -> None:
        if self._is_over:
            return
        peer = self.colo.cluster.other(self.colo.it).colo
        grant, here = self.colo.member.facts.grant, self.colo.host
        there = peer is not None and peer.is_alive and (here, peer.host) not in self.world.cut
        if not there or peer is None or peer.is_paused or not peer.greets_hybrid(grant):
            self.colo.after(_AGAIN_S, self._call)
            return
        ours = End(self.colo, self._hear, self._lost)
        theirs = End(peer, nothing, nothing)
        made = Connection(self.world, ours, theirs, None)
        peer.take_hybrid(made, theirs)
        self.link = made, ours
        self.other_vm.linked()

    def _hear(self, said: Said) -> None:
        self.other_vm.hear(said, self.world.now)

    def _lost(self) -> None:
        self.link = None
        self.other_vm.unlinked(self.world.now)
        self.colo.after(_AGAIN_S, self._call)

    def _says(self, data: bytes, now: float) -> int:
        """What the VM says; a colo that stands still finds it later."""
        if not self.colo.is_paused:
            return self.other_vm.says(0, data, now)
        self.colo.take(partial(self._says_late, data))
        return 0

    def _says_late(self, data: bytes) -> None:
        if not self._is_over:
            self.vm.release_first(self.other_vm.says(0, data, self.world.now))

    def _input(self, number: int) -> None:
        self.other_vm.input(0, number.to_bytes(4, "big"))

    def close(self) -> None:
        """The session is over."""
        self._is_over = True
        self.colo.cluster.checks.early += self.other_vm.status(self.world.now)["alike"]
        if self.link is not None:
            self.link[0].close(self.link[1])
            self.link = None
        self.other_vm.end()
        self.vm.on_input = nothing
        if self.vm.gate is not None:
            self.vm.gate.rule = None

    # -- checkpoints ----------------------------------------------------------------------

    def carried(self, effect: Effect, number: int) -> None:
        """An effect of the courier's was carried out, of this checkpoint."""
        now = self.world.now
        match effect.do:
            case Do.SEND if effect.message is COLOMessage.CHECKPOINT_REPLY:
                self._stopped_at, self._ran_s = now, now - self._resumed_at
            case Do.COVER:
                self.other_vm.cover(number, now)
            case Do.HOLD:
                self.other_vm.safe(number, 0.0, now)
            case Do.RELEASE:
                self.other_vm.safe(number, now - self._stopped_at, now)
            case Do.RESUME:
                self._resumed_at, self._stopped_s = now, now - self._stopped_at
                if number:
                    self._costs.stopped(self._ran_s, _SIZE, self._stopped_s)

    def schedule(self) -> None:
        """Have the next checkpoint taken, now or when it is due."""
        colo, gate = self.colo, self.vm.gate
        if self._is_over or not colo.may_begin or gate is None:
            return
        if self._due is not None:
            self._due.cancel()
        held = gate.held_since, gate.held_bytes
        stops = self._resumed_at, self._stopped_s
        due = self.other_vm.due_at(self._pace, self._costs, *held, *stops)
        if due <= self.world.now or self._is_urged or colo.rests:
            self._is_urged = False
            colo._checkpoint()
        else:
            self._due = colo.after(max(1e-6, due - self.world.now), self.schedule)

    # -- what the decisions ask for -------------------------------------------------------

    def say(self, said: Said) -> None:
        """Have host B told this."""
        if said.kind in (Kind.CUT, Kind.START):
            self.world.say(self.colo.host, f"  comparing: says {said.kind.name} {said.number}")
        if self.link is not None:
            self.link[0].send(self.link[1], said)
            if said.kind is Kind.START:
                self.colo.cluster.entered(self.colo.it)

    def release(self, card: int, count: int) -> None:
        """Let so many bytes out."""
        self.vm.release_first(count)

    def may_release(self) -> bool:
        """Whether host B still takes us for the primary."""
        link, end = self._control
        if link.unheard_s(end) > CERTAIN_S:
            self.colo._session_lost()
            return False
        return True

    def urge(self) -> None:
        """Have a checkpoint taken as soon as can be."""
        self._is_urged = True
        self.schedule()

    def tell(self, text: str) -> None:
        """Nobody listens."""

    @property
    def is_stuck(self) -> bool:
        """Whether something has been held for longer than any rule wants."""
        gate = self.vm.gate
        since = gate.held_since if gate is not None else None
        return since is not None and self.world.now - since > _STUCK_S
