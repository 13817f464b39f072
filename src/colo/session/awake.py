"""Keeping this host's processors awake while a client is being answered.

A processor that has gone to sleep takes 50 to 200 µs to wake, and an answer that waits for its
checkpoint meets several of them on either host.  The kernel keeps all awake that would take longer
to wake than was asked for, for as long as ``/dev/cpu_dma_latency`` is held open: its interface for
quality of service, which a process cannot leave behind.

That takes power, so it is done only where the VM file asks for it, and while checkpoints follow
one another as they do when a client is answered, not as those of an idle VM.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from colo.config import VmConfig

__all__ = ["Awake"]

_DEVICE: Final = Path("/dev/cpu_dma_latency")
_OFTEN_S: Final = 0.5


class Awake:
    """Has the processors awake from the second of two checkpoints on that come soon after another.

    ``say`` is told, once, where the kernel does not let it.
    """

    def __init__(
        self, config: VmConfig, say: Callable[[str], None], device: Path = _DEVICE
    ) -> None:
        self._latency_us = config.checkpoints.cpu_latency_us
        self._often_s = min(_OFTEN_S, config.pace.age_max_s / 2)
        self._say = say
        self._device = device
        self._last = float("-inf")
        self._file: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def held(self) -> bool:
        """Whether the processors are kept awake now."""
        return self._file is not None

    def checkpoint(self) -> None:
        """A checkpoint is being taken."""
        if self._latency_us is None:
            return
        loop = asyncio.get_running_loop()
        last, self._last = self._last, loop.time()
        if self._file is None and self._last - last < self._often_s:
            self._hold(self._latency_us)
            self._look()

    def close(self) -> None:
        """Let them sleep."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hold(self, latency_us: int) -> None:
        try:
            self._file = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._file, struct.pack("@i", latency_us))
        except OSError as error:
            self.close()
            self._latency_us = None
            self._say(
                f"processors are not kept awake: {self._device}: {error.strerror}; run colo as "
                "root, or remove cpu_latency_us from the VM file"
            )

    def _look(self) -> None:
        """Let them sleep when no checkpoint has come for long enough."""
        loop, until = asyncio.get_running_loop(), self._last + self._often_s
        if self._file is not None and loop.time() < until:
            self._timer = loop.call_at(until, self._look)
        else:
            self.close()
