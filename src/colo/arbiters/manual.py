"""``manual`` and ``none``: arbiters that no two hosts share.

``manual``: nobody is granted anything but by an operator's order, given to one side.
``none``: whoever asks is granted: for a lone secondary of a stock QEMU, whose user says by
``--on-loss`` what is to happen.
"""

from __future__ import annotations

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.register import MemoryRegister
from colo.membership.grant import Ending, Grant, Held

__all__ = ["ManualArbiter", "NoArbiter"]


class ManualArbiter(Arbiter):
    """Grants nothing by itself; what it shows is as this side knows it."""

    automatic = False

    def __init__(self) -> None:
        super().__init__(MemoryRegister())
        self.begin()

    def check(self, grant: Grant) -> Grant:
        """Return it: an operator sees to it that only one side is given the order."""
        return grant

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Nobody is granted anything without an order."""
        return None

    def claim(self, holder: str, force: bool) -> Grant | Held:
        """There is nothing to claim: the operator sees to it."""
        return Grant(self.current().number, holder)

    def give_back(self, holder: str, ending: Ending) -> None:
        """There is nothing to give back."""


class NoArbiter(ManualArbiter):
    """Whoever asks is granted."""

    automatic = True
    exclusive = False

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Grant it."""
        return self.order(holder)

    def claim(self, holder: str, force: bool) -> Grant | Held:
        """Grant it."""
        return self.order(holder)
