"""What a primary does with its QEMU for one secondary after the other: gate in, relay, gate out."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colo.config import VmConfig
from colo.errors import ColoError
from colo.migration.format import PAGE_SIZE
from colo.node.replicating import Replicating
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import CourierEvent, Do
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session.qemu_primary import Checkpointing
from colo.session.relay import COPY_ROOM, Relay, area_for
from colo.store.area import reserve
from colo.transport.sockets import accept_one, listening
from colo.wire.encoder import Encoder
from colo.wire.sent import SentPages

__all__ = ["Copying"]


class Copying:
    """The copies of one QEMU's VM, which meets the relay at a socket in ``folder``.

    ``connect`` opens a channel to the secondary; ``is_coded``: whether it carries frames.
    ``begun`` is called when that may get something from now on; ``lost`` with why that is of no
    more use; ``left_by_qemu`` where QEMU has ended its connection, mostly as it died.
    """

    def __init__(
        self,
        config: VmConfig,
        colo: ColoPrimary,
        gate: NetGate,
        session: Checkpointing,
        disks: Replicating,
        folder: Path,
        connect: Callable[[], Awaitable[socket.socket]],
        is_coded: Callable[[], bool],
        begun: Callable[[], None],
        lost: Callable[[ColoError | OSError], None],
        left_by_qemu: Callable[[str], None],
    ) -> None:
        self._colo, self._gate, self._session = colo, gate, session
        self._limits = config.limits
        self._is_aside = config.checkpoints.aside_mib > 0
        self._room = max(COPY_ROOM, int(config.checkpoints.aside_mib * (1 << 20)))
        self._area = area_for(self._room, self._limits)
        self._coder = _coder(config)
        self._is_coded = is_coded
        self._disks, self._connect = disks, connect
        session.cut = disks.cut
        self._path = folder / "colo.sock"
        self._begun, self._lost, self._left_by_qemu = begun, lost, left_by_qemu
        self._relay: Relay | None = None
        self._channel: socket.socket | None = None
        self._copying: asyncio.Task[None] | None = None
        self._removing: asyncio.Task[None] | None = None
        self.netdevs: list[str] = []

    @property
    def bytes_sent(self) -> int | None:
        """How much of the stream the secondary has been sent; None where there is no session."""
        return self._relay.bytes_sent if self._relay is not None else None

    @property
    def bytes_moved(self) -> int:
        """How much of it has come or gone."""
        return self._relay.bytes_sent + self._relay.bytes_taken if self._relay is not None else 0

    def status(self) -> dict[str, Any]:
        """What the status file has of what the secondary lacks."""
        relay = self._relay
        return {
            "held_bytes": relay.held_bytes if relay is not None else 0,
            "room_bytes": self._room if self._is_aside else 0,
            "memory_bytes": relay.memory_bytes if relay is not None else 0,
            "lag_s": self._session.lag_s,
        }

    def wire(self) -> dict[str, Any] | None:
        """What the status file has of the frames; None where there are none."""
        coder = self._coder
        if coder is None or self._relay is None or not self._is_coded():
            return None
        total = coder.figures.total
        return {
            "rate": self._relay.rate,
            "is_coded": coder.rate is not None,
            **asdict(total),
            "by_way": {name: asdict(each) for name, each in coder.figures.by_way.items()},
        }

    def begin(self) -> None:
        """Have the disks in step, then QEMU migrate to us, and relay that to the secondary."""
        self._session.begin()
        self._copying = asyncio.get_running_loop().create_task(self._copy())

    async def _copy(self) -> None:
        starting: asyncio.Future[None] | None = None
        try:
            await self._disks.begin()
            self._channel = await self._connect()
            await self._gate.install(self.netdevs)
            if self._session.comparing is not None:
                await self._session.comparing.begin(self.netdevs)
            with listening(self._path) as server:
                starting = asyncio.ensure_future(self._colo.start(f"unix:{self._path}"))
                qemu = await accept_one(server, {starting})
            if qemu is not None:
                self._follow(qemu)
            await starting
        except (ColoError, OSError) as error:
            self._lost(error)
        finally:
            if starting is not None and not starting.cancel():
                starting.exception()  # nobody asks for it any more

    def _follow(self, qemu: socket.socket) -> None:
        """Relay from QEMU to the secondary."""
        assert self._channel is not None
        coder = self._coder if self._is_coded() else None
        self._relay = Relay(
            qemu,
            self._channel,
            self._area,
            self._limits,
            self._colo.return_path,
            coder,
            self._received,
            self._session.came,
            self._lost,
            self._left_by_qemu,
        )
        self._channel = None  # it is the relay's
        self._session.carrier = self._relay
        self._begun()

    def _received(self, message: Message) -> None:
        self._session.received(message)
        if message.kind is COLOMessage.CHECKPOINT_READY and self._relay is not None:
            self._relay.room = self._room
            self._relay.hurries = not self._is_aside

    def close(self) -> None:
        """The session is over: nothing more goes to the secondary, and no checkpoint begins."""
        self._session.end()
        if self._session.comparing is not None:
            self._session.comparing.close()
        if self._copying is not None and self._copying is not asyncio.current_task():
            self._copying.cancel()
        self._copying = None
        self._disks.close()  # before anyone asks QEMU, whose writes may wait for it
        if self._session.machine.can(CourierEvent.LOST):
            self._session.machine.handle(CourierEvent.LOST)
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def open(self) -> None:
        """The VM runs alone: let out what is held, and take the gate out behind that."""
        machine = self._session.machine
        for event in (CourierEvent.FAILOVER, CourierEvent.RESUMED):
            for effect in machine.handle(event):
                if effect.do is Do.RELEASE:
                    self._gate.open()
        self._removing = asyncio.get_running_loop().create_task(self._take_out())

    async def _take_out(self) -> None:
        """Take out of QEMU what stands before its cards."""
        if self._session.comparing is not None:
            await self._session.comparing.remove()
        await self._gate.remove()

    async def gate_is_out(self) -> None:
        """Wait until nothing of gate and mirrors is left in QEMU, if there was something."""
        removing, self._removing = self._removing, None
        if removing is not None:
            await removing
        await self._disks.is_out()

    async def end(self) -> None:
        """No session follows: leave nothing of it behind, in QEMU neither, if that still lives."""
        copying = self._copying
        self.close()
        if copying is not None:
            await asyncio.wait({copying})
        await self.gate_is_out()


def _coder(config: VmConfig) -> Encoder | None:
    """What the VM file lets be done to send less."""
    if not config.wire.is_used:
        return None
    slots = int(config.wire.compare_mib * (1 << 20)) // PAGE_SIZE
    sent = SentPages(slots, memoryview(reserve(slots * PAGE_SIZE))) if slots else None
    return Encoder(sent, config.wire.compress, time.monotonic)
