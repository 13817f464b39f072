"""What a simulated colo asks of its arbiter, and of its fence."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from colo.membership import grant as moves
from colo.membership import roles
from colo.membership.grant import Ending, Foreign, Grant, Held, Moved, Record
from colo.membership.roles import host_of
from colo.membership.states import FINAL, Event, State
from tests.sim.arbiter import Move
from tests.sim.shell import Shell

__all__ = ["Asks"]

#: How old the last answer before a start may be.
FRESH_S: Final = 2.0


class Asks(Shell):
    """The questions to the arbiter."""

    def do_read_record(self) -> None:
        first = self.host == "a" and self.it.known == 0
        move: Move[Any] = moves.begin if first else (lambda record: record)
        self._call(move, self._looked)

    def _looked(self, record: Record | None) -> None:
        if record is None or record.number < self.it.known:
            self.tell(Event.NO_ANSWER)
            return
        self.it.known = max(self.it.known, record.number)
        vm = self.it.vm
        if vm is not None and (not vm.is_alive or not vm.has_run):
            vm.kill()
            vm = self.it.vm = None
        holder = "" if vm is None else vm.name
        overridden = None if vm is None else self.it.overridden
        granted = self.it.granted
        lives = vm is not None and roles.runs_by_right(record, holder, overridden, granted)
        turn = roles.whose_turn(record, self.host, lives, self.host == "a")
        grant = Grant(record.number, record.left_by)
        foreign = vm is not None and not lives
        owes = roles.owes_a_grant(record, holder, overridden)
        self.tell(Event.RECORD, grant=grant, turn=turn, foreign=foreign, owes=owes)

    def _holder(self) -> str:
        """Our name for what is asked for now."""
        facts = self.member.facts
        if self.state is State.ORPHANED:
            known = facts.known.number
            if self._waiting_name is None or self._waiting_name[0] != known:
                self._waiting_name = known, self.it.new_name()
            return self._waiting_name[1]
        assert self.it.vm is not None
        return self.it.vm.name

    def _new_vm(self) -> None:
        name = self.it.new_name()
        self.it.vm = self.cluster.new_vm(self.it, name)

    def do_ask(self) -> None:
        facts = self.member.facts
        if self.state is State.LOOKING:
            self._new_vm()
            known, void = facts.known.number, None
        elif self.state is State.ORPHANED:
            known, void = facts.known.number, facts.void
        else:
            known, void = facts.grant.number, None
        holder = self._holder()
        self._call(lambda record: moves.take(record, known, holder, void), self._answered)

    def do_ask_by_order(self) -> None:
        if self.state is State.LOOKING:
            self._new_vm()
        holder = self._holder()
        self._call(lambda record: moves.order(record, holder), self._answered)

    def _answered(self, result: Any) -> None:
        if isinstance(result, Moved):
            self.tell(Event.DENIED)
        else:
            self.it.known = max(self.it.known, result.number)
            self.tell(Event.GRANTED, grant=result.grant)

    def do_claim(self) -> None:
        holder = self._holder()

        def claimed(result: Any) -> None:
            if isinstance(result, Held):
                self.tell(Event.UNFIT)
            else:
                self.tell(Event.GRANTED, grant=result.grant)

        if not self.means.automatic:
            self.ask(0, lambda: claimed(Record(0, holder)))
            return
        self._question += 1
        number = self._question
        self._asking = self.cluster.arbiter.call(
            self,
            lambda record: moves.claim(record, holder, False),
            lambda result: claimed(result) if number == self._question else None,
            lambda _: self.tell(Event.UNFIT) if number == self._question else None,
        )

    def do_confirm(self) -> None:
        known, holder, asked_at = self.member.facts.grant.number, self._holder(), self.world.now
        self._question += 1
        number = self._question

        def confirmed(result: Any) -> None:
            if number == self._question:
                old = (self.world.now - asked_at) / self.drift > FRESH_S
                if old or isinstance(result, Moved | Foreign):
                    self.tell(Event.UNFIT)
                else:
                    self.tell(Event.CONFIRMED, grant=result.grant)

        self._asking = self.cluster.arbiter.call(
            self,
            lambda record: moves.take(record, known, holder),
            confirmed,
            lambda _: self.tell(Event.UNFIT) if number == self._question else None,
        )

    def _back(self, ending: Ending) -> None:
        holder = self._ended_vm if self.it.vm is None else self.it.vm.name
        if holder:
            move: Move[Any] = partial(moves.give_back, holder=holder, ending=ending)
            self._gives_back = self.state in FINAL and self.means.node
            self.cluster.arbiter.call(self, move, self._given_back, self._given_back)

    def _given_back(self, _: object) -> None:
        """The next part does not begin before."""
        if self._gives_back:
            self._gives_back = False
            self.tell(Event.GO_ON)

    def do_give_back(self) -> None:
        self._back(Ending.LEFT)

    def do_give_back_unused(self) -> None:
        self._back(Ending.UNUSED)

    def do_give_back_shut_down(self) -> None:
        self._back(Ending.SHUT_DOWN)

    def do_fence(self) -> None:
        """It turns the other host off, if it can be reached at all."""
        works = self.world.random.random() < 0.7

        def done() -> None:
            if works:
                self.cluster.other(self.it).power_off()
                self.world.after(5.0, self.cluster.other(self.it).power_on)
            self.tell(Event.OFF if works else Event.NOT_OFF)

        assert host_of(self.member.facts.known.holder) != self.host
        self.ask(self.world.some(0.1, 2.0), done)
