"""What a daemon makes of its time as a secondary: what it came to, and so what comes next."""

from __future__ import annotations

import asyncio
from enum import Enum

from colo.node.orders import Answer

__all__ = ["Following", "Next"]


class Next(Enum):
    """What comes after a time as a secondary."""

    LEAD = "the VM runs here: protect it"
    START = "an operator wants the VM started here anew"
    END = "the guest has shut down"


class Following:
    """The secondary's part of the daemon of ``host``: see Afterwards."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.over = asyncio.Event()
        self.next: Next | None = None

    def runs_here(self) -> None:
        """Protect it."""
        self._go_on(Next.LEAD)

    def shut_down(self) -> None:
        """It has ended for both hosts."""
        self._go_on(Next.END)

    def without_checkpoint(self) -> Answer:
        """The other host is gone for good: the operator says so."""
        self._go_on(Next.START)
        return Answer(True, "there is no checkpoint here: the VM is being started anew")

    def _go_on(self, then: Next) -> None:
        self.next = then
        self.over.set()
