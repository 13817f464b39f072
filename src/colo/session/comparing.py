"""Hybrid mode on host A: what the network brings goes to both VMs, and what both say leaves.

A secondary VM is of one checkpoint.  While the next one is on its way nothing is compared: what the
VM said before it leaves with it, and what it says from then on is compared with the secondary VM
that begins from it.  Where none runs, or a difference was found, output waits for checkpoints, as
in periodic mode.

Whether the next secondary VM is worth its while is decided by what the last ones have brought
(``packets.worth``).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import ColoError, PeerError
from colo.packets.comparing import Counts, OutputRule
from colo.packets.costs import Costs
from colo.packets.hybrid_words import Kind, Said
from colo.packets.pace import Pace, due_at
from colo.packets.worth import Worth
from colo.qemu.mirrored_input import Mirrors
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.hybrid_link import HybridHello, HybridLink, call_hybrid
from colo.transport.address import Address

__all__ = ["Comparing", "Other"]

_AGAIN_S: Final = 1.0
#: Output waits no longer for a secondary VM that has yet to begin, and to catch up.
_CATCH_UP_S: Final = 0.5
_HEARD_S: Final = 0.01
#: Beside a secondary VM its primary runs at least so long, where nothing waits for a checkpoint:
#: how much it writes is known of short runs, and says too much of a long one.
_RUN_S: Final = 1.0


class Other(Enum):
    """The secondary VM, as host A knows of it."""

    NONE = "there is none"
    READY = "one can begin from the next checkpoint"
    BEGINS = "it begins from the last checkpoint"
    RUNS = "it runs, from the last checkpoint"


#: It has the last checkpoint.
_THERE: Final = (Other.BEGINS, Other.RUNS)


class Comparing:
    """The comparing of the VM of ``qemu``, whose output ``gate`` holds.

    ``who`` gives the grant's number and holder.  ``urge`` is called when a checkpoint is wanted at
    once, ``schedule`` when it may be due at another time than before.  ``check_heard`` raises
    ChannelLost where the other host may have taken over, and ``on_broken`` gets that.
    """

    def __init__(
        self,
        qemu: Monitor,
        gate: NetGate,
        config: VmConfig,
        to: Address,
        folder: Path,
        who: Callable[[], tuple[int, str]],
        check_heard: Callable[[float | None], None],
        on_broken: Callable[[ColoError], None],
        say: Callable[[str], None],
    ) -> None:
        self._gate, self._to, self._vm_name = gate, to, config.name
        self._limit = int(config.network.hold_limit_mib * (1 << 20))
        self._who, self._check_heard, self._on_broken, self._say = who, check_heard, on_broken, say
        self._patience_s = config.hybrid.patience_ms / 1e3
        self._age_max_s = config.hybrid.age_max_ms / 1e3
        self._mirrors = Mirrors(qemu, folder, self._input)
        self._link: HybridLink | None = None
        self._calling: asyncio.Task[None] | None = None
        self._cards: list[OutputRule] = []
        self._counts = Counts()
        self._covered = self._safe = -1
        self._is_cut = False  # the other host knows what came after the last checkpoint
        self.other = Other.NONE
        self._since = 0.0
        self._has_caught_up = False
        self._heard_at = 0.0
        self._worth = Worth(config.mode == "hybrid")
        self._spells = 0
        self._causes: dict[str, int] = {}
        self._told: str | None = None
        self.urge: Callable[[], None] = lambda: None
        self.schedule: Callable[[], None] = lambda: None

    # -- a session ------------------------------------------------------------------------

    async def begin(self, netdevs: Sequence[str]) -> None:
        """Compare from the first copy on; the gate is in QEMU.  Raises GuestError."""
        self._covered = self._safe = -1
        self.other, self._is_cut = Other.NONE, False
        virtio = self._gate.with_headers
        self._cards = [OutputRule(self._limit, self._counts, each in virtio) for each in netdevs]
        await self._mirrors.install(netdevs, virtio)
        self._gate.set_rules([partial(self._says, number) for number in range(len(netdevs))])
        self._calling = asyncio.get_running_loop().create_task(self._call(len(netdevs)))

    async def _call(self, cards: int) -> None:
        """Have a link, again and again."""
        while True:
            try:
                sock = await call_hybrid(self._to, HybridHello(self._vm_name, *self._who(), cards))
            except ColoError as error:
                self._tell(f"no secondary VM: {error}")
                await asyncio.sleep(_AGAIN_S)
                continue
            lost = asyncio.get_running_loop().create_future()
            self._link = HybridLink(sock, cards, self._limit, self._hear, partial(_set, lost))
            try:
                await lost
            finally:
                self._unlinked()
            self._tell(f"the secondary VM is out of reach: {lost.result()}")
            await asyncio.sleep(_AGAIN_S)

    def _unlinked(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self._gone("link")

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._say(text)

    def close(self) -> None:
        """The session is over: nothing leaves by the rule any more."""
        if self._calling is not None:
            self._calling.cancel()
            self._calling = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self.other = Other.NONE
        self._cards = []
        self._gate.set_rules([])

    async def remove(self) -> None:
        """Take what is of it out of QEMU."""
        await self._mirrors.remove()

    # -- checkpoints ----------------------------------------------------------------------

    def cover(self, number: int) -> None:
        """The VM is stopped for this checkpoint, which covers what it has said and got."""
        self._mirrors.drain()
        self._covered = number
        if self.other in _THERE:
            differs = next((each.differs for each in self._cards if each.differs), None)
            lags = self._waited_s(time.monotonic()) >= self._worth.patience(self._patience_s)
            self._ended(differs or ("lag" if lags else "pace"))
        for each in self._cards:
            each.cover()
        if self._link is not None:
            self._link.say(Said(Kind.CUT, number=number))
            self._is_cut = True

    def safe(self, number: int, held_s: float) -> None:
        """That checkpoint is safe.  ``held_s``: how long output was held for it."""
        self._safe = number
        self._worth.periodic(held_s)
        self._want()

    def _want(self) -> None:
        """Have a secondary VM begin, where one can and pays."""
        is_between = self._is_cut and self._safe == self._covered >= 0
        if self.other is Other.READY and is_between and self._worth.is_due(time.monotonic()):
            assert self._link is not None
            self.other, self._since = Other.BEGINS, time.monotonic()
            self._has_caught_up = False
            self._worth.begins(self._counts.alike, self._counts.waited_s)
            self._link.say(Said(Kind.START, number=self._safe))

    def _ended(self, cause: str) -> None:
        """There is none any more, and this is why."""
        self._causes[cause] = self._causes.get(cause, 0) + 1
        now, counts = time.monotonic(), self._counts
        self._worth.ended(now, counts.alike, counts.waited_s, self._waited_s(now))
        self.other = Other.NONE

    def _waited_s(self, now: float) -> float:
        """How long the oldest packet that waits has done so."""
        since = [each.waits_since for each in self._cards if each.waits_since is not None]
        return now - min(since, default=now)

    def _gone(self, cause: str) -> None:
        """None runs from the last checkpoint any more: what it has said has to be covered."""
        self._is_cut = self._is_cut and self._link is not None
        if self.other in _THERE:
            self._ended(cause)
            for each in self._cards:
                each.forget()
            self.urge()
        self.other = Other.NONE
        self.schedule()

    def _input(self, card: int, data: bytes) -> None:
        """The network brings this for the VM."""
        if self._link is not None and self._is_cut:
            self._link.say(Said(Kind.INPUT, card, payload=data))

    # -- output ---------------------------------------------------------------------------

    def _says(self, card: int, data: bytes, now: float) -> int:
        """The primary VM says this: how much may leave of all that it has said."""
        each = self._cards[card]
        count = each.primary(data, now)
        if each.differs is not None and self.other is Other.RUNS:
            self.schedule()
        return count if count and self._may_release() else 0

    def _compare(self, card: int, data: bytes) -> None:
        """The secondary VM says this."""
        now = time.monotonic()
        each = self._cards[card]
        self._release(card, each.secondary(data, now))
        if self.other is Other.RUNS and not self._has_caught_up:
            patience_s = self._worth.patience(self._patience_s)
            self._has_caught_up = self._waited_s(now) < patience_s / 2
        if each.differs is not None:
            self.schedule()
        if now - self._heard_at > _HEARD_S:
            self._say_heard(now)

    def _say_heard(self, now: float) -> None:
        """Say how much of what the secondary VM has said has left here, or would be said again."""
        self._heard_at = now
        for card, each in enumerate(self._cards):
            count = each.heard(now)
            if count and self._link is not None:
                self._link.say(Said(Kind.HEARD, card, count))

    def _release(self, card: int, count: int) -> None:
        if count and self._may_release():
            self._gate.release_first(card, count)

    def _may_release(self) -> bool:
        """Whether the other host still takes us for the primary; else the session ends."""
        try:
            self._check_heard(None)
        except ColoError as error:
            self._on_broken(error)
            return False
        return True

    def waits_until(self, pace: Pace, held_since: float | None, held_bytes: int) -> float | None:
        """Until when what is held waits for the secondary VM; None where it does not.

        Then it is as in periodic mode: none runs or is about to, or something has differed.  One
        that begins has to catch up first; one that has, and lags again, is behind for good.
        """
        if any(each.differs is not None for each in self._cards) or held_bytes >= pace.high_water:
            return None
        if self.other not in _THERE:
            return None
        if held_since is None:
            return math.inf
        if self._has_caught_up:
            return held_since + self._worth.patience(self._patience_s)
        return max(self._since, held_since) + _CATCH_UP_S

    def due_at(
        self,
        pace: Pace,
        costs: Costs,
        held_since: float | None,
        held_bytes: int,
        resumed_at: float,
        stopped_s: float,
    ) -> float:
        """Return when the next checkpoint is due: see ``packets.pace``."""
        until = self.waits_until(pace, held_since, held_bytes)
        if until is None:
            return due_at(pace, costs, held_since, held_bytes, resumed_at, stopped_s)
        relaxed = replace(pace, age_max_s=self._age_max_s)
        idle = due_at(relaxed, costs, None, 0, resumed_at, stopped_s)
        return min(until, max(resumed_at + _RUN_S, idle))

    def _hear(self, said: Said) -> None:
        match said.kind:
            case Kind.READY:
                if self.other is Other.NONE:
                    self.other = Other.READY
                    self._want()
            case Kind.RUNS if self.other is Other.BEGINS and said.number == self._covered:
                self.other = Other.RUNS
                self._spells += 1
                now = time.monotonic()
                for card, each in enumerate(self._cards):
                    self._release(card, each.live(now))
                self.schedule()
            case Kind.SAID if self.other in _THERE:
                if said.number == self._covered == self._safe:
                    self._compare(said.card, said.payload)
            case Kind.GONE if said.number == self._covered:
                self._told = None
                self._tell(said.payload.decode(errors="replace"))
                self._gone("secondary VM")
            case Kind.RUNS | Kind.SAID | Kind.GONE:
                pass  # of a secondary VM that a checkpoint has replaced meanwhile
            case other:
                raise PeerError(f"the hybrid link says {other.name} out of place")

    def status(self) -> dict[str, Any]:
        """What the status file has of it."""
        now = time.monotonic()
        return {
            "other": self.other.name,
            "meaning": self.other.value,
            "link": self._link is not None,
            "compared": self._counts.compared,
            "alike": self._counts.alike,
            "differed": dict(self._counts.differed),
            "spells": self._spells,
            "ended_by": dict(self._causes),
            "rests_s": max(0.0, self._worth.rests_until - now),
            "trouble": self._told,
        }


def _set(lost: asyncio.Future[ColoError], error: ColoError) -> None:
    if not lost.done():
        lost.set_result(error)
