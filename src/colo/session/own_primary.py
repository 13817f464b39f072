"""Our own primary: it checkpoints a guest of this process to a secondary, ours or a stock QEMU.

This joins the primary's machine, the stream's writer and a guest, and performs every effect of the
table.  One connection is one session.  When it is lost the guest stays as it is, stopped where it
was stopped, and its output stays held, until the decision: ``failover`` has it run alone.  That
may be asked for between any two steps, also while one is under way in another task: the
connection is closed, which ends that step, and then the guest is resumed.

What is to be sent is gathered until an answer is waited for, so that pages and all that is said
around them go out in one go: pages from where they lie (see ``vectored``), and by a thread once
that would block.  The guest is resumed only when nothing of it is being read any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import chain
from typing import Final, NoReturn

from colo.errors import ChannelLost, PeerError
from colo.guest.interface import PrimaryGuest, Saved
from colo.migration.format import Command, Section
from colo.migration.ram import PageRun
from colo.migration.reader import Header
from colo.migration.returnpath import ReturnPathDecoder
from colo.migration.writer import (
    RamWriter,
    after_pages,
    before_pages,
    command,
    end_of_items,
    footer,
    ram_item,
)
from colo.protocol.machine import VMState
from colo.protocol.messages import Message, MessageDecoder, encode
from colo.protocol.primary import Primary
from colo.protocol.tables import Do, Effect, PrimaryEvent, PrimaryState
from colo.transport.page_vector import Outgoing, Vector
from colo.transport.sockets import limit_sends, quick_acks, soon, tune

__all__ = ["Sending"]

#: Any number that is not a device's will do; QEMU's own is 2 or 3.
_RAM_SECTION_ID: Final = 2
_PING: Final = 1
#: So long the event loop itself sends; then a thread does.  Not by bytes: zero pages have few.
_AT_ONCE_S: Final = 0.005
_ANSWER_BYTES: Final = 4096
#: However we learn of it: whoever tries again says it once.
_ENDED: Final = "the secondary ended the connection"


class Sending:
    """The primary's role for ``guest`` over ``sock``, which it owns: any connected stream socket.

    ``limit_s``: so long the secondary may be silent, or take no bytes, while we wait for it.
    ``release`` lets the guest's held output go.  ``return_path``: speak as QEMU 11 does, which has
    the secondary first confirm the migration; without it, as QEMU 7.2 does.
    """

    def __init__(
        self,
        vm_name: str,
        guest: PrimaryGuest,
        sock: socket.socket,
        limit_s: float = 10.0,
        release: Callable[[], None] = lambda: None,
        return_path: bool = False,
    ) -> None:
        self.machine = Primary(vm_name)
        self.bytes_sent = 0
        self._guest = guest
        self._sock = sock
        self._limit_s = limit_s
        self._release = release
        self._return_path = ReturnPathDecoder() if return_path else None
        self._decoder = MessageDecoder()
        self._messages: list[Message] = []
        self._ram = RamWriter()
        self._vector = Vector(self._ram)
        self._out: list[bytes | Iterable[PageRun]] = []
        self._saved: Saved | None = None
        self._under_way = False
        self._steering = asyncio.Lock()  # the guest is suspended and read, or resumed
        tune(sock)
        limit_sends(sock, limit_s)
        self._acknowledge = quick_acks(sock)
        self._bulk = sock.dup()  # the same connection, for the thread

    @property
    def state(self) -> PrimaryState:
        """The machine's state."""
        return self.machine.state

    async def run(self, due: Callable[[], Awaitable[object]]) -> NoReturn:
        """After ``migrate``: take a checkpoint whenever ``due`` returns, until the session ends.

        Raises ColoError when it does; the machine is LOST then, or was failed over.
        """
        while True:
            await self._idle(due)
            await self.checkpoint()

    async def migrate(self) -> None:
        """Send the first, full migration; returns when the guest runs again, protected.

        The guest is stopped meanwhile.  Raises PeerError, or what the guest raises: the machine is
        LOST then.
        """
        async with self._step(PrimaryState.MIGRATING):
            async with self._steering:
                await self._guest.suspend()
                self._saved = await self._guest.save(everything=True)
                self._write_migration(self._saved)
                await self._handle(PrimaryEvent.MIGRATED)
                await self._flush(at_once_s=0)
            if self._return_path is not None:
                await self._confirmed(self._return_path)
            await self._until_running()

    async def checkpoint(self) -> None:
        """Take a checkpoint; returns when the guest runs again.  Raises as above."""
        async with self._step(PrimaryState.RUNNING):
            await self._handle(PrimaryEvent.CHECKPOINT_DUE)
            await self._until_running()

    async def failover(self) -> None:
        """Have the guest run alone: the right to that was granted.  Returns when it runs.

        The output that is held is released: what it tells of, this guest has done.  A guest that is
        being saved, or read, is resumed when that has ended, which the connection's end hastens.
        """
        if self.machine.can(PrimaryEvent.FAILOVER):
            await self._perform(self.machine.handle(PrimaryEvent.FAILOVER))

    def close(self) -> None:
        """End the connection; a step under way ends with ChannelLost, and then frees it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._under_way:
            self._sock.close()
            self._bulk.close()

    # -- the session ----------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _step(self, begins: PrimaryState) -> AsyncIterator[None]:
        """A step of the conversation; whatever goes wrong in it ends the session."""
        if self.state is not begins:
            raise ChannelLost(f"the session has ended ({self.state.name})")
        self._under_way = True
        try:
            yield
        except BaseException:
            if self.machine.can(PrimaryEvent.LOST):
                self.machine.handle(PrimaryEvent.LOST)
            self._under_way = False
            self.close()
            raise
        self._under_way = False

    async def _until_running(self) -> None:
        while self.state is not PrimaryState.RUNNING:
            await self._perform(self.machine.receive(await self._message()))

    async def _handle(self, event: PrimaryEvent, value: int | None = None) -> None:
        if not self.machine.can(event):
            raise ChannelLost(f"the session ended meanwhile ({self.state.name})")
        await self._perform(self.machine.handle(event, value))

    async def _perform(self, effects: tuple[Effect, ...]) -> None:
        """Perform the effects of one step, and what follows from them."""
        for effect in effects:
            match effect.do:
                case Do.SEND:
                    assert effect.message is not None
                    self._out.append(encode(Message(effect.message, effect.value)))
                case Do.SUSPEND:
                    async with self._steering:
                        await self._guest.suspend()
                        await self._handle(PrimaryEvent.SUSPENDED)
                        await self._flush()
                case Do.SAVE_RAM:
                    await self._save_ram()
                    await self._handle(PrimaryEvent.RAM_SAVED)
                case Do.SAVE_DEVICES:
                    assert self._saved is not None
                    await self._handle(PrimaryEvent.DEVICES_SAVED, len(self._saved.device_state))
                case Do.SEND_DEVICES:
                    assert self._saved is not None
                    self._out.append(self._saved.device_state)
                case Do.RELEASE:
                    self._release()
                case Do.RESUME:
                    await self._resume()
                case Do.CLOSE:
                    self.close()
                case _:
                    raise AssertionError(effect)

    async def _resume(self) -> None:
        """Resume, unless a decision came first: then the guest is resumed by that."""
        state = self.state
        async with self._steering:
            if self.state is state:
                await self._guest.resume()
        if self.state is state:
            self.machine.handle(PrimaryEvent.RESUMED)

    # -- out ------------------------------------------------------------------------------

    def _write_migration(self, saved: Saved) -> None:
        content, blocks = Header(self._guest.machine), self._guest.blocks
        commands = command(Command.ENABLE_COLO)
        if self._return_path is not None:
            commands = command(Command.OPEN_RETURN_PATH) + command(Command.PING, _PING)
        before = before_pages(self._ram, content, _RAM_SECTION_ID, blocks, commands)
        devices = saved.device_state, saved.description
        self._out += before, saved.pages, after_pages(self._ram, _RAM_SECTION_ID, devices)

    async def _save_ram(self) -> None:
        """The secondary hears first that pages come: it wakes up while they are saved."""
        self._out.append(ram_item(Section.END, _RAM_SECTION_ID))
        await self._flush()
        self._saved = await self._guest.save(everything=False)
        after = self._ram.end() + footer(_RAM_SECTION_ID) + end_of_items()
        self._out += self._saved.pages, after

    async def _flush(self, at_once_s: float = _AT_ONCE_S) -> None:
        """Send what is gathered: by a thread once that would block, or has taken so long."""
        out, self._out = self._out, []
        if not out:
            return
        outgoing = self._counted(self._vector.outgoing(out))
        if at_once_s:
            rest = self._send_now(outgoing, at_once_s)
            if rest is None:
                return
            outgoing = chain([rest], outgoing)
        work = asyncio.get_running_loop().run_in_executor(None, self._send_all, outgoing)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self.close()
            await asyncio.wait({work})
            raise

    def _counted(self, outgoing: Iterator[Outgoing]) -> Iterator[Outgoing]:
        for each in outgoing:
            self.bytes_sent += each.size
            yield each

    def _send_now(self, outgoing: Iterator[Outgoing], at_once_s: float) -> Outgoing | None:
        """Send as much as the connection takes at once; return what is to be sent next, if any."""
        until = time.monotonic() + at_once_s
        for each in outgoing:
            try:
                self._write(each)
            except BlockingIOError:
                return each
            if time.monotonic() > until:
                return next(outgoing, None)
        return None

    def _send_all(self, outgoing: Iterator[Outgoing]) -> None:
        """The socket blocks meanwhile: the kernel wakes us sooner than a poll would."""
        self._bulk.setblocking(True)
        try:
            for each in outgoing:
                self._write(each)
        except BlockingIOError:
            raise self._silent() from None
        finally:
            self._bulk.setblocking(False)

    def _write(self, each: Outgoing) -> None:
        """Write a piece to its end.  Raises BlockingIOError where that has to wait; ChannelLost."""
        try:
            while each.left:
                each.write(self._bulk.fileno())
        except BlockingIOError:
            raise
        except OSError as error:
            raise ChannelLost(_ENDED) from error

    # -- in -------------------------------------------------------------------------------

    async def _message(self) -> Message:
        """The secondary's next message.  Raises PeerError."""
        await self._flush()
        while not self._messages:
            self._messages.extend(self._decoder.feed(await self._receive(self._limit_s)))
        return self._messages.pop(0)

    async def _receive(self, limit_s: float | None) -> bytes:
        try:
            data = await self._next_bytes(limit_s)
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise ChannelLost(_ENDED) from error
        if not data:
            self._decoder.close()
            raise ChannelLost(_ENDED)
        self._acknowledge()
        return data

    async def _next_bytes(self, limit_s: float | None) -> bytes:
        try:
            return soon(self._take) if self.machine.vm is VMState.STOP else self._take()
        except BlockingIOError:
            async with asyncio.timeout(limit_s):
                return await asyncio.get_running_loop().sock_recv(self._sock, _ANSWER_BYTES)

    def _silent(self) -> ChannelLost:
        return ChannelLost(
            f"the secondary was silent for {self._limit_s:.1f} s ({self.state.name})"
        )

    def _take(self) -> bytes:
        return self._sock.recv(_ANSWER_BYTES)

    async def _confirmed(self, path: ReturnPathDecoder) -> None:
        """Wait until the secondary has confirmed the migration."""
        await self._flush()
        while path.status is None:
            _, rest = path.feed(await self._receive(self._limit_s))
            self._messages.extend(self._decoder.feed(rest))
        if path.status:
            raise PeerError(f"the secondary could not load the first migration ({path.status})")

    async def _idle(self, due: Callable[[], Awaitable[object]]) -> None:
        """Wait until a checkpoint is due; meanwhile nothing may come but the connection's end."""
        async with self._step(PrimaryState.RUNNING):
            heard = asyncio.ensure_future(self._receive(None))
            waited = asyncio.ensure_future(due())
            try:
                await asyncio.wait({heard, waited}, return_when=asyncio.FIRST_COMPLETED)
                if waited.done():
                    waited.result()
                if heard.done():
                    for message in self._decoder.feed(heard.result()):
                        self.machine.receive(message)
            finally:
                for task in (heard, waited):
                    task.cancel()
                await asyncio.wait({heard, waited})  # it lets a cancellation of ourselves through
                for task in (heard, waited):
                    if not task.cancelled():
                        task.exception()
