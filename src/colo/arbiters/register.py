"""A register: one line of text that two hosts share, and that is replaced by comparing it.

It is all that an arbiter needs of a file, of etcd or of a site's own store: who may run the VM is
decided by the moves of ``membership.grant``, and kept here.  Whoever compares and sets names what
it has read; of two who have read the same only one can set.

There is one point of no return: right before the request that may change the register goes out,
it says ``about_to_write``.  That raises where whoever asked has given up, and then nothing may
change.  Afterwards the register has changed, or has not, or nobody knows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from colo.arbiters.asking import about_to_write

__all__ = ["MemoryRegister", "Register", "Seen"]


@dataclass(frozen=True)
class Seen:
    """What a register held when it was read: ``text``, or None where nothing is there.

    ``version`` is the register's own: what it compares besides.
    """

    text: str | None
    version: str = ""


class Register(Protocol):
    """Keeps one line of text.  ``name`` says to the user which one it is."""

    name: str

    def read(self) -> Seen:
        """Return what it holds: no older than any answer given before this call, on either host.

        Raises LocalError where it cannot be reached, or what it says cannot be true.
        """

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where it still holds ``expected``; return whether it did.

        Raises LocalError where nothing has changed, NoAnswer where it may have.
        """


class MemoryRegister:
    """Held by this process alone."""

    name = "this process"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text: str | None = None

    def read(self) -> Seen:
        """Return what it holds."""
        with self._lock:
            return Seen(self._text)

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where it still holds ``expected``."""
        with self._lock:
            if self._text != expected.text:
                return False
            about_to_write()
            self._text = new
            return True
