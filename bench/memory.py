"""What the secondary's memory comes to at its peak.

Counted, each page once: the images, and of ``colo secondary`` and its waiting QEMU what is not
shared with the images: their private memory, the staging area with it, and their share of code
and libraries.  What that comes to before the primary connects is the base.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.pauses import CASES
from bench.vm import (
    Vm,
    colo_primary,
    colo_secondary,
    free_address,
    primary,
    protect,
    read_status,
)

__all__ = ["PRIMARIES", "measure", "memory_mib"]

#: Who checkpoints the VM: its QEMU by itself, or host A's colo.
PRIMARIES: Final = ("stock", "colo")

_SAMPLE_S: Final = 0.05
_MIB: Final = 1 << 20


def memory_mib(pid: int) -> float:
    """The memory of a process and of its children, what they share counted once, in MiB."""
    total = 0
    for each in _family(pid):
        with contextlib.suppress(OSError):  # it has ended
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            found = re.search(r"^Pss: +(\d+) kB$", text, re.MULTILINE)
            total += int(found[1]) << 10 if found else 0
    return total / _MIB


def _family(pid: int) -> list[int]:
    found = [pid]
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                found += _family(int(child))
    return found


def measure(binary: str, by: str, seconds: float) -> dict[str, Any]:
    """Sample through a run of the guest that writes files."""
    case = next(case for case in CASES if case.mode == "files")
    vm = Vm(binary, case.memory_mib, case.mode, case.interval_ms, arbiter=by == "colo")
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        address = free_address("unix", folder)
        with (
            primary(vm, folder) as (process, monitor),
            colo_secondary(vm, address, folder) as secondary,
        ):
            qemu = int((folder / "state" / "qemu.pid").read_text())
            store = (folder / "state" / "store").resolve()
            base = _private(secondary.popen.pid) + _private(qemu)
            if by == "stock":
                protect(process, monitor, address, case.interval_ms)
            peak = peak_store = epoch = 0
            colo = colo_primary(vm, address, folder) if by == "colo" else contextlib.nullcontext()
            with colo:
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    images = _allocated(store)
                    total = images + _private(secondary.popen.pid) + _private(qemu)
                    peak, peak_store = max(peak, total), max(peak_store, images)
                    epoch = max(epoch, _largest_epoch(folder))
                    time.sleep(_SAMPLE_S)
    guest = case.memory_mib * _MIB
    allowed = 1.05 * guest + epoch
    return {
        "primary": by,
        **{"mode": case.mode, "guest_mib": case.memory_mib, "interval_ms": case.interval_ms},
        "base_mib": _mib(base),
        "images_mib": _mib(peak_store),
        "peak_mib": _mib(peak),
        "peak_less_base_mib": _mib(peak - base),
        "largest_epoch_mib": _mib(epoch),
        "allowed_mib": _mib(allowed),
        "peak_by_guest": round(peak / guest, 3),
        "peak_less_base_by_guest": round((peak - base) / guest, 3),
    }


def _private(pid: int) -> int:
    """The memory of a process without what it shares with the images: its own and its files'."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(re.findall(r"^(Pss_\w+): +(\d+) kB$", text, re.MULTILINE))
    return (int(fields["Pss_Anon"]) + int(fields["Pss_File"])) << 10


def _allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _largest_epoch(folder: Path) -> int:
    figures = read_status(folder, "bytes")
    return int(figures["max"]) if figures else 0


def _mib(size: float) -> float:
    return round(size / _MIB, 1)
