"""Tap devices that colo opens, so that more than one QEMU of a VM can have them.

A tap that is not multiqueue can be opened once.  A QEMU that waits to take over and a secondary VM
beside it need the same one: so colo opens it, and each QEMU inherits it.  Of a stopped VM QEMU does
not read its tap, and a secondary VM's cards are led past it; so only who runs the VM uses it.

Source: ``Documentation/networking/tuntap.rst`` in Linux.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from typing import Final

from colo.errors import GuestError
from colo.qemu.command_line import Tap

__all__ = ["OpenTaps"]

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_TAP: Final = 0x0002
_NO_PROTOCOL: Final = 0x1000
_WITH_VNET: Final = 0x4000
_REQUEST: Final = struct.Struct("16sH22x")
_NAME_MOST: Final = 15


class OpenTaps:
    """The taps, open; ``files`` has a descriptor for each netdev."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        """Open them.  Raises GuestError."""
        self.files: dict[str, int] = {}
        try:
            for tap in taps:
                self.files[tap.netdev] = _opened(tap)
        except GuestError:
            self.close()
            raise

    def close(self) -> None:
        """Close ours; a QEMU keeps its own."""
        for file in self.files.values():
            os.close(file)
        self.files.clear()


def _opened(tap: Tap) -> int:
    name = tap.interface.encode()
    if len(name) > _NAME_MOST:
        raise GuestError(f"no network interface can be called {tap.interface}")
    file = -1
    try:
        file = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        flags = _TAP | _NO_PROTOCOL | (_WITH_VNET if tap.vnet else 0)
        fcntl.ioctl(file, _TUNSETIFF, _REQUEST.pack(name, flags))
    except OSError as error:
        if file >= 0:
            os.close(file)
        raise GuestError(f"the tap {tap.interface} cannot be opened: {error.strerror}") from error
    return file
