"""An arbiter: the moves of ``membership.grant``, made on a register that both hosts reach.

A move is made by reading the register and setting it to what the move says, where it still is what
was read; else it is read again.  An answer that never came is resolved the same way: whoever reads
that its own move stands has made it.

All calls may hang: see ``arbiters.asking``, by which they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from colo.arbiters.register import Register
from colo.errors import LocalError, NoAnswer, UsageError
from colo.membership import grant as moves
from colo.membership.grant import Ending, Foreign, Grant, Held, Moved, Record, Refusal

__all__ = ["Arbiter", "claim", "give_back", "require_exclusive", "require_memory"]

#: How often a move is made anew, where another host's came between or an answer did not come.
_TRIES: Final = 8

#: What a move comes to.
T = TypeVar("T", bound=Record | Refusal | None)


class Arbiter:
    """Hands out the right to run one VM.  All calls raise LocalError where nobody can be asked.

    ``automatic``: it grants without an operator.  ``exclusive``: only one of two can have it.
    """

    automatic = True
    exclusive = True

    def __init__(self, register: Register) -> None:
        self._register = register

    def begin(self) -> Record:
        """Return the record as it stands; where there never was one, there is one now."""
        return self._move(moves.begin)

    def current(self) -> Record:
        """Return the record as it stands."""
        record, _ = self._read()
        if record is None:
            raise self._foreign(Foreign(Grant(0, ""), 0))
        return record

    def look(self) -> Record | None:
        """Return the record as it stands; None where nobody has begun there.  Changes nothing."""
        return self._read()[0]

    def ready(self) -> None:
        """Raise LocalError where nobody on this host could be granted anything now."""

    def is_off(self, host: str) -> bool:
        """Whether ``host`` is surely off, and has lost all that it had in memory."""
        return False

    def check(self, grant: Grant) -> Grant:
        """Return another host's ``grant`` as it stands: a later one where it got that unheard.

        Its holder may be "", which is not known.  Raises LocalError where the grant cannot have
        come from this arbiter, or is no more.
        """
        record, _ = self._read()
        found = moves.check(record, grant)
        if isinstance(found, Foreign):
            raise self._foreign(found)
        if isinstance(found, Moved):
            raise LocalError(
                f"grant {grant.number} of the primary does not stand: by {self._register.name} "
                f"here {found.now.holder or 'nobody'} has grant {found.now.number}"
            )
        return found

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Take the grant after number ``known``; None where it has moved on, but to ``void``.

        Raises LocalError where ``known`` cannot have come from this arbiter.
        """
        taken = self._move(lambda record: moves.take(record, known, holder, void))
        if isinstance(taken, Foreign):
            raise self._foreign(taken)
        return None if isinstance(taken, Moved) else taken.grant

    def order(self, holder: str) -> Grant:
        """Take the next grant whatever stands: by an operator's order."""
        taken = self._move(lambda record: moves.order(record, holder))
        if isinstance(taken, Foreign):
            raise self._foreign(taken)
        return taken.grant

    def claim(self, holder: str, force: bool) -> Grant | Held:
        """Take the next grant before the VM is protected, or return who has it."""
        taken = self._move(lambda record: moves.claim(record, holder, force))
        return taken if isinstance(taken, Held) else taken.grant

    def give_back(self, holder: str, ending: Ending) -> None:
        """Give back what ``holder`` has, also where it was granted unheard."""
        self._move(lambda record: moves.give_back(record, holder, ending))

    def _read(self) -> tuple[Record | None, Callable[[Record], bool]]:
        """Return the record, and how it is replaced where it still stands."""
        seen = self._register.read()
        try:
            record = None if seen.text is None else Record.decode(seen.text)
        except ValueError as error:
            raise LocalError(f"{self._register.name} does not hold a grant") from error
        return record, lambda new: self._register.compare_and_set(seen, new.encode())

    def _move(self, move: Callable[[Record | None], T]) -> T:
        """Make a move, and return what stands then or why it cannot be made."""
        unheard: NoAnswer | None = None
        record, replace = self._read()
        for _ in range(_TRIES):
            result = move(record)
            if not isinstance(result, Record) or result == record:
                return result
            try:
                if replace(result):
                    return result
            except NoAnswer as error:
                unheard = error
            try:
                record, replace = self._read()
            except LocalError as error:
                raise unheard or error from error
            if record == result:
                return result
        raise unheard or LocalError(f"{self._register.name} changes all the time")

    def _foreign(self, refusal: Foreign) -> LocalError:
        if refusal.known == 0:
            return LocalError(f"{self._register.name}: nobody has begun there with this VM")
        return LocalError(
            f"{self._register.name} here does not show grant {refusal.known} of the primary: "
            "both hosts must see the same one, and no old copy of it"
        )


def require_exclusive(arbiter: Arbiter) -> None:
    """Raise UsageError for one by which both hosts could run the VM."""
    if not arbiter.exclusive:
        raise UsageError(
            '[failover] arbiter = "none" would let both hosts run the VM when they lose each '
            "other: set etcd:URL, file:PATH on a file system that both reach, or manual"
        )


def require_memory(arbiter: Arbiter, named: str) -> None:
    """Raise UsageError for one that cannot say who runs the VM; ``named`` as in the VM file."""
    if not arbiter.automatic:
        raise UsageError(
            f'[failover] arbiter = "{named}": `colo node` goes on by itself '
            "after a takeover, and needs an arbiter that remembers who runs the VM: etcd:URL, "
            "file:PATH, exec:COMMAND or pacemaker; without one take `colo run` and `colo secondary`"
        )


def claim(arbiter: Arbiter, holder: str, vm: str, stock: bool, force: bool) -> Grant:
    """Make sure that ``holder`` may run the VM, before it is protected; return its grant.

    ``stock``: the secondary is a stock QEMU, which takes over only by an operator's hand.
    ``force``: take the right from another holder.  Raises UsageError, LocalError.
    """
    if not stock:
        require_exclusive(arbiter)
    claimed = arbiter.claim(holder, force)
    if isinstance(claimed, Held):
        raise UsageError(
            f"the right to run {vm} belongs to {claimed.now.holder} (grant {claimed.now.number}); "
            "if that VM is certainly dead, say --claim"
        )
    return claimed


def give_back(arbiter: Arbiter, holder: str, ending: Ending) -> None:
    """Give back what ``holder`` has, also where it was granted unheard.  Raises LocalError."""
    arbiter.give_back(holder, ending)
