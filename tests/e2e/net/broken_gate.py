"""colo with a gate that is broken, by the first argument: for the test of the tests.

``leaky``: every packet passes before its checkpoint; at SIGUSR1 one is held, so that there is a
checkpoint.  ``early``: what is held passes when the VM is about to be stopped, at CHECKPOINT_REPLY
and not at VMSTATE_RECEIVED, some milliseconds too soon.  ``whole``: as it is.  ``local``: it passes
when the checkpoint is taken aside, and the other host has not all of it.  ``aside``: as it is.
``unruly``: hybrid mode's output rule; from SIGUSR1 on the secondary VM gets nothing that the
network brings, and all that the primary says leaves at once.

At SIGUSR1 the host dies where a broken one and a whole one differ, at the next checkpoint for which
an answer to a request is held that came after the last one.  ``early`` and ``whole`` die at
CHECKPOINT_REPLY: QEMU does not get to see that message, so that the checkpoint never is.  ``local``
and ``aside`` die when QEMU has been answered, and its VM runs on: the end of the checkpoint never
leaves.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final, cast

from colo.cli import main
from colo.packets.comparing import OutputRule
from colo.packets.gate import Gate
from colo.packets.other_vm import OtherVm
from colo.session.primary_stream import Came
from colo.session.qemu_primary import Checkpointing
from colo.session.relay import Relay

#: An answer is so long, and none comes so soon after the checkpoint before.
ANSWER_BYTES: Final = 1000
PAUSE_S: Final = 0.03
#: What QEMU got is with the client by then.
DELIVERY_S: Final = 0.5

_take = Gate.take
_begin, _came = Checkpointing._begin, Checkpointing.came
_release, _input = OutputRule.release, OtherVm.input
_orders: list[int] = []


def leaky_take(self: Gate, data: bytes, now: float) -> bytes:
    """Hold as usual, and let it go at once."""
    passing = _take(self, data, now)
    if self.held_bytes and _orders:
        _orders.clear()
        return passing
    self.cover()
    return passing or self.release(now)


def early_begin(self: Checkpointing) -> None:
    """Let go what is held before QEMU stops its VM for the checkpoint that covers it."""
    last = _is_last(self)
    self._gate.cover()
    self._gate.release()
    self._gate.flush()
    _go_on_or_die(self, last)


def whole_begin(self: Checkpointing) -> None:
    """Only die, if so ordered."""
    _go_on_or_die(self, _is_last(self))


def local_came(self: Checkpointing, what: Came) -> None:
    """Let go what the checkpoint covers as soon as QEMU has been answered."""
    _answer_and_die(self, what, releases=True)


def aside_came(self: Checkpointing, what: Came) -> None:
    """Only die, if so ordered."""
    _answer_and_die(self, what, releases=False)


def _answer_and_die(session: Checkpointing, what: Came, releases: bool) -> None:
    last = what is Came.CHECKPOINT and _is_last(session)
    _came(session, what)
    if not last:
        return
    relay = cast(Relay, session.carrier)
    relay._answer()
    time.sleep(PAUSE_S)  # the VM runs: a stopped one's packets stay in QEMU
    if releases:
        session._gate.release()
        session._gate.flush()
    _die(session)


def unruly_release(self: OutputRule, now: float) -> int:
    """Let all go that waits."""
    if not _orders:
        return _release(self, now)
    size = sum(length for _, length, _ in self._waiting)
    self._waiting.clear()
    return size


def unruly_input(self: OtherVm, card: int, data: bytes) -> None:
    """Keep from the secondary VM what the network brings."""
    if not _orders:
        _input(self, card, data)


def _is_last(session: Checkpointing) -> bool:
    since = session._gate.held_since
    return (
        bool(_orders)
        and session._gate.held_bytes > ANSWER_BYTES
        and since is not None
        and since - session._resumed_at > PAUSE_S
    )


def _go_on_or_die(session: Checkpointing, last: bool) -> None:
    if last:
        _die(session)
    _begin(session)


def _die(session: Checkpointing) -> None:
    time.sleep(DELIVERY_S)
    for pid in (session._colo._qemu.pid, os.getpid()):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    variant = sys.argv.pop(1)
    signal.signal(signal.SIGUSR1, lambda number, _: _orders.append(number))
    if variant == "leaky":
        Gate.take = leaky_take  # type: ignore[method-assign]
    elif variant == "unruly":
        OutputRule.release = unruly_release  # type: ignore[method-assign]
        OtherVm.input = unruly_input  # type: ignore[method-assign]
    elif variant in ("local", "aside"):
        came = {"local": local_came, "aside": aside_came}[variant]
        Checkpointing.came = came  # type: ignore[method-assign]
    else:
        begin = {"early": early_begin, "whole": whole_begin}[variant]
        Checkpointing._begin = begin  # type: ignore[method-assign]
    main()
