"""Tap devices that colo opens, so that more than one QEMU of a VM can have them.

A tap that is not multiqueue can be opened once.  A QEMU that waits to take over and a secondary VM
beside it need the same one: so colo opens it, and each QEMU inherits it.  Of a stopped VM QEMU does
not read its tap, and a secondary VM's cards are led past it; so only who runs the VM uses it.

What a QEMU sets is set for all of them: the size of the virtio-net header, and what may be left to
the reader (checksums, segments).  A QEMU that starts sets both to what a new machine has.  So they
are noted when a secondary VM has loaded its state, and set again when that becomes the VM.

Source: ``Documentation/networking/tuntap.rst`` in Linux.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Final

from colo.errors import GuestError
from colo.qemu.command_line import Tap
from colo.qemu.guest_clock import tap_offloads

__all__ = ["NAME_MOST", "OpenTaps"]

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETVNETHDRSZ: Final = 0x800454D7
_TUNSETVNETHDRSZ: Final = 0x400454D8
_INT: Final = struct.Struct("=i")
_TAP: Final = 0x0002
_NO_PROTOCOL: Final = 0x1000
_WITH_VNET: Final = 0x4000
_REQUEST: Final = struct.Struct("16sH22x")
#: The longest name of a network interface, in bytes.
NAME_MOST: Final = 15
_BUSY_S: Final = 5.0
_BUSY_STEP_S: Final = 0.05


class OpenTaps:
    """The taps; once they are open, ``files`` has a descriptor for each netdev."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = taps
        self.files: dict[str, int] = {}

    async def open(self) -> None:
        """Open them; a QEMU that is dying may have them for a moment more.  Raises GuestError."""
        try:
            for tap in self._taps:
                self.files[tap.netdev] = await _opened(tap)
        except BaseException:
            self.close()
            raise

    def sizes(self) -> dict[str, int]:
        """The size of each tap's virtio-net header, as it is now, in bytes."""
        found: dict[str, int] = {}
        for netdev, file in self.files.items():
            try:
                size = fcntl.ioctl(file, _TUNGETVNETHDRSZ, _INT.pack(0))
            except OSError:  # it has none
                continue
            found[netdev] = _INT.unpack(size)[0]
        return found

    def offloads(self, pid: int) -> dict[str, int]:
        """What this QEMU's guest takes from each tap, as flags; of what colo's library has seen."""
        found = {netdev: tap_offloads(pid, file) for netdev, file in self.files.items()}
        return {netdev: flags for netdev, flags in found.items() if flags is not None}

    def restore(self, sizes: Mapping[str, int], offloads: Mapping[str, int]) -> None:
        """Have them as they were.  Raises GuestError."""
        try:
            for netdev, size in sizes.items():
                fcntl.ioctl(self.files[netdev], _TUNSETVNETHDRSZ, _INT.pack(size))
            for netdev, flags in offloads.items():
                fcntl.ioctl(self.files[netdev], _TUNSETOFFLOAD, flags)
        except OSError as error:
            raise GuestError(f"a tap cannot be set: {error.strerror}") from error

    def close(self) -> None:
        """Close ours; a QEMU keeps its own."""
        for file in self.files.values():
            os.close(file)
        self.files.clear()


async def _opened(tap: Tap) -> int:
    """Open one, in the end.  Raises GuestError."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            return _open(tap)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                why = error.strerror
                raise GuestError(f"the tap {tap.interface} cannot be opened: {why}") from error
            await asyncio.sleep(_BUSY_STEP_S)


def _open(tap: Tap) -> int:
    name = tap.interface.encode()
    if len(name) > NAME_MOST:
        raise GuestError(f"no network interface can be called {tap.interface}")
    file = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    try:
        flags = _TAP | _NO_PROTOCOL | (_WITH_VNET if tap.vnet else 0)
        fcntl.ioctl(file, _TUNSETIFF, _REQUEST.pack(name, flags))
    except OSError:
        os.close(file)
        raise
    return file
