"""A host of the embedded demo that breaks one promise: for the test of the tests."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from colo.demo.host import main
from colo.demo.workload import Outlet
from colo.guest.memory import MemoryGuest
from colo.session.intake import Receiving
from colo.session.own_primary import Sending
from colo.store.store import Store


def unheld() -> None:
    """Output does not wait."""
    Outlet.say = lambda self, line: self._send(line)  # type: ignore[method-assign]


def early() -> None:
    """Output goes when its checkpoint is on its way, and not when it is safe."""
    save_ram = Sending._save_ram

    async def save(self: Sending) -> None:
        self._release()
        await save_ram(self)

    Sending._save_ram = save  # type: ignore[method-assign]


def unmarked() -> None:
    """Of the pages that are written at once one is not marked dirty."""
    write_all = MemoryGuest.write

    def write(self: MemoryGuest, numbers: Any, content: Any) -> None:
        was_dirty = self._dirty[numbers[0]]
        write_all(self, numbers, content)
        self._dirty[numbers[0]] = was_dirty and (numbers[1:] != numbers[0]).all()

    MemoryGuest.write = write  # type: ignore[method-assign]


def partial() -> None:
    """What came of the half checkpoint is applied."""
    applied = Receiving.applied

    async def apply(self: Receiving) -> None:
        await applied(self)
        for run in self._store.staging.runs:
            self._store.images[run.block.name].write(run)

    Receiving.applied = apply  # type: ignore[method-assign]
    Store.discard = lambda self: None  # type: ignore[method-assign]


def forgetful() -> None:
    """The guest goes on with another count than its checkpoint's."""
    load = MemoryGuest.load

    async def load_other(self: MemoryGuest, store: Store) -> None:
        await load(self, store)
        words = np.frombuffer(self.blob, ">u8").copy()
        words[-1] += 1
        self.blob = words.tobytes()

    MemoryGuest.load = load_other  # type: ignore[method-assign]


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    sys.exit(main())
