"""The words for a host and one VM: how it stands, what can happen, what is asked, what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

__all__ = ["FINAL", "OUTCOMES", "Do", "Event", "Row", "State", "Table", "When"]


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
    CONFIRMED = "it is ours still, or again"
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
    ASKED = "the grant was asked for, with a QEMU in which nothing runs yet"
    ASKS_FIRST = "the VM ran here and died: the other host may have a newer state"
    IN_VAIN = "the VM died before it was ever protected"
    STARTS = "the VM does not run yet"
    UNDER_WAY = "its start is under way: it may run already"
    STOCK = "the secondary is a stock QEMU, which cannot be asked"
    CLAIMED = "the grant was taken from another holder by order"
    ONE_SHOT = "no further try changes it, and this colo ends with its part"
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
    ASKS = "a secondary that is alone asks for the grant by itself, as nothing lacks here"
    WAS_ASKING = "the grant was being asked for before the order came"
    HAS_GRANT = "the grant is ours already"
    MUST_FENCE = "the other host may still run, and there is a fence to turn it off"
    NEWER = "it runs the VM by a later grant than that of the checkpoint here"
    LACKS = "clients may have heard of more than is here"
    OWES = "the VM runs by force, and the arbiter does not know yet"
    NODE = "this colo goes on when its part has ended"


class Do(Enum):
    """What a host asks its surroundings to do; with what they report when it is done."""

    # To the arbiter.
    READ_RECORD = "read the arbiter's record: RECORD, NO_ANSWER"
    CLAIM = "have a grant for the VM that is to be protected: GRANTED, UNFIT"
    ASK = "ask for the next grant: GRANTED, DENIED, NO_ANSWER"
    CONFIRM = "have it once more, right before a VM starts by it: CONFIRMED, UNFIT"
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

#: States that nothing follows, but GO_ON.
FINAL: Final = frozenset(
    {State.REFUSED, State.FENCED, State.DEAD, State.SHUTDOWN, State.ENDED, State.LEFT, State.GONE}
)

#: What is reported when it is done: of each effect one of these, if it is not given up before.
OUTCOMES: Final[Mapping[Do, tuple[Event, ...]]] = {
    do: tuple(Event[name] for name in do.value.rpartition(": ")[2].split(", "))
    for do in Do
    if ": " in do.value
    and all(name in Event.__members__ for name in do.value.rpartition(": ")[2].split(", "))
}
