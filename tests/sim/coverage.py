"""Which rows of the tables a run has taken."""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar

from colo.membership.member import Member
from colo.membership.states import FINAL, Event, State
from colo.membership.table import TABLE
from colo.protocol.machine import Machine
from colo.protocol.tables import COURIER, PRIMARY, SECONDARY

__all__ = ["ROWS", "Taken", "watch_member", "watched"]

#: A row by its table, state and event, and which of several it is.
Taken: TypeAlias = tuple[str, str, str, int]

M = TypeVar("M", bound=Machine[Any])


def _host_rows() -> set[Taken]:
    """The rows of a host's machine that change its state, or do something."""
    return {
        _host_row(state, event, number)
        for (state, event), rows in TABLE.items()
        for number, row in enumerate(rows)
        if (row.to is not state or row.do) and (state not in FINAL or event is Event.GO_ON)
    }


def _host_row(state: State, event: Event, number: int) -> Taken:
    return "host", state.name, event.name, number


def _protocol_rows() -> set[Taken]:
    """A host decides when the channel is closed, and not before."""
    tables = (("primary", PRIMARY), ("courier", COURIER), ("secondary", SECONDARY))
    return {
        (role, state.name, event.name, 0)
        for role, table in tables
        for state, event in table
        if (event.name != "FAILOVER" or state.name == "LOST")
    }


#: All that there are.
ROWS: Final[frozenset[Taken]] = frozenset(_host_rows() | _protocol_rows())


def watch_member(member: Member, rows: set[Taken]) -> None:
    """Have the rows noted that a host's machine takes."""
    find = member._row

    def found(event: Event) -> Any:
        row = find(event)
        those = TABLE[member.state, event]
        number = next(number for number, each in enumerate(those) if each is row)
        rows.add(_host_row(member.state, event, number))
        return row

    member._row = found  # type: ignore[method-assign]


def watched(role: str, machine: M, rows: set[Taken]) -> M:
    """The protocol's machine of this role, whose rows are noted."""
    take = machine._take

    def taken(step: Any, event: Any, *more: Any) -> Any:
        rows.add((role, machine.state.name, event.name, 0))
        return take(step, event, *more)

    machine._take = taken  # type: ignore[assignment,method-assign]
    return machine
