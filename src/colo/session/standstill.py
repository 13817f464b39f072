"""How long a VM stands still for its checkpoints, and what that costs its guest.

The guest's time stands still with the VM, but where colo's library in QEMU gives it back: see
``qemu.guest_clock``.  And it does nothing meanwhile, which is bounded by ``packets.pace``; where
the bound does not hold, as a checkpoint takes too long by itself, that is said.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from colo.config import VmConfig
from colo.packets.pace import WINDOW_S, StoppedShare
from colo.qemu.guest_clock import given_back
from colo.qemu.monitor import Monitor

__all__ = ["StandStill"]

_NO_LIBRARY = "this QEMU was started without colo's library: see `colo preload`"


class StandStill:
    """Counts the stops of one VM; ``say`` is told what its operator has to know, each once."""

    def __init__(self, config: VmConfig, qemu: Monitor, say: Callable[[str], None]) -> None:
        self._most = config.checkpoints.stopped_share_max
        self._qemu = qemu
        self._say = say
        self._share = StoppedShare()
        self._stood_s = 0.0
        self._given_s = self._given_before_s = 0.0
        self._since: float | None = None
        self._above = False
        self.trouble: str | None = None

    def protected(self) -> None:
        """The first of all checkpoints: say where each of them costs the guest its time."""
        if self._since is not None:
            return
        self._since = time.time()
        given = given_back(self._qemu.pid)
        self.trouble = _NO_LIBRARY if given is None else given.trouble
        self._given_before_s = self._given_s = given.seconds if given is not None else 0.0
        if self.trouble:
            self._say(f"the guest's clock loses the time that checkpoints take: {self.trouble}")

    def stopped(self, seconds: float, now: float) -> None:
        """The VM has stood still for so long, until ``now``."""
        self._stood_s += seconds
        self._share.add(seconds, now)
        self._judge(now)

    def status(self) -> dict[str, Any] | None:
        """What the status file has of it: since the first checkpoint of this colo."""
        if self._since is None:
            return None
        given = given_back(self._qemu.pid)
        if given is not None:  # else it has ended, mostly
            self.trouble, self._given_s = given.trouble, given.seconds
        given_s = self._given_s - self._given_before_s
        self._judge(time.monotonic())
        return {
            "since": self._since,
            "stood_still_s": self._stood_s,
            "given_back_s": given_s,
            "lost_s": max(0.0, self._stood_s - given_s) if self.trouble else 0.0,
            "trouble": self.trouble,
            "stopped_share": self._share.at(time.monotonic()),
            "stopped_share_max": self._most,
        }

    def _judge(self, now: float) -> None:
        share = self._share.at(now)
        if share > self._most and not self._above:
            self._say(
                f"the VM stood still for {share:.0%} of the last {WINDOW_S:.0f} s, more than "
                f"stopped_share_max = {self._most}: its checkpoints take too long by themselves"
            )
        self._above = share > self._most
