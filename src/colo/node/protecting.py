"""``colo primary``: the shell that protects a running QEMU.

It relays QEMU's COLO stream to the secondary, holds the guest's packets until the checkpoint
that covers them is safe, decides when to checkpoint, and sees what dies.  What it may do then is
decided in ``node.running_on``; until that is known the gate stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.arbiters.arbiter import Arbiter, claim, give_back
from colo.arbiters.asking import reach
from colo.config import VmConfig
from colo.errors import ChannelLost, ColoError, GuestError, LocalError, PeerError, QemuRefusal
from colo.membership.grant import Ending, Grant
from colo.membership.words import Hello, Word, WordKind
from colo.node.ending import LAST, End
from colo.node.first_start import Start
from colo.node.orders import Answer, Order, serve_orders
from colo.node.peer import Peer
from colo.node.planned import Planned
from colo.node.retry import RETRY_S, Retry
from colo.node.running_on import Solo, Verdict
from colo.node.standing import Standing
from colo.node.state_folder import StateFolder
from colo.protocol.tables import ObserverEvent, ObserverState
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.identity import instance, only_one
from colo.qemu.monitor import Monitor
from colo.qemu.obstacles import obstacles
from colo.qemu.packet_filters import NetGate, cards
from colo.session.awake import Awake
from colo.session.qemu_primary import Checkpointing
from colo.session.relay import Relay
from colo.session.standstill import StandStill
from colo.transport.address import Address
from colo.transport.sockets import accept_one, listening

__all__ = ["PrimaryNode"]

_STATUS_S: Final = 0.25
_LAST_EVENTS_S: Final = 0.05
_WHY_S: Final = 0.5


class PrimaryNode:
    """One VM's primary on this host.  ``say`` tells the user what happens, a line at a time.

    ``stock``: the secondary is a stock QEMU, which has no control link.  ``start``: the VM does
    not run yet.
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
        start: Start | None = None,
        host: str = "",
    ) -> None:
        self._config = config
        self._qemu = qemu
        self._folder = folder
        self._arbiter = arbiter
        self._tell = say
        self._stock = stock
        self._allow_disks = allow_disks
        self._claim = claim
        self._start = start  # None once the VM runs
        self._colo = ColoPrimary(qemu, allow_broken)
        self._gate = NetGate(qemu, folder.path, int(config.network.hold_limit_mib * (1 << 20)))
        self._awake = awake = Awake(config, self._say)
        still = StandStill(config, qemu, self._say)
        self._session = Checkpointing(
            config, self._colo, self._gate, awake, still, self._protected, self._lost
        )
        self._peer = Peer(config, to, stock, self._figures, self._hear, self._lost)
        self._gone = asyncio.Event()  # the VM has ended
        self._solo = Solo(
            arbiter,
            Grant(0, instance(qemu.pid, host)),
            qemu,
            self._colo,
            self._gate,
            self._session,
            self._gone,
            self._hang_up,
            self._stand,
            self._say,
        )
        self._planned = Planned(qemu, self._session, self._gate, self._peer, self._gone, self._say)
        self._netdevs: list[str] = []
        self._relay: Relay | None = None
        self._end: asyncio.Future[End] | None = None
        self._fate: End | None = None  # what no later session can change
        self._fated = asyncio.Event()
        self._refused = asyncio.Event()
        self._final: ColoError | None = None  # a refusal that no further try changes
        self._shutdown: str | None = None
        self.standing = Standing.STARTING
        self._error: str | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._running: asyncio.Task[Any] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._was_protected = True
        self.was_protected = False  # ever
        self._retry = Retry()
        self._relayed = False  # in this session the secondary may have got something
        self._contested = False  # and it may run that

    def stop(self) -> None:
        """Ask to end the protection: the VM goes on, and nothing is left behind in QEMU.

        Where the VM has not started, it does not: ``run`` is cancelled.
        """
        if self._start is None:
            self._finish(End.ORDERED)
            self._solo.interrupt()
        elif self._running is not None:
            self._running.cancel()

    async def run(self) -> int:
        """Protect the VM until it ends, or ``stop``.  Returns the exit code; raises ColoError.

        Where it raises before a VM was started that was to be, no QEMU is left.
        """
        self._running = asyncio.current_task()
        with contextlib.ExitStack() as stack:
            stack.callback(self._write_status)
            try:
                stack.enter_context(only_one(self._solo.grant.holder))
                await self._begin()
                control = await serve_orders(self._folder.control, self._obey)
                stack.callback(control.close)
                self._tasks.append(asyncio.create_task(self._watch()))
                return await self._serve()
            except BaseException as error:
                await self._give_up(error)
                raise
            finally:
                for task in self._tasks:
                    task.cancel()

    # -- before the first session ---------------------------------------------------------

    async def _begin(self) -> None:
        """Get as far as a VM that runs and may be protected.  Raises ColoError."""
        who = self._solo.grant.holder, self._config.name
        self._solo.grant = await reach(claim, self._arbiter, *who, self._stock, self._claim)
        await self._prepare()
        if self._start is not None:
            self._write_status()
            hello = None if self._stock else self._hello()
            await self._start.begin(self._peer.to, hello, self._arbiter.automatic or self._claim)
            self._start = None

    async def _give_up(self, error: BaseException) -> None:
        """Leave nothing behind that ends with this error."""
        self._error = str(error) or "it was told to end"
        if self.standing is Standing.STARTING:
            self.standing = Standing.REFUSED
        if self._start is not None:
            await self._start.undo()
            if not self._claim:  # else it may be another's, who is not to be thought dead
                await self._give_back(Ending.UNUSED)
            elif self._solo.grant.number:
                error.add_note(f"grant {self._solo.grant.number}, which --claim took, stays here")
        elif isinstance(error, GuestError | PeerError) and self._session.safe_at is None:
            await self._give_back(Ending.LEFT)

    async def _prepare(self) -> None:
        """Bring QEMU into a state from which protection can begin.  Raises GuestError."""
        await self._colo.check()
        if (await self._qemu.execute("query-migrate")).get("status") == "colo":
            await self._colo.run_alone()  # a colo that was killed left it in COLO
        await NetGate.clean(self._qemu)
        self._netdevs = await cards(self._qemu)
        what = self._netdevs, self._allow_disks, self._start is None
        found = await obstacles(self._qemu, self._config, *what)
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
            self.standing = Standing.UNPROTECTED
            end = await self._protect()
            if end is not End.LOST:
                return await self._ended(end)
            if self._final is not None and self._fate is None:
                raise self._final
            if not self._was_protected:
                await self._pause()

    async def _ended(self, end: End | Verdict) -> int:
        """Say how it ended for good; return the exit code."""
        last = LAST[end]
        self.standing = last.standing
        # What the other host may run is left to it: given back, the grant would be anybody's.
        if end is End.SHUTDOWN or (last.standing is Standing.DEAD and not self._contested):
            await self._give_back(Ending.SHUT_DOWN if end is End.SHUTDOWN else Ending.LEFT)
        if last.text:
            self._say(last.text.format(shutdown=self._shutdown))
        return last.code

    async def _protect(self) -> End | Verdict:
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
        self._was_protected, self._relayed, self._error = False, False, None
        self._contested = False
        try:
            await self._gate.install(self._netdevs)
            await self._start_colo(channel)
        except (GuestError, OSError) as error:
            if isinstance(error, QemuRefusal) and not self._relayed:
                self._final = GuestError(f"{error}; mend that, then start colo again")
            self._lost(error)
        if not self._relayed:
            channel.close()
        end = await self._end
        if end is End.LOST and self._qemu.exited:
            await self._gone.wait()
            assert self._fate is not None
            end = self._fate
        return await self._conclude(end)

    async def _call(self) -> socket.socket | None:
        """Reach the secondary, however long it takes; return the channel's connection.

        None where the VM met its fate meanwhile.
        """
        told = None
        while True:
            try:
                return await self._peer.reach(self._hello())
            except (ChannelLost, OSError, TimeoutError) as error:
                why = "no answer" if isinstance(error, TimeoutError) else error
                self._error = f"{self._peer.to} is out of reach: {why}"
                if told != self._error:
                    told = self._error
                    self._say(f"UNPROTECTED: {told}; trying again every {RETRY_S:.0f} s")
            self._peer.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._fated.wait(), RETRY_S)
                return None
            self._end = asyncio.get_running_loop().create_future()

    async def _start_colo(self, channel: socket.socket) -> None:
        """Have QEMU migrate to us, and relay that to the secondary."""
        assert self._end is not None
        path = self._folder.path / "colo.sock"
        with listening(path) as server:
            starting = asyncio.ensure_future(self._colo.start(f"unix:{path}"))
            over: set[asyncio.Future[Any]] = {starting, self._end}
            try:
                qemu = await accept_one(server, over)
                if qemu is not None:
                    self._follow(qemu, channel)
                    await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
                if starting.done() and not self._end.done():
                    starting.result()
            finally:
                if not starting.cancel():
                    starting.exception()  # nobody asks for it any more

    def _follow(self, qemu: socket.socket, channel: socket.socket) -> None:
        """Relay from QEMU to the secondary."""
        self._relay = Relay(
            qemu,
            channel,
            self._colo.return_path,
            self._session.received,
            self._lost,
            self._left_by_qemu,
        )
        self._relayed = self._contested = True
        self._session.pass_on = self._relay.send
        self.standing = Standing.COPYING

    async def _conclude(self, how: End) -> End | Verdict:
        """Do what the end of a session asks for; return the end that this comes to."""
        end: End | Verdict = how
        self._session.end()
        if how is End.LOST:
            end = self._after(await self._decide(), how, WordKind.ALONE)
        elif how is End.ORDERED:
            end = self._after(await self._solo.part(), how, WordKind.BYE)
        if end in (End.DIED, Verdict.HUNG):
            self._peer.say(WordKind.DEAD, grant=self._solo.last_number)
        elif end is End.SHUTDOWN:
            self._peer.say(WordKind.SHUTDOWN)
        self._peer.close()
        self._hang_up()
        self._planned.concluded(end is Verdict.FENCED)
        if end in (End.DIED, End.SHUTDOWN):
            await self._gate.remove()
        return end

    def _after(self, verdict: Verdict, end: End, word: WordKind) -> End | Verdict:
        """The end of a session after a decision; ``word`` lets the secondary go."""
        if verdict is Verdict.ALONE:
            self._peer.say(word)  # only now: a VM that does not run needs its secondary
            self._contested = False
            return end
        if verdict is Verdict.GONE:
            assert self._fate is not None
            return self._fate
        return verdict

    async def _decide(self) -> Verdict:
        """The secondary is lost: learn whether the VM may run alone, and have it do so."""
        self.standing = Standing.LOST
        copying = self._session.machine.state is ObserverState.COPYING
        if copying and self._relayed and self._peer.is_linked:
            with contextlib.suppress(TimeoutError):  # the other connection may bring the reason
                await asyncio.wait_for(self._refused.wait(), _WHY_S)
        if self._session.machine.can(ObserverEvent.LOST):
            self._session.machine.handle(ObserverEvent.LOST)
        self._hang_up()
        what = "the secondary is lost" if self._relayed else "the protection could not begin"
        if self._planned.is_going_over:
            self._say(f"switchover: {self._error}")
        elif self._final is None:  # else it is said at the end
            self._say(f"{what}: {self._error}")
        self._write_status()
        planned = self._planned.is_going_over
        if planned:
            await self._planned.taken(self._arbiter, self._solo.grant)
        refused = self._refused.is_set() and not self._was_protected
        return await self._solo.decide(self._relayed and not refused, planned)

    async def _give_back(self, ending: Ending) -> None:
        """This VM is not run any more, or never was protected: anyone may begin anew."""
        with contextlib.suppress(LocalError):
            await reach(give_back, self._arbiter, self._solo.grant.holder, ending)

    def _hello(self) -> Hello:
        return Hello.ours(self._config, self._solo.grant.number, self._solo.grant.holder)

    async def _pause(self) -> None:
        """Wait before the next try, longer each time: every try copies the whole VM."""
        pause_s = self._retry.pause_s()
        self._say(f"trying again in {pause_s:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._fated.wait(), pause_s)

    # -- what happens ---------------------------------------------------------------------

    def _protected(self) -> None:
        self.standing, self._was_protected, self._error = Standing.PROTECTED, True, None
        self.was_protected = True
        self._retry.succeeded()
        to = self._peer.to
        self._say(f"PROTECTED by {to}{', over TLS' if to.tls else ''}")

    def _lost(self, error: ColoError | OSError) -> None:
        if self._session.machine.state is ObserverState.COPYING:
            self._gate.hold()  # the secondary may have a whole first copy that we do not know of
        self._error = self._error or str(error)
        self._finish(End.LOST)

    def _hear(self, word: Word) -> None:
        if word.kind is WordKind.REFUSED:
            self._error = f"{self._peer.to} refuses: {word.content.get('why')}"
            self._final = PeerError(self._error) if word.content.get("final") is True else None
            self._refused.set()
            self._lost(ChannelLost(self._error))

    def _left_by_qemu(self, why: str) -> None:
        """QEMU ended its connection: mostly because it died, which is not the secondary's loss."""
        self._leaving = asyncio.create_task(self._learn_why(why))

    async def _learn_why(self, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._qemu.wait(), _WHY_S)
            return
        self._lost(ChannelLost(why))

    def _finish(self, end: End) -> None:
        if end is not End.LOST and self._fate in (None, End.ORDERED):
            self._fate = end
            self._fated.set()
        if end in (End.DIED, End.SHUTDOWN):
            self._gone.set()
        if self._end is not None and not self._end.done():
            self._end.set_result(end)

    async def _see_shutdown(self, shutdowns: EventListener) -> None:
        async for event in shutdowns:
            self._shutdown = str(cast(dict[str, Any], event["data"])["reason"])
            self._finish(End.SHUTDOWN)

    async def _see_death(self) -> None:
        await self._qemu.wait()
        await asyncio.sleep(_LAST_EVENTS_S)  # what it had said before is still being read
        self._error = "QEMU is dead"
        self._finish(End.SHUTDOWN if self._shutdown else End.DIED)

    # -- words, orders, status ------------------------------------------------------------

    async def _obey(self, order: Order) -> Answer:
        if order.name == "failover":
            if self.standing != Standing.LOST:
                return Answer(False, f"nothing to decide: the VM is {self.standing.name}")
            return await self._solo.order(order.force)
        if order.name == "switchover":
            return await self._planned.switch_over(self.standing, self._arbiter, self._lost)
        if order.name == "stop":
            return await self._planned.power_down(order.grace_s)
        if order.name == "export":
            where = f"the checkpoint is on the secondary's host ({self._peer.to}): ask there"
            return Answer(False, f"{self._folder.path} is the primary's state folder; {where}")
        return Answer(False, f"there is no order {order.name!r}")

    def _hang_up(self) -> None:
        if self._relay is not None:
            self._relay.close()
            self._relay = None

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        self._write_status()

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more: that decides nothing
            self._tell(f"{self._config.name}: {text}")

    async def _watch(self) -> None:
        while True:
            self._write_status()
            await asyncio.sleep(_STATUS_S)
            limit = self._config.failover.silence_s
            if self.standing == Standing.PROTECTED and self._session.overdue(limit):
                self._lost(ChannelLost(f"no checkpoint was done in {limit:.0f} s"))
            copying = self._relay if self.standing == Standing.COPYING else None
            if copying is not None and self._session.stalled(copying.bytes_sent, limit):
                self._lost(ChannelLost(f"the first copy did not move for {limit:.0f} s"))

    def _write_status(self) -> None:
        with contextlib.suppress(OSError):  # no room: nor does that
            self._folder.write_status(self._status())

    def _figures(self) -> dict[str, Any]:
        return {"checkpoint": self._session.count, "held_bytes": self._gate.held_bytes}

    def _status(self) -> dict[str, Any]:
        return {
            "role": "primary",
            "vm": self._config.name,
            "state": self.standing.name,
            "meaning": self.standing.value,
            **self._session.status(),
            "secondary": str(self._peer.to),
            "peer": self._peer.figures,
            "arbiter": self._config.failover.arbiter,
            "grant": self._solo.grant.number,
            "error": self._error,
            "bytes_total": self._relay.bytes_sent if self._relay else None,
            "network": self._gate.figures(),
            "awake": self._awake.held,
            "qemu": {"pid": self._qemu.pid},
        }
