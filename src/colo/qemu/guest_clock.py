"""The guest's clock: what colo and the library in its QEMU say to each other.

``clock_preload.c`` explains what the library does.  They share a file of little words: colo says
when stops are to be given back, and since when the VM of a checkpoint stood still; the library
says what it gave back, and whether it can.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colo.qemu.preload import CLOCK_NAME

__all__ = ["VARIABLE", "ClockState", "GuestClock", "clock_status"]

#: The environment variable that names the file to the library.
VARIABLE: Final = "COLO_CLOCK"
_MAGIC: Final = 0x6B636F6C436F6C6F
_WORD: Final = struct.Struct("@Q")
#: The words' places; the order is that of ``struct shared`` in the library.
_KEEP, _STOPPED, _WORKS, _COUNT, _GIVEN, _LOST, _KVM = range(1, 8)
_SIZE: Final = 8 * _WORD.size
_WORKING: Final = 1


@dataclass(frozen=True)
class ClockState:
    """What the library has done: ``count`` stops and ``given_s`` were given back, ``lost_s`` not.

    ``works``: it is there, and can.  ``kvm_count``: how often kvm-clock was put forward.
    """

    works: bool
    count: int
    given_s: float
    lost_s: float
    kvm_count: int


class GuestClock:
    """The file at ``path``, mapped.  Raises OSError or ValueError where it is none."""

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._words = mmap.mmap(file, _SIZE)
        finally:
            os.close(file)
        if self._get(0) != _MAGIC:
            raise ValueError(f"{path} is no clock of colo's")

    @classmethod
    def make(cls, path: Path) -> GuestClock:
        """Make a new file, for its owner only, for a QEMU that is about to start."""
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, _WORD.pack(_MAGIC).ljust(_SIZE, b"\0"))
        finally:
            os.close(file)
        return cls(path)

    @classmethod
    def of(cls, pid: int) -> GuestClock | None:
        """The clock of a QEMU that runs already, or None where it has no such library."""
        with contextlib.suppress(OSError, ValueError):
            process = Path(f"/proc/{pid}")
            if CLOCK_NAME not in (process / "maps").read_text(errors="replace"):
                return None
            for entry in (process / "environ").read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == VARIABLE.encode():
                    return cls(Path(os.fsdecode(value)))
        return None

    def keep(self, on: bool) -> None:
        """Have the time of stops given back from now on, or not any more."""
        self._set(_KEEP, int(on))

    def stopped_at(self, moment_s: float) -> None:
        """The VM that is about to be loaded was stopped then, by this host's monotonic clock."""
        self._set(_STOPPED, int(moment_s * 1e9))

    def state(self) -> ClockState:
        """What the library says."""
        return ClockState(
            self._get(_WORKS) == _WORKING,
            self._get(_COUNT),
            self._get(_GIVEN) / 1e9,
            self._get(_LOST) / 1e9,
            self._get(_KVM),
        )

    def _get(self, place: int) -> int:
        return int(_WORD.unpack_from(self._words, place * _WORD.size)[0])

    def _set(self, place: int, value: int) -> None:
        _WORD.pack_into(self._words, place * _WORD.size, value)


def clock_status(clock: GuestClock | None, stopped_s: float) -> dict[str, Any]:
    """What the status file has of the guest's clock, of a VM that checkpoints stopped for so long.

    ``lost_s``: what is not given back, as nobody can, or as it was no stop but a pause.
    """
    state = clock.state() if clock is not None else None
    if state is None or not state.works:
        return {"kept": False, "given_s": 0.0, "lost_s": round(stopped_s, 6)}
    return {"kept": True, "given_s": round(state.given_s, 6), "lost_s": round(state.lost_s, 6)}
