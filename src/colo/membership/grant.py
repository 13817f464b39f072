"""Who may run the VM: the record that an arbiter keeps, and the moves on it.

The right is a *grant*: exclusive and numbered.  While two hosts protect a VM together, both know
the number of the grant under which its primary runs.  When they lose each other, either may ask for
the next number, naming the one that it knows; only one of them can get it, because the number has
moved on for whoever asks second.  That one runs the VM; the other stays silent.

A move is a pure function: the record as it stands and a request, to the record that is to stand
then, or why not.  Whoever keeps the record replaces it only where it still stands as the move saw
it, so moves happen one after the other, and two rules hold of all that ever stood:

- the number never goes down, and it goes up with every change of the holder to another name;
- a record that has been replaced never stands again.

Nobody may run the VM but the holder in the record.  A holder is a process (``membership.roles``
makes its name), so nobody ever takes another's grant for its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

__all__ = [
    "Ending",
    "Foreign",
    "Grant",
    "Held",
    "Moved",
    "Record",
    "Refusal",
    "begin",
    "check",
    "claim",
    "give_back",
    "order",
    "take",
]


@dataclass(frozen=True)
class Grant:
    """The right to run a VM, number ``number``; ``holder`` is "" where nobody has it now."""

    number: int
    holder: str


@dataclass(frozen=True)
class Record:
    """What an arbiter keeps of one VM.

    ``last``: under which holder the VM ran last, and left a state behind that is not to be
    forgotten: its process may run on, or died; "" where there is none, as the VM has never run or
    was shut down in good order.  It does not count while somebody holds the grant.
    """

    number: int = 0
    holder: str = ""
    last: str = ""

    @property
    def grant(self) -> Grant:
        """Who may run the VM."""
        return Grant(self.number, self.holder)

    @property
    def left_by(self) -> str:
        """The holder that has, or had last, the VM's newest state; "" where there is none.

        For a cold start: see ``membership.roles.whose_turn``.
        """
        return self.holder or self.last

    def encode(self) -> str:
        """The record as a line of text, without its end."""
        return json.dumps({"number": self.number, "holder": self.holder, "last": self.last})

    @classmethod
    def decode(cls, text: str) -> Record:
        """Read a record.  Raises ValueError where it is none."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.keys() != {"number", "holder", "last"}:
            raise ValueError("not a grant's record")
        number, holder, last = content["number"], content["holder"], content["last"]
        if type(number) is not int or number < 0 or {type(holder), type(last)} != {str}:
            raise ValueError("not a grant's record")
        return cls(number, holder, last)


class Ending(Enum):
    """How a holder ends that gives its grant back."""

    UNUSED = "it has not run the VM: what was last is last again"
    LEFT = "its VM runs on without protection, or has died"
    SHUT_DOWN = "the guest has shut down in good order: nothing is left of it"


@dataclass(frozen=True)
class Moved:
    """The grant has moved on: another one has it, or it was given back."""

    now: Grant


@dataclass(frozen=True)
class Held:
    """Another holder has the grant, and nobody has said that it is dead."""

    now: Grant


@dataclass(frozen=True)
class Foreign:
    """This record never showed grant ``known``: it is another one, or an old copy."""

    now: Grant
    known: int


Refusal: TypeAlias = Moved | Held | Foreign


def begin(record: Record | None) -> Record:
    """Have a record, from now on, where there never was one."""
    return Record() if record is None else record


def take(
    record: Record | None, known: int, holder: str, void: Grant | None = None
) -> Record | Moved | Foreign:
    """Have ``holder`` take the grant after number ``known``.

    To ``void``, it has not moved on: its holder has said that it will run nothing.  Who has a
    later grant already got it by a call whose answer never came.
    """
    if record is None:
        return Foreign(Grant(0, ""), known)
    if record.number > known and record.holder == holder:
        return record
    if record.number < known:
        return Foreign(record.grant, known)
    if record.number > known and record.grant != void:
        return Moved(record.grant)
    return _next(record, holder)


def order(record: Record | None, holder: str) -> Record | Foreign:
    """Have ``holder`` take the next grant whatever stands: by an operator's order."""
    if record is None:
        return Foreign(Grant(0, ""), 0)
    return _next(record, holder)


def claim(record: Record | None, holder: str, force: bool) -> Record | Held:
    """Have ``holder`` take the next grant, before its VM is protected.

    ``force``: whoever has it.
    """
    record = begin(record)
    if record.holder not in ("", holder) and not force:
        return Held(record.grant)
    return _next(record, holder)


def give_back(record: Record | None, holder: str, ending: Ending) -> Record | None:
    """Have anyone begin anew, where ``holder`` has the grant, heard of or not."""
    if record is None or record.holder != holder:
        return record
    match ending:
        case Ending.UNUSED:
            last = record.last
        case Ending.LEFT:
            last = holder
        case Ending.SHUT_DOWN:
            last = ""
    return replace(record, holder="", last=last)


def check(record: Record | None, grant: Grant) -> Grant | Moved | Foreign:
    """Return another host's ``grant`` as it stands: a later one where it got that unheard.

    Its holder may be "", which is not known.
    """
    if record is None:
        return Foreign(Grant(0, ""), grant.number)
    now = record.grant
    if now.number < grant.number:
        return Foreign(now, grant.number)
    same = now.holder == grant.holder if grant.holder else now.number == grant.number
    return now if same else Moved(now)


def _next(record: Record, holder: str) -> Record:
    """The next grant, of ``holder``; whose VM it was is kept until somebody has run it."""
    return Record(record.number + 1, holder, record.left_by)
