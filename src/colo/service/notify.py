"""Telling systemd how a service is: that it is ready, what it does, that it is alive.

One datagram a message, to the socket that ``NOTIFY_SOCKET`` names: sd_notify(3).  Without that
variable nobody wants to know, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from typing import Final

__all__ = ["Notifier"]

_ABSTRACT: Final = "@"
#: A watchdog is fed so many times in the time that it waits.
_FEEDS: Final = 3


class Notifier:
    """Speaks to the service manager of ``environment``, or to nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        #: How often ``alive`` has to be said, in seconds; None where nobody waits for it.
        self.every_s = _watchdog_s(environment)

    def ready(self) -> None:
        """The service does what it is for."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Say in one line what the service does now, once for each."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The event loop turns: the watchdog is fed."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._send("STOPPING=1")

    def _send(self, line: str) -> None:
        """Send one message.  A manager that is gone, or does not read, changes nothing."""
        if not self._address:
            return
        where = self._address
        if where.startswith(_ABSTRACT):
            where = "\0" + where[1:]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(line.encode(), where)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The third of WatchdogSec where it is meant for this process: sd_watchdog_enabled(3)."""
    try:
        limit_us = int(environment["WATCHDOG_USEC"])
        if int(environment.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
    except (KeyError, ValueError):
        return None
    return limit_us / _FEEDS / 1e6 if limit_us > 0 else None
