"""A protected session on the primary: what the secondary's messages mean for gate and clock.

QEMU performs the primary's role; this follows it by the secondary's messages alone.  What QEMU
does between two of them is not seen: it is told to the machine as done when the next message
proves it.  So the machine's table and its invariants hold here too, above all that packets are
released by VMSTATE_RECEIVED and by nothing else.
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
from colo.guest.outgoing import ColoPrimary
from colo.network.pace import due_at
from colo.node.figures import summarise, summary
from colo.node.netgate import NetGate
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.primary import Primary
from colo.protocol.states import Do, PrimaryEvent, PrimaryState

__all__ = ["Checkpointing"]

_SAMPLES: Final = 1024


class Checkpointing:
    """Follows the checkpoints of one VM, and asks for them; ``begin`` starts a session.

    ``on_protected`` is called when the secondary has the first copy.
    """

    def __init__(
        self,
        config: VmConfig,
        colo: ColoPrimary,
        gate: NetGate,
        on_protected: Callable[[], None],
    ) -> None:
        self._config = config
        self._colo = colo
        self._gate = gate
        self._on_protected = on_protected
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._resumed_at = 0.0
        self._stopped_s = 0.0
        self._stopped: deque[float] = deque(maxlen=_SAMPLES)
        self._covered: deque[float] = deque(maxlen=_SAMPLES)
        gate.on_held = self.schedule
        self.machine = Primary(config.name)
        self.count = 0
        self.safe_at: float | None = None

    def begin(self) -> None:
        """A new session: nothing is protected yet."""
        self.machine = Primary(self._config.name)

    def end(self) -> None:
        """The session is over: ask for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def received(self, message: Message) -> None:
        """Take a message of the secondary, before QEMU gets it.  Raises UnexpectedMessage."""
        machine, now = self.machine, time.monotonic()
        if message.kind is COLOMessage.CHECKPOINT_READY and machine.can(PrimaryEvent.MIGRATED):
            machine.handle(PrimaryEvent.MIGRATED)
        elif message.kind is COLOMessage.CHECKPOINT_REPLY and machine.can(
            PrimaryEvent.CHECKPOINT_DUE
        ):
            machine.handle(PrimaryEvent.CHECKPOINT_DUE)
        done = {effect.do for effect in machine.receive(message)}
        if Do.SUSPEND in done:
            self._stopped_at = now
            machine.handle(PrimaryEvent.SUSPENDED)
            machine.handle(PrimaryEvent.RAM_SAVED)
            machine.handle(PrimaryEvent.DEVICES_SAVED, 0)
        if Do.RELEASE in done:
            self._gate.release()
            self._covered.append(now - self._stopped_at)
            self.safe_at = time.time()
        if Do.RESUME in done:
            machine.handle(PrimaryEvent.RESUMED)
            self._resumed(message.kind, now)

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
        """Ask for a checkpoint, now or when one is due."""
        if self.machine.state is not PrimaryState.RUNNING:
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
        loop = asyncio.get_running_loop()
        if due <= time.monotonic():
            self._asking = asyncio.create_task(self._ask())
        elif self._timer is None or due < self._timer.when():
            self.end()
            self._timer = loop.call_at(due, self._due)

    def overdue(self, limit_s: float) -> bool:
        """Whether a checkpoint has been waited for longer than ``limit_s``."""
        limit = time.monotonic() - limit_s
        if self.machine.state is not PrimaryState.RUNNING:
            return self.machine.vm.value == "stop" and self._stopped_at < limit
        held_since = self._gate.held_since
        return held_since is not None and max(held_since, self._resumed_at) < limit

    def figures(self) -> dict[str, Any]:
        """The phases of the last checkpoints, in milliseconds."""
        return {
            "covered": summary(summarise(self._covered), 1e3),
            "stopped": summary(summarise(self._stopped), 1e3),
        }

    def _go_on(self) -> None:
        """QEMU has the message that lets its VM go on: now its packets can go too.

        Before, they would only fill the queue of a netdev that sends nothing while the VM is
        stopped, and drops what is over 10,000 frames.
        """
        self._gate.flush()
        self.schedule()

    def _due(self) -> None:
        self._timer = None
        self.schedule()

    async def _ask(self) -> None:
        with contextlib.suppress(GuestError):  # a dying QEMU is noticed where it dies
            await self._colo.checkpoint(round(self._config.age_max_ms))
