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
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.config import VmConfig
from colo.errors import ChannelLost, ColoError, GuestError, LocalError, PeerError, UsageError
from colo.failover.arbiter import Arbiter, Grant
from colo.failover.link import LINK_VERSION, Hello, Word, WordKind, machine_digest
from colo.guest.monitor import Monitor
from colo.guest.outgoing import ColoPrimary
from colo.guest.preflight import obstacles
from colo.network.pace import due_at
from colo.node.address import Address
from colo.node.control import Answer, serve_orders
from colo.node.figures import summarise, summary
from colo.node.instance import instance
from colo.node.link import Link, call
from colo.node.netgate import NetGate, cards
from colo.node.relay import Relay
from colo.node.statefolder import StateFolder
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.primary import Primary
from colo.protocol.states import Do, Effect, PrimaryEvent, PrimaryState

__all__ = ["PrimaryNode"]

_CALL_S: Final = 3.0
_RETRY_S: Final = 1.0
_STATUS_S: Final = 0.25
_LAST_EVENTS_S: Final = 0.05
_DYING_S: Final = 0.5
_BYE_S: Final = 2.0
_SAMPLES: Final = 1024


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
        self._gate = NetGate(
            qemu, folder.path, int(config.hold_limit_mib * (1 << 20)), self._schedule
        )
        self._netdevs: list[str] = []
        self._machine: Primary | None = None
        self._relay: Relay | None = None
        self._link: Link | None = None
        self._end: asyncio.Future[_End] | None = None
        self._stopping = asyncio.Event()
        self._ordered = asyncio.Event()
        self._shutdown: str | None = None
        self._standing = "STARTING"
        self._error: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._resumed_at = 0.0
        self._stopped_s = 0.0
        self._safe_at: float | None = None
        self._stopped: deque[float] = deque(maxlen=_SAMPLES)
        self._covered: deque[float] = deque(maxlen=_SAMPLES)
        self._checkpoints = 0

    def stop(self) -> None:
        """Ask to end the protection: the VM goes on, and nothing is left behind in QEMU."""
        self._stopping.set()
        self._finish(_End.ORDERED)

    async def run(self) -> int:
        """Protect the VM until it ends, or ``stop``.  Returns the exit code; raises ColoError."""
        self._claim_grant()
        await self._prepare()
        control = await serve_orders(self._folder.control, self._obey)
        watch = asyncio.create_task(self._watch())
        try:
            return await self._serve()
        finally:
            watch.cancel()
            control.close()
            self._write_status()

    # -- before the first session ---------------------------------------------------------

    def _claim_grant(self) -> None:
        """Make sure that this very QEMU may run the VM.  Raises UsageError."""
        if not self._arbiter.automatic:
            return
        grant = self._arbiter.current()
        if grant.holder in ("", self._holder):
            taken = self._arbiter.take(grant.number, self._holder)
        elif self._claim:
            taken = self._arbiter.order(self._holder)
        else:
            raise UsageError(
                f"the right to run {self._config.name} belongs to {grant.holder} (grant "
                f"{grant.number}); if that VM is certainly dead, say --claim"
            )
        if taken is None:
            raise UsageError(f"another host took the right to run {self._config.name} just now")
        self._grant = taken

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
            self._standing = "UNPROTECTED"
            end = await self._session()
            if end is _End.DIED:
                self._say("QEMU is dead: the other host takes over")
                return 1
            if end is _End.SHUTDOWN:
                self._arbiter.release(self._grant)
                self._say(f"the guest has shut down ({self._shutdown}): nothing to take over")
                return 0
            if end is _End.ORDERED:
                self._standing = "ENDED"
                self._say("protection has ended: the VM goes on, unprotected")
                return 0
            if self._standing == "FENCED":
                return 1

    async def _session(self) -> _End:
        """Protect until something ends it; the VM then runs alone, or is silenced."""
        self._end = asyncio.get_running_loop().create_future()
        try:
            channel = await self._call()
        except _SessionEnded as ended:
            return ended.end
        self._machine = Primary(self._config.name)
        try:
            await self._gate.install(self._netdevs)
            await self._start_colo(channel)
        except GuestError as error:
            self._error = str(error)
            self._say(f"COLO did not start: {error}")
            self._finish(_End.LOST)
            await asyncio.sleep(_RETRY_S)
        end = await self._end
        if end is _End.LOST and self._qemu.exited:
            end = _End.SHUTDOWN if self._shutdown else _End.DIED
        await self._conclude(end)
        return end

    async def _call(self) -> socket.socket:
        """Reach the secondary; return the channel's connection.  Tries until it is there."""
        assert self._end is not None
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
                    self._say(f"UNPROTECTED: {told}; trying again every {_RETRY_S:.0f} s")
            self._close_link()
            done, _ = await asyncio.wait({self._end}, timeout=_RETRY_S)
            if done:
                raise _SessionEnded(self._end.result())

    async def _open_link(self) -> None:
        ours = Hello(
            LINK_VERSION, self._config.name, machine_digest(self._config), self._grant.number
        )
        sock, _ = await call(self._to, ours, _CALL_S)
        self._link = Link(
            sock,
            self._config.heartbeat_s,
            self._config.heartbeat_limit_s,
            self._figures,
            lambda word: None,
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
            delay = round(self._config.age_max_ms)
            starting = asyncio.ensure_future(self._colo.start(f"unix:{path}", delay))
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
            self._received,
            self._lost,
            self._left_by_qemu,
        )
        self._standing = "COPYING"
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
        if self._timer is not None:
            self._timer.cancel()
        if end is _End.DIED:
            self._say_word(WordKind.DEAD)
        elif end is _End.SHUTDOWN:
            self._say_word(WordKind.SHUTDOWN)
        elif end is _End.ORDERED:
            self._say_word(WordKind.BYE)
            await self._alone()
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
        assert self._machine is not None
        self._standing = "LOST"
        if self._machine.can(PrimaryEvent.LOST):
            self._machine.handle(PrimaryEvent.LOST)
        self._say(f"the secondary is lost: {self._error}")
        self._write_status()
        grant = await self._granted()
        if grant is None:
            await self._fence()
            return
        self._grant = grant
        self._say_word(WordKind.ALONE)
        await self._alone()

    async def _granted(self) -> Grant | None:
        """Ask the arbiter, until it can be reached or an operator decides."""
        told = False
        while True:
            if self._ordered.is_set():
                self._ordered.clear()
                return self._arbiter.order(self._holder)
            if self._stock or self._arbiter.automatic:
                try:
                    return self._arbiter.take(self._grant.number, self._holder)
                except LocalError as error:
                    self._error = str(error)
            if not told:
                told = True
                self._say("no grant: the VM stays silent until `colo failover`")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ordered.wait(), _RETRY_S)

    async def _fence(self) -> None:
        """The other host has the right to run the VM: this one may not be heard any more."""
        self._gate.shut()
        self._standing = "FENCED"
        with contextlib.suppress(GuestError):
            await self._qemu.execute("stop")
        owner = self._arbiter.current()
        self._say(
            f"FENCED: {owner.holder} has the right to run this VM (grant {owner.number}); the "
            "copy here is stopped and silent: end its QEMU"
        )

    async def _alone(self) -> None:
        """Run on without a secondary: release what is held, have the VM run, take the gate out."""
        assert self._machine is not None
        for effect in self._machine.handle(PrimaryEvent.FAILOVER):
            await self._perform(effect)
        self._machine.handle(PrimaryEvent.RESUMED)
        await self._gate.remove()
        self._standing = "UNPROTECTED"
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

    def _received(self, message: Message) -> None:
        """A message of the secondary, before QEMU gets it.

        What QEMU does between two of them is not seen, and not asked about: it is told to the
        machine as done when the next one proves it.
        """
        machine, now = self._machine, time.monotonic()
        assert machine is not None
        match message.kind:
            case COLOMessage.CHECKPOINT_READY:
                machine.handle(PrimaryEvent.MIGRATED)
            case COLOMessage.CHECKPOINT_REPLY if machine.state is PrimaryState.RUNNING:
                machine.handle(PrimaryEvent.CHECKPOINT_DUE)
        effects = machine.receive(message)
        match message.kind:
            case COLOMessage.CHECKPOINT_READY:
                self._gate.release()
                self._gate.hold()
                self._standing = "PROTECTED"
                self._say(f"PROTECTED by {self._to}")
                self._error = None
            case COLOMessage.CHECKPOINT_REPLY:
                self._stopped_at = now
                for event in (PrimaryEvent.SUSPENDED, PrimaryEvent.RAM_SAVED):
                    machine.handle(event)
                machine.handle(PrimaryEvent.DEVICES_SAVED, 0)
            case COLOMessage.VMSTATE_RECEIVED:
                self._covered.append(now - self._stopped_at)
        if any(effect.do is Do.RELEASE for effect in effects):
            self._gate.release()
            self._safe_at = time.time()
        if any(effect.do is Do.RESUME for effect in effects):
            machine.handle(PrimaryEvent.RESUMED)
            if message.kind is COLOMessage.VMSTATE_LOADED:
                self._checkpoints += 1
                self._stopped_s = now - self._stopped_at
                self._stopped.append(self._stopped_s)
            self._resumed_at = now
            asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        """Ask for a checkpoint when one is due."""
        if self._machine is None or self._machine.state is not PrimaryState.RUNNING:
            return
        due = due_at(
            self._config.pace,
            self._gate.held_since,
            self._gate.held_bytes,
            self._resumed_at,
            self._stopped_s,
        )
        if due is None or (self._asking is not None and not self._asking.done()):
            return
        wait = due - time.monotonic()
        if wait <= 0:
            self._asking = asyncio.create_task(self._checkpoint())
        elif self._timer is None or self._timer.cancelled() or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(wait, self._due)

    def _due(self) -> None:
        self._timer = None
        self._schedule()

    async def _checkpoint(self) -> None:
        with contextlib.suppress(GuestError):  # a dying QEMU is noticed where it dies
            await self._colo.checkpoint(round(self._config.age_max_ms))

    def _lost(self, error: PeerError) -> None:
        if self._machine is not None and self._machine.state is PrimaryState.MIGRATING:
            self._gate.hold()  # the secondary may have a whole first copy that we do not know of
        self._error = self._error or str(error)
        self._finish(_End.LOST)

    def _left_by_qemu(self, why: str) -> None:
        """QEMU ended its connection: mostly because it died, which is not the secondary's loss."""
        self._leaving = asyncio.create_task(self._learn_why(why))

    async def _learn_why(self, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._qemu.wait(), _DYING_S)
            return
        self._lost(ChannelLost(why))

    def _finish(self, end: _End) -> None:
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
            if self._standing != "LOST":
                return Answer(False, f"nothing to decide: the VM is {self._standing}")
            self._ordered.set()
            return Answer(True, "the VM may run here alone")
        return Answer(False, f"there is no order {order!r}")

    def _say(self, text: str) -> None:
        self._tell(f"{self._config.name}: {text}")

    async def _watch(self) -> None:
        while True:
            self._write_status()
            await asyncio.sleep(_STATUS_S)

    def _write_status(self) -> None:
        self._folder.write_status(self._status())

    def _figures(self) -> dict[str, Any]:
        return {"checkpoint": self._checkpoints, "held_bytes": self._gate.held_bytes}

    def _status(self) -> dict[str, Any]:
        return {
            "role": "primary",
            "vm": self._config.name,
            "state": self._standing,
            "meaning": self._machine.state.value if self._machine else "no session yet",
            "checkpoint": self._checkpoints or None,
            "checkpoint_at": self._safe_at,
            "secondary": str(self._to),
            "arbiter": self._config.arbiter,
            "grant": self._grant.number,
            "error": self._error,
            "bytes_total": self._relay.bytes_sent if self._relay else None,
            "phases_ms": {
                "covered": summary(summarise(self._covered), 1e3),
                "stopped": summary(summarise(self._stopped), 1e3),
            },
            "network": {
                netdev: {
                    "gate": gate.state.name,
                    "frames": gate.stats.frames,
                    "bytes": gate.stats.bytes,
                    "dropped": gate.stats.dropped,
                    "held_bytes": gate.held_bytes,
                    "held_max_bytes": gate.stats.held_max_bytes,
                    "held_ms": summary(summarise(gate.stats.held_s), 1e3),
                }
                for netdev, gate in self._gate.gates.items()
            },
            "qemu": {"pid": self._qemu.pid},
        }


class _SessionEnded(ColoError):
    def __init__(self, end: _End) -> None:
        super().__init__(end.value)
        self.end = end
