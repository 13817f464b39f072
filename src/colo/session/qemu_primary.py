"""A protected session on the primary: what comes from either side means for gate, disks and clock.

QEMU performs the primary's role; ``protocol.courier`` takes its checkpoints to the secondary, and
this carries out what that one asks for: above all it releases packets by the secondary's
VMSTATE_RECEIVED and by nothing else.

A checkpoint is taken aside, and the VM runs on while it is sent; one that an operator waits for
goes through, so that the VM does nothing more that might be undone, and so does each where the VM
file wants that.

The way from a held packet to a stopped VM is kept short.  QEMU requests each checkpoint soon after
the last one has ended, by its own timer; the secondary replies; and the reply is held here until
the checkpoint is due: the VM runs until QEMU has it.  So the asking (a message to the other host
and one back, and no command to QEMU) costs the packet nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from colo.config import VmConfig
from colo.errors import ColoError, GuestError
from colo.packets.costs import Costs
from colo.packets.pace import due_at
from colo.protocol.courier import Courier
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import CourierEvent, CourierState, Do, Effect
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.session.comparing import Comparing
from colo.session.primary_stream import Came
from colo.session.standstill import StandStill
from colo.status.figures import Times, summarise, summary

__all__ = ["Checkpointing"]

#: A request that has not led to a reply by then is asked for; QEMU's timer is of the host's clock.
_LATE_S: Final = 0.25
#: Between checkpoints the secondary has what it was sent, or waits for no more than its own host.
_IDLE: Final = frozenset({CourierState.REPLIED, CourierState.LOST, CourierState.SOLO})


class Carrier(Protocol):
    """What brings QEMU's stream to the secondary, and messages to QEMU: see Relay."""

    @property
    def whole_bytes(self) -> int:
        """How many bytes the checkpoint has that is whole."""

    @property
    def whole_sent_at(self) -> float | None:
        """When the last byte of it was sent; None before that."""

    @property
    def saved_s(self) -> float | None:
        """How long after its beginning its devices were saved, where that is to be told."""

    def send(self, message: Message) -> None:
        """Say a message to QEMU."""


