"""A protected session on the primary: what the secondary's messages mean for gate and clock.

QEMU performs the primary's role; this follows it by the secondary's messages alone.  What QEMU
does between two of them is not seen: it is told to the machine as done when the next message
proves it.  So the machine's table and its invariants hold here too, above all that packets are
released by VMSTATE_RECEIVED and by nothing else.

The way from a held packet to a stopped VM is kept short.  QEMU requests each checkpoint soon after
the last one has ended, by its own timer; the secondary replies; and the reply is held here until
the checkpoint is due: the VM runs until QEMU has it.  So the asking (a message to the other host
and one back, and no command to QEMU) costs the packet nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import GuestError
from colo.packets.pace import due_at
from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.primary import Primary
from colo.protocol.tables import Do, PrimaryEvent, PrimaryState
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.status.figures import summarise, summary

__all__ = ["Checkpointing"]

_SAMPLES: Final = 1024
#: A request that has not led to a reply by then is asked for; QEMU's timer is of the host's clock.
_LATE_S: Final = 0.25


class Checkpointing:
    """Follows the checkpoints of one VM, and times them; ``begin`` starts a session.

    ``on_protected`` is called when the secondary has the first copy; ``pass_on`` with the reply
    that was held, for QEMU.
    """

    def __init__(
        self,
        config: VmConfig,
        colo: ColoPrimary,
        gate: NetGate,
        awake: Awake,
        on_protected: Callable[[], None],
    ) -> None:
        self._vm_name, self._pace = config.name, config.pace
        self._colo = colo
        self._gate = gate
        self._awake = awake
        self._on_protected = on_protected
        self._timer: asyncio.TimerHandle | None = None
        self._nudging: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._resumed_at = 0.0
        self._stopped_s = 0.0
        self._stopped: deque[float] = deque(maxlen=_SAMPLES)
        self._covered: deque[float] = deque(maxlen=_SAMPLES)
        gate.on_held = self.schedule
        self.pass_on: Callable[[Message], None] = lambda message: None
        self._replied = False
        self.machine = Primary(config.name)
        self._sent = -1
        self._sent_at = 0.0
        self.count = 0
        self.safe_at: float | None = None

    def begin(self) -> None:
        """A new session: nothing is protected yet."""
        self.machine = Primary(self._vm_name)
        self._sent = -1

    def end(self) -> None:
        """The session is over: begin no checkpoint any more."""
        self._replied = False
        self._awake.close()
        self._cancel()

    def received(self, message: Message) -> bool:
        """Take a message of the secondary; return whether QEMU may have it at once.

        Raises UnexpectedMessage.
        """
        machine, now = self.machine, time.monotonic()
        if message.kind is COLOMessage.CHECKPOINT_READY and machine.can(PrimaryEvent.MIGRATED):
            machine.handle(PrimaryEvent.MIGRATED)
        elif message.kind is COLOMessage.CHECKPOINT_REPLY and not self._replied:
            self._replied = machine.can(PrimaryEvent.CHECKPOINT_DUE)
            if self._replied:
                self.schedule()
                return False
        done = {effect.do for effect in machine.receive(message)}
        if Do.RELEASE in done:
            self._gate.release()
            self._covered.append(now - self._stopped_at)
            self.safe_at = time.time()
        if Do.RESUME in done:
            machine.handle(PrimaryEvent.RESUMED)
            self._resumed(message.kind, now)
        return True

    def _begin(self) -> None:
        """It is time, and the secondary has replied: QEMU stops the VM when it hears of that."""
        self._replied = False
        self._stopped_at = time.monotonic()
        reply = Message(COLOMessage.CHECKPOINT_REPLY)
        self.machine.handle(PrimaryEvent.CHECKPOINT_DUE)
        self.machine.receive(reply)
        self.pass_on(reply)
        self._awake.checkpoint()
        for event in (PrimaryEvent.SUSPENDED, PrimaryEvent.RAM_SAVED):
            self.machine.handle(event)
        self.machine.handle(PrimaryEvent.DEVICES_SAVED, 0)

    def _resumed(self, after: COLOMessage, now: float) -> None:
        if after is COLOMessage.CHECKPOINT_READY:
            self._gate.hold()  # the VM is still stopped: what it sent before is covered
            self._on_protected()
        else:
            self.count += 1
            self._stopped_s = now - self._stopped_at
            self._stopped.append(self._stopped_s)
        self._resumed_at = now
        asyncio.get_running_loop().call_soon(self._go_on)

    def schedule(self) -> None:
        """Have the next checkpoint taken, now or when it is due."""
        if not self._replied:
            return
        self._cancel()
        due = due_at(
            self._pace,
            self._gate.held_since,
            self._gate.held_bytes,
            self._resumed_at,
            self._stopped_s,
        )
        if due <= time.monotonic():
            self._begin()
        else:
            self._timer = asyncio.get_running_loop().call_at(due, self.schedule)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def overdue(self, limit_s: float) -> bool:
        """Whether a checkpoint, or QEMU's request for it, has not come for ``limit_s``."""
        limit = time.monotonic() - limit_s
        if self.machine.state is PrimaryState.RUNNING:
            return not self._replied and self._resumed_at < limit
        return self.machine.vm is VMState.STOP and self._stopped_at < limit

    def stalled(self, sent: int, limit_s: float) -> bool:
        """Whether the first copy, of which ``sent`` bytes are gone, stands still for ``limit_s``.

        To be asked again and again: it remembers when there was more.
        """
        if self.machine.state is not PrimaryState.MIGRATING or sent != self._sent:
            self._sent, self._sent_at = sent, time.monotonic()
        return time.monotonic() - self._sent_at > limit_s

    def status(self) -> dict[str, Any]:
        """What the status file has of the checkpoints; phases in milliseconds."""
        return {
            "checkpoint": self.count or None,
            "checkpoint_at": self.safe_at,
            "phases_ms": {
                "covered": summary(summarise(self._covered), 1e3),
                "stopped": summary(summarise(self._stopped), 1e3),
            },
        }

    def _go_on(self) -> None:
        """QEMU has the message that lets its VM go on: now all that was released can go."""
        self._gate.flush()
        if not self._replied:
            self._cancel()
            self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    def _nudge(self) -> None:
        """No reply yet: either the secondary is still busy, or QEMU has not asked."""
        self._nudging = asyncio.create_task(self._ask())
        self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    async def _ask(self) -> None:
        with contextlib.suppress(GuestError):  # a dying QEMU is noticed where it dies
            await self._colo.request()
