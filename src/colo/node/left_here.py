"""The QEMU that an earlier colo of this host has left in the state folder: it may run the VM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from colo.errors import GuestError
from colo.node.state_folder import StateFolder
from colo.qemu.killing import kill
from colo.qemu.monitor import AttachedQemu, Monitor

__all__ = ["SilentQemu", "qemu_left"]

#: QEMU's run states in which there is no VM to go on with.
_NOTHING_RUNS: Final = ("prelaunch", "inmigrate", "shutdown")


class SilentQemu(GuestError):
    """A QEMU that has the VM by right does not answer."""


async def qemu_left(
    folder: StateFolder, has_right: Callable[[int], bool], say: Callable[[str], None]
) -> Monitor | None:
    """The QEMU that runs the VM, or None; one that is of no use is ended, and ``say`` told.

    ``has_right``: whether the VM is that process's to run, by the arbiter.  Raises SilentQemu where
    it is, and the process does not answer: nobody else may have that VM.
    """
    pid = folder.leftover()
    if pid is None:
        return None
    qemu = AttachedQemu(folder.qemu_socket)
    try:
        await qemu.attach()
        if (await qemu.execute("query-status"))["status"] not in _NOTHING_RUNS:
            return qemu
    except GuestError as error:
        if has_right(pid) and folder.leftover() == pid:
            await qemu.detach()
            raise SilentQemu(
                f"its QEMU does not answer at {folder.qemu_socket}; it may have all there is of "
                f"the VM, and is waited for; end process {pid}, and the VM is started anew"
            ) from error
        say(f"the QEMU that was left here is of no use, and is ended: {error}")
    await qemu.detach()
    await asyncio.to_thread(kill, pid)
    return None
