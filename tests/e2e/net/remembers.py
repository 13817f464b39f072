"""colo that remembers a checkpoint: the VM's memory as it was, and no checkpoint after that one.

The first argument is a file.  At SIGUSR1, when the next checkpoint is whole on this host and its
VM still stopped, the memory is read from QEMU and written there, with the checkpoint's number
behind it in the name.  The VM runs on, and is not checkpointed again before SIGUSR2.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

from colo.cli import main
from colo.session.primary_stream import Came
from colo.session.qemu_primary import Checkpointing

MEMORY_BYTES = 128 << 20

_came, _schedule = Checkpointing.came, Checkpointing.schedule
_wanted: list[int] = []
_held: list[Checkpointing] = []


def came(self: Checkpointing, what: Came) -> None:
    """Remember, if that is wanted, before the VM may run on."""
    if what is Came.CHECKPOINT and _wanted:
        _wanted.clear()
        _held.append(self)
        path = target.with_name(f"{target.name}-{self.machine.number}")
        part = path.with_suffix(".part")
        part.write_bytes(memory_of(self._colo._qemu.pid))
        part.rename(path)
    _came(self, what)


def schedule(self: Checkpointing) -> None:
    """Begin none while one is remembered."""
    if not _held:
        _schedule(self)


def memory_of(pid: int) -> bytes:
    """The main memory of a QEMU: its one mapping of that size that is only read and written."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    found = [
        int(start, 16)
        for start, end in re.findall(r"^(\w+)-(\w+) rw-p \S+ 00:00 0 *$", maps, re.MULTILINE)
        if int(end, 16) - int(start, 16) == MEMORY_BYTES
    ]
    (start,) = found
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(start)
        return memory.read(MEMORY_BYTES)


def go_on() -> None:
    sessions = list(_held)
    _held.clear()
    for session in sessions:
        session.schedule()


if __name__ == "__main__":
    target = Path(sys.argv.pop(1))
    Checkpointing.came = came  # type: ignore[method-assign]
    Checkpointing.schedule = schedule  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, lambda number, _: _wanted.append(number))
    run = asyncio.run

    async def signalled(work: object) -> object:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, go_on)
        return await work  # type: ignore[misc]

    asyncio.run = lambda work, **how: run(signalled(work), **how)  # type: ignore[assignment]
    main()
