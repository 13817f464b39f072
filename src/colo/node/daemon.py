"""``colo node``: one of two hosts that keep a VM alive, for good, in whichever role its turn is.

The same command runs on both.  A host begins by the arbiter's record (``membership.roles``), is the
VM's primary or its secondary, and when that part ends goes on with what comes next: who took the
VM over protects it towards the other host, who was fenced ends its stale copy and follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.config import VmConfig
from colo.errors import ChannelLost, GuestError, LocalError, Refused, UsageError
from colo.membership.decision import OnLoss
from colo.membership.grant import Grant, Record
from colo.membership.roles import Turn, host_of, whose_turn
from colo.membership.words import Hello
from colo.node.first_start import Start
from colo.node.following import Following, Next
from colo.node.keeping import SecondaryNode
from colo.node.orders import Answer, Obey, Order, serve_orders
from colo.node.protecting import PrimaryNode
from colo.node.retry import RETRY_S, Retry
from colo.node.standing import Standing
from colo.node.state_folder import StateFolder
from colo.qemu.identity import instance
from colo.qemu.monitor import AttachedQemu, Monitor
from colo.qemu.process import LaunchPlan, Qemu
from colo.service.notify import Notifier
from colo.transport.address import Address
from colo.transport.control_link import call

__all__ = ["Daemon"]

_ASK_S: Final = 3.0
_DYING_S: Final = 5.0
_MANAGER_S: Final = 1.0
#: The states in which nothing is kept alive yet.
_UNREADY: Final = ("WAITING", "STARTING", "REFUSED")

_Part: TypeAlias = Callable[[], Awaitable["_Part | None"]]


class Daemon:
    """One VM on this host; ``addresses``: how hosts are reached, by their names.

    ``adopted``: the QMP socket of a QEMU that somebody else has started.  ``plan`` is how to start
    one; ``say`` tells the user what happens, a line at a time.
    """

    def __init__(
        self,
        config: VmConfig,
        host: str,
        addresses: dict[str, Address],
        plan: LaunchPlan,
        folder: StateFolder,
        arbiter: Arbiter,
        adopted: Path | None,
        say: Callable[[str], None],
        notifier: Notifier,
    ) -> None:
        self._config = config
        self._host = host
        self._peer = config.other_host(host)
        self._addresses = addresses
        self._plan = plan
        self._folder = folder
        self._arbiter = arbiter
        self._adopted = adopted
        self._tell = say
        self._notifier = notifier
        self._told = ""
        self._ends = False
        self._code = 0
        self._wake = asyncio.Event()
        self._order: asyncio.Future[Answer] | None = None
        self._interrupt: Callable[[], object] = self._wake.set
        self._crashes = Retry()

    def stop(self) -> None:
        """Ask to end: a VM that runs here goes on, and the next colo finds it."""
        self._ends = True
        self._interrupt()

    async def run(self) -> int:
        """Keep the VM alive until it is shut down, or this is told to end.

        Returns the exit code; raises ColoError where nothing can be done here.
        """
        part: _Part | None = self._look
        telling = asyncio.create_task(self._tell_manager())
        try:
            while part is not None and not self._ends:
                self._interrupt = self._wake.set
                part = await part()
        finally:
            telling.cancel()
            self._notifier.stopping()
        return self._code

    async def _tell_manager(self) -> None:
        """Feed the service manager's watchdog, and say how the VM stands as soon as it does."""
        every_s, ready = min(self._notifier.every_s or _MANAGER_S, _MANAGER_S), False
        while True:
            self._notifier.alive()
            state, meaning = self._folder.last_state
            if state:
                self._notifier.status(f"{state}: {meaning}")
            if state and state not in _UNREADY and not ready:
                ready = True
                self._notifier.ready()
            await asyncio.sleep(every_s)

    # -- whose turn it is -----------------------------------------------------------------

    async def _look(self) -> _Part | None:
        """See by the arbiter's record what this host is to do."""
        try:
            record = await self._record()
        except LocalError as error:
            return await self._wait(f"nobody can say who may run the VM: {error}")
        qemu = await self._find()
        lives = qemu is not None and record.left_by in ("", instance(qemu.pid, self._host))
        if not self._arbiter.automatic:
            lives = qemu is not None
        if qemu is not None and not lives:
            if self._adopted is not None:
                raise UsageError(
                    f"the right to run {self._config.name} belongs to {record.left_by} (grant "
                    f"{record.number}), and not to the QEMU at {self._adopted}: end that QEMU"
                )
            self._say(f"a stale copy of the VM is ended here: {record.left_by} has run it since")
            await _end(qemu)
        is_first = next(iter(self._config.hosts)) == self._host
        turn = whose_turn(record, self._host, lives, self._arbiter.automatic, is_first)
        match turn:
            case Turn.ADOPT:
                assert qemu is not None
                return lambda: self._lead(qemu)
            case Turn.START:
                return lambda: self._start(record)
            case Turn.ASK:
                return lambda: self._ask(record)
            case Turn.FOLLOW:
                return lambda: self._follow(record)

    async def _record(self) -> Record:
        """Who has the right to run the VM, by a record that is the one we know.

        Only the first host of the VM file makes a record where there is none, and only one that has
        never seen any: else a mount that is missing would be taken for a VM that never ran.
        """
        known = self._folder.known_grant if self._arbiter.automatic else 0
        is_first = next(iter(self._config.hosts)) == self._host
        record = await reach(
            self._arbiter.begin if is_first and not known else self._arbiter.current
        )
        if record.number < known:
            raise LocalError(
                f"the arbiter shows grant {record.number}, and {known} was seen here: is it "
                "another one, or restored from an old backup?"
            )
        self._folder.know_grant(record.number)
        return record

    async def _find(self) -> Monitor | None:
        """The QEMU that runs the VM on this host, or None; one that is of no use is ended."""
        if self._adopted is not None:
            qemu = AttachedQemu(self._adopted)
            await qemu.attach()
            return qemu
        pid = self._folder.leftover()
        if pid is None:
            return None
        qemu = AttachedQemu(self._folder.qemu_socket)
        try:
            await qemu.attach()
            status = (await qemu.execute("query-status"))["status"]
            if status not in ("prelaunch", "inmigrate", "shutdown"):
                return qemu
        except GuestError as error:
            self._say(f"the QEMU that was left here is of no use, and is ended: {error}")
        await qemu.detach()
        await _kill(pid)
        return None

    async def _start(self, record: Record, by_order: bool = False) -> _Part | None:
        """Start the VM from nothing but its disks, by the next grant after ``record``."""
        self._folder.clean_start()
        qemu = Qemu(self._plan.unstarted(), self._folder.path, self._plan.environment)
        await qemu.start()
        holder = instance(qemu.pid, self._host)
        try:
            if by_order:
                grant: Grant | None = await reach(self._arbiter.order, holder)
            elif self._arbiter.automatic:
                grant = await reach(self._arbiter.take, record.number, holder)
            else:
                grant = record.grant
        except LocalError as error:
            await qemu.kill()
            return await self._wait(f"no grant to start the VM: {error}")
        if grant is None:
            await qemu.kill()
            return self._look
        self._folder.know_grant(grant.number)
        return await self._lead(qemu, Start(qemu))

    async def _ask(self, record: Record) -> _Part | None:
        """The VM ran here and died: start it, unless the other host has a newer state."""
        ours = Hello.ours(self._config, record.number, record.holder)
        try:
            sock, _ = await call(self._addresses[self._peer], ours, _ASK_S)
            sock.close()
        except Refused as error:
            return await self._wait(f"the VM died here: {error}")
        except ChannelLost as error:
            return await self._wait(
                f"the VM ran here last and died, and host {self._peer} may have a newer state: "
                f"{error}; if that host is gone for good, `colo failover` starts the VM here anew",
                record,
            )
        self._say(f"the VM died here, and host {self._peer} has nothing of it: starting it anew")
        return await self._start(record)

    # -- the two parts --------------------------------------------------------------------

    async def _lead(self, qemu: Monitor, start: Start | None = None) -> _Part | None:
        """Be the VM's primary, until it is not ours any more."""
        to = self._addresses[self._peer]
        node = PrimaryNode(
            self._config,
            qemu,
            to,
            self._folder,
            self._arbiter,
            self._tell,
            start=start,
            host=self._host,
        )
        self._interrupt = node.stop
        if self._ends:
            node.stop()
        try:
            code = await node.run()
        except UsageError as error:
            await qemu.detach()
            if start is None:
                raise
            return await self._wait(str(error))
        except BaseException:
            await qemu.detach()
            raise
        match node.standing:
            case Standing.ENDED | Standing.LOST:  # told to end: the VM stays as it is
                await qemu.detach()
                self._code = code
                return None
            case Standing.SHUTDOWN:
                await _end(qemu)
                return None
        lived = node.was_protected
        await _end(qemu)
        if node.standing is Standing.DEAD and not lived:
            pause_s = self._crashes.pause_s()
            return await self._wait("the VM died while it ran alone", after_s=pause_s)
        self._crashes.succeeded()
        return self._look

    async def _follow(self, record: Record) -> _Part | None:
        """Be the VM's secondary, until it runs here or nowhere."""
        following = Following(self._host)
        node = SecondaryNode(
            self._config,
            self._plan,
            self._addresses[self._host],
            self._folder,
            self._arbiter,
            OnLoss.TAKEOVER,
            self._tell,
            after=following,
        )
        if other := host_of(record.left_by):
            self._say(
                f"the VM is host {other}'s (grant {record.number}): following; if that "
                "host is gone for good, `colo failover` starts the VM here anew"
            )
        task = asyncio.ensure_future(node.run())
        self._interrupt = task.cancel
        try:
            await task
        except asyncio.CancelledError:
            return None
        match following.next:
            case Next.LEAD:
                qemu = node.waiting.qemu
                assert qemu is not None
                return lambda: self._lead(qemu)
            case Next.START:
                return lambda: self._start(record, by_order=True)
            case Next.END:
                self._say("the guest has shut down: it ends on both hosts")
                return None
            case None:
                return self._look

    # -- waiting --------------------------------------------------------------------------

    async def _wait(
        self, why: str, record: Record | None = None, after_s: float = RETRY_S
    ) -> _Part | None:
        """Say why nothing is done now, and look again after a while, or by an order.

        ``record``: by an operator's order the VM is started anew, after this grant.
        """
        if why != self._told:
            self._told = why
            self._say(why)
        self._write_status(why)
        self._wake.clear()
        orders = await serve_orders(self._folder.control, self._obey_waiting(record is not None))
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), after_s)
        finally:
            orders.close()
        order, self._order = self._order, None
        if order is None or record is None:
            return self._look
        order.set_result(Answer(True, "the VM is being started here, anew"))
        return lambda: self._start(record, by_order=True)

    def _obey_waiting(self, can_start: bool) -> Obey:
        async def obey(order: Order) -> Answer:
            if order.name != "failover" or not can_start:
                return Answer(False, f"not now: {self._told}")
            self._order = self._order or asyncio.get_running_loop().create_future()
            self._wake.set()
            return await self._order

        return obey

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._tell(f"{self._config.name}: {text}")

    def _write_status(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self._folder.write_status(self._status(why))

    def _status(self, why: str) -> dict[str, Any]:
        return {
            "role": "node",
            "vm": self._config.name,
            "state": "WAITING",
            "meaning": "the VM is not started here yet: the last error says why",
            "checkpoint": None,
            "checkpoint_at": None,
            "arbiter": self._config.failover.arbiter,
            "grant": self._folder.known_grant or None,
            "error": why,
            "qemu": None,
        }


async def _end(qemu: Monitor) -> None:
    """End a QEMU whose VM is not ours to run, or has ended."""
    if isinstance(qemu, Qemu):
        await qemu.kill()
        return
    pid, gone = qemu.pid, qemu.exited
    await qemu.detach()
    if not gone:
        await _kill(pid)


async def _kill(pid: int) -> None:
    """End a process, and wait until it is gone: it has the tap, and the state folder's sockets."""
    try:
        file = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(file, signal.SIGKILL)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(file, ended.set)
        try:
            async with asyncio.timeout(_DYING_S):
                await ended.wait()
        except TimeoutError:
            raise GuestError(f"QEMU {pid} does not end, though it was killed") from None
        finally:
            asyncio.get_running_loop().remove_reader(file)
    except ProcessLookupError:
        pass
    finally:
        os.close(file)
