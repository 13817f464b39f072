"""A host and one VM as a table: both roles in it, because a host changes roles.

A row says: in this state, on this event, where all of these hold, go to that state and have these
effects performed, in this order.  Of the rows of a state and an event the first that holds counts;
an event that has none is out of place, and that is our error.

A host *looks* by the arbiter's record whose turn it is, is the VM's *primary* (from STARTING on) or
its *secondary* (from LISTENING on), and by GO_ON begins anew where its part has ended.  ``colo
primary``, ``colo run`` and ``colo secondary`` are one part each; ``colo node`` goes on.

The rule behind both roles: while the control link lives, the primary decides, because its VM is the
newer one; once the link is gone, the arbiter decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

__all__ = ["FINAL", "OUTCOMES", "TABLE", "Do", "Event", "Row", "State", "Table", "When"]


class State(Enum):
    """How a VM stands on this host, in the words that operators see."""

    # Neither role yet.
    LOOKING = "it is being asked whose turn it is to run the VM"
    WAITING = "the VM is not started here yet: the last error says why"

    # The primary.
    STARTING = "looking at the VM"
    REFUSED = "nothing was begun, and no VM started: the last error says why"
    UNPROTECTED = "the VM runs here alone"
    BEGINNING = "the VM runs here alone; its first copy is being prepared"
    COPYING = "the secondary is getting its first copy"
    PROTECTED = "the VM runs; its output is held until it is safe"
    GOING_OVER = "the VM is stopped behind its last checkpoint; the other host is to take over"
    LOST = "the secondary is gone; the VM is silent until somebody may run it"
    RESUMING = "the decision fell: the VM is being started to run here alone"
    PARTING = "protection is being ended, by order"
    FENCED = "the VM runs on the other host; the copy here is stopped and silent"
    DEAD = "the VM's process is dead; the other host takes over"
    SHUTDOWN = "the guest has shut down"
    ENDED = "protection was ended; the VM goes on"
    LEFT = "the VM was left silent, and undecided"

    # The secondary.
    LISTENING = "no primary is connected"
    GREETED = "a primary has said hello"
    RECEIVING = "the first copy is being received"
    KEEPING = "the last whole checkpoint is kept, and the next ones come"
    CUT_OFF = "no more checkpoints come; the primary is heard, and has to say what it does"
    ORPHANED = "the primary is gone; the last whole checkpoint waits for a decision"
    TAKING_OVER = "the decision fell: the VM is being started from the last whole checkpoint"
    RUNNING = "the VM runs here"
    GONE = "this part has ended, and nothing is left of it here"


class Event(Enum):
    """What can happen."""

    # Of the arbiter, and of the fence.
    RECORD = "the arbiter's record is read"
    GRANTED = "the grant that was asked for is ours"
    DENIED = "another host has the grant"
    NO_ANSWER = "the arbiter does not answer"
    OFF = "the fence says that the other host is off"
    NOT_OFF = "the fence does not say so"
    # Of the other host.
    REACHED = "the other host is connected"
    UNREACHED = "it cannot be reached"
    AGREES = "it has nothing against it that the VM starts here"
    OBJECTS = "it speaks against it"
    SILENT = "it does not answer the question"
    TAKEN = "it has got the grant"
    REJECTED = "it cannot take the VM, and has nothing of it"
    LINK_UP = "a primary says hello"
    CHANNEL_UP = "a checkpoint channel is connected"
    LINK_LOST = "the control link is closed, or silent beyond its limit"
    SAYS_GONE = "it says that it runs the VM no more: dead, or handed over"
    LETS_GO = "it says that nothing is to be taken over: bye, or alone"
    SAYS_SHUTDOWN = "it says that the guest has shut down"
    # Of the checkpoints.
    COPY_BEGUN = "from now on the other host may have something"
    WHOLE = "the first copy is whole"
    LOST = "the session with the other host is of no more use"
    # Of the guest here.
    FIT = "it can be protected"
    UNFIT = "it cannot, or what was to be done before it runs cannot be done"
    ANSWERS = "its QEMU answers"
    HUNG = "its QEMU does not answer"
    RUNS = "it runs"
    STUCK = "it does not run, though it should"
    DIED = "its process is dead"
    SHUT_DOWN = "it has shut down"
    AT_REST = "it is stopped right behind a checkpoint that is safe"
    NOT_AT_REST = "it could not be brought to that"
    # Of whoever operates it, and of time.
    BEGIN = "a part begins"
    GO_ON = "a part has ended, and the next may come"
    ORDER = "an operator says: run it here"
    SWITCHOVER = "an operator says: run it on the other host"
    INTERRUPT = "this colo is told to end"
    TIME = "the pause is over"
    HEARD_OUT = "what the other host had to say has been heard, or nothing came"


class When(Enum):
    """What a row may ask of what is known: see ``Member``."""

    LIVES = "a QEMU of this host runs the VM, and nobody else has the right"
    FOREIGN = "a QEMU runs here, but the VM is another's by the record"
    TURN = "it is ours to start the VM, and nobody else has anything of it"
    ASKS_FIRST = "the VM ran here and died: the other host may have a newer state"
    IN_VAIN = "the VM died before it was ever protected"
    STARTS = "the VM does not run yet"
    UNDER_WAY = "its start is under way: it may run already"
    STOCK = "the secondary is a stock QEMU, which cannot be asked"
    DECIDED = "an arbiter or an operator has said that the VM may run"
    CLAIMED = "the grant was taken from another holder by order"
    ONE_SHOT = "no further try changes it"
    FRUITLESS = "the session ended before the VM was protected"
    CONTESTED = "the other host may have a whole copy, and may run it"
    MAY_ASK = "the arbiter grants by itself, or an operator has given an order"
    AUTOMATIC = "the arbiter grants by itself"
    OVERRIDES = "an operator's order counts for more than what the arbiter has granted"
    FORCED = "an operator has said: with or without an arbiter"
    ORDERED = "an operator waits for an answer"
    BUSY = "a question is on its way"
    ENDS = "this colo is to end"
    WARNED = "it was said what an end would give up"
    BY_ORDER = "protection ends by order"
    CONNECTED = "the checkpoint channel is open"
    LINKED = "there is a control link"
    HEARD = "the primary is heard on the control link, and has not said that it is gone"
    ASKS = "a secondary that is alone asks for the grant by itself"
    WAS_ASKING = "the grant was being asked for before the order came"
    HAS_GRANT = "the grant is ours already"
    MUST_FENCE = "the other host may still run, and there is a fence to turn it off"
    NEWER = "it runs the VM by a later grant than that of the checkpoint here"
    NODE = "this colo goes on when its part has ended"


class Do(Enum):
    """What a host asks its surroundings to do; with what they report when it is done."""

    # To the arbiter.
    READ_RECORD = "read the arbiter's record: RECORD, NO_ANSWER"
    CLAIM = "have a grant for the VM that is to be protected: GRANTED, UNFIT"
    ASK = "ask for the next grant: GRANTED, DENIED, NO_ANSWER"
    ASK_BY_ORDER = "take the next grant, whoever has this one: GRANTED, NO_ANSWER"
    STOP_ASKING = "want no answer any more"
    GIVE_BACK = "give the grant back: the VM runs without it, or not at all"
    GIVE_BACK_UNUSED = "give the grant back: no VM ran by it"
    GIVE_BACK_SHUT_DOWN = "give the grant back: the guest has shut down, nothing is left of it"
    FENCE = "have the other host turned off: OFF, NOT_OFF"
    # To the other host.
    CALL = "reach it: REACHED, UNREACHED, UNFIT"
    QUESTION = "ask it whether the VM may start here: AGREES, OBJECTS, SILENT, UNFIT"
    REFUSE = "do not take this connection in"
    REJECT = "say that there is no first copy, and why"
    CLOSE = "close the checkpoint channel"
    HANG_UP = "close the control link"
    SAY_DEAD = "say that the VM is dead here"
    SAY_SHUTDOWN = "say that the guest has shut down"
    SAY_BYE = "say that nothing more comes: the VM goes on there, or is forgotten here"
    SAY_ALONE = "say that the VM runs here alone"
    SAY_HANDOVER = "say that the VM is stopped, and to be taken over"
    AWAIT_TAKEN = "give it the time to get the grant: TAKEN, TIME"
    HEAR_OUT = "give it the time to say why: HEARD_OUT"
    # To the guest here.
    PREPARE = "see whether it can be protected: FIT, UNFIT"
    START = "have it run for the first time: RUNS, UNFIT"
    COPY = "have it send its first copy, and checkpoints: COPY_BEGUN, LOST"
    RECEIVE = "take a first copy in, and checkpoints: WHOLE, LOST"
    LOOK = "see whether its QEMU answers: ANSWERS, HUNG, DIED"
    RUN_ALONE = "have it run without a secondary: RUNS, STUCK"
    REST = "stop it right behind a checkpoint that is safe: AT_REST, NOT_AT_REST"
    STOP = "stop it"
    END_GUEST = "end its QEMU"
    LOAD = "start it from the last whole checkpoint: RUNS, STUCK"
    FORGET = "forget what is kept of the primary and its VM"
    # To the gate.
    HOLD = "hold what it sends from now on"
    OPEN = "let all that it sends out"
    SHUT = "let nothing out any more"
    # To time, and to people.
    PAUSE = "wait before the next try: TIME"
    WARN = "say what an end would give up"
    AGREE = "answer the operator: it is done"
    DECLINE = "answer the operator: it is not done, and why"


@dataclass(frozen=True)
class Row:
    """The right side of a row, and what has to hold for it."""

    to: State
    do: tuple[Do, ...] = ()
    when: tuple[When, ...] = ()


Table: TypeAlias = Mapping[tuple[State, Event], tuple[Row, ...]]

_S: Final = State
_E: Final = Event
_W: Final = When
_D: Final = Do

#: States that nothing follows, but GO_ON.
FINAL: Final = frozenset({_S.REFUSED, _S.FENCED, _S.DEAD, _S.SHUTDOWN, _S.ENDED, _S.LEFT, _S.GONE})


def _to(to: State, *do: Do, when: When | tuple[When, ...] = ()) -> Row:
    return Row(to, do, when if isinstance(when, tuple) else (when,))


def _all(
    states: Iterable[State], rows: Mapping[Event, tuple[Row, ...] | Row]
) -> dict[tuple[State, Event], tuple[Row, ...]]:
    """The same rows for several states."""
    return {
        (state, event): row if isinstance(row, tuple) else (row,)
        for state in states
        for event, row in rows.items()
    }


def _ignore(states: Iterable[State], *events: Event) -> dict[tuple[State, Event], tuple[Row, ...]]:
    """Late reports, and what changes nothing."""
    return {(state, event): (Row(state),) for state in states for event in events}


_LOOKING: Final = {
    **_all({_S.LOOKING}, {
        _E.BEGIN: _to(_S.LOOKING, _D.READ_RECORD),
        _E.RECORD: (
            _to(_S.STARTING, when=_W.LIVES),
            _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD, when=_W.FOREIGN),
            _to(_S.LOOKING, _D.ASK, when=_W.TURN),
            _to(_S.LOOKING, _D.QUESTION, when=_W.ASKS_FIRST),
            _to(_S.LISTENING),
        ),
        _E.AGREES: _to(_S.LOOKING, _D.ASK),
        _E.GRANTED: _to(_S.STARTING, _D.AGREE),
        _E.DENIED: _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD),
        _E.NO_ANSWER: _to(_S.WAITING, _D.END_GUEST, _D.DECLINE, _D.PAUSE),
        _E.OBJECTS: _to(_S.WAITING, _D.PAUSE),
        _E.UNFIT: _to(_S.WAITING, _D.PAUSE),
        _E.SILENT: _to(_S.WAITING, _D.PAUSE),
        _E.ORDER: _to(_S.LOOKING, _D.DECLINE),
        _E.INTERRUPT: _to(_S.GONE),
    }),
    **_all({_S.WAITING}, {
        _E.TIME: _to(_S.LOOKING, _D.READ_RECORD),
        _E.ORDER: (_to(_S.LOOKING, _D.ASK_BY_ORDER, when=_W.ASKS_FIRST),
                   _to(_S.WAITING, _D.DECLINE)),
        _E.INTERRUPT: _to(_S.GONE),
    }),
}  # fmt: skip

_NOT_STARTED: Final = (
    _to(_S.REFUSED, _D.END_GUEST, when=(_W.STARTS, _W.CLAIMED)),
    _to(_S.REFUSED, _D.END_GUEST, _D.GIVE_BACK_UNUSED, when=_W.STARTS),
    _to(_S.REFUSED, _D.GIVE_BACK),
)

#: The VM is to run here, or runs already, and has not been protected yet.
_STARTING: Final = {
    **_all({_S.STARTING}, {
        _E.BEGIN: _to(_S.STARTING, _D.CLAIM),
        _E.GRANTED: _to(_S.STARTING, _D.PREPARE),
        _E.FIT: (_to(_S.STARTING, _D.START, when=(_W.STARTS, _W.STOCK)),
                 _to(_S.STARTING, _D.QUESTION, when=_W.STARTS),
                 _to(_S.UNPROTECTED, _D.CALL)),
        _E.AGREES: _to(_S.STARTING, _D.START),
        _E.SILENT: (_to(_S.STARTING, _D.START, when=_W.DECIDED), *_NOT_STARTED),
        _E.OBJECTS: _NOT_STARTED,
        _E.UNFIT: _NOT_STARTED,
        _E.RUNS: (_to(_S.ENDED, when=_W.ENDS), _to(_S.UNPROTECTED, _D.CALL)),
        _E.INTERRUPT: (
            _to(_S.STARTING, when=_W.UNDER_WAY),
            _to(_S.GONE, _D.END_GUEST, when=(_W.STARTS, _W.CLAIMED)),
            _to(_S.GONE, _D.END_GUEST, _D.GIVE_BACK_UNUSED, when=_W.STARTS),
            _to(_S.ENDED),
        ),
        _E.ORDER: _to(_S.STARTING, _D.DECLINE),
        _E.SWITCHOVER: _to(_S.STARTING, _D.DECLINE),
        _E.DIED: _NOT_STARTED,
        _E.SHUT_DOWN: _to(_S.SHUTDOWN, _D.GIVE_BACK_SHUT_DOWN),
    }),
}  # fmt: skip

_SILENCED: Final = _to(_S.FENCED, _D.SHUT, _D.CLOSE, _D.HANG_UP, _D.STOP, _D.DECLINE)
_HUNG: Final = _to(_S.DEAD, _D.SHUT, _D.CLOSE, _D.SAY_DEAD, _D.HANG_UP, _D.DECLINE)
#: What the other host may run is left to it: given back, the grant would be anybody's.
_DIED: Final = (
    _to(_S.DEAD, _D.STOP_ASKING, _D.CLOSE, _D.SAY_DEAD, _D.HANG_UP, _D.DECLINE, when=_W.CONTESTED),
    _to(_S.DEAD, _D.STOP_ASKING, _D.CLOSE, _D.SAY_DEAD, _D.HANG_UP, _D.DECLINE, _D.GIVE_BACK),
)
_SHUT_DOWN: Final = _to(
    _S.SHUTDOWN,
    _D.STOP_ASKING,
    _D.CLOSE,
    _D.SAY_SHUTDOWN,
    _D.HANG_UP,
    _D.DECLINE,
    _D.GIVE_BACK_SHUT_DOWN,
)
_PART: Final = _to(_S.PARTING, _D.LOOK)

#: From the first call until the secondary is lost.
_PROTECTING: Final = {
    **_all({_S.UNPROTECTED}, {
        _E.REACHED: _to(_S.BEGINNING, _D.COPY),
        _E.UNREACHED: _to(_S.UNPROTECTED, _D.HANG_UP, _D.PAUSE),
        _E.TIME: _to(_S.UNPROTECTED, _D.CALL),
        _E.UNFIT: _to(_S.ENDED, _D.HANG_UP, _D.GIVE_BACK),
        _E.INTERRUPT: _to(_S.ENDED, _D.HANG_UP),
    }),
    **_ignore({_S.UNPROTECTED}, _E.LOST, _E.LINK_LOST, _E.REJECTED),
    **_all({_S.BEGINNING}, {
        _E.COPY_BEGUN: _to(_S.COPYING),
        _E.LOST: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.LINK_LOST: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.REJECTED: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.INTERRUPT: _PART,
    }),
    # The secondary may have a whole first copy that this host does not know of: hold.
    **_all({_S.COPYING}, {
        _E.WHOLE: _to(_S.PROTECTED),
        _E.LOST: (_to(_S.LOST, _D.HOLD, _D.CLOSE, _D.HEAR_OUT, when=_W.LINKED),
                  _to(_S.LOST, _D.HOLD, _D.CLOSE, _D.LOOK)),
        _E.LINK_LOST: _to(_S.LOST, _D.HOLD, _D.CLOSE, _D.LOOK),
        _E.REJECTED: _to(_S.LOST, _D.HOLD, _D.CLOSE, _D.LOOK),
        _E.INTERRUPT: _PART,
    }),
    **_all({_S.PROTECTED}, {
        _E.LOST: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.LINK_LOST: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.REJECTED: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.SWITCHOVER: (_to(_S.PROTECTED, _D.REST, when=_W.AUTOMATIC),
                        _to(_S.PROTECTED, _D.DECLINE)),
        _E.AT_REST: _to(_S.GOING_OVER, _D.SAY_HANDOVER, _D.CLOSE, _D.AWAIT_TAKEN),
        _E.NOT_AT_REST: _to(_S.PROTECTED, _D.DECLINE),
        _E.INTERRUPT: _PART,
    }),
    **_all({_S.GOING_OVER}, {
        _E.TAKEN: _to(_S.LOST, _D.LOOK),
        _E.TIME: _to(_S.LOST, _D.LOOK),
        _E.INTERRUPT: _to(_S.GOING_OVER),
        _E.SWITCHOVER: _to(_S.GOING_OVER, _D.DECLINE),
    }),
    **_ignore({_S.GOING_OVER}, _E.LOST, _E.LINK_LOST, _E.REJECTED),
    **_all({_S.UNPROTECTED, _S.BEGINNING, _S.COPYING, _S.PROTECTED, _S.GOING_OVER}, {
        _E.DIED: _DIED,
        _E.SHUT_DOWN: _SHUT_DOWN,
    }),
    **{(state, _E.ORDER): (_to(state, _D.DECLINE),)
       for state in (_S.UNPROTECTED, _S.BEGINNING, _S.COPYING, _S.PROTECTED, _S.GOING_OVER)},
    **{(state, _E.SWITCHOVER): (_to(state, _D.DECLINE),)
       for state in (_S.UNPROTECTED, _S.BEGINNING, _S.COPYING)},
}  # fmt: skip

#: The secondary is lost, or let go: may this VM run without it?
_DECIDING: Final = {
    **_all({_S.LOST}, {
        _E.HEARD_OUT: _to(_S.LOST, _D.LOOK),
        _E.ANSWERS: (_to(_S.LOST, _D.ASK_BY_ORDER,
                         when=(_W.CONTESTED, _W.ORDERED, _W.OVERRIDES)),
                     _to(_S.LOST, _D.ASK, when=(_W.CONTESTED, _W.MAY_ASK)),
                     _to(_S.LOST, when=_W.CONTESTED),
                     _to(_S.RESUMING, _D.RUN_ALONE)),
        _E.GRANTED: _to(_S.RESUMING, _D.RUN_ALONE),
        _E.DENIED: _SILENCED,
        _E.NO_ANSWER: (_to(_S.RESUMING, _D.RUN_ALONE, when=_W.FORCED),
                       _to(_S.LOST, _D.DECLINE, _D.PAUSE, when=_W.ORDERED),
                       _to(_S.LOST, _D.PAUSE)),
        _E.HUNG: _HUNG,
        _E.TIME: (_to(_S.LOST, when=_W.BUSY), _to(_S.LOST, _D.LOOK)),
        _E.ORDER: (_to(_S.LOST, when=_W.BUSY), _to(_S.LOST, _D.LOOK)),
        _E.INTERRUPT: (_to(_S.LEFT, _D.STOP_ASKING, _D.HANG_UP, _D.DECLINE, when=_W.WARNED),
                       _to(_S.LOST, _D.WARN)),
    }),
    **_ignore({_S.LOST}, _E.LOST, _E.LINK_LOST, _E.REJECTED, _E.AT_REST, _E.NOT_AT_REST),
    # Only now the other host is told: a VM that does not run needs its secondary.
    **_all({_S.RESUMING}, {
        _E.RUNS: (
            _to(_S.ENDED, _D.OPEN, _D.SAY_BYE, _D.HANG_UP, when=_W.BY_ORDER),
            _to(_S.ENDED, _D.OPEN, _D.SAY_ALONE, _D.HANG_UP, _D.AGREE, when=_W.ENDS),
            _to(_S.ENDED, _D.OPEN, _D.SAY_ALONE, _D.HANG_UP, _D.GIVE_BACK, when=_W.ONE_SHOT),
            _to(_S.UNPROTECTED, _D.OPEN, _D.SAY_ALONE, _D.HANG_UP, _D.AGREE, _D.PAUSE,
                when=_W.FRUITLESS),
            _to(_S.UNPROTECTED, _D.OPEN, _D.SAY_ALONE, _D.HANG_UP, _D.AGREE, _D.CALL),
        ),
        _E.STUCK: _HUNG,
        _E.INTERRUPT: _to(_S.RESUMING),
        _E.ORDER: _to(_S.RESUMING, _D.DECLINE),
    }),
    **_ignore({_S.RESUMING}, _E.LOST, _E.LINK_LOST, _E.REJECTED, _E.TIME, _E.AT_REST,
              _E.NOT_AT_REST),
    **_all({_S.PARTING}, {
        # QEMU may only be blocked by a secondary that does not read: hang up, and look once more.
        _E.HUNG: (_to(_S.PARTING, _D.CLOSE, _D.LOOK, when=_W.CONNECTED), _HUNG),
        _E.ANSWERS: (_to(_S.PARTING, _D.ASK, when=(_W.CONTESTED, _W.AUTOMATIC)),
                     _to(_S.RESUMING, _D.CLOSE, _D.RUN_ALONE)),
        _E.GRANTED: _to(_S.RESUMING, _D.CLOSE, _D.RUN_ALONE),
        # Nobody can be asked: the other host is let go first, and has to say that it went.
        _E.NO_ANSWER: (_to(_S.PARTING, _D.SAY_BYE, _D.PAUSE, when=_W.LINKED),
                       _to(_S.LOST, _D.CLOSE, _D.PAUSE)),
        _E.LETS_GO: _to(_S.RESUMING, _D.CLOSE, _D.RUN_ALONE),
        _E.TIME: _to(_S.LOST, _D.CLOSE, _D.LOOK),
        _E.DENIED: _SILENCED,
    }),
    **_ignore({_S.PARTING}, _E.LOST, _E.LINK_LOST, _E.REJECTED, _E.INTERRUPT, _E.COPY_BEGUN,
              _E.WHOLE, _E.AT_REST, _E.NOT_AT_REST),
    **_ignore({_S.UNPROTECTED, _S.BEGINNING, _S.COPYING, _S.PROTECTED, _S.GOING_OVER, _S.LOST,
               _S.RESUMING}, _E.LETS_GO),
    **_all({_S.PARTING}, {_E.ORDER: _to(_S.PARTING, _D.DECLINE)}),
    **{(state, _E.SWITCHOVER): (_to(state, _D.DECLINE),)
       for state in (_S.LOST, _S.RESUMING, _S.PARTING)},
    **_all({_S.LOST, _S.RESUMING, _S.PARTING}, {_E.DIED: _DIED, _E.SHUT_DOWN: _SHUT_DOWN}),
}  # fmt: skip

_ORPHANED: Final = (
    _to(_S.ORPHANED, _D.CLOSE, _D.ASK, when=_W.ASKS),
    _to(_S.ORPHANED, _D.CLOSE),
)
_LET_GO: Final = _to(_S.LISTENING, _D.FORGET)
#: The primary may wait for this, where it could not ask anybody.
_LET_GO_AND_SAY_SO: Final = _to(_S.LISTENING, _D.SAY_BYE, _D.FORGET)
#: A daemon ends with the guest, on both hosts; a colo secondary waits for the next one.
_OVER: Final = (_to(_S.SHUTDOWN, _D.FORGET, when=_W.NODE), _LET_GO)

#: Nothing whole is here yet.
_RECEIVING: Final = {
    **_all({_S.LISTENING}, {
        _E.BEGIN: _to(_S.LISTENING),
        _E.LINK_UP: _to(_S.GREETED),
        _E.CHANNEL_UP: _to(_S.RECEIVING, _D.RECEIVE),
        _E.ORDER: (_to(_S.LOOKING, _D.ASK_BY_ORDER, when=_W.NODE),
                   _to(_S.LISTENING, _D.DECLINE)),
        _E.INTERRUPT: _to(_S.GONE),
    }),
    **_all({_S.GREETED}, {
        _E.LINK_UP: _to(_S.GREETED, _D.REFUSE),
        _E.CHANNEL_UP: _to(_S.RECEIVING, _D.RECEIVE),
    }),
    **_all({_S.RECEIVING}, {
        _E.LINK_UP: _to(_S.RECEIVING, _D.REFUSE),
        _E.CHANNEL_UP: _to(_S.RECEIVING, _D.REFUSE),
        _E.WHOLE: _to(_S.KEEPING),
        _E.LOST: _to(_S.LISTENING, _D.REJECT, _D.FORGET),
    }),
    **_all({_S.GREETED, _S.RECEIVING}, {
        _E.LINK_LOST: _LET_GO,
        _E.SAYS_GONE: _LET_GO,
        _E.LETS_GO: _LET_GO_AND_SAY_SO,
        _E.SAYS_SHUTDOWN: _OVER,
        _E.INTERRUPT: _to(_S.GONE, _D.FORGET),
    }),
    **{(state, _E.ORDER): (_to(_S.LOOKING, _D.FORGET, _D.ASK_BY_ORDER,
                               when=(_W.NODE, _W.FORCED)),
                           _to(state, _D.DECLINE))
       for state in (_S.GREETED, _S.RECEIVING)},
}  # fmt: skip

#: A whole checkpoint is here: the VM can be run from it.
_KEEPING: Final = {
    **_all({_S.KEEPING}, {
        _E.LOST: (_to(_S.CUT_OFF, _D.CLOSE, when=_W.HEARD), *_ORPHANED),
        _E.SAYS_GONE: _to(_S.KEEPING),
        _E.ORDER: (_to(_S.ORPHANED, _D.CLOSE, _D.ASK_BY_ORDER, when=_W.FORCED),
                   _to(_S.KEEPING, _D.DECLINE)),
        _E.INTERRUPT: _to(_S.GONE, _D.FORGET),
        _E.LINK_UP: _to(_S.KEEPING, _D.REFUSE),
    }),
    **_all({_S.CUT_OFF}, {
        _E.SAYS_GONE: _ORPHANED,
        _E.ORDER: (_to(_S.ORPHANED, _D.ASK_BY_ORDER, when=_W.OVERRIDES),
                   _to(_S.ORPHANED, _D.ASK)),
        _E.INTERRUPT: _to(_S.GONE, _D.FORGET),
    }),
    **_all({_S.KEEPING, _S.CUT_OFF}, {
        _E.LINK_LOST: _ORPHANED,
        _E.LETS_GO: _LET_GO_AND_SAY_SO,
        _E.SAYS_SHUTDOWN: _OVER,
    }),
    **_all({_S.ORPHANED}, {
        _E.GRANTED: (_to(_S.ORPHANED, _D.FENCE, when=_W.MUST_FENCE),
                     _to(_S.TAKING_OVER, _D.LOAD)),
        _E.OFF: _to(_S.TAKING_OVER, _D.LOAD),
        _E.NOT_OFF: (_to(_S.TAKING_OVER, _D.LOAD, when=_W.FORCED),
                     _to(_S.ORPHANED, _D.DECLINE, _D.PAUSE, when=(_W.ORDERED, _W.WAS_ASKING)),
                     _to(_S.ORPHANED, _D.DECLINE, when=_W.ORDERED),
                     _to(_S.ORPHANED, _D.PAUSE)),
        _E.NO_ANSWER: (_to(_S.TAKING_OVER, _D.LOAD, when=_W.FORCED),
                       _to(_S.ORPHANED, _D.DECLINE, _D.PAUSE, when=(_W.ORDERED, _W.WAS_ASKING)),
                       _to(_S.ORPHANED, _D.DECLINE, when=_W.ORDERED),
                       _to(_S.ORPHANED, _D.PAUSE)),
        _E.DENIED: _LET_GO,
        _E.TIME: (_to(_S.ORPHANED, when=_W.BUSY),
                  _to(_S.ORPHANED, _D.FENCE, when=_W.HAS_GRANT),
                  _to(_S.ORPHANED, _D.ASK)),
        _E.ORDER: (_to(_S.ORPHANED, _D.STOP_ASKING, _D.ASK_BY_ORDER, when=_W.OVERRIDES),
                   _to(_S.ORPHANED, when=_W.ORDERED),
                   _to(_S.ORPHANED, _D.STOP_ASKING, _D.ASK)),
        _E.INTERRUPT: (_to(_S.GONE, _D.STOP_ASKING, _D.FORGET, when=_W.WARNED),
                       _to(_S.ORPHANED, _D.WARN)),
    }),
    **_ignore({_S.ORPHANED}, _E.LOST, _E.LINK_LOST, _E.SAYS_GONE, _E.LETS_GO, _E.SAYS_SHUTDOWN),
    # Whoever runs the VM by a later grant has said by that that the copy here is old; but not while
    # an order is carried out, which may have the grant after that.
    **{(state, _E.LINK_UP): (_to(state, _D.REFUSE, when=_W.ORDERED),
                             _to(_S.GREETED, _D.STOP_ASKING, _D.FORGET, when=_W.NEWER),
                             _to(state, _D.REFUSE))
       for state in (_S.CUT_OFF, _S.ORPHANED)},
    # To start it is bounded, and never given up half-way.
    **_all({_S.TAKING_OVER}, {
        _E.RUNS: (_to(_S.GONE, _D.AGREE, when=_W.ENDS), _to(_S.RUNNING, _D.AGREE)),
        _E.STUCK: (_to(_S.ORPHANED, _D.DECLINE, _D.WARN, when=_W.ENDS),
                   _to(_S.ORPHANED, _D.DECLINE)),
        _E.ORDER: _to(_S.TAKING_OVER),
        _E.INTERRUPT: _to(_S.TAKING_OVER),
    }),
    **_all({_S.RUNNING}, {
        _E.GO_ON: _to(_S.STARTING),
        _E.ORDER: _to(_S.RUNNING, _D.AGREE),
        _E.INTERRUPT: _to(_S.GONE),
        _E.DIED: _to(_S.DEAD),
    }),
    **{(state, event): (_to(state, _D.REFUSE),)
       for state in (_S.KEEPING, _S.CUT_OFF, _S.ORPHANED, _S.TAKING_OVER, _S.RUNNING)
       for event in (_E.CHANNEL_UP,)},
    **{(state, _E.LINK_UP): (_to(state, _D.REFUSE),) for state in (_S.TAKING_OVER, _S.RUNNING)},
    **_ignore({_S.TAKING_OVER, _S.RUNNING}, _E.LOST, _E.LINK_LOST, _E.SAYS_GONE, _E.LETS_GO,
              _E.SAYS_SHUTDOWN, _E.TIME),
}  # fmt: skip

#: What comes after a part; what is over hears nothing else.
_OVER_AND_ON: Final = {
    **_ignore(FINAL, *(event for event in Event if event not in (_E.GO_ON, _E.ORDER))),
    **{(state, _E.ORDER): (_to(state, _D.DECLINE),) for state in FINAL},
    **_all({_S.FENCED}, {_E.GO_ON: _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD)}),
    **_all({_S.DEAD}, {_E.GO_ON: (_to(_S.WAITING, _D.END_GUEST, _D.PAUSE, when=_W.IN_VAIN),
                                  _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD))}),
    **_all({_S.REFUSED}, {_E.GO_ON: (_to(_S.WAITING, _D.PAUSE, when=_W.STARTS), _to(_S.REFUSED))}),
    **_all({_S.SHUTDOWN}, {_E.GO_ON: _to(_S.GONE, _D.END_GUEST)}),
    **_ignore({_S.ENDED, _S.LEFT, _S.GONE}, _E.GO_ON),
}  # fmt: skip

#: What is reported when it is done: of each effect one of these, if it is not given up before.
OUTCOMES: Final[Mapping[Do, tuple[Event, ...]]] = {
    do: tuple(Event[name] for name in do.value.rpartition(": ")[2].split(", "))
    for do in Do
    if ": " in do.value
    and all(name in Event.__members__ for name in do.value.rpartition(": ")[2].split(", "))
}

TABLE: Final[Table] = {
    **_LOOKING, **_STARTING, **_PROTECTING, **_DECIDING, **_RECEIVING, **_KEEPING, **_OVER_AND_ON,
}  # fmt: skip
