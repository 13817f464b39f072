"""colo with a gate that is broken, by the first argument: for the test of the tests.

``leaky``: every packet passes before its checkpoint; at SIGUSR1 one is held, so that there is a
checkpoint.  ``early``: what is held passes when the VM is about to be stopped, at CHECKPOINT_REPLY
and not at VMSTATE_RECEIVED, some milliseconds too soon.  ``whole``: as it is.

At SIGUSR1 the host dies where the last two differ: at the next CHECKPOINT_REPLY for which an answer
to a request is held that came after the last checkpoint.  QEMU does not get to see that message, so
that the checkpoint never is.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final

from colo.cli import main
from colo.packets.gate import Gate
from colo.session.qemu_primary import Checkpointing

#: An answer is so long, and none comes so soon after the checkpoint before.
ANSWER_BYTES: Final = 1000
PAUSE_S: Final = 0.03
#: What QEMU got is with the client by then.
DELIVERY_S: Final = 0.5

_take = Gate.take
_begin = Checkpointing._begin
_orders: list[int] = []


def leaky_take(self: Gate, data: bytes, now: float) -> bytes:
    """Hold as usual, and let it go at once."""
    passing = _take(self, data, now)
    if self.held_bytes and _orders:
        _orders.clear()
        return passing
    return passing or self.release(now)


def early_begin(self: Checkpointing, now: float) -> None:
    """Let go what is held before QEMU stops its VM for the checkpoint that covers it."""
    last = _is_last(self)
    self._gate.release()
    self._gate.flush()
    _go_on_or_die(self, last, now)


def whole_begin(self: Checkpointing, now: float) -> None:
    """Only die, if so ordered."""
    _go_on_or_die(self, _is_last(self), now)


def _is_last(session: Checkpointing) -> bool:
    since = session._gate.held_since
    return (
        bool(_orders)
        and session._gate.held_bytes > ANSWER_BYTES
        and since is not None
        and since - session._resumed_at > PAUSE_S
    )


def _go_on_or_die(session: Checkpointing, last: bool, now: float) -> None:
    if last:
        time.sleep(DELIVERY_S)
        for pid in (session._colo._qemu.pid, os.getpid()):
            os.kill(pid, signal.SIGKILL)
    _begin(session, now)


if __name__ == "__main__":
    variant = sys.argv.pop(1)
    signal.signal(signal.SIGUSR1, lambda number, _: _orders.append(number))
    if variant == "leaky":
        Gate.take = leaky_take  # type: ignore[method-assign]
    else:
        begin = {"early": early_begin, "whole": whole_begin}[variant]
        Checkpointing._begin = begin  # type: ignore[method-assign]
    main()
