"""A host and one VM as a machine: what is known, and what follows from what happens.

``handle`` takes one event, with what goes with it, and returns what is to be done, in that order.
It does nothing itself, and has no clock.  Whoever performs the effects reports by further events:
each effect that takes time is answered by one of its outcomes (``states.OUTCOMES``), if it is not
given up before.  Two are given up by rule, so that no late answer is taken for another one: a pause
ends with the state in which it began, and no question is answered after STOP_ASKING.

Four invariants, checked at every step; a step that would break one raises and changes nothing:

- *output commit*: the gate is opened only for a VM that runs alone, by right;
- *one voice*: a VM is run, or heard, only by a grant that was got for it, by an operator's word, or
  where the other host can have nothing of it; who was silenced stays so;
- *the only copy*: a whole checkpoint is forgotten only where the VM runs elsewhere or has ended,
  or where an operator insists; and a grant is not given back that the other host's copy needs;
- *always an end*: a host that is not done waits for an answer, the other host, or an operator.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from colo.errors import InvariantBroken, LocalProtocolError
from colo.membership.grant import Grant
from colo.membership.roles import Turn
from colo.membership.states import FINAL, OUTCOMES, Do, Event, Row, State, When
from colo.membership.table import TABLE
from colo.membership.words import WordKind

__all__ = ["Facts", "Means", "Member", "OnLoss"]

_trace = logging.getLogger("colo.trace")

#: Where others have the word: the other host, the guest, or an operator.
_OTHERS: Final = frozenset(
    {
        State.STARTING,
        State.LISTENING,
        State.GREETED,
        State.RECEIVING,
        State.KEEPING,
        State.CUT_OFF,
        State.COPYING,
        State.PROTECTED,
        State.RUNNING,
    }
)
_WHOLE: Final = frozenset({State.KEEPING, State.CUT_OFF, State.ORPHANED, State.TAKING_OVER})
_ELSEWHERE: Final = frozenset(
    {Event.LETS_GO, Event.SAYS_SHUTDOWN, Event.DENIED, Event.LINK_UP, Event.INTERRUPT}
)
_UNDECIDED: Final = frozenset({State.LOST, State.PARTING, State.ORPHANED})
_NOBODY: Final = Grant(0, "")
_WHAT_IS_HERE: Final = frozenset({Event.LOST, Event.LINK_LOST, Event.SAYS_GONE, Event.ORDER})
_ASKED: Final = frozenset({Do.ASK, Do.ASK_BY_ORDER})


class OnLoss(Enum):
    """Whether a secondary asks for the right to run the VM, or leaves that to an operator."""

    TAKEOVER = "takeover"
    HOLD = "hold"


@dataclass(frozen=True)
class Means:
    """What a host has to decide with, for as long as its colo runs.

    ``automatic``: the arbiter grants by itself.  ``asks``: a secondary that is alone asks for the
    grant by itself.  ``fence``: there is one.  ``stock``: the secondary is a stock QEMU.
    ``claims``: an operator has said that whoever has the grant is certainly dead.  ``node``: this
    colo goes on when its part has ended.
    """

    automatic: bool = True
    asks: bool = True
    fence: bool = False
    stock: bool = False
    claims: bool = False
    node: bool = False


@dataclass(frozen=True)
class Facts:
    """What a host knows; replaced as a whole at every step."""

    #: The last grant of this host; its number is 0 where there is none.
    grant: Grant = _NOBODY
    #: The number of a grant that may be ours without our having heard of it.
    unheard: int = 0
    #: A grant, an operator's word, or that nobody else has anything, lets the VM run here.
    right: bool = False
    #: As a primary: the VM does not run yet.
    starts: bool = False
    #: The other host's grant, as the primary's hello or the arbiter's record tells it.
    known: Grant = _NOBODY
    #: The primary's last word on its VM; with DEAD, of which grant.
    word: WordKind | None = None
    dead: int | None = None
    turn: Turn | None = None
    foreign: bool = False
    #: What was not answered is who may run the VM.
    asked: bool = False
    #: The control link, and the checkpoint channel.
    linked: bool = False
    connected: bool = False
    #: As a primary: the other host may have a whole copy; it has one; it ever had one.
    contested: bool = False
    protected: bool = False
    was_protected: bool = False
    #: The VM runs by an operator's force, and the arbiter does not know yet.
    owes: bool = False
    #: Nothing is let out any more.
    shut: bool = False
    #: As a secondary: the grant is being asked for, again and again.
    asking: bool = False
    #: As a secondary: clients may have heard of more than is here, so it is not to ask by itself.
    lacks: bool = False
    #: What was asked and is not answered.
    busy: Do | None = None
    #: What an operator has ordered, and waits for; whether by force.
    ordered: bool = False
    forced: bool = False
    ends: bool = False
    warned: bool = False
    by_order: bool = False
    one_shot: bool = False
    newer: bool = False

    @property
    def last_number(self) -> int:
        """The number of the last grant that is, or may be, this host's."""
        return max(self.grant.number, self.unheard)

    @property
    def overridden(self) -> int | None:
        """The number of the grant in spite of which the VM runs, until the arbiter knows."""
        return max(self.known.number, self.grant.number) if self.owes else None

    @property
    def void(self) -> Grant | None:
        """A grant that the primary may have got in vain, as it is dead: it is in nobody's way.

        Only the very one of which it said so, and under its own name: whoever has another runs.
        """
        if self.word is not WordKind.DEAD or self.dead is None or not self.known.holder:
            return None
        return Grant(self.dead, self.known.holder)


