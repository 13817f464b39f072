"""Whose turn it is to run the VM, where a host begins and neither runs it by this colo's knowledge.

The arbiter's record says who had the right last: nobody, where the VM has never run or was shut
down in good order; else a process of one of the two hosts, by its name.  A host that ran it last
and finds that process dead may be behind the other one, which may hold a checkpoint of that very
VM; so it asks first, unless it gave its grant back: then there was no such checkpoint.  A host that
did not run it last has an older state, and never starts it by itself.

A VM that an operator has had run by force, while the arbiter did not answer, is by right too, as
long as nobody has got a grant since.  And where the record names nobody, a VM that runs is by right
if it never had a grant, as one that is yet to be protected; but one that had is stale, where the
number has risen since: the VM has run elsewhere, and was shut down there.
"""

from __future__ import annotations

from enum import Enum

from colo.membership.grant import Grant, Record

__all__ = ["Turn", "holder_name", "host_of", "owes_a_grant", "runs_by_right", "whose_turn"]


class Turn(Enum):
    """What a host does that begins."""

    START = "the VM runs nowhere and left no state in memory: start it here"
    ADOPT = "the VM runs here already: go on with it"
    ASK = "the VM ran here and died: start it, if the other host has no newer state"
    FOLLOW = "the VM ran on the other host last: be its secondary"


def holder_name(host: str, pid: int, started: str) -> str:
    """The name of a process as the holder of a grant: no other process ever has it."""
    return f"{host}/{pid}/{started}"


def host_of(holder: str) -> str:
    """The host in a holder's name; "" of nobody."""
    return holder.rsplit("/", 2)[0] if holder.count("/") >= 2 else holder


def runs_by_right(
    record: Record, holder: str, overridden: int | None, granted: Grant | None = None
) -> bool:
    """Whether the VM of the process ``holder``, which runs, is by right; see ``owes_a_grant``.

    ``granted``: the last grant of a process of this host, as the host has noted it.
    """
    if record.left_by:
        return record.left_by == holder or owes_a_grant(record, holder, overridden)
    had = granted is not None and granted.holder == holder and granted.number < record.number
    return not had or record.number == overridden


def owes_a_grant(record: Record, holder: str, overridden: int | None) -> bool:
    """Whether the VM of ``holder`` runs by force in spite of the grant in the record.

    ``overridden``: the number of that grant, as this host has noted it; None where it has not.
    """
    return record.number == overridden and record.left_by not in ("", holder)


def whose_turn(record: Record, host: str, lives: bool, is_first: bool) -> Turn:
    """Decide for ``host``, by the arbiter's record of who had the right last.

    ``lives``: a QEMU of this host runs the VM, and nobody else has the right.  A VM that has never
    run is the first host's to start.
    """
    if lives:
        return Turn.ADOPT
    if record.left_by and host_of(record.left_by) != host:
        return Turn.FOLLOW
    if record.number == 0 and not is_first:
        return Turn.FOLLOW
    return Turn.ASK if record.holder else Turn.START
