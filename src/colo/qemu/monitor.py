"""A QEMU as colo sees it: what performs QMP commands, and a process that may end.

The process is watched by its pid, so that its death is noticed the moment it happens, also where
colo did not start it.  QMP comes by a socket, whose peer has that pid; or by way of libvirt
(``libvirt_monitor``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from colo.errors import GuestError, QemuRefusal

__all__ = ["ATTACH_S", "COMMAND_S", "MIGRATION_OVER", "AttachedQemu", "Monitor", "QmpMonitor"]

#: What query-migrate says where no migration is under way.
MIGRATION_OVER: Final = (None, "none", "failed", "cancelled", "completed")

_WITH_UNDERSCORES: Final = frozenset({"vnet_hdr_support"})
#: So long a command may take, and attaching.
COMMAND_S: Final = 10.0
ATTACH_S: Final = 5.0
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Monitor:
    """One QEMU process, whoever started it, and what has it perform QMP commands."""

    def __init__(self) -> None:
        self.pid = 0
        self._ended = asyncio.Event()
        self._pidfd = -1
        self._listeners: list[EventListener] = []
        self._is_given_up = False

    @property
    def exited(self) -> bool:
        """Whether the process has ended."""
        return self._ended.is_set()

    def give_up(self) -> None:
        """Ask nothing of it any more: it does not answer, and may do what it is told much later."""
        self._is_given_up = True

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        """Execute a QMP command and return what it returns.

        Underscores in names stand for dashes, but for the few that QEMU has itself.  ``oob``: out
        of band, also while QEMU's main loop is blocked, where that can be had.  Raises GuestError.
        """
        names = {
            key if key in _WITH_UNDERSCORES else key.replace("_", "-"): value
            for key, value in arguments.items()
        }
        await self.reached()
        if self._is_given_up:
            raise GuestError(f"QEMU did not answer, and is not asked for {command} any more")
        try:
            async with asyncio.timeout(COMMAND_S):
                return await self._perform(command, names, oob)
        except TimeoutError:
            raise GuestError(f"QEMU did not answer {command} in {COMMAND_S:.0f} s") from None

    async def reached(self) -> None:
        """Wait until commands can be given, or there is no QEMU any more."""

    async def _perform(self, command: str, arguments: dict[str, Any], oob: bool) -> Any:
        """Have a command performed.  Raises GuestError."""
        raise NotImplementedError

    def listen(self, listener: EventListener) -> None:
        """Have it hear QEMU's events from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: EventListener) -> None:
        """It hears no more."""
        self._listeners.remove(listener)

    async def _tell(self, event: Message) -> None:
        """Tell an event to all that listen."""
        for listener in self._listeners:
            await listener.put(event)

    async def wait(self) -> str:
        """Wait for the process to end; say how it did, as far as that can be known."""
        await self._ended.wait()
        return "it ended"

    async def heard_out(self, limit_s: float) -> None:
        """Wait until all is read that the process had said before it ended; that is bounded."""

    async def detach(self) -> None:
        """Let go of the process, once: if it runs, it goes on by itself."""
        if self._pidfd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        await self._hang_up()

    async def _hang_up(self) -> None:
        """End what has QEMU perform commands."""

    def last_words(self) -> str:
        """The end of what the process wrote, as one line; empty where that is not ours to see."""
        return ""

    def _watch(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._readable)

    def _readable(self) -> None:
        """The process has ended: its pidfd is readable."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._reap()
        self._ended.set()

    def _reap(self) -> None:
        """Learn how the process ended, where it is our child."""


class _Relayed(EventListener):
    """Hands on each event, and keeps none."""

    def __init__(self, tell: Callable[[Message], Awaitable[None]]) -> None:
        super().__init__()
        self._tell = tell

    async def put(self, event: Message) -> None:
        """Hand it on."""
        await self._tell(event)


class QmpMonitor(Monitor):
    """A QEMU with a QMP connection of colo's own."""

    def __init__(self) -> None:
        super().__init__()
        self.qmp = QMPClient("colo")
        self.qmp.events.names = {"none"}  # nobody reads those, and it would keep them all
        self.qmp.register_listener(_Relayed(self._tell))

    async def _perform(self, command: str, arguments: dict[str, Any], oob: bool) -> Any:
        try:
            return await self.qmp.execute(command, arguments or None, oob=oob)
        except ExecuteError as error:
            raise QemuRefusal(f"QEMU refuses {command}: {error}") from error
        except (QMPError, asyncio.IncompleteReadError, OSError, EOFError) as error:
            raise GuestError(f"QEMU died at {command}", self.last_words()) from error

    async def heard_out(self, limit_s: float) -> None:
        """Wait until all is read that the process had said before it ended; that is bounded."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.qmp.runstate is Runstate.RUNNING:
                    await self.qmp.runstate_changed()
        await asyncio.sleep(0)  # whoever listens has it now

    async def _hang_up(self) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self.qmp.disconnect()


class AttachedQemu(QmpMonitor):
    """A QEMU that somebody else started, by its QMP socket."""

    def __init__(self, qmp_socket: Path) -> None:
        super().__init__()
        self.qmp_socket = qmp_socket

    async def attach(self) -> None:
        """Connect.  Raises GuestError with what stands in the way."""
        path = self.qmp_socket
        if not path.exists():
            raise GuestError(f"there is no QMP socket {path}: start QEMU with -qmp unix:{path},…")
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(ATTACH_S):
                await asyncio.get_running_loop().sock_connect(sock, str(path))
                credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                await self.qmp.connect(sock)
            self._watch(_PEER.unpack(credentials)[0])
        except TimeoutError:
            sock.close()
            raise GuestError(
                f"{path} does not answer: another client holds it; give colo a -qmp of its own"
            ) from None
        except (QMPError, OSError) as error:
            sock.close()
            raise GuestError(f"cannot attach to QEMU at {path}: {error}") from error
