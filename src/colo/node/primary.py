"""``colo primary``: the shell that protects a running QEMU.

It relays QEMU's COLO stream to the secondary, holds the guest's packets until the checkpoint
that covers them is safe, decides when to checkpoint, and sees what dies.  What it may do then the
arbiter says; until that is known the gate stays as it is, and it is shut for good where the
other host got the right to run the VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.config import VmConfig
from colo.errors import ChannelLost, GuestError, LocalError, PeerError
from colo.failover.arbiter import Arbiter, Grant, claim, reach
from colo.failover.link import Hello, Word, WordKind
from colo.guest.monitor import Monitor
from colo.guest.outgoing import ColoPrimary
from colo.guest.preflight import obstacles
from colo.node.address import Address
from colo.node.checkpointing import Checkpointing
from colo.node.control import Answer, serve_orders
from colo.node.instance import instance
from colo.node.link import Link, call
from colo.node.netgate import NetGate, cards
from colo.node.relay import Relay
from colo.node.retry import RETRY_S, Retry
from colo.node.standing import Standing
from colo.node.statefolder import StateFolder
from colo.protocol.states import Do, Effect, PrimaryEvent, PrimaryState

__all__ = ["PrimaryNode"]

_CALL_S: Final = 3.0
_STATUS_S: Final = 0.25
_LAST_EVENTS_S: Final = 0.05
_DYING_S: Final = 0.5
_WHY_S: Final = 0.5


class _End(Enum):
    """How a session ended."""

    LOST = "the secondary is lost"
    DIED = "QEMU is dead"
    SHUTDOWN = "the guest has shut down"
    ORDERED = "protection was ended by an order"


class PrimaryNode:
    """One VM's primary on this host.  ``say`` tells the user what happens, a line at a time.

    ``stock``: the secondary is a stock QEMU, which has no control link.
    """

    def __init__(
        self,
        config: VmConfig,
        qemu: Monitor,
        to: Address,
        folder: StateFolder,
        arbiter: Arbiter,
        say: Callable[[str], None],
        *,
        stock: bool = False,
        allow_disks: bool = False,
        allow_broken: bool = False,
        claim: bool = False,
    ) -> None:
        self._config = config
        self._qemu = qemu
        self._to = to
        self._folder = folder
        self._arbiter = arbiter
        self._tell = say
        self._stock = stock
        self._allow_disks = allow_disks
        self._claim = claim
        self._holder = instance(qemu.pid)
        self._grant = Grant(0, self._holder)
        self._colo = ColoPrimary(qemu, allow_broken)
        limit = int(config.hold_limit_mib * (1 << 20))
        self._gate = NetGate(qemu, folder.path, limit)
        self._session = Checkpointing(config, self._colo, self._gate, self._protected)
        self._netdevs: list[str] = []
        self._relay: Relay | None = None
        self._link: Link | None = None
        self._end: asyncio.Future[_End] | None = None
        self._fate: _End | None = None  # what no later session can change
        self._fated = asyncio.Event()
        self._refused = asyncio.Event()
        self._ordered = asyncio.Event()
        self._shutdown: str | None = None
        self._standing = Standing.STARTING
        self._error: str | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._was_protected = True
        self._retry = Retry()

    def stop(self) -> None:
        """Ask to end the protection: the VM goes on, and nothing is left behind in QEMU."""
        self._finish(_End.ORDERED)

    async def run(self) -> int:
        """Protect the VM until it ends, or ``stop``.  Returns the exit code; raises ColoError."""
        self._grant = claim(
            self._arbiter, self._holder, self._config.name, self._stock, self._claim
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._write_status)
            try:
                await self._prepare()
                control = await serve_orders(self._folder.control, self._obey)
                stack.callback(control.close)
                self._tasks.append(asyncio.create_task(self._watch()))
                return await self._serve()
            except (GuestError, PeerError):
                if self._session.safe_at is None:
                    await self._give_back()
                raise
            finally:
                for task in self._tasks:
                    task.cancel()

    # -- before the first session ---------------------------------------------------------

    async def _prepare(self) -> None:
        """Bring QEMU into a state from which protection can begin.  Raises GuestError."""
        await self._colo.check()
        if (await self._qemu.execute("query-migrate")).get("status") == "colo":
            await self._colo.run_alone()  # a colo that was killed left it in COLO
        await NetGate.clean(self._qemu)
        self._netdevs = await cards(self._qemu)
        found = await obstacles(self._qemu, self._netdevs, self._allow_disks)
        if found:
            raise GuestError("this VM cannot be protected: " + "; ".join(found))
        shutdowns = EventListener("SHUTDOWN")
        self._qemu.qmp.register_listener(shutdowns)
        self._tasks = [
            asyncio.create_task(self._see_shutdown(shutdowns)),
            asyncio.create_task(self._see_death()),
        ]
        if not self._netdevs:
            self._say("no network card: nothing to hold back")

    # -- sessions -------------------------------------------------------------------------

    async def _serve(self) -> int:
        while True:
            self._standing = Standing.UNPROTECTED
            end = await self._protect()
            if end is _End.DIED:
                self._standing = Standing.DEAD
                await self._give_back()
                self._say("QEMU is dead: the other host takes over")
                return 1
            if end is _End.SHUTDOWN:
                self._standing = Standing.SHUTDOWN
                await self._give_back()
                self._say(f"the guest has shut down ({self._shutdown}): nothing to take over")
                return 0
            if end is _End.ORDERED and self._standing != Standing.FENCED:
                self._standing = Standing.ENDED
                self._say("protection has ended: the VM goes on, unprotected")
                return 0
            if self._standing == Standing.FENCED:
                return 1
            if not self._was_protected:
                await self._pause()

    async def _protect(self) -> _End:
        """Protect until something ends it; the VM then runs alone, or is silenced."""
        if self._fate is not None:
            return self._fate
        self._end = asyncio.get_running_loop().create_future()
        channel = await self._call()
        if channel is None:
            assert self._fate is not None
            return self._fate
        self._session.begin()
        self._refused.clear()
        self._was_protected, self._error = False, None
        try:
            await self._gate.install(self._netdevs)
            await self._start_colo(channel)
        except GuestError as error:
            self._error = str(error)
            self._finish(_End.LOST)
        end = await self._end
        if end is _End.LOST and self._qemu.exited:
            await self._fated.wait()
            assert self._fate is not None
            end = self._fate
        await self._conclude(end)
        return end

    async def _call(self) -> socket.socket | None:
        """Reach the secondary, however long it takes; return the channel's connection.

        None where the VM met its fate meanwhile.
        """
        told = None
        while True:
            try:
                if not self._stock:
                    await self._open_link()
                return await asyncio.wait_for(self._to.connect(), _CALL_S)
            except (ChannelLost, OSError, TimeoutError) as error:
                why = "no answer" if isinstance(error, TimeoutError) else error
                self._error = f"{self._to} is out of reach: {why}"
                if told != self._error:
                    told = self._error
                    self._say(f"UNPROTECTED: {told}; trying again every {RETRY_S:.0f} s")
            self._close_link()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._fated.wait(), RETRY_S)
                return None
            self._end = asyncio.get_running_loop().create_future()

    async def _open_link(self) -> None:
        ours = Hello.ours(self._config, self._grant.number)
        sock, _ = await call(self._to, ours, _CALL_S)
        self._link = Link(
            sock,
            self._config.heartbeat_s,
            self._config.heartbeat_limit_s,
            self._figures,
            self._hear,
            self._lost,
        )

    async def _start_colo(self, channel: socket.socket) -> None:
        """Have QEMU migrate to us, and relay that to the secondary."""
        path = self._folder.path / "colo.sock"
        path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen(1)
            server.setblocking(False)
            accepted = asyncio.ensure_future(loop.sock_accept(server))
            starting = asyncio.ensure_future(self._colo.start(f"unix:{path}"))
            assert self._end is not None
            first: set[asyncio.Future[Any]] = {accepted, starting, self._end}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not accepted.done():
                accepted.cancel()
                channel.close()
                if starting.done():
                    starting.result()
                starting.cancel()
                return
            qemu, _ = accepted.result()
        self._relay = Relay(
            qemu,
            channel,
            self._colo.return_path,
            self._session.received,
            self._lost,
            self._left_by_qemu,
        )
        self._session.pass_on = self._relay.send
        self._standing = Standing.COPYING
        second: set[asyncio.Future[Any]] = {starting, self._end}
        await asyncio.wait(second, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            if not self._end.done():
                starting.result()
            else:
                starting.exception()
        else:
            starting.cancel()

    async def _conclude(self, end: _End) -> None:
        """Do what the end of a session asks for."""
        self._session.end()
        if end is _End.DIED:
            self._say_word(WordKind.DEAD)
        elif end is _End.SHUTDOWN:
            self._say_word(WordKind.SHUTDOWN)
        elif end is _End.ORDERED:
            await self._part()
        else:
            await self._ask()
        self._close_link()
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if end in (_End.DIED, _End.SHUTDOWN):
            await self._gate.remove()

    async def _ask(self) -> None:
        """The secondary is lost: ask for the right to run alone, and act on the answer."""
        self._standing = Standing.LOST
        if self._session.machine.state is PrimaryState.MIGRATING and self._link is not None:
            with contextlib.suppress(TimeoutError):  # the other connection may bring the reason
                await asyncio.wait_for(self._refused.wait(), _WHY_S)
        if self._session.machine.can(PrimaryEvent.LOST):
            self._session.machine.handle(PrimaryEvent.LOST)
        if self._relay is not None:
            self._relay.close()
        self._say(f"the secondary is lost: {self._error}")
        self._write_status()
        grant = await self._granted()
        if grant is None:
            await self._fence()
            return
        self._grant = grant
        self._say_word(WordKind.ALONE)
        await self._alone()

    async def _part(self) -> None:
        """End the protection by order: the VM is ours alone first, and only then let go."""
        try:
            if self._arbiter.automatic:
                grant = await reach(self._arbiter.take, self._grant.number, self._holder)
                if grant is None:
                    await self._fence()
                    return
                self._grant = grant
        except LocalError as error:
            self._say(f"the other host may still take over, as nobody could be asked: {error}")
        self._say_word(WordKind.BYE)
        await self._alone()

    async def _give_back(self) -> None:
        """This VM is not run any more, or never was protected: anyone may begin anew."""
        with contextlib.suppress(LocalError):
            await reach(self._arbiter.release, self._grant)

    async def _pause(self) -> None:
        """Wait before the next try, longer each time: every try copies the whole VM."""
        pause_s = self._retry.pause_s()
        self._say(f"trying again in {pause_s:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._fated.wait(), pause_s)

    async def _granted(self) -> Grant | None:
        """Ask the arbiter, until it can be reached or an operator decides."""
        if self._refused.is_set() and not self._was_protected:
            return self._grant  # whoever refused the first copy has nothing to take over
        told = False
        while True:
            if self._ordered.is_set():
                self._ordered.clear()
                return await reach(self._arbiter.order, self._holder)
            if self._stock or self._arbiter.automatic:
                try:
                    return await reach(self._arbiter.take, self._grant.number, self._holder)
                except LocalError as error:
                    self._error = str(error)
            if not told:
                told = True
                self._say("no grant: the VM stays silent until `colo failover`")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ordered.wait(), RETRY_S)

    async def _fence(self) -> None:
        """The other host has the right to run the VM: this one may not be heard any more."""
        self._gate.shut()
        self._standing = Standing.FENCED
        with contextlib.suppress(GuestError):
            await self._qemu.execute("stop")
        owner = await reach(self._arbiter.current)
        self._say(
            f"FENCED: {owner.holder} has the right to run this VM (grant {owner.number}); the "
            "copy here is stopped and silent: end its QEMU"
        )

    async def _alone(self) -> None:
        """Run on without a secondary: release what is held, have the VM run, take the gate out."""
        for effect in self._session.machine.handle(PrimaryEvent.FAILOVER):
            await self._perform(effect)
        self._session.machine.handle(PrimaryEvent.RESUMED)
        await self._gate.remove()
        self._standing = Standing.UNPROTECTED
        self._say(f"UNPROTECTED: the VM runs here alone (grant {self._grant.number})")
        self._write_status()

    async def _perform(self, effect: Effect) -> None:
        if effect.do is Do.CLOSE and self._relay is not None:
            self._relay.close()
        elif effect.do is Do.RELEASE:
            self._gate.open()
        elif effect.do is Do.RESUME:
            await self._colo.run_alone()

    # -- what happens ---------------------------------------------------------------------

    def _protected(self) -> None:
        self._standing, self._was_protected, self._error = Standing.PROTECTED, True, None
        self._retry.succeeded()
        self._say(f"PROTECTED by {self._to}{', over TLS' if self._to.tls else ''}")

    def _lost(self, error: PeerError) -> None:
        if self._session.machine.state is PrimaryState.MIGRATING:
            self._gate.hold()  # the secondary may have a whole first copy that we do not know of
        self._error = self._error or str(error)
        self._finish(_End.LOST)

    def _hear(self, word: Word) -> None:
        if word.kind is WordKind.REFUSED:
            self._error = f"{self._to} refuses: {word.content.get('why')}"
            self._refused.set()
            self._lost(ChannelLost(self._error))

    def _left_by_qemu(self, why: str) -> None:
        """QEMU ended its connection: mostly because it died, which is not the secondary's loss."""
        self._leaving = asyncio.create_task(self._learn_why(why))

    async def _learn_why(self, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._qemu.wait(), _DYING_S)
            return
        self._lost(ChannelLost(why))

    def _finish(self, end: _End) -> None:
        if end is not _End.LOST and self._fate is None:
            self._fate = end
            self._fated.set()
        if self._end is not None and not self._end.done():
            self._end.set_result(end)

    async def _see_shutdown(self, shutdowns: EventListener) -> None:
        async for event in shutdowns:
            self._shutdown = str(cast(dict[str, Any], event["data"])["reason"])
            self._finish(_End.SHUTDOWN)

    async def _see_death(self) -> None:
        await self._qemu.wait()
        await asyncio.sleep(_LAST_EVENTS_S)  # what it had said before is still being read
        self._error = "QEMU is dead"
        self._finish(_End.SHUTDOWN if self._shutdown else _End.DIED)

    # -- words, orders, status ------------------------------------------------------------

    def _say_word(self, kind: WordKind) -> None:
        if self._link is not None:
            self._link.say(Word(kind))

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _obey(self, order: str, force: bool) -> Answer:
        if order == "failover":
            if self._standing != Standing.LOST:
                return Answer(False, f"nothing to decide: the VM is {self._standing.name}")
            self._ordered.set()
            return Answer(True, "the VM may run here alone")
        if order == "export":
            where = f"the checkpoint is on the secondary's host ({self._to}): ask there"
            return Answer(False, f"{self._folder.path} is the primary's state folder; {where}")
        return Answer(False, f"there is no order {order!r}")

    def _say(self, text: str) -> None:
        self._tell(f"{self._config.name}: {text}")

    async def _watch(self) -> None:
        while True:
            self._write_status()
            await asyncio.sleep(_STATUS_S)
            limit = self._config.silence_s
            if self._standing == Standing.PROTECTED and self._session.overdue(limit):
                self._lost(ChannelLost(f"no checkpoint was done in {limit:.0f} s"))

    def _write_status(self) -> None:
        self._folder.write_status(self._status())

    def _figures(self) -> dict[str, Any]:
        return {"checkpoint": self._session.count, "held_bytes": self._gate.held_bytes}

    def _status(self) -> dict[str, Any]:
        return {
            "role": "primary",
            "vm": self._config.name,
            "state": self._standing.name,
            "meaning": self._standing.value,
            "checkpoint": self._session.count or None,
            "checkpoint_at": self._session.safe_at,
            "secondary": str(self._to),
            "arbiter": self._config.arbiter,
            "grant": self._grant.number,
            "error": self._error,
            "bytes_total": self._relay.bytes_sent if self._relay else None,
            "phases_ms": self._session.figures(),
            "network": self._gate.figures(),
            "qemu": {"pid": self._qemu.pid},
        }
