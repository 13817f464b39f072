"""``colo secondary``: the shell around a session, a store and a waiting QEMU.

It decides nothing that the state machine or the command line has not decided.  It accepts one
primary, carries the session's requests out, keeps a QEMU waiting, takes over when that is due,
and says in ``status.json`` what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from typing import Any, Final

from colo.config import RAM_BLOCK, VmConfig
from colo.errors import ChannelLost, ColoError
from colo.guest.qemu import LaunchPlan
from colo.migration.format import MULTIFD_MAGIC
from colo.migration.ram import RamBlock
from colo.node.address import Address
from colo.node.channel import Channel
from colo.node.control import Answer, serve_orders
from colo.node.figures import Figures, summarise
from colo.node.incoming import Incoming
from colo.node.statefolder import StateFolder
from colo.node.waiting import WaitingQemu
from colo.protocol.states import Do, SecondaryEvent, SecondaryState
from colo.store.export import migration_stream
from colo.store.store import Store

__all__ = ["OnLoss", "SecondaryNode"]

_STATUS_S: Final = 0.25
_TAKEOVER_TRIES: Final = 3
_MULTIFD_S: Final = 1.0

#: States in which the primary has the word: it has to send, or it is lost.
_PRIMARY_SENDS: Final = frozenset(
    {
        SecondaryState.INCOMING,
        SecondaryState.REPLIED,
        SecondaryState.RECEIVING_RAM,
        SecondaryState.AWAITING_SIZE,
        SecondaryState.RECEIVING_DEVICES,
    }
)
_ENDED: Final = frozenset({SecondaryState.RUNNING, SecondaryState.TAKEOVER})


class OnLoss(Enum):
    """What to do when the primary is lost."""

    TAKEOVER = "takeover"
    HOLD = "hold"


class SecondaryNode:
    """One VM's secondary on this host.  ``say`` tells the user what happens, a line at a time."""

    def __init__(
        self,
        config: VmConfig,
        plan: LaunchPlan,
        listen: Address,
        folder: StateFolder,
        on_loss: OnLoss,
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._listen = listen
        self._folder = folder
        self._on_loss = on_loss
        self._say = say
        self._figures = Figures()
        store_folder = folder.store(config.store_folder, config.name)
        folder.clean(store_folder)
        main = RamBlock(RAM_BLOCK, config.memory)
        self._store = Store(store_folder, main, config.limits)
        self._waiting = WaitingQemu(
            plan, self._store.images[RAM_BLOCK].path, folder.path, self._write_status
        )
        self._incoming: Incoming | None = None
        self._channel: Channel | None = None
        self._applying: asyncio.Task[None] | None = None
        self._takeover: asyncio.Task[None] | None = None
        self._error: str | None = None
        self._facts: dict[str, Any] = {}
        self._committed_at: float | None = None
        self._number = -1
        self._decided_at = 0.0

    async def run(self) -> int:
        """Serve until the VM that was taken over ends, or this task is cancelled.

        Returns the exit code.  Raises ColoError where it cannot even start.
        """
        tasks: list[asyncio.Task[None]] = []
        server: socket.socket | None = None
        control: asyncio.Server | None = None
        try:
            server = self._listen.listen()
            await self._waiting.start()
            control = await serve_orders(self._folder.control, self._obey)
            self._write_status()
            assert self._waiting.qemu is not None
            self._say(
                f"{self._config.name}: waiting for a primary on {self._listen} "
                f"(QEMU {self._waiting.qemu.pid} is ready to take over)"
            )
            work = (self._accept(server), self._watch(), self._end())
            tasks = [asyncio.create_task(each) for each in work]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return 0
        finally:
            for task in tasks:
                task.cancel()
            if server is not None:
                server.close()
            if control is not None:
                control.close()
            await self._leave()

    # -- the primary's connection ---------------------------------------------------------

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        server.setblocking(False)
        while True:
            sock, peer = await loop.sock_accept(server)
            if self._incoming is None and self._state is None:
                self._begin(sock, _peer_name(peer))
            else:
                await self._refuse(sock, _peer_name(peer))

    def _begin(self, sock: socket.socket, peer: str) -> None:
        self._error = None
        self._facts = {"primary": peer}
        self._incoming = Incoming(
            self._config.name, self._store, self._figures, time.monotonic, self._waiting.check
        )
        self._channel = Channel(sock, self._incoming, time.monotonic, self._progress, self._lost)
        self._say(f"{self._config.name}: a primary has connected from {peer}")
        self._write_status()

    async def _refuse(self, sock: socket.socket, peer: str) -> None:
        """Close a second connection, and say what it was."""
        why = "this VM has its primary already"
        if self._state in _ENDED:
            why = "the VM runs here"
        elif self._state is SecondaryState.LOST:
            why = f"checkpoint {self._number} of the primary that was lost waits for a decision"
        with contextlib.closing(sock), contextlib.suppress(TimeoutError, OSError):
            first = await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(sock, 4), _MULTIFD_S
            )
            if int.from_bytes(first, "big") == MULTIFD_MAGIC:
                why = "it is a multifd channel: switch the capability multifd off"
        self._error = f"a connection from {peer} was refused: {why}"
        self._say(f"{self._config.name}: {self._error}")
        self._write_status()

    @property
    def _state(self) -> SecondaryState | None:
        return self._incoming.state if self._incoming is not None else None

    def _progress(self) -> None:
        """Carry out what the session asks for, after bytes were taken."""
        incoming = self._incoming
        assert incoming is not None and self._channel is not None
        if self._store.checkpoint is not None and self._store.checkpoint.number != self._number:
            self._number, self._committed_at = self._store.checkpoint.number, time.time()
            if self._number == 0:
                self._say(f"{self._config.name}: PROTECTED, the first copy is whole")
                self._write_status()
        while incoming.requests:
            request = incoming.requests.pop(0)
            if request is Do.APPLY:
                self._applying = asyncio.create_task(self._apply())
            elif request is Do.PREPARE and self._applying is None:
                incoming.handle(SecondaryEvent.PREPARED)
                self._channel.flush()

    async def _apply(self) -> None:
        """Copy the committed pages into the images, while the primary's VM runs."""
        assert self._incoming is not None
        began = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, self._store.apply)
        self._store.applied()
        self._figures.phases["apply"].append(time.monotonic() - began)
        self._applying = None
        if self._state is SecondaryState.PREPARING and self._channel is not None:
            self._incoming.handle(SecondaryEvent.PREPARED)
            self._channel.flush()

    def _lost(self, error: ColoError) -> None:
        """The connection is gone: take over, hold, or, with nothing whole, wait for another."""
        incoming = self._incoming
        assert incoming is not None
        self._channel = None
        lost_in = incoming.state
        incoming.handle(SecondaryEvent.LOST)
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        self._error = f"{error}{cause}"
        self._facts["lost_in"] = lost_in.name
        if incoming.state is SecondaryState.FAILED:
            self._say(f"{self._config.name}: no first copy: {self._error}")
            self._incoming = None
        elif self._on_loss is OnLoss.TAKEOVER:
            self._say(f"{self._config.name}: the primary is lost: {self._error}")
            self._start_takeover()
        else:
            self._say(
                f"{self._config.name}: the primary is lost: {self._error}; holding checkpoint "
                f"{self._number}: `colo failover --state-dir {self._folder.path}` starts it"
            )
        self._write_status()

    async def _watch(self) -> None:
        """Bound the primary's silence, and keep the status file fresh."""
        while True:
            await asyncio.sleep(_STATUS_S)
            self._write_status()
            channel = self._channel
            if channel is None or self._state not in _PRIMARY_SENDS:
                continue
            silence = time.monotonic() - channel.last_heard
            if silence > self._config.silence_s:
                assert self._incoming is not None
                why: ColoError = self._incoming.stalled() or ChannelLost(
                    f"the primary was silent for {silence:.1f} s within "
                    f"{'the first migration' if self._number < 0 else 'a checkpoint'}"
                )
                channel.close()
                self._lost(why)

    # -- the takeover ---------------------------------------------------------------------

    def _start_takeover(self) -> None:
        assert self._incoming is not None
        self._decided_at = time.monotonic()
        self._incoming.handle(SecondaryEvent.FAILOVER)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._takeover = asyncio.create_task(self._take_over())

    async def _take_over(self) -> None:
        assert self._incoming is not None
        for attempt in range(1, _TAKEOVER_TRIES + 1):
            try:
                if self._applying is not None:
                    await self._applying
                loading = await self._waiting.run(migration_stream(self._store, {RAM_BLOCK}))
                break
            except ColoError as error:
                self._error = str(error)
                self._say(f"{self._config.name}: attempt {attempt} failed: {error}")
        else:
            self._incoming.handle(SecondaryEvent.NOT_STARTED)
            self._say(
                f"{self._config.name}: NOT RUNNING: the takeover failed {_TAKEOVER_TRIES} times; "
                f"checkpoint {self._number} is kept, `colo failover` tries again"
            )
            self._write_status()
            return
        elapsed = time.monotonic() - self._decided_at
        self._incoming.handle(SecondaryEvent.RESUMED)
        assert self._waiting.qemu is not None
        self._facts["takeover"] = {
            "checkpoint": self._number,
            "total_ms": elapsed * 1e3,
            "loading_ms": loading * 1e3,
            "running_at": time.time(),
        }
        self._say(
            f"{self._config.name}: RUNNING HERE, from checkpoint {self._number}, "
            f"started in {elapsed * 1e3:.0f} ms (QEMU {self._waiting.qemu.pid})"
        )
        self._store.remove()  # the running QEMU holds its memory; nobody else needs the files
        self._write_status()

    async def _end(self) -> None:
        """Wait for the end of the VM that was taken over."""
        while not self._is_running():
            await asyncio.sleep(_STATUS_S)
        assert self._waiting.qemu is not None
        code = await self._waiting.qemu.wait()
        self._say(f"{self._config.name}: the VM has ended, QEMU's exit code is {code}")

    async def _leave(self) -> None:
        """End what is ours; a VM that runs here goes on."""
        if self._channel is not None:
            self._channel.close()
        if self._takeover is not None and not self._takeover.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._takeover)
        qemu = self._waiting.qemu
        if self._is_running() and qemu is not None:
            if not qemu.exited:
                self._say(
                    f"{self._config.name}: the VM goes on without colo: QEMU {qemu.pid}, QMP "
                    f"{qemu.qmp_socket}"
                )
            await qemu.detach()
        else:
            await self._waiting.stop()
            self._store.remove()
        self._write_status()

    # -- orders and status ----------------------------------------------------------------

    async def _obey(self, order: str, force: bool) -> Answer:
        if order != "failover":
            return Answer(False, f"there is no order {order!r}")
        if self._is_running():
            return Answer(True, "the VM runs here already")
        if self._takeover is None or self._takeover.done():
            if self._incoming is None or not self._incoming.machine.can(SecondaryEvent.FAILOVER):
                return Answer(False, "there is no whole checkpoint to run the VM from")
            if self._channel is not None and not force:
                return Answer(
                    False,
                    "the primary is connected and its VM runs: two VMs would run; "
                    "end that one first, or say --force",
                )
            self._start_takeover()
        if self._takeover is not None:
            await asyncio.shield(self._takeover)
        if self._is_running():
            return Answer(True, f"the VM runs here, from checkpoint {self._number}")
        return Answer(False, f"the VM could not be started: {self._error}")

    def _is_running(self) -> bool:
        return self._state is SecondaryState.RUNNING

    def _write_status(self) -> None:
        self._folder.write_status(self._status())

    def _status(self) -> dict[str, Any]:
        figures, qemu, state = self._figures, self._waiting.qemu, self._state
        return {
            "role": "secondary",
            "vm": self._config.name,
            "state": state.name if state else "LISTENING",
            "meaning": state.value if state else "no primary is connected",
            "mode": "periodic",
            "on_loss": self._on_loss.value,
            "listen": str(self._listen),
            "error": self._error or self._waiting.trouble,
            "checkpoint": self._number if self._number >= 0 else None,
            "checkpoint_at": self._committed_at,
            "pages_total": figures.pages_total,
            "bytes_total": figures.bytes_total,
            "pages": _summary(summarise(figures.pages)),
            "bytes": _summary(summarise(figures.bytes)),
            "phases_ms": {
                name: _summary(summarise(samples), 1e3) for name, samples in figures.phases.items()
            },
            "guest_bytes": self._config.memory,
            "store_bytes": self._store.size,
            "store": str(self._store.folder),
            "qemu": None
            if qemu is None
            else {
                "pid": qemu.pid,
                "qmp": str(qemu.qmp_socket),
                "starts": self._waiting.starts,
                "trouble": self._waiting.trouble,
            },
            **self._facts,
        }


def _summary(summary: Any, factor: float = 1.0) -> dict[str, float] | None:
    if summary is None:
        return None
    return {key: value * factor for key, value in asdict(summary).items()}


def _peer_name(peer: Any) -> str:
    if isinstance(peer, tuple):
        return f"tcp:{peer[0]}:{peer[1]}"
    return "a unix socket"
