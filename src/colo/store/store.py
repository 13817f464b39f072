"""The store: images, the staging area and the device state, kept to one rule.

*The store always equals the last whole checkpoint.*  Pages of a checkpoint are staged.
``commit`` makes them, together with the device state, the state of the store; this moves
references and takes no time, so the acknowledgement can follow at once.  ``apply`` copies the
committed pages into the images afterwards, while the primary's VM runs again.  ``discard``
forgets what was staged and not committed.

The first migration is the exception: its pages go straight into the images, because there is no
checkpoint yet that they could spoil.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colo.errors import InvariantBroken, Misfit, StoreError
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, Migration
from colo.store.image import Image, mib, require_room
from colo.store.staging import StagingArea

__all__ = ["Checkpoint", "Since", "Store"]


@dataclass(frozen=True)
class Since:
    """Since when something is known here of a VM, by this host's clock that never goes back.

    ``stood``: it stands still for its checkpoint; ``saved``: its devices' state is saved.
    """

    stood: float
    saved: float


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, less its pages, which are in the images or about to be applied.

    ``device_state``: the device sections and their EOF byte.  ``description``: the first
    migration's, by which they can be read: subsections come and go.
    ``return_path``: see Migration.  ``since``: where it is known.
    """

    number: int
    header: Header
    ram_section: int
    blocks: tuple[RamBlock, ...]
    device_state: bytes
    description: dict[str, Any] = field(default_factory=dict, repr=False)
    return_path: bool = False
    since: Since | None = None


class Store:
    """One VM's store in ``folder``, a directory of its own that it makes, and removes.

    The folder around it has to be there.

    ``main``: the blocks that the waiting QEMU maps; their images are there from the start.
    ``limits`` hold for all blocks together.  ``epoch`` changes whenever the images are given to
    something else than the next checkpoint: a new primary, or the VM that was taken over.
    ``given_up``: it is the VM that has them.  Raises StoreError.
    """

    def __init__(self, folder: Path, main: tuple[RamBlock, ...], limits: Limits) -> None:
        self.folder = folder
        self.main = main
        self.limits = limits
        self.checkpoint: Checkpoint | None = None
        self.epoch = 0
        self.given_up = False
        self._committed: list[PageRun] = []
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise StoreError(f"{folder} exists already: remove what an earlier run left") from None
        except FileNotFoundError:
            raise StoreError(
                f"[store] folder = {folder.parent}: it is not there: make it, mount it, or name "
                "another one"
            ) from None
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from error
        try:
            require_room(folder, limits.ram_bytes, "the checkpoint store")
            self.staging = StagingArea(limits)
            self.images = {block.name: Image(folder, block) for block in main}
        except StoreError:
            self.remove()
            raise

    def define(self, blocks: tuple[RamBlock, ...]) -> None:
        """Make an image for each block of a first migration that begins.

        Raises Misfit where they do not fit what the VM file says.
        """
        self._check_main({block.name: block for block in blocks})
        others = sum(block.length for block in blocks) - self.main_bytes
        room = self.limits.ram_bytes - self.main_bytes
        if others > room:
            raise Misfit(
                f"the primary's memory besides -m takes {mib(-(-others >> 20) << 20)}, in this "
                f"host's VM file [store] other_memory_mib has room for {mib(room)}: make it larger"
            )
        self.checkpoint = None
        self.epoch += 1
        main = {block.name for block in self.main}
        for name in [name for name in self.images if name not in main]:
            self.images.pop(name).remove()
        for block in blocks:
            if block.name not in main:
                self.images[block.name] = Image(self.folder, block)

    def _check_main(self, theirs: dict[str, RamBlock]) -> None:
        for ours in self.main:
            block = theirs.get(ours.name)
            if block != ours:
                has = "no such block" if block is None else mib(block.length)
                raise Misfit(
                    f"the primary's memory {ours.name} has {has}, the VM file says "
                    f"{mib(ours.length)}: make -m the same on both sides"
                    + ("" if block else f", and the memory backends: one is to be {ours.name}")
                )

    def write(self, run: PageRun) -> None:
        """Copy pages of a first migration into the images."""
        self.images[run.block.name].write(run)

    def stage(self, run: PageRun) -> None:
        """Stage pages of the checkpoint under way."""
        self.staging.runs.append(run)

    def commit_migration(self, migration: Migration, since: Since | None = None) -> None:
        """Make a whole first migration checkpoint 0."""
        self.checkpoint = Checkpoint(
            0,
            migration.header,
            migration.ram_section,
            migration.blocks,
            migration.device_state,
            migration.description,
            migration.return_path,
            since,
        )

    def commit(self, number: int, device_state: bytes, since: Since | None = None) -> None:
        """Make the staged pages and ``device_state`` the state of the store.

        Raises InvariantBroken where the checkpoint before has not been applied.
        """
        if self.checkpoint is None or self._committed:
            raise InvariantBroken(
                f"store: checkpoint {number} before the one it rests on is in the images"
            )
        self.checkpoint = replace(
            self.checkpoint, number=number, device_state=device_state, since=since
        )
        self._committed, self.staging.runs = self.staging.runs, []

    @property
    def is_applied(self) -> bool:
        """Whether the images equal the last whole checkpoint."""
        return not self._committed

    def apply(self) -> None:
        """Copy the committed pages into the images.  Safe to call again after an interruption."""
        for run in self._committed:
            self.images[run.block.name].write(run)

    def applied(self) -> None:
        """Say that ``apply`` has ended; frees the staging area."""
        self._committed = []
        self.staging.clear()

    def abandon(self) -> None:
        """Forget a checkpoint that never was applied: the next primary begins anew."""
        if self._committed:
            self._committed, self.checkpoint = [], None
            self.epoch += 1

    def discard(self) -> None:
        """Forget what is staged and not committed."""
        self.staging.runs = []

    def give_up(self) -> None:
        """The images belong to the VM now: no view of them shows a checkpoint any more."""
        self.epoch += 1
        self.given_up = True

    def take_back(self) -> None:
        """The VM did not start: the images still equal the last whole checkpoint."""
        self.given_up = False

    @property
    def main_bytes(self) -> int:
        """The bytes that the main blocks have."""
        return sum(block.length for block in self.main)

    @property
    def size(self) -> int:
        """The bytes that the images take."""
        return sum(image.block.length for image in self.images.values())

    def status(self) -> dict[str, Any]:
        """What the status file has of it."""
        return {
            "guest_bytes": self.main_bytes,
            "store_bytes": self.size,
            "store": str(self.folder),
        }

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
