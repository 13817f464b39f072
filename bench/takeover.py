"""From the death of the primary's QEMU to the VM running again on the other side.

Both ends are read from the same clock: SIGKILL is sent by the bench, RESUME is the timestamp of
the waiting QEMU's own event.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.qmp import Monitor
from bench.stats import summarise
from bench.vm import Vm, colo_secondary, free_address, primary, protect, read_status, wait_until

__all__ = ["MODES", "SIZES_MIB", "kill_survivor", "measure"]

SIZES_MIB: Final = (256, 1024)
#: An idle guest, and one that has written most of its memory.
MODES: Final = ("idle", "table")
_INTERVAL_MS: Final = 100
_PROTECTED_S: Final = 1.5


@dataclass(frozen=True)
class _Takeover:
    """Milliseconds: as seen from outside, and as colo counts them from the loss it noticed."""

    from_kill: float
    from_loss: float


def measure(
    binary: str, memory_mib: int, mode: str, runs: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Kill the primary ``runs`` times, at another moment of the interval each time."""
    vm = Vm(binary, memory_mib, mode)
    taken = []
    for number in range(runs):
        taken.append(_one_run(vm, _INTERVAL_MS / 1e3 * number / runs))
        say(f"  {taken[-1].from_kill:.1f} ms, of that {taken[-1].from_loss:.1f} ms colo's")
    return {
        **{"mode": mode, "memory_mib": memory_mib},
        "from_kill_ms": asdict(summarise([each.from_kill for each in taken])),
        "from_loss_ms": asdict(summarise([each.from_loss for each in taken])),
    }


def _one_run(vm: Vm, offset_s: float) -> _Takeover:
    with tempfile.TemporaryDirectory(prefix="colo-bench-") as name:
        folder = Path(name)
        address = free_address("tcp", folder)
        with (
            primary(vm, folder) as (process, monitor),
            colo_secondary(vm, address, folder, "takeover") as secondary,
        ):
            survivor = Monitor(folder / "state" / "qmp.sock")
            try:
                protect(process, monitor, address, _INTERVAL_MS)
                time.sleep(_PROTECTED_S + offset_s)
                killed = time.time()
                process.popen.send_signal(signal.SIGKILL)
                resumed = survivor.wait_for("RESUME").at
                own = wait_until("the report", lambda: _takeover(folder), 10.0, secondary)
            finally:
                survivor.close()
                kill_survivor(folder)
            return _Takeover((resumed - killed) * 1e3, own)


def _takeover(folder: Path) -> float | None:
    facts = read_status(folder, "takeover")
    return None if facts is None else float(facts["total_ms"])


def kill_survivor(folder: Path) -> None:
    """End the VM that was taken over: it outlives colo on purpose."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / "state" / "qemu.pid").read_text()), signal.SIGKILL)
