"""The secondary VM as host B knows of it: whether one may begin, and what a takeover goes on with.

*Once it has said anything, it alone has all that clients may have heard.*  So until the next
checkpoint is whole a takeover goes on with it, and with nothing else.  Where it has died by then,
the VM does not run here unless an operator says so: the checkpoint may be older than what a client
was told.

No I/O, no clock.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["GoesOn", "Inputs", "Phase", "StandIn"]


class Phase(Enum):
    """How far the secondary VM is."""

    NONE = "there is none"
    BEGINS = "it loads its checkpoint"
    RUNS = "it runs"
    DIED = "it has died, and its checkpoint is still the last one"


class GoesOn(Enum):
    """What a takeover goes on with."""

    VM = "the secondary VM, as it runs"
    CHECKPOINT = "the last whole checkpoint"
    NOTHING = "nothing, unless an operator says so"


class Inputs:
    """What the network has brought since the last checkpoints, by the checkpoint it came after."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._after: dict[int, list[tuple[int, bytes]]] = {}
        self._last: int | None = None
        self.size = 0

    def cut(self, number: int) -> None:
        """The VM stood still for this checkpoint."""
        self._after[number], self._last = [], number

    def add(self, card: int, data: bytes) -> bool:
        """This has come.  Returns False where it is too much to be kept."""
        if self._last is None:
            return True
        self._after[self._last].append((card, data))
        self.size += len(data)
        if self.size > self._limit:
            self.clear()
            return False
        return True

    def forget_before(self, number: int) -> None:
        """A secondary VM begins from this checkpoint or a later one."""
        for each in [each for each in self._after if each < number]:
            self.size -= sum(len(data) for _, data in self._after.pop(each))
        if self._last is not None and self._last < number:
            self._last = None

    def since(self, number: int) -> list[tuple[int, bytes]] | None:
        """What has come after this checkpoint; None where that is not known."""
        if number not in self._after:
            return None
        return [each for key in sorted(self._after) if key >= number for each in self._after[key]]

    def clear(self) -> None:
        """Nothing is known any more."""
        self._after.clear()
        self._last, self.size = None, 0


class StandIn:
    """The decisions of host B.  ``limit``: of the input that is kept for it, in bytes.

    ``number``: the checkpoint that the secondary VM is of.  ``committed``: the last whole one, or
    -1.  ``has_given_disks``: they have gone on since that, and nothing runs from it any more.
    """

    def __init__(self, limit: int) -> None:
        self.inputs = Inputs(limit)
        self.phase = Phase.NONE
        self.number = self.committed = -1
        self.has_spoken = False
        self.has_given_disks = False
        self._is_forced = self._is_taken_over = False

    # -- the secondary VM -----------------------------------------------------------------

    def refusal(self, number: int, is_ready: bool) -> str | None:
        """Why none begins from this checkpoint, or None.  ``is_ready``: a QEMU waits."""
        if self._is_taken_over:
            return "the VM is being taken over"
        if not is_ready or self.phase is not Phase.NONE:
            return "no QEMU waits"
        if number != self.committed or self.inputs.since(number) is None:
            return "another checkpoint is the last one"
        return None

    def begins(self, number: int) -> None:
        """One begins from this checkpoint."""
        self.phase, self.number, self.has_spoken = Phase.BEGINS, number, False

    def runs(self) -> list[tuple[int, bytes]]:
        """It runs; return what the network has brought for it since its checkpoint."""
        self.phase = Phase.RUNS
        return self.inputs.since(self.number) or []

    def speaks(self, is_told: bool) -> None:
        """It has said something; ``is_told``: and that is told to whoever may let it out."""
        self.has_spoken = self.has_spoken or is_told

    def died(self) -> None:
        """It has died by itself, or does not begin though it has spoken."""
        self.phase = Phase.DIED

    def ended(self) -> None:
        """It was ended, and nothing of it counts."""
        self.phase, self.has_spoken = Phase.NONE, False

    @property
    def is_needed(self) -> bool:
        """Whether a takeover may need it, though it is of no use for comparing any more."""
        return self.has_spoken

    # -- checkpoints ----------------------------------------------------------------------

    def commits(self, number: int) -> bool:
        """A checkpoint is whole, and holds all that anyone has heard.

        Returns whether the secondary VM before it has to be ended.
        """
        self.committed, self._is_forced = number, False
        self.inputs.forget_before(number)
        return self.phase is not Phase.NONE

    def forget(self) -> None:
        """The primary's session is over, and nothing of it counts."""
        self.committed, self._is_taken_over, self.has_given_disks = -1, False, False

    # -- input ----------------------------------------------------------------------------

    def cut(self, number: int) -> None:
        """The primary VM stood still for this checkpoint."""
        self.inputs.cut(number)
        self.inputs.forget_before(self.committed)

    def input(self, card: int, data: bytes) -> bool:
        """The network has brought this.  Returns False where it is too much to be kept."""
        return self.inputs.add(card, data)

    def unlinked(self) -> None:
        """What the network brings is not known any more; what runs goes on, unfed."""
        self.inputs.clear()

    # -- a takeover -----------------------------------------------------------------------

    def force(self) -> None:
        """An operator has the VM run, also from a checkpoint that may be too old."""
        self._is_forced = True

    def take_over(self) -> None:
        """A takeover begins: what there is now is what it goes on with."""
        self._is_taken_over = True

    def gives_disks(self) -> None:
        """What it wrote is about to be in the disks: the checkpoint's memory is of other ones."""
        self.has_given_disks = True

    def let_out(self) -> None:
        """The network is about to have it: whatever comes of that, clients may have heard it."""
        self.has_spoken = True

    @property
    def lacks(self) -> bool:
        """Whether clients may have heard of more than is here.  What begins may have spoken too."""
        return self.phase is not Phase.BEGINS and self.goes_on_with() is GoesOn.NOTHING

    def goes_on_with(self) -> GoesOn:
        """What a takeover goes on with; while one begins, that is to be awaited first."""
        if self.phase is Phase.RUNS:
            return GoesOn.VM
        if self.has_given_disks or (self.has_spoken and not self._is_forced):
            return GoesOn.NOTHING
        return GoesOn.CHECKPOINT