class Checkpointing:
    """Follows the checkpoints of one VM, and times them; ``begin`` starts a session.

    ``on_protected`` is called when the secondary has the first copy; ``cut`` with the checkpoint's
    number when all that the VM wrote to its disks so far is of it; ``say_saved`` with that and how
    long after the VM was stopped its devices were saved, where the secondary could not tell;
    ``on_broken`` with an error of ours, which ends the session.  ``check_heard`` gets when what the
    secondary answers was sent, and raises ChannelLost where that one may have taken over meanwhile:
    then nothing is released any more.  ``carrier`` is set once there is one.
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
        check_heard: Callable[[float | None], None] = lambda at: None,
    ) -> None:
        self._vm_name, self._pace = config.name, config.pace
        self._colo = colo
        self._gate = gate
        self._awake = awake
        self._still = still
        self._on_protected = on_protected
        self._is_aside = config.checkpoints.aside_mib > 0
        self._on_broken = on_broken
        self._check_heard = check_heard
        self._timer: asyncio.TimerHandle | None = None
        self._nudging: asyncio.Task[None] | None = None
        self._stopped_at = 0.0
        self._resumed_at = 0.0
        self._asked = False  # QEMU has, for the next checkpoint: its VM runs
        self._safe_since: float | None = None  # what the secondary has is of then
        self._stopped_s = 0.0
        self._stopped = Times()
        self._covered = Times()
        gate.on_held = self.schedule
        self._costs = Costs()
        self._ran_s = 0.0
        self.cut: Callable[[int], None] = lambda number: None
        self.say_saved: Callable[[int, float], None] = lambda number, seconds: None
        self.carrier: Carrier | None = None
        #: What compares with a secondary VM, where one may run.
        self.comparing: Comparing | None = None
        self.machine = Courier(config.name)
        self._over = False
        self._wanted: asyncio.Future[None] | None = None
        self._begun_for: asyncio.Future[None] | None = None
        self._urged = False
        self._moved: tuple[int, CourierState | None] = (-1, None)
        self._moved_at = 0.0
        self.count = 0
        self.safe_at: float | None = None

    def have_comparing(self, comparing: Comparing) -> None:
        """A secondary VM may run, and what it says as well leaves before a checkpoint."""
        self.comparing = comparing
        comparing.urge, comparing.schedule = self.urge, self.schedule

    def begin(self) -> None:
        """A new session: nothing is protected yet."""
        self.machine = Courier(self._vm_name)
        self._over = self._asked = False
        self._moved = (-1, None)
        self._safe_since = None

    def end(self) -> None:
        """The session is over: begin no checkpoint any more."""
        self._over = True
        self._awake.close()
        self._cancel()

    async def fresh(self) -> None:
        """Have a checkpoint taken now; return when it is safe, and what it covers may leave.

        The VM stands still until then, and runs on a moment later.
        """
        wanted = self._wanted = asyncio.get_running_loop().create_future()
        self.schedule()
        await wanted

    def urge(self) -> None:
        """A checkpoint is wanted as soon as the pace lets there be one, also of an idle VM."""
        self._urged = True
        self.schedule()

    def received(self, message: Message) -> None:
        """Take a message of the secondary.

        Raises UnexpectedMessage, and what ``check_heard`` raises.
        """
        if message.kind in (COLOMessage.VMSTATE_RECEIVED, COLOMessage.CHECKPOINT_READY):
            # A host that stood still may find this in its socket, long after.
            assert self.carrier is not None
            self._check_heard(self.carrier.whole_sent_at)
        self._perform(self.machine.receive(message), message.kind, time.monotonic())
        if message.kind is COLOMessage.VMSTATE_LOADED:
            self._expect_request()
        self.schedule()

    def came(self, what: Came) -> None:
        """A part of QEMU's stream has come by, whole; the secondary has not all of it yet."""
        match what:
            case Came.COPY:
                self._handle(CourierEvent.PASSED)
            case Came.CHECKPOINT:
                assert self.carrier is not None
                if self.carrier.saved_s is not None:
                    self.say_saved(self.machine.number, self.carrier.saved_s)
                is_through = self._begun_for is not None or not self._is_aside
                self._handle(CourierEvent.PASSED if is_through else CourierEvent.TAKEN)
            case Came.REQUEST:
                self._asked = True
                self._gate.flush()  # the VM runs: much may go now too

    def _handle(self, event: CourierEvent) -> None:
        self._perform(self.machine.handle(event), event, time.monotonic())

    def _perform(
        self, effects: tuple[Effect, ...], after: COLOMessage | CourierEvent, now: float
    ) -> None:
        for effect in effects:
            match effect.do:
                case Do.SEND:
                    assert effect.message is not None and self.carrier is not None
                    self.carrier.send(Message(effect.message))
                    if effect.message is COLOMessage.CHECKPOINT_REPLY:
                        self._ran_s = now - self._resumed_at
                        self._stopped_at, self._asked = now, False
                        self._awake.checkpoint()
                case Do.HOLD:
                    self._gate.hold()  # the VM is still stopped: what it sent before is covered
                    self._safe_since = now
                    if self.comparing is not None:
                        self._gate.release()  # what was held during the copy, which covers it
                        self.comparing.safe(self.machine.number, 0.0)
                case Do.COVER:
                    self._gate.cover()
                    if self.comparing is not None:
                        self.comparing.cover(self.machine.number)
                    self.cut(self.machine.number)
                case Do.RELEASE:
                    self._released(now)
                case Do.RESUME:
                    self._resumed(after, now)

    def _released(self, now: float) -> None:
        self._gate.release()
        if self._asked:
            self._gate.flush()
        covered_s = now - self._stopped_at
        self._covered.append(covered_s)
        if self.carrier is not None and self.carrier.whole_bytes:
            self._costs.covered(self.carrier.whole_bytes, covered_s)
        self._safe_since, self.safe_at = self._stopped_at, time.time()
        self.count += 1
        if self.comparing is not None:
            self.comparing.safe(self.machine.number, covered_s)

    def _resumed(self, after: COLOMessage | CourierEvent, now: float) -> None:
        if after is COLOMessage.CHECKPOINT_READY:
            self._on_protected()
            self._still.protected()
            if self._colo.stood_since is not None:
                self._still.stopped(now - self._colo.stood_since, now)
        else:
            self._stopped_s = now - self._stopped_at
            if self.carrier is not None and self.carrier.whole_bytes:
                self._costs.stopped(self._ran_s, self.carrier.whole_bytes, self._stopped_s)
            self._stopped.append(self._stopped_s)
            self._still.stopped(self._stopped_s, now)
        self._resumed_at = now
        asyncio.get_running_loop().call_soon(self._go_on)  # when QEMU has heard of it

    def schedule(self) -> None:
        """Have the next checkpoint taken, now or when it is due."""
        if self._over or self.machine.state is not CourierState.REPLIED:
            return
        self._cancel()
        due = self._due_at()
        now = time.monotonic()
        if due <= now or self._wanted is not None or self._urged:
            self._begin()
        else:
            self._timer = asyncio.get_running_loop().call_at(due, self.schedule)

    def _due_at(self) -> float:
        """When the next checkpoint is."""
        decide = due_at if self.comparing is None else self.comparing.due_at
        held = self._gate.held_since, self._gate.held_bytes
        return decide(self._pace, self._costs, *held, self._resumed_at, self._stopped_s)

    def _begin(self) -> None:
        """It is time, and the secondary has replied: QEMU stops the VM when it hears of that."""
        self._begun_for, self._wanted, self._urged = self._wanted, None, False
        try:
            self._handle(CourierEvent.CHECKPOINT_DUE)
        except ColoError as error:
            self._on_broken(error)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def overdue(self, limit_s: float) -> bool:
        """Whether the VM has stood still for ``limit_s`` for one checkpoint."""
        is_checkpoint = self.machine.state in (CourierState.STOPPED, CourierState.WAITING)
        return is_checkpoint and time.monotonic() - self._stopped_at > limit_s

    def stalled(self, moved: int, limit_s: float) -> bool:
        """Whether nothing has moved for ``limit_s`` that should.

        ``moved``: how many bytes have, either way.  To be asked again and again: it remembers when
        there were more.
        """
        now = time.monotonic()
        if self.machine.state in _IDLE or (moved, self.machine.state) != self._moved:
            self._moved, self._moved_at = (moved, self.machine.state), now
        return now - self._moved_at > limit_s

    @property
    def lag_s(self) -> float | None:
        """How old the state is that the secondary has; None where it has none."""
        if self._safe_since is None or self._over:
            return None
        return time.monotonic() - self._safe_since

    def status(self) -> dict[str, Any]:
        """What the status file has of the checkpoints; phases in milliseconds."""
        return {
            "checkpoint": self.count or None,
            "checkpoint_at": self.safe_at,
            "clock": self._still.status(),
            "hybrid": self.comparing.status() if self.comparing is not None else None,
            "phases_ms": {
                "covered": summary(summarise(self._covered), 1e3),
                "stopped": summary(summarise(self._stopped), 1e3),
            },
            "times": {"covered": self._covered.counted(), "stopped": self._stopped.counted()},
        }

    def _go_on(self) -> None:
        """QEMU has the message that lets its VM go on: now all that was released can go."""
        if self.machine.state is CourierState.RUNNING:
            self._gate.flush()  # all that may go is of before the VM runs
            wanted, self._begun_for = self._begun_for, None
            if wanted is not None and not wanted.done():
                wanted.set_result(None)
            self._expect_request()

    def _expect_request(self) -> None:
        if not self._over and self.machine.state is CourierState.RUNNING:
            self._cancel()
            self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    def _nudge(self) -> None:
        """No reply yet: either the secondary is still busy, or QEMU has not asked."""
        if not self._asked:
            self._nudging = asyncio.create_task(self._ask())
        self._timer = asyncio.get_running_loop().call_later(_LATE_S, self._nudge)

    async def _ask(self) -> None:
        with contextlib.suppress(GuestError):  # a dying QEMU is noticed where it dies
            await self._colo.request()
