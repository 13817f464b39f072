"""What comes after a secondary's part: a colo secondary stays with its VM, a daemon goes on."""

from __future__ import annotations

import asyncio
from typing import Protocol

from colo.node.orders import Answer

__all__ = ["Afterwards", "Stay"]


class Afterwards(Protocol):
    """Who is told what a secondary's part has come to.

    ``host``: what the VM file calls this one, or "".  ``over`` is set where that part has ended and
    somebody else goes on: with a VM that runs here, or without one.
    """

    host: str
    over: asyncio.Event

    def runs_here(self) -> None:
        """The VM was taken over and runs."""

    def shut_down(self) -> None:
        """The guest has shut down on the other host, in good order."""

    def without_checkpoint(self) -> Answer:
        """An operator orders the VM to run here, and there is nothing to run it from."""


class Stay:
    """A colo secondary: it stays with the VM that it took over, and waits for the next primary."""

    host = ""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def runs_here(self) -> None:
        """It stays."""

    def shut_down(self) -> None:
        """It waits for the next."""

    def without_checkpoint(self) -> Answer:
        """There is nothing that it could do."""
        return Answer(False, "there is no whole checkpoint to run the VM from")
