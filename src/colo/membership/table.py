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

from collections.abc import Collection, Mapping
from typing import Final

from colo.membership.states import FINAL, Do, Event, Row, State, Table, When

__all__ = ["TABLE"]


_S: Final = State
_E: Final = Event
_W: Final = When
_D: Final = Do


def _to(to: State, *do: Do, when: When | tuple[When, ...] = ()) -> Row:
    return Row(to, do, when if isinstance(when, tuple) else (when,))


def _all(
    states: Collection[State], rows: Mapping[Event, tuple[Row, ...] | Row]
) -> dict[tuple[State, Event], tuple[Row, ...]]:
    """The same rows for several states."""
    return {
        (state, event): row if isinstance(row, tuple) else (row,)
        for state in _in_order(states)
        for event, row in rows.items()
    }


def _ignore(
    states: Collection[State], *events: Event
) -> dict[tuple[State, Event], tuple[Row, ...]]:
    """Late reports, and what changes nothing."""
    return {(state, event): (Row(state),) for state in _in_order(states) for event in events}


def _in_order(states: Collection[State]) -> list[State]:
    return [state for state in State if state in states]


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
        _E.DENIED: _to(_S.LOOKING, _D.END_GUEST, _D.DECLINE, _D.READ_RECORD),
        # What runs here, if anything does, may run by right: nobody has said otherwise.
        _E.NO_ANSWER: (_to(_S.WAITING, _D.END_GUEST, _D.DECLINE, _D.PAUSE, when=_W.ASKED),
                       _to(_S.WAITING, _D.PAUSE)),
        _E.OBJECTS: _to(_S.WAITING, _D.PAUSE),
        _E.UNFIT: _to(_S.WAITING, _D.PAUSE),
        _E.SILENT: _to(_S.WAITING, _D.PAUSE),
        _E.ORDER: _to(_S.LOOKING, _D.DECLINE),
        _E.INTERRUPT: _to(_S.GONE),
    }),
    **_all({_S.WAITING}, {
        _E.TIME: _to(_S.LOOKING, _D.READ_RECORD),
        # Who orders it says that the other host is gone: not if that has got a grant meanwhile.
        _E.ORDER: (_to(_S.LOOKING, _D.ASK_BY_ORDER, when=(_W.ASKS_FIRST, _W.FORCED)),
                   _to(_S.LOOKING, _D.ASK, when=_W.ASKS_FIRST),
                   _to(_S.WAITING, _D.DECLINE)),
        _E.INTERRUPT: _to(_S.GONE),
    }),
}  # fmt: skip

#: The other host was asked, so the VM does not run yet.
_REFUSED_A_START: Final = _to(_S.REFUSED, _D.END_GUEST, _D.GIVE_BACK_UNUSED)
#: A grant that an operator has claimed stays ours.
_NOT_STARTED: Final = (
    _to(_S.REFUSED, _D.END_GUEST, when=(_W.STARTS, _W.CLAIMED)),
    _to(_S.REFUSED, _D.END_GUEST, _D.GIVE_BACK_UNUSED, when=_W.STARTS),
    _to(_S.REFUSED, _D.GIVE_BACK),
)

