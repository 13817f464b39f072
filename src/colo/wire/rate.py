"""What rate the way to the other host really has: measured where it matters, and only there.

When all of a checkpoint is here, what is left of it is still to be sent, or on its way; and it
takes until the other host says that it has it.  Where nothing of note is left, the link is faster
than QEMU is, and its rate does not matter: then it is not known, and nothing is spent on sending
less.
"""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["LinkRate"]

#: Less than this says more about latency than about the rate.
_LEAST_BYTES: Final = 64 << 10
#: The best of so many counts: whatever else keeps a host busy makes a link look slower.
_SAMPLES: Final = 8
#: After so many checkpoints of which nothing was left, the rate is not known any more.
_FORGOTTEN: Final = 64


class LinkRate:
    """``value``: bytes a second, or None where it is not known."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._without = 0
        self.value: float | None = None

    def add(self, got_there: int, seconds: float, is_coded: bool) -> None:
        """So many bytes got there while it was waited for nothing but that, less the work on them.

        ``is_coded``: that they were few may be due to what was done about it.
        """
        if got_there >= _LEAST_BYTES and seconds > 0:
            self._samples.append(got_there / seconds)
            self.value = max(self._samples)
            self._without = 0
        elif not is_coded:
            self._without += 1
            if self._without >= _FORGOTTEN:
                self._samples.clear()
                self.value = None
