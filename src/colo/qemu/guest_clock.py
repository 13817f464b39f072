"""What colo's library in a QEMU does for the guest's clock, and what it is told.

The library (``clock_preload.c``) gives the guest the time back that its VM stood still for
checkpoints.  Each QEMU that colo starts has it; another one may.  It shares some memory by a
memfd, which is found among the process's open files: there is no path to be left behind.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["GivenBack", "given_back", "tap_offloads", "tell_own_stop", "tell_since"]

#: Both as in clock_preload.c.
_MEMFD: Final = "/memfd:colo-guest-clock"
_SHARED: Final = struct.Struct("=6q")
_MAGIC: Final = int.from_bytes(b"COLOCLK1", "little")
_TOLD: Final = struct.Struct("=q")
_STOOD_SINCE: Final = _SHARED.size
_SAVED_SINCE: Final = _STOOD_SINCE + _TOLD.size
_OWN_STOP: Final = _SAVED_SINCE + _TOLD.size
_TAP_OFFLOADS: Final = _OWN_STOP + _TOLD.size
_TAPS_MOST: Final = 64

#: Why the library cannot keep the clock, by its number for that; see clock_preload.c.
_TROUBLES: Final = {
    1: "this QEMU does not export what colo's library needs",
    2: "colo's library does not know this QEMU's clocks",
    3: "this QEMU's clocks are not where colo's library had found them",
    4: "with -icount a guest's time is not the host's",
}


@dataclass(frozen=True)
class GivenBack:
    """What the library has done since its QEMU was started.

    ``trouble``: why it cannot, or None; ``count``: how often it gave time back; ``kvm_clocks``: how
    often to kvm-clock too.
    """

    trouble: str | None
    count: int
    seconds: float
    last_s: float
    kvm_clocks: int


def given_back(pid: int) -> GivenBack | None:
    """What the library in this QEMU has done; None where there is none that we may see."""
    for path in _shared_memory(pid):
        try:
            with open(path, "rb", buffering=0) as file:
                magic, trouble, count, given, last, kvm = _SHARED.unpack(file.read(_SHARED.size))
        except (OSError, struct.error):
            continue
        if magic == _MAGIC:
            why = _TROUBLES.get(trouble, "colo's library says why not") if trouble else None
            return GivenBack(why, count, given / 1e9, last / 1e9, kvm)
    return None


def tell_since(pid: int, stood_s: float, saved_s: float) -> None:
    """Tell the library since when, by ``time.monotonic``, the VM to be loaded stood still.

    ``saved_s``: and since when its devices' state was saved.
    """
    _tell(pid, _SAVED_SINCE, int(saved_s * 1e9))
    _tell(pid, _STOOD_SINCE, int(stood_s * 1e9))


def tell_own_stop(pid: int) -> None:
    """Tell the library that the stop which comes now is colo's, for the VM's first copy."""
    _tell(pid, _OWN_STOP, 1)


def tap_offloads(pid: int, file: int) -> int | None:
    """What this QEMU has last set the tap to that it has as descriptor ``file``, if it is known."""
    for path in _shared_memory(pid):
        try:
            with open(path, "rb", buffering=0) as shared:
                shared.seek(_TAP_OFFLOADS + file * _TOLD.size)
                (flags,) = _TOLD.unpack(shared.read(_TOLD.size))
        except (OSError, struct.error):
            continue
        return flags - 1 if flags and 0 <= file < _TAPS_MOST else None
    return None


def _tell(pid: int, offset: int, value: int) -> None:
    for path in _shared_memory(pid):
        try:
            with open(path, "r+b", buffering=0) as file:
                file.seek(offset)
                file.write(_TOLD.pack(value))
        except OSError:
            continue


def _shared_memory(pid: int) -> list[Path]:
    """What the library shares: a file of the process, as long as that lives."""
    found = []
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(link).startswith(_MEMFD):
                found.append(link)
    except OSError:
        return found
    return found