#: The VM is to run here, or runs already, and has not been protected yet.
_STARTING: Final = {
    **_all({_S.STARTING}, {
        _E.BEGIN: (_to(_S.STARTING, _D.PREPARE, when=_W.OWES), _to(_S.STARTING, _D.CLAIM)),
        _E.GRANTED: _to(_S.STARTING, _D.PREPARE),
        _E.FIT: (_to(_S.STARTING, _D.START, when=(_W.STARTS, _W.STOCK)),
                 _to(_S.STARTING, _D.QUESTION, when=_W.STARTS),
                 _to(_S.UNPROTECTED, _D.ASK_BY_ORDER, when=_W.OWES),
                 _to(_S.UNPROTECTED, _D.CALL)),
        # This host may have stood still since its grant, and an operator may have taken it.
        _E.AGREES: (_to(_S.STARTING, _D.CONFIRM, when=_W.AUTOMATIC), _to(_S.STARTING, _D.START)),
        _E.SILENT: (_to(_S.STARTING, _D.CONFIRM, when=_W.AUTOMATIC),
                    _to(_S.STARTING, _D.START, when=_W.CLAIMED), _REFUSED_A_START),
        _E.CONFIRMED: _to(_S.STARTING, _D.START),
        _E.OBJECTS: (_to(_S.REFUSED, _D.END_GUEST, when=_W.CLAIMED), _REFUSED_A_START),
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
_GIVES_UP: Final = (_D.SHUT, _D.CLOSE, _D.SAY_DEAD, _D.HANG_UP, _D.DECLINE)
_HUNG: Final = _to(_S.DEAD, *_GIVES_UP)
_HUNG_BESIDE_A_COPY: Final = _to(_S.DEAD, *_GIVES_UP, when=_W.CONTESTED)
_DIES: Final = (_D.STOP_ASKING, _D.CLOSE, _D.SAY_DEAD, _D.HANG_UP, _D.DECLINE)
#: What the other host may run is left to it: given back, the grant would be anybody's.
_DIED_BESIDE_A_COPY: Final = (_to(_S.DEAD, *_DIES),)
_DIED_ALONE: Final = (_to(_S.DEAD, *_DIES, _D.GIVE_BACK),)
_DIED: Final = (_to(_S.DEAD, *_DIES, when=_W.CONTESTED), *_DIED_ALONE)
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
        # What an operator has ordered by force, the arbiter is told before anything else.
        _E.TIME: (_to(_S.UNPROTECTED, _D.ASK_BY_ORDER, when=_W.OWES),
                  _to(_S.UNPROTECTED, _D.CALL)),
        _E.GRANTED: _to(_S.UNPROTECTED, _D.CALL),
        _E.NO_ANSWER: _to(_S.UNPROTECTED, _D.PAUSE),
        _E.UNFIT: (_to(_S.UNPROTECTED, _D.HANG_UP, _D.PAUSE, when=_W.NODE),
                   _to(_S.ENDED, _D.HANG_UP, _D.GIVE_BACK)),
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
        _E.INTERRUPT: _to(_S.PARTING, _D.HOLD, _D.LOOK),
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
    **_all({_S.UNPROTECTED, _S.BEGINNING}, {_E.DIED: _DIED_ALONE, _E.SHUT_DOWN: _SHUT_DOWN}),
    **_all({_S.COPYING, _S.PROTECTED, _S.GOING_OVER}, {
        _E.DIED: _DIED_BESIDE_A_COPY,
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
        # Where no other host can have the VM, one that only stalls is waited for.
        _E.HUNG: (_HUNG_BESIDE_A_COPY, _to(_S.LOST, _D.DECLINE, _D.PAUSE)),
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
            # A grant that came unheard would be taken for the answer at the next loss.
            _to(_S.UNPROTECTED, _D.OPEN, _D.SAY_ALONE, _D.HANG_UP, _D.AGREE, _D.ASK_BY_ORDER,
                when=_W.OWES),
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
        _E.COPY_BEGUN: _to(_S.PARTING, _D.HOLD),
    }),
    **_ignore({_S.PARTING}, _E.LOST, _E.LINK_LOST, _E.REJECTED, _E.INTERRUPT, _E.WHOLE,
              _E.AT_REST, _E.NOT_AT_REST),
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
        _E.ORDER: (_to(_S.LOOKING, _D.ASK_BY_ORDER, when=(_W.NODE, _W.FORCED)),
                   _to(_S.LOOKING, _D.ASK, when=_W.NODE),
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
    # Who says bye may have hung up before it is answered.
    **_ignore({_S.LISTENING}, _E.LINK_LOST),
    **{(state, _E.ORDER): (_to(_S.LOOKING, _D.FORGET, _D.ASK_BY_ORDER,
                               when=(_W.NODE, _W.FORCED)),
                           _to(state, _D.DECLINE))
       for state in (_S.GREETED, _S.RECEIVING)},
}  # fmt: skip

#: Whoever runs the VM by a later grant has said by that that the copy here is old.
_OUTLIVED: Final = _to(_S.GREETED, _D.STOP_ASKING, _D.FORGET, when=_W.NEWER)

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
                   _to(_S.CUT_OFF, _D.DECLINE, when=_W.LACKS),
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
        _E.NOT_OFF: (_to(_S.ORPHANED, _D.DECLINE, _D.PAUSE, when=(_W.ORDERED, _W.WAS_ASKING)),
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
                   _to(_S.ORPHANED, _D.DECLINE, when=_W.LACKS),
                   _to(_S.ORPHANED, _D.STOP_ASKING, _D.ASK)),
        _E.INTERRUPT: (_to(_S.GONE, _D.STOP_ASKING, _D.FORGET, when=_W.WARNED),
                       _to(_S.ORPHANED, _D.WARN)),
    }),
    **_ignore({_S.ORPHANED}, _E.LOST, _E.LINK_LOST, _E.SAYS_GONE, _E.LETS_GO, _E.SAYS_SHUTDOWN),
    **_all({_S.CUT_OFF}, {_E.LINK_UP: (_OUTLIVED, _to(_S.CUT_OFF, _D.REFUSE))}),
    # Not while an order is carried out, which may have the grant after that.
    **_all({_S.ORPHANED}, {_E.LINK_UP: (_to(_S.ORPHANED, _D.REFUSE, when=_W.ORDERED), _OUTLIVED,
                                        _to(_S.ORPHANED, _D.REFUSE))}),
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
    **{(state, _E.ORDER): (_to(state, _D.DECLINE),) for state in _in_order(FINAL)},
    **_all({_S.FENCED}, {_E.GO_ON: (_to(_S.GONE, _D.END_GUEST, when=_W.ENDS),
                                    _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD))}),
    **_all({_S.DEAD}, {_E.GO_ON: (_to(_S.GONE, _D.END_GUEST, when=_W.ENDS),
                                  _to(_S.WAITING, _D.END_GUEST, _D.PAUSE, when=_W.IN_VAIN),
                                  _to(_S.LOOKING, _D.END_GUEST, _D.READ_RECORD))}),
    **_all({_S.REFUSED}, {_E.GO_ON: (_to(_S.GONE, when=_W.ENDS),
                                     _to(_S.WAITING, _D.PAUSE))}),
    **_all({_S.SHUTDOWN}, {_E.GO_ON: _to(_S.GONE, _D.END_GUEST)}),
    **_ignore({_S.ENDED, _S.LEFT, _S.GONE}, _E.GO_ON),
}  # fmt: skip

TABLE: Final[Table] = {
    **_LOOKING, **_STARTING, **_PROTECTING, **_DECIDING, **_RECEIVING, **_KEEPING, **_OVER_AND_ON,
}  # fmt: skip
