"""A protected session on the primary: what the secondary's messages mean for gate and clock.

QEMU performs the primary's role; ``protocol.observer`` follows it by the secondary's messages
alone, and this carries out what that one asks for: above all it releases packets by
VMSTATE_RECEIVED and by nothing else.

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
from colo.errors import ColoError, GuestError
from colo.packets.pace import due_at
from colo.protocol.machine import VMState
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.observer import Observer
from colo.protocol.tables import Do, Effect, ObserverEvent, ObserverState
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.session.standstill import StandStill
from colo.status.figures import summarise, summary

__all__ = ["Checkpointing"]

_SAMPLES: Final = 1024
#: A request that has not led to a reply by then is asked for; QEMU's timer is of the host's clock.
_LATE_S: Final = 0.25


class Checkpointing:
    """Follows the checkpoints of one VM, and times them; ``begin`` starts a session.

    ``on_protected`` is called when the secondary has the first copy; ``pass_on`` with the reply
    that was held, for QEMU; ``on_broken`` with an error of ours, which ends the session.
    ``check_heard`` raises ChannelLost where the secondary may have taken over meanwhile: then
    nothing is released any more.
    """

    def __init__(
        self,
        config: VmConfig,
        colo: ColoPrimary,
        gate: NetGate,
        awake: Awake,
        still: StandStill,
        on_protected: Callable[[], None],
        on_broken: Callable[[ColoError], None],
        check_heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._vm_name, self._pace = config.name, config.pace
        self._colo = colo
        self._gate = gate
        self._awake = awake
        self._still = still
        self._on_protected = on_protected
        self._on_broken = on_broken
        self._check_heard = check_heard
        self._timer: asyncio.TimerHandle | None = None
        self._nudging: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._resumed_at = 0.0
        self._stopped_s = 0.0
        self._stopped: deque[float] = deque(maxlen=_SAMPLES)
        self._covered: deque[float] = deque(maxlen=_SAMPLES)
        gate.on_held = self.schedule
        self.pass_on: Callable[[Message], None] = lambda message: None
        self.machine = Observer(config.name)
        self._over = False
        self._wanted: asyncio.Future[None] | None = None
        self._begun_for: asyncio.Future[None] | None = None
        self._urged = False
        self._sent = -1
        self._sent_at = 0.0
        self.count = 0
        self.safe_at: float | None = None

    def begin(self) -> None:
        """A new session: nothing is protected yet."""
        self.machine = Observer(self._vm_name)
        self._over = False
        self._sent = -1

    def end(self) -> None:
        """The session is over: begin no checkpoint any more."""
        self._over = True
        self._awake.close()
        self._cancel()

    async def fresh(self) -> None:
        """Have a checkpoint taken now; return when it is safe, and what it covers may leave."""
        wanted = self._wanted = asyncio.get_running_loop().create_future()
        self.schedule()
        await wanted

    def urge(self) -> None:
        """A checkpoint is wanted as soon as the pace lets there be one, also of an idle VM."""
        self._urged = True
        self.schedule()

    def received(self, message: Message) -> bool:
        """Take a message of the secondary; return whether QEMU may have it at once.

        Raises UnexpectedMessage, and what ``check_heard`` raises.
        """
        if message.kind in (COLOMessage.VMSTATE_RECEIVED, COLOMessage.CHECKPOINT_READY):
            self._check_heard()  # a host that stood still may find this in its socket, long after
        self._perform(self.machine.receive(message), message.kind, time.monotonic())
        if self.machine.state is not ObserverState.REPLIED:
            return True
        self.schedule()
        return False

    def _perform(
        self, effects: tuple[Effect, ...], after: COLOMessage | ObserverEvent, now: float
    ) -> None:
        for effect in effects:
            if effect.do is Do.SEND:
                assert effect.message is not None
                self._stopped_at = now
                self.pass_on(Message(effect.message))
                self._awake.checkpoint()
            elif effect.do is Do.HOLD:
                self._gate.hold()  # the VM is still stopped: what it sent before is covered
            elif effect.do is Do.RELEASE:
                self._gate.release()
                self._covered.append(now - self._stopped_at)
                self.safe_at = time.time()
            elif effect.do is Do.RESUME:
                self._resumed(after, now)

    def _resumed(self, after: COLOMessage | ObserverEvent, now: float) -> None:
        if after is COLOMessage.CHECKPOINT_READY:
            self._on_protected()
            self._still.protected()
            if self._colo.stood_since is not None:
                self._still.stopped(now - self._colo.stood_since, now)
        else:
            self.count += 1
            self._stopped_s = now - self._stopped_at
            self._stopped.append(self._stopped_s)
            self._still.stopped(self._stopped_s, now)
        self._resumed_at = now
        asyncio.get_running_loop().call_soon(self._go_on)

    def schedule(self) -> None:
        """Have the next checkpoint taken, now or when it is due."""
        if self._over or self.machine.state is not ObserverState.REPLIED:
            return
        self._cancel()
        due = due_at(
            self._pace,
            self._gate.held_since,
            self._gate.held_bytes,
            self._resumed_at,
            self._stopped_s,
        )
        now = time.monotonic()
        if due <= now or self._wanted is not None or self._urged:
            self._begin(now)
        else:
            self._timer = asyncio.get_running_loop().call_at(due, self.schedule)

    def _begin(self, now: float) -> None:
        """It is time, and the secondary has replied: QEMU stops the VM when it hears of that."""
        event = ObserverEvent.CHECKPOINT_DUE
        self._begun_for, self._wanted, self._urged = self._wanted, None, False
        try:
            self._perform(self.machine.handle(event), event, now)
        except ColoError as error:
            self._on_broken(error)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def overdue(self, limit_s: float) -> bool:
        """Whether a checkpoint, or QEMU's request for it, has not come for ``limit_s``."""
        limit = time.monotonic() - limit_s
        if self.machine.state is ObserverState.RUNNING:
            return self._resumed_at < limit
        return self.machine.vm is VMState.STOP and self._stopped_at < limit

    def stalled(self, sent: int, limit_s: float) -> bool:
        """Whether the first copy, of which ``sent`` bytes are gone, stands still for ``limit_s``.

        To be asked again and again: it remembers when there was more.
        """
        if self.machine.state is not ObserverState.COPYING or sent != self._sent:
            self._sent, self._sent_at = sent, time.monotonic()
        return time.monotonic() - self._sent_at > limit_s

    def status(self) -> dict[str, Any]:
        """What the status file has of the checkpoints; phases in milliseconds."""
        return {
            "checkpoint": self.count or None,
            "checkpoint_at": self.safe_at,
            "clock": self._still.status(),
            "phases_ms": {
                "covered": summary(summarise(self._covered), 1e3),
                "stopped": summary(summarise(self._stopped), 1e3),
            },
        }

    def _go_on(self) -> None:
        """QEMU has the message that lets its VM go on: now all that was released can go."""
        self._gate.flush()
        wanted, self._begun_for = self._begun_for, None
        if wanted is not None and not wanted.done():
            wanted.set_result(None)
        if not self._over and self.machine.state is ObserverState.RUNNING:
            self._cancel()
            self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    def _nudge(self) -> None:
        """No reply yet: either the secondary is still busy, or QEMU has not asked."""
        self._nudging = asyncio.create_task(self._ask())
        self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    async def _ask(self) -> None:
        with contextlib.suppress(GuestError):  # a dying QEMU is noticed where it dies
            await self._colo.request()
