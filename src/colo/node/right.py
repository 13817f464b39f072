"""What a primary asks of its arbiter, and what it says of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from colo.arbiters.arbiter import Arbiter, claim, give_back
from colo.arbiters.asking import reach
from colo.errors import LocalError, NoAnswer, UsageError
from colo.membership.grant import Ending
from colo.membership.member import Member
from colo.membership.states import Event
from colo.node.performer import Outcome

__all__ = ["Right"]

_TAKEN_S: Final = 3.0
_LOOK_S: Final = 0.02
#: Where an operator has the other host start the VM, that one has waited for our answer before, and
#: for longer than this, whosever clock counts: an answer that is younger was given before that.
_FRESH_S: Final = 2.0


class Right:
    """The right to run the VM ``vm``, as ``holder``: asked for as ``member`` says.

    ``stock``: the secondary is a stock QEMU.  ``force``: take it from another holder.
    """

    def __init__(
        self,
        arbiter: Arbiter,
        member: Member,
        holder: str,
        vm: str,
        stock: bool,
        force: bool,
        say: Callable[[str], None],
    ) -> None:
        self.holder = holder
        #: What it takes to decide, while nothing is decided.
        self.missing = ""
        self._arbiter = arbiter
        self._member = member
        self._vm = vm
        self._stock, self._force = stock, force
        self._say = say
        self._told = ""

    @property
    def automatic(self) -> bool:
        """Whether the arbiter grants by itself."""
        return self._arbiter.automatic

    async def claim(self) -> Outcome:
        """Have a grant before the VM is protected.  Raises UsageError, LocalError."""
        who = self.holder, self._vm
        return Event.GRANTED, {
            "grant": await reach(claim, self._arbiter, *who, self._stock, self._force)
        }

    async def take(self) -> Outcome:
        """Ask for the next grant."""
        try:
            number = self._member.facts.grant.number
            grant = await reach(self._arbiter.take, number, self.holder)
        except LocalError as error:
            return self._no_answer(error)
        if grant is None:
            return Event.DENIED, {}
        return Event.GRANTED, {"grant": grant}

    async def confirm(self) -> Outcome:
        """Have the grant once more, right before the VM starts.  Raises LocalError, UsageError."""
        began = time.monotonic()
        grant = await reach(self._arbiter.take, self._member.facts.grant.number, self.holder)
        if grant is None:
            raise UsageError("another host has got the right meanwhile; the VM is not started here")
        if time.monotonic() - began > _FRESH_S:
            raise LocalError("this host stood still while the arbiter answered: asking anew")
        return Event.CONFIRMED, {"grant": grant}

    async def order(self) -> Outcome:
        """Take the next grant, whoever has this one, by an operator's order."""
        try:
            return Event.GRANTED, {"grant": await reach(self._arbiter.order, self.holder)}
        except LocalError as error:
            if self._member.facts.forced:
                self._say(f"by order, without a grant: {error}")
            return self._no_answer(error)

    def _no_answer(self, error: LocalError) -> Outcome:
        self._miss(self._silent_until(f": {error}"), is_said=not self._member.facts.owes)
        may_be_done = isinstance(error, NoAnswer) and error.may_be_done
        return Event.NO_ANSWER, {"may_be_done": may_be_done}

    async def taken(self) -> Outcome:
        """Give the other host the time to get the grant that this one has."""
        ours = self._member.facts.grant
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_S):
                while True:
                    with contextlib.suppress(LocalError):
                        if (await reach(self._arbiter.current)).grant != ours:
                            return Event.TAKEN, {}
                    await asyncio.sleep(_LOOK_S)
        return Event.TIME, {}

    async def give_back(self, ending: Ending) -> None:
        """This VM is not run any more, or never was protected: anyone may begin anew."""
        with contextlib.suppress(LocalError):
            await reach(give_back, self._arbiter, self.holder, ending)

    async def fenced(self, planned: bool) -> str:
        """Say that the VM is another host's, and whose; ``planned``: it has gone over."""
        try:
            owner = await reach(self._arbiter.current)
            who = f"{owner.holder} has the right to run this VM (grant {owner.number})"
        except LocalError:
            who = "another host has the right to run this VM"
        if planned:
            return f"the VM has gone over: {who}"
        return f"FENCED: {who}; the copy here is stopped and silent: end its QEMU"

    def tell_what_is_missing(self, hangs: bool) -> None:
        """Nobody is asked: an operator has to say, or a QEMU that ``hangs`` to answer.

        The latter only where no other host has its VM.
        """
        if hangs:
            self._miss("QEMU does not answer, and no other host has its VM: it is waited for")
        elif not self._arbiter.automatic:
            self._miss(self._silent_until(""))

    def _miss(self, missing: str, is_said: bool = True) -> None:
        """This is missing; where that ``is_said``, once."""
        self.missing = missing
        if is_said and self._told != missing:
            self._told = missing
            self._say(missing)

    def begin(self) -> None:
        """A new decision is due: what is missing is said anew."""
        self.missing, self._told = self._silent_until(""), ""

    def warning(self) -> str:
        """What it means to end colo while nobody has decided."""
        return (
            f"{self.missing}; the protection ends then; Ctrl-C once more ends colo and leaves the "
            "VM silent"
        )

    def kept(self, started: bool) -> str:
        """What is left of a claim that came to nothing, or ""."""
        number = self._member.facts.grant.number
        if started and self._force and number:
            return f"grant {number}, which --claim took, stays here"
        return ""

    def _silent_until(self, why: str) -> str:
        if self._arbiter.automatic:
            what = "the arbiter answers, or `colo failover --force`"
        else:
            what = "`colo failover`"
        return f"no grant{why}; the VM stays silent until {what}"
