"""A checkpoint store as a guest: what it holds can be handed on to a further secondary.

The store is fed by its own primary all the while.  *Suspended* means here that one of its
checkpoints is looked at; the store itself, and the VM whose state this is, do not stop for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from colo.guest.interface import Saved
from colo.migration.ram import RamBlock
from colo.store.export import describe
from colo.store.store import Checkpoint
from colo.store.view import View

__all__ = ["StoredGuest"]


class StoredGuest:
    """The checkpoints that ``view`` shows, a PrimaryGuest for one session: a view begins with all.

    ``settled`` returns when the store's images equal its last whole checkpoint.
    """

    def __init__(self, view: View, settled: Callable[[], Awaitable[None]]) -> None:
        self._view = view
        self._settled = settled
        self._checkpoint: Checkpoint | None = None
        self._begun = False

    @property
    def machine(self) -> str:
        """The machine of the VM whose checkpoints these are."""
        return self._view.machine

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """The VM's memory."""
        return self._view.blocks

    @property
    def number(self) -> int | None:
        """Which checkpoint is looked at, or was last."""
        return self._checkpoint.number if self._checkpoint is not None else None

    async def suspend(self) -> None:
        """Look at the newest whole checkpoint."""
        await self._settled()
        self._checkpoint = self._view.open()

    async def save(self, everything: bool) -> Saved:
        """Return what is new in it; the first time that is everything."""
        checkpoint = self._checkpoint
        assert checkpoint is not None and everything is not self._begun
        self._begun = True
        description = describe(checkpoint) if everything else checkpoint.description
        return Saved(self._view.pages(), checkpoint.device_state, description)

    async def resume(self) -> None:
        """Nothing stands still."""