class Member:
    """A host's machine for the VM ``vm``.

    It begins in ``state``.
    """

    def __init__(self, vm: str, means: Means, state: State = State.LOOKING) -> None:
        self.vm = vm
        self.means = means
        self.state = state
        self.facts = Facts()

    def handle(
        self,
        event: Event,
        *,
        grant: Grant | None = None,
        word: WordKind | None = None,
        turn: Turn | None = None,
        foreign: bool = False,
        owes: bool = False,
        force: bool = False,
        final: bool = False,
        may_be_done: bool = False,
        starts: bool = False,
        lacks: bool = False,
    ) -> tuple[Do, ...]:
        """Take an event; return what is to be done.

        ``grant`` goes with RECORD (whose it is), GRANTED, CONFIRMED, LINK_UP, CHANNEL_UP (of a
        stock primary), SAYS_GONE (the number only) and RUNS, if it is another by now; ``word`` with
        SAYS_GONE; ``turn`` and ``foreign`` with RECORD; ``owes`` with RECORD and RUNS; ``force``
        with ORDER; ``final`` with LOST, REJECTED and UNFIT: no further try changes it;
        ``may_be_done`` with NO_ANSWER; ``starts`` with BEGIN; ``lacks`` with a secondary's LOST,
        LINK_LOST, SAYS_GONE and ORDER.

        Raises LocalProtocolError where the event is out of place, InvariantBroken where a rule
        would be broken; nothing has changed then.
        """
        before = self.facts
        self.facts = replace(before, lacks=lacks) if event in _WHAT_IS_HERE else before
        self.facts = self._learn(
            event, grant, word, turn, foreign, owes, force, final, may_be_done, starts
        )
        try:
            row = self._row(event)
            self._check(event, row)
        except Exception:
            self.facts = before
            raise
        self.facts = self._follow(event, row, grant)
        if row.to is not self.state:
            _trace.debug("%s %s → %s (%s)", self.vm, self.state.name, row.to.name, event.name)
            self.state = row.to
        self._check_end()
        return row.do

    def can(self, event: Event) -> bool:
        """Whether the table has a row for this event now."""
        return (self.state, event) in TABLE

    # -- what is known --------------------------------------------------------------------

    def _learn(
        self,
        event: Event,
        grant: Grant | None,
        word: WordKind | None,
        turn: Turn | None,
        foreign: bool,
        owes: bool,
        force: bool,
        final: bool,
        may_be_done: bool,
        starts: bool,
    ) -> Facts:
        """What is known once this has happened, before anything is done."""
        facts = self.facts
        if facts.busy is not None and event in OUTCOMES[facts.busy]:
            facts = replace(facts, busy=None)
        match event:
            case Event.BEGIN:
                return replace(facts, starts=starts, right=False, ends=False)
            case Event.RECORD:
                assert grant is not None
                return replace(facts, known=grant, turn=turn, foreign=foreign, owes=owes)
            case Event.OBJECTS | Event.UNFIT:
                return replace(facts, turn=None)
            case Event.GRANTED | Event.CONFIRMED:
                return replace(facts, grant=grant or facts.grant, right=True, owes=False)
            case Event.NO_ANSWER:
                number = facts.grant.number + 1 if may_be_done else facts.unheard
                asked, owes = self.facts.busy in _ASKED, facts.owes or facts.forced
                turn = facts.turn if asked else None
                new = replace(facts, unheard=number, turn=turn, asked=asked)
                return replace(new, right=owes, owes=owes)
            case Event.DIED | Event.SHUT_DOWN if self.facts.busy in _ASKED:
                return replace(facts, unheard=facts.grant.number + 1, busy=None)
            case Event.REACHED:
                linked = not self.means.stock
                new = replace(facts, contested=False, protected=False, one_shot=False)
                return replace(new, linked=linked, connected=True)
            case Event.COPY_BEGUN:
                return replace(facts, contested=True)
            case Event.WHOLE:
                return replace(facts, protected=True, was_protected=True)
            case Event.LOST:
                return replace(facts, connected=False, one_shot=facts.one_shot or final)
            case Event.REJECTED:
                contested = facts.contested and facts.protected
                return replace(facts, contested=contested, one_shot=facts.one_shot or final)
            case Event.LINK_LOST:
                return replace(facts, linked=False)
            case Event.LINK_UP:
                assert grant is not None
                # A grant in vain is none: whoever had it has said that its VM is dead.
                newer = grant.number > facts.known.number and grant != facts.void
                return replace(facts, newer=newer)
            case Event.SAYS_GONE:
                dead = grant.number if grant is not None else None
                return replace(facts, word=word, dead=dead)
            case Event.LETS_GO if facts.by_order:
                return replace(facts, contested=False)
            case Event.ORDER:
                return replace(facts, forced=facts.forced or force)
            case Event.INTERRUPT:
                return replace(facts, ends=True)
            case Event.RUNS:
                new = replace(facts, starts=False, owes=facts.owes or owes)
                return replace(new, grant=grant or facts.grant)
            case _:
                return facts

    def _row(self, event: Event) -> Row:
        for row in TABLE.get((self.state, event), ()):
            if all(self._holds(when) for when in row.when):
                return row
        raise LocalProtocolError(f"{self.vm}: {event.name} is out of place in {self.state.name}")

    def _holds(self, when: When) -> bool:
        facts, means = self.facts, self.means
        match when:
            case When.LIVES:
                return facts.turn is Turn.ADOPT
            case When.FOREIGN:
                return facts.foreign
            case When.TURN:
                return facts.turn is Turn.START
            case When.ASKED:
                return facts.asked
            case When.ASKS_FIRST:
                return facts.turn is Turn.ASK
            case When.IN_VAIN:
                return not facts.was_protected
            case When.STARTS:
                return facts.starts
            case When.UNDER_WAY:
                return facts.busy is Do.START
            case When.STOCK:
                return means.stock
            case When.CLAIMED:
                return means.claims
            case When.ONE_SHOT:
                return facts.one_shot and not means.node
            case When.FRUITLESS:
                return not facts.protected
            case When.CONTESTED:
                return facts.contested
            case When.MAY_ASK:
                return means.automatic or facts.ordered
            case When.AUTOMATIC:
                return means.automatic
            case When.OVERRIDES:
                return facts.forced or not means.automatic
            case When.FORCED:
                return facts.forced
            case When.ORDERED:
                return facts.ordered
            case When.BUSY:
                return facts.busy is not None
            case When.ENDS:
                return facts.ends
            case When.WARNED:
                return facts.warned
            case When.BY_ORDER:
                return facts.by_order
            case When.CONNECTED:
                return facts.connected
            case When.LINKED:
                return facts.linked
            case When.HEARD:
                return facts.linked and facts.word is None
            case When.ASKS:
                return means.automatic and means.asks and not facts.lacks
            case When.WAS_ASKING:
                return facts.asking
            case When.HAS_GRANT:
                return facts.right
            case When.MUST_FENCE:
                return means.fence and facts.word is None and not facts.forced
            case When.NEWER:
                return facts.newer
            case When.LACKS:
                return facts.lacks
            case When.OWES:
                return facts.owes
            case When.NODE:
                return means.node

    # -- what follows ---------------------------------------------------------------------

    def _follow(self, event: Event, row: Row, grant: Grant | None) -> Facts:
        """What is known once a row is taken."""
        facts = self.facts
        if event is Event.ORDER and Do.DECLINE not in row.do and Do.AGREE not in row.do:
            facts = replace(facts, ordered=True)
        for do in row.do:
            facts = self._done(facts, do, event)
        if event is Event.INTERRUPT and row.to is State.PARTING:
            facts = replace(facts, by_order=True)
        if Do.WARN in row.do and row.to is State.ORPHANED:
            facts = replace(facts, ends=False)
        taken_in = Do.REFUSE not in row.do and grant is not None
        if taken_in and (event is Event.LINK_UP or (row.do and row.do[0] is Do.RECEIVE)):
            assert grant is not None
            if event is Event.LINK_UP or not facts.linked:
                facts = replace(facts, known=grant, linked=event is Event.LINK_UP)
        if row.to in _UNDECIDED and self.state not in _UNDECIDED:
            # Without an arbiter that decides, whoever ends the protection has decided by that.
            decided = row.to is State.PARTING and not self.means.automatic
            facts = replace(facts, right=decided, warned=Do.WARN in row.do)
        return facts

    @staticmethod
    def _done(facts: Facts, do: Do, event: Event) -> Facts:
        match do:
            case Do.STOP_ASKING:
                return replace(facts, busy=None)
            case Do.ASK:
                return replace(facts, busy=do, asking=facts.asking or not facts.ordered)
            case Do.CLOSE:
                return replace(facts, connected=False)
            case Do.HANG_UP:
                return replace(facts, linked=False)
            case Do.RECEIVE:
                return replace(facts, connected=True)
            case Do.SHUT:
                return replace(facts, shut=True)
            case Do.END_GUEST:
                return replace(facts, shut=False, contested=False, was_protected=False, owes=False)
            case Do.OPEN:
                return replace(facts, contested=False, unheard=0)
            case Do.FORGET:
                known = facts.known
                return replace(Facts(), known=known, grant=facts.grant, ends=facts.ends)
            case Do.WARN:
                return replace(facts, warned=True)
            case Do.AGREE | Do.DECLINE if event is not Event.SWITCHOVER:
                return replace(facts, ordered=False, forced=False)
            case Do.COPY | Do.PAUSE:
                return facts
            case _ if do in OUTCOMES:
                return replace(facts, busy=do)
            case _:
                return facts

    # -- the invariants -------------------------------------------------------------------

    def _check(self, event: Event, row: Row) -> None:
        """Raises InvariantBroken."""
        facts = self.facts
        for do in row.do:
            match do:
                case Do.OPEN:
                    alone = self.state is State.RESUMING and event is Event.RUNS
                    self._guard(alone, "only a VM that runs alone is heard at once", event)
                    self._guard(self._may_run, "only by right a VM is heard", event)
                    self._guard(not facts.shut, "who was silenced stays so", event)
                case Do.RUN_ALONE:
                    self._guard(self._may_run, "only by right a VM runs alone", event)
                    self._guard(not facts.shut, "who was silenced stays so", event)
                case Do.LOAD:
                    self._guard(facts.right or facts.forced, "no takeover without right", event)
                case Do.START:
                    asked = event is Event.CONFIRMED or self.means.stock
                    if not self.means.automatic:
                        asked |= event is Event.AGREES
                        asked |= event is Event.SILENT and self.means.claims
                    self._guard(asked, "the other host is asked before a VM starts", event)
                case Do.FORGET if self.state in _WHOLE:
                    elsewhere = event in _ELSEWHERE
                    if event is Event.INTERRUPT and self.state is State.ORPHANED:
                        elsewhere = facts.warned
                    elif event is Event.LINK_UP:
                        elsewhere = facts.newer
                    self._guard(elsewhere, "the only copy is kept", event)
                case Do.GIVE_BACK | Do.GIVE_BACK_UNUSED:
                    held = facts.contested and Do.OPEN not in row.do
                    self._guard(not held, "the other host's copy needs the grant", event)

    @property
    def _may_run(self) -> bool:
        facts = self.facts
        return facts.right or facts.forced or not facts.contested

    def _check_end(self) -> None:
        facts = self.facts
        waits = facts.busy is not None or self.state in FINAL | _OTHERS
        operator = self.state in (State.LOST, State.ORPHANED) and not (
            self.means.automatic and self.means.asks
        )
        pauses = self.state in (State.WAITING, State.LOST, State.ORPHANED, State.UNPROTECTED)
        pauses |= self.state in (State.BEGINNING, State.PARTING)
        if not (waits or operator or pauses):
            raise InvariantBroken(f"{self.vm}: {self.state.name} has no end")

    def _guard(self, holds: bool, rule: str, event: Event) -> None:
        if not holds:
            raise InvariantBroken(
                f"{self.vm}: {event.name} in {self.state.name} would break: {rule}"
            )
