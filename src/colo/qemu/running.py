"""Where a QEMU is that somebody else has started: at a QMP socket, or libvirt's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from colo.errors import GuestError
from colo.findings import Topic
from colo.qemu.libvirt_monitor import LibvirtQemu
from colo.qemu.monitor import AttachedQemu, Monitor

__all__ = ["Domain", "NotRunning", "Running", "Socket"]


class NotRunning(GuestError):
    """It does not run, for sure; the text says how it is started."""


@dataclass(frozen=True)
class Socket:
    """A QEMU with a QMP socket for colo; without it nobody can say whether it runs."""

    path: Path
    topic: ClassVar[Topic] = Topic.QMP
    #: Whether somebody starts it again, once it has ended.
    comes_back: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"the QEMU at {self.path}"

    async def attach(self, say: Callable[[str], None]) -> Monitor:
        """Attach to it.  Raises GuestError."""
        qemu = AttachedQemu(self.path)
        await qemu.attach()
        return qemu


@dataclass(frozen=True)
class Domain:
    """A domain of libvirt's, which may run or not."""

    name: str
    topic: ClassVar[Topic] = Topic.LIBVIRT
    comes_back: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"libvirt's domain {self.name}"

    async def attach(self, say: Callable[[str], None]) -> Monitor:
        """Attach to it; ``say`` is told of libvirt.

        Raises NotRunning, LibvirtError, which may be over in a while, GuestError and UsageError.
        """
        qemu = LibvirtQemu(self.name, say)
        if not await qemu.attach():
            raise NotRunning(
                f"libvirt has no domain {self.name} that runs: `virsh start {self.name}` starts it"
            )
        if await qemu.is_autostarted():
            say(
                f"libvirt would start {self.name} by itself when this host boots, also where the "
                f"VM runs on the other one: say `virsh autostart --disable {self.name}`"
            )
        return qemu


Running = Socket | Domain
