"""What can be checkpointed: the few things that each role needs of a guest.

The primary needs to *suspend* it, *save* what changed, and *resume* it; the secondary needs to
*load* a checkpoint and *run* it.  Nothing else in colo knows what a guest is.  Guests that come
with colo: ``guest.memory`` (pages and a blob in this process, the worked example of
docs/guests.md), ``guest.stored`` (a checkpoint store as the guest of a further secondary), and
``qemu.standby`` (a QEMU that waits to run what it loads).

A guest is memory in blocks of 4096-byte pages, and a *device state*: whatever else it is made of,
as device sections of a migration stream.  ``migration.writer.device_state`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from colo.migration.ram import PageRun, RamBlock
from colo.store.store import Store

__all__ = ["PrimaryGuest", "Saved", "SecondaryGuest"]


@dataclass(frozen=True)
class Saved:
    """One checkpoint of a suspended guest.

    ``pages``: every page, or all that changed since the last ``save``; it is iterated once,
    possibly in another thread, and before ``resume``.  ``device_state``: the
    device sections and the EOF byte.  ``description``: what the stream says of them, see
    ``migration.vmdesc``.
    """

    pages: Iterable[PageRun]
    device_state: bytes
    description: dict[str, Any]


class PrimaryGuest(Protocol):
    """What the primary needs."""

    @property
    def machine(self) -> str:
        """What kind of guest this is: a machine name, equal on both sides."""

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """Its memory; the same as long as it lives."""

    async def suspend(self) -> None:
        """Stop it: until ``resume`` nothing of it changes.  Stopping it twice is once."""

    async def save(self, everything: bool) -> Saved:
        """Return every page, for a secondary that has none, or what changed.  It is suspended."""

    async def resume(self) -> None:
        """Have it run; it may be running already."""


class SecondaryGuest(Protocol):
    """What the secondary needs."""

    async def load(self, store: Store) -> None:
        """Take the store's last whole checkpoint.  Raises GuestError; may then be tried again."""

    async def run(self) -> None:
        """Have what was loaded run.  Raises GuestError."""
