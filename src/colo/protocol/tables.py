"""The two roles as two tables, side by side, and a third for who stands between them.

A row says: in this state, on this event, go to that state and have these effects performed,
in this order.  An event is either a COLO message from the peer or something local
(``PrimaryEvent``, ``SecondaryEvent``).  What is not in a table is illegal: a message out of
place is the peer's error, a local event out of place is ours.

The secondary runs no VM: a checkpoint is whole once its bytes have arrived, and VMSTATE_LOADED
follows VMSTATE_RECEIVED at once.  A stock QEMU's secondary runs one, and has to stop it before the
reply, load after the commit and start it before VMSTATE_LOADED.  Here the secondary VM of hybrid
mode stands beside this conversation, which need not know of it (``node.beside``).

The *courier* stands beside a primary that is not ours, a stock QEMU: it takes each checkpoint from
that one and brings it to the secondary.  There are two ways.  *Aside*: it takes the checkpoint into
memory of its own, as fast as memory is, and answers QEMU itself, as a secondary would; the VM runs
on, *speculatively*, while the secondary still receives.  *Through*: QEMU hears the secondary's own
answers, and its VM stands still until the secondary has all.

**What RELEASE means.** A packet leaves when the secondary has a checkpoint that covers it.  A
primary of our own, and a checkpoint that goes through, have one moment for three things: the VM is
stopped, all that it sent is known, and VMSTATE_RECEIVED is here.  Aside, they fall apart, and COVER
takes the first two: it is performed while the VM is stopped, and marks what it has sent and written
so far as of this checkpoint.  What it sends from then on is of the next one.  RELEASE is performed
when the *secondary's* VMSTATE_RECEIVED arrives, whatever QEMU was told, and lets out what COVER has
marked and no more.  At most one checkpoint is on its way: the next is not begun before the
secondary has replied to QEMU's next request, which it reads behind the whole of this one.  So one
mark is enough.

Whoever is lost meanwhile: the secondary goes on from its last whole checkpoint, and nothing that
came after that was released; the primary goes on from where it is, and all that is held
tells of what it has done.

Source: ``colo_process_checkpoint``, ``colo_do_checkpoint_transaction`` and
``colo_process_incoming_thread`` in QEMU's ``migration/colo.c``.  Two things differ from it.
The secondary may make the primary wait before CHECKPOINT_REPLY (state PREPARING), while the
primary's VM still runs, until the previous checkpoint has been applied; so one staging area is
enough.  And the loss of the channel is not yet the decision to fail over: LOST and FAILOVER
are two events, because whether to go on alone is not this protocol's to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeAlias, TypeVar

from colo.protocol.messages import COLOMessage

__all__ = [
    "COURIER",
    "PRIMARY",
    "SECONDARY",
    "CourierEvent",
    "CourierState",
    "Do",
    "Effect",
    "Event",
    "PrimaryEvent",
    "PrimaryState",
    "SecondaryEvent",
    "SecondaryState",
    "Step",
    "Table",
]


class _Named(Enum):
    """Its members are looked up at every step: by what they are, which is quicker than by name."""

    __hash__ = object.__hash__

    def __str__(self) -> str:
        return self.name


class PrimaryState(_Named):
    """Where the primary stands."""

    MIGRATING = "the first, full migration is being sent"
    AWAITING_READY = "it is sent; the VM is stopped until the secondary is ready"
    RUNNING = "the VM runs; its output is held"
    REQUESTED = "a checkpoint is asked for; the VM still runs"
    SUSPENDING = "the VM is being stopped"
    SAVING_RAM = "the dirty pages are being sent"
    SAVING_DEVICES = "the device state is being saved and sent"
    AWAITING_RECEIVED = "all is sent; the secondary has to say that it has it"
    AWAITING_LOADED = "the checkpoint is safe; the secondary has to say that we may go on"
    RESUMING = "the VM is being started"
    LOST = "the secondary is gone; the VM stays as it is until a decision"
    FAILOVER = "the decision fell: the VM is being started to run alone"
    SOLO = "the VM runs alone, unprotected"


class PrimaryEvent(_Named):
    """What can happen on the primary besides a message."""

    MIGRATED = "the first migration is sent whole"
    CHECKPOINT_DUE = "it is time for a checkpoint"
    SUSPENDED = "the VM is stopped"
    RAM_SAVED = "all dirty pages are sent"
    DEVICES_SAVED = "the device state is saved; its size in bytes is known"
    RESUMED = "the VM runs"
    LOST = "the channel is gone"
    FAILOVER = "the right to run alone is granted"


class CourierState(_Named):
    """Where a primary that is not ours stands, and its last checkpoint."""

    COPYING = "the first copy is on its way"
    COPIED = "it has come by; the VM is stopped until the secondary is ready"
    RUNNING = "the VM runs; the secondary has not replied to QEMU's next request"
    REPLIED = "the VM runs; the reply is held back until a checkpoint is due"
    STOPPED = "QEMU has the reply: its VM is stopped, and what it is comes here"
    SENDING = "it is taken aside, and the VM runs on; the secondary has not all of it"
    SENT = "the secondary has it all; it has to say that the next may come"
    WAITING = "it goes through: the VM is stopped until the secondary has all of it"
    SAFE = "the secondary has it all; QEMU has to hear that its VM may go on"
    LOST = "the secondary is gone; the VM stays as it is until a decision"
    FAILOVER = "the decision fell: the VM is being started to run alone"
    SOLO = "the VM runs alone, unprotected"


class CourierEvent(_Named):
    """What can happen to a courier besides a message of the secondary."""

    CHECKPOINT_DUE = "it is time for a checkpoint"
    TAKEN = "all of the checkpoint is here, and the VM may run on"
    PASSED = "all of it has come by, the first copy or a checkpoint that goes through"
    RESUMED = "the VM runs alone"
    LOST = "the channel is gone"
    FAILOVER = "the right to run alone is granted"


class SecondaryState(_Named):
    """Where the secondary stands."""

    INCOMING = "the first, full migration is being received"
    READY = "the last checkpoint is whole; the next request may come"
    PREPARING = "a checkpoint is asked for; the one before is still being applied"
    REPLIED = "the primary may stop its VM and begin"
    RECEIVING_RAM = "dirty pages are arriving"
    AWAITING_SIZE = "the pages are here; the size of the device state comes next"
    RECEIVING_DEVICES = "the device state is arriving"
    LOST = "the primary is gone; the last whole checkpoint waits for a decision"
    TAKEOVER = "the decision fell: the VM is being started from the last whole checkpoint"
    RUNNING = "the VM runs here"
    FAILED = "the primary is gone before anything was whole: there is nothing to run"


class SecondaryEvent(_Named):
    """What can happen on the secondary besides a message."""

    MIGRATED = "the first migration is here whole"
    PREPARED = "the last checkpoint is applied; the staging area is free"
    RAM_RECEIVED = "the RAM part is here whole"
    DEVICES_RECEIVED = "the device state is here whole, and with it the checkpoint"
    RESUMED = "the VM runs"
    LOST = "the channel is gone"
    FAILOVER = "the right to take over is granted"
    NOT_STARTED = "the takeover failed and can be tried again"


class Do(_Named):
    """What a machine asks its surroundings to do."""

    SEND = "send a message"
    CLOSE = "close the channel"
    SUSPEND = "stop the VM"
    RESUME = "have the VM run"
    HOLD = "hold all packets from now on"
    COVER = "what the VM has sent and written so far is of this checkpoint"
    SAVE_RAM = "send the dirty pages and an end mark"
    SAVE_DEVICES = "save the device state to a buffer and learn its size"
    SEND_DEVICES = "send the saved device state"
    RELEASE = "let the packets out that this checkpoint covers"
    PREPARE = "have the last checkpoint applied"
    RECEIVE_RAM = "stage pages up to the end mark"
    RECEIVE_DEVICES = "stage this many bytes of device state"
    COMMIT = "make what is staged the state of the store"
    APPLY = "copy the committed pages into the image"
    DISCARD = "forget what is staged"
    TAKE_OVER = "start the VM from the last whole checkpoint"


@dataclass(frozen=True)
class Effect:
    """One thing to do.

    ``message`` goes with SEND; ``value``, in bytes, with RECEIVE_DEVICES and with SEND of
    VMSTATE_SIZE.
    """

    do: Do
    message: COLOMessage | None = None
    value: int | None = None


S = TypeVar("S", bound=Enum)


@dataclass(frozen=True)
class Step(Generic[S]):
    """The right side of a row."""

    to: S
    effects: tuple[Effect, ...] = ()


Event: TypeAlias = COLOMessage | PrimaryEvent | CourierEvent | SecondaryEvent
Table: TypeAlias = Mapping[tuple[S, Event], Step[S]]


def _send(message: COLOMessage) -> Effect:
    return Effect(Do.SEND, message)


def _to(to: S, *effects: Do | Effect) -> Step[S]:
    return Step(to, tuple(Effect(e) if isinstance(e, Do) else e for e in effects))


_C: Final = COLOMessage
_P: Final = PrimaryState
_PE: Final = PrimaryEvent
_K: Final = CourierState
_KE: Final = CourierEvent
_S: Final = SecondaryState
_SE: Final = SecondaryEvent

_PRIMARY_CONNECTED: Final = tuple(
    state for state in _P if state not in {_P.LOST, _P.FAILOVER, _P.SOLO}
)

# fmt: off

PRIMARY: Final[Table[PrimaryState]] = {
    (_P.MIGRATING,         _PE.MIGRATED):        _to(_P.AWAITING_READY),
    (_P.AWAITING_READY,    _C.CHECKPOINT_READY): _to(_P.RESUMING, Do.RESUME),
    (_P.RESUMING,          _PE.RESUMED):         _to(_P.RUNNING),
    (_P.RUNNING,           _PE.CHECKPOINT_DUE):  _to(_P.REQUESTED, _send(_C.CHECKPOINT_REQUEST)),
    (_P.REQUESTED,         _C.CHECKPOINT_REPLY): _to(_P.SUSPENDING, Do.SUSPEND),
    (_P.SUSPENDING,        _PE.SUSPENDED):       _to(_P.SAVING_RAM,
                                                     _send(_C.VMSTATE_SEND), Do.SAVE_RAM),
    (_P.SAVING_RAM,        _PE.RAM_SAVED):       _to(_P.SAVING_DEVICES, Do.SAVE_DEVICES),
    (_P.SAVING_DEVICES,    _PE.DEVICES_SAVED):   _to(_P.AWAITING_RECEIVED,
                                                     _send(_C.VMSTATE_SIZE), Do.SEND_DEVICES),
    (_P.AWAITING_RECEIVED, _C.VMSTATE_RECEIVED): _to(_P.AWAITING_LOADED, Do.RELEASE),
    (_P.AWAITING_LOADED,   _C.VMSTATE_LOADED):   _to(_P.RESUMING, Do.RESUME),

    # The channel is gone: the VM stays as it is, and its output held, until the decision.
    # What was under way may still report that it is done.
    **{(state, _PE.LOST): _to(_P.LOST) for state in _PRIMARY_CONNECTED},
    **{(_P.LOST, late): _to(_P.LOST)
       for late in (_PE.SUSPENDED, _PE.RAM_SAVED, _PE.DEVICES_SAVED, _PE.RESUMED)},

    # The right to run alone.  RESUME asks that the VM run; it may be running already.
    **{(state, _PE.FAILOVER): _to(_P.FAILOVER, Do.CLOSE, Do.RELEASE, Do.RESUME)
       for state in (*_PRIMARY_CONNECTED, _P.LOST)},
    (_P.FAILOVER,          _PE.RESUMED):         _to(_P.SOLO),
}

_CARRYING: Final = tuple(
    state for state in _K if state not in {_K.LOST, _K.FAILOVER, _K.SOLO}
)

#: What is sent here, QEMU gets; the messages that come are the secondary's.
COURIER: Final[Table[CourierState]] = {
    (_K.COPYING,  _KE.PASSED):          _to(_K.COPIED, Do.COVER),
    (_K.COPIED,   _C.CHECKPOINT_READY): _to(_K.RUNNING, Do.HOLD, _send(_C.CHECKPOINT_READY),
                                            Do.RESUME),
    (_K.RUNNING,  _C.CHECKPOINT_REPLY): _to(_K.REPLIED),
    (_K.REPLIED,  _KE.CHECKPOINT_DUE):  _to(_K.STOPPED, _send(_C.CHECKPOINT_REPLY)),

    # Aside.
    (_K.STOPPED,  _KE.TAKEN):           _to(_K.SENDING, Do.COVER, _send(_C.VMSTATE_RECEIVED),
                                            _send(_C.VMSTATE_LOADED), Do.RESUME),
    (_K.SENDING,  _C.VMSTATE_RECEIVED): _to(_K.SENT, Do.RELEASE),
    (_K.SENT,     _C.VMSTATE_LOADED):   _to(_K.RUNNING),

    # Through.
    (_K.STOPPED,  _KE.PASSED):          _to(_K.WAITING, Do.COVER),
    (_K.WAITING,  _C.VMSTATE_RECEIVED): _to(_K.SAFE, Do.RELEASE, _send(_C.VMSTATE_RECEIVED)),
    (_K.SAFE,     _C.VMSTATE_LOADED):   _to(_K.RUNNING, _send(_C.VMSTATE_LOADED), Do.RESUME),

    **{(state, _KE.LOST): _to(_K.LOST) for state in _CARRYING},
    # The right to run alone: what is held leaves once the VM runs, and not where it does not.
    **{(state, _KE.FAILOVER): _to(_K.FAILOVER, Do.CLOSE, Do.RESUME)
       for state in (*_CARRYING, _K.LOST)},
    (_K.FAILOVER, _KE.RESUMED):         _to(_K.SOLO, Do.RELEASE),
}

_SECONDARY_WHOLE: Final = (_S.READY, _S.PREPARING)
_SECONDARY_PARTIAL: Final = (_S.REPLIED, _S.RECEIVING_RAM, _S.AWAITING_SIZE,
                             _S.RECEIVING_DEVICES)

SECONDARY: Final[Table[SecondaryState]] = {
    (_S.INCOMING,          _SE.MIGRATED):         _to(_S.READY, Do.COMMIT,
                                                      _send(_C.CHECKPOINT_READY)),
    (_S.PREPARING,         _SE.PREPARED):         _to(_S.REPLIED, _send(_C.CHECKPOINT_REPLY)),
    (_S.RECEIVING_DEVICES, _SE.DEVICES_RECEIVED): _to(_S.READY, Do.COMMIT,
                                                      _send(_C.VMSTATE_RECEIVED),
                                                      _send(_C.VMSTATE_LOADED), Do.APPLY),
    (_S.READY,         _C.CHECKPOINT_REQUEST): _to(_S.PREPARING, Do.PREPARE),
    (_S.REPLIED,       _C.VMSTATE_SEND):       _to(_S.RECEIVING_RAM, Do.RECEIVE_RAM),
    (_S.RECEIVING_RAM, _SE.RAM_RECEIVED):      _to(_S.AWAITING_SIZE),
    (_S.AWAITING_SIZE, _C.VMSTATE_SIZE):       _to(_S.RECEIVING_DEVICES, Do.RECEIVE_DEVICES),

    # The channel is gone: what is whole stays, what is partial is forgotten.
    (_S.INCOMING, _SE.LOST): _to(_S.FAILED, Do.DISCARD),
    **{(state, _SE.LOST): _to(_S.LOST) for state in _SECONDARY_WHOLE},
    **{(state, _SE.LOST): _to(_S.LOST, Do.DISCARD) for state in _SECONDARY_PARTIAL},

    # The right to take over.
    **{(state, _SE.FAILOVER): _to(_S.TAKEOVER, Do.CLOSE, Do.TAKE_OVER)
       for state in (*_SECONDARY_WHOLE, _S.LOST)},
    **{(state, _SE.FAILOVER): _to(_S.TAKEOVER, Do.CLOSE, Do.DISCARD, Do.TAKE_OVER)
       for state in _SECONDARY_PARTIAL},
    (_S.TAKEOVER, _SE.RESUMED):     _to(_S.RUNNING),
    (_S.TAKEOVER, _SE.NOT_STARTED): _to(_S.LOST),
}
