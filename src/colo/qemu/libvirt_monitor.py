"""A domain of libvirt's as colo sees it: QMP by way of libvirt, which goes on having its monitor.

libvirt runs QEMU as another user, confined, so QEMU cannot reach colo's sockets by their paths.
Where a command names one, colo connects to it itself, and hands QEMU the connection.

No checkpoint needs a command, so the protection goes on while libvirt is away (its daemon is
restarted, for an upgrade say).  A command waits until it is back, however long: QEMU is well, and
is not to be given up.  A shutdown that happened meanwhile, and still shows, is told as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from qemu.qmp import Message

from colo.errors import GuestError, QemuRefusal
from colo.qemu.libvirt_library import Domain, LibvirtError, NoDomain
from colo.qemu.monitor import ATTACH_S, COMMAND_S, Monitor

__all__ = ["LibvirtQemu"]

#: All that anybody here listens to.  STOP and RESUME, which each checkpoint has, are of no use.
_HEARD: Final = ("SHUTDOWN", "COLO_EXIT", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
_AGAIN_S: Final = 1.0
_LOOK_S: Final = 0.05
_UNIX: Final = "unix:"
_TGID: Final = re.compile(r"^Tgid:\s+(\d+)$", re.MULTILINE)

T = TypeVar("T")


class LibvirtQemu(Monitor):
    """The QEMU of the domain ``name``.  ``say`` is told when libvirt goes away and comes back."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self._name, self._say = name, say
        self._loop = asyncio.get_running_loop()
        self._domain: Domain | None = None
        self._settled = asyncio.Event()  # no command has to wait: libvirt is there, or QEMU is gone
        self._stopped = asyncio.Event()  # the domain has, and all its events are told
        self._events: asyncio.Queue[Message | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = itertools.count()
        self._shut_down = False

    async def attach(self) -> bool:
        """Connect; False where the domain does not run.

        Raises UsageError without libvirt's library, LibvirtError, which may be over in a while, and
        GuestError.
        """
        why: LibvirtError | None = None
        try:
            async with asyncio.timeout(ATTACH_S):
                self._domain = await _in_thread(self._open)
                while self.pid == 0:
                    if not await _in_thread(self._domain.is_active):
                        await self._hang_up()
                        return False
                    try:
                        self._watch(await self._process())
                    except LibvirtError as error:  # mostly its QEMU has just ended
                        why = error
                        await asyncio.sleep(_LOOK_S)
        except NoDomain:  # one that is transient is there only while it runs
            return False
        except BaseException as error:
            await self._hang_up()
            if not isinstance(error, TimeoutError | LibvirtError):
                raise
            late = f"libvirt does not answer in {ATTACH_S:.0f} s"
            words = error if isinstance(error, LibvirtError) else why or late
            raise LibvirtError(f"libvirt's domain {self._name}: {words}") from error
        self._settled.set()
        self._tasks.append(asyncio.create_task(self._tell_events()))
        return True

    async def is_autostarted(self) -> bool:
        """Whether libvirt will start the domain by itself."""
        assert self._domain is not None
        return await _in_thread(self._domain.is_autostarted)

    async def reached(self) -> None:
        """Wait until libvirt is there, or QEMU is not any more."""
        await self._settled.wait()

    async def heard_out(self, limit_s: float) -> None:
        """Wait until libvirt has told all that QEMU said before it ended; that is bounded."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), limit_s)

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        domain, self._domain = self._domain, None
        self._settled.set()
        if domain is not None:
            await _in_thread(domain.close)

    def _reap(self) -> None:
        self._settled.set()

    # -- commands -------------------------------------------------------------------------

    async def _perform(self, command: str, arguments: dict[str, Any], oob: bool) -> Any:
        """libvirt's monitor has nothing out of band: such a command is one like any other."""
        name = f"colo-{next(self._numbers)}"
        arguments, end = _connected(command, arguments, name)
        if end is None:
            return await self._ask(command, arguments)
        with end:
            await self._ask("getfd", {"fdname": name}, [end.fileno()])
        try:
            return await self._ask(command, arguments)
        except GuestError:
            with contextlib.suppress(GuestError):
                await self._ask("closefd", {"fdname": name})
            raise

    async def _ask(self, command: str, arguments: dict[str, Any], files: Sequence[int] = ()) -> Any:
        text = json.dumps({"execute": command, "arguments": arguments})
        domain = self._domain
        if domain is None or self.exited:
            raise GuestError(f"QEMU died at {command}")
        try:
            answer = await _in_thread(domain.command, text, files)
        except LibvirtError as error:
            if self.exited:
                raise GuestError(f"QEMU died at {command}") from error
            if await _in_thread(domain.is_reached):
                raise LibvirtError(f"libvirt refuses {command}: {error}") from error
            self._closed()
            if not command.startswith("query-"):  # nobody knows whether that was done
                raise GuestError(f"libvirt went away at {command}") from error
            await self.reached()
            return await self._ask(command, arguments)
        if "error" in answer:
            raise QemuRefusal(f"QEMU refuses {command}: {answer['error']['desc']}")
        return answer["return"]

    async def _process(self) -> int:
        """The id of QEMU's process, whose threads its processors are.  Raises GuestError."""
        thread = (await self._ask("query-cpus-fast", {}))[0]["thread-id"]
        try:
            found = _TGID.search(Path(f"/proc/{thread}/status").read_text())
        except OSError:
            found = None
        if found is None:
            raise GuestError(
                f"libvirt's domain {self._name} is no process of this host: run colo where it is"
            )
        return int(found[1])

    # -- what libvirt tells ---------------------------------------------------------------

    def _open(self) -> Domain:
        """Connect, in a thread.  Raises UsageError, LibvirtError."""
        return Domain(
            self._name,
            _HEARD,
            lambda event: self._from_thread(self._events.put_nowait, Message(event)),
            lambda: self._from_thread(self._events.put_nowait, None),
            lambda: self._from_thread(self._closed),
        )

    def _from_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)

    async def _tell_events(self) -> None:
        """Tell what comes, in its order."""
        while (event := await self._events.get()) is not None:
            self._shut_down |= event["event"] == "SHUTDOWN"
            await self._tell(event)
        self._stopped.set()

    def _closed(self) -> None:
        """libvirt is gone: its daemon has ended."""
        if self._settled.is_set() and self._domain is not None and not self.exited:
            self._settled.clear()
            self._tasks.append(asyncio.create_task(self._come_back()))

    async def _come_back(self) -> None:
        """Reach libvirt again, and see what happened meanwhile."""
        self._say(
            f"libvirt is gone from the domain {self._name}: the VM goes on, and its checkpoints; "
            f"what needs libvirt waits for it, which is tried again every {_AGAIN_S:.0f} s"
        )
        while not self.exited:
            await asyncio.sleep(_AGAIN_S)
            with contextlib.suppress(GuestError, TimeoutError):
                if await asyncio.wait_for(self._again(), COMMAND_S):
                    break
        else:
            return
        self._settled.set()
        self._say(f"libvirt is back at the domain {self._name}")
        with contextlib.suppress(GuestError):
            status = await self.execute("query-status")
            if status["status"] == "shutdown" and not self._shut_down:
                event = {"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}
                self._events.put_nowait(Message(event))

    async def _again(self) -> bool:
        """Whether libvirt is there, and has the same QEMU yet.  Raises GuestError."""
        gone, self._domain = self._domain, await _in_thread(self._open)
        if gone is not None:
            await _in_thread(gone.close)
        return await self._process() == self.pid


def _connected(
    command: str, arguments: dict[str, Any], name: str
) -> tuple[dict[str, Any], socket.socket | None]:
    """Arguments with a connection called ``name`` for the socket of colo's that they name, and it.

    Raises GuestError.
    """
    changed: dict[str, Any]
    match command, arguments:
        case "migrate", {"uri": str(uri)} if uri.startswith(_UNIX):
            path, changed = uri.removeprefix(_UNIX), {"uri": f"fd:{name}"}
        case "blockdev-add", {"server": {"type": "unix", "path": path}}:
            changed = {"server": {"type": "fd", "str": name}}
        case "chardev-add", {"backend": {"data": {"addr": {"data": {"path": path}}} as data}}:
            to = {"type": "fd", "data": {"str": name}}
            changed = {"backend": {"type": "socket", "data": {**data, "addr": to}}}
        case _:
            return arguments, None
    end = socket.socket(socket.AF_UNIX)
    try:
        end.connect(path)
    except OSError as error:
        end.close()
        raise GuestError(f"{path}: {error.strerror}") from error
    return {**arguments, **changed}, end


def _in_thread(call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """The result of a call that may wait for long; the process's end does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(take: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            take(outcome)

    def run() -> None:
        take: Callable[[Any], None] = future.set_result
        try:
            outcome: Any = call(*arguments)
        except BaseException as error:
            take, outcome = future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, take, outcome)

    threading.Thread(target=run, name="libvirt command", daemon=True).start()
    return future
