"""Hybrid mode on host A: what the network brings goes to both VMs, and what both say leaves.

This joins the decisions (``packets.other_vm``) with QEMU's mirrors, the gate and the hybrid link,
which is made anew whenever it breaks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import ColoError
from colo.packets.hybrid_words import Said
from colo.packets.other_vm import OtherVm
from colo.qemu.mirrored_input import Mirrors
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.hybrid_link import HybridHello, HybridLink, call_hybrid
from colo.transport.address import Address

__all__ = ["Comparing"]

_AGAIN_S: Final = 1.0


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
        self._who, self._check_heard, self._on_broken = who, check_heard, on_broken
        self._say_line = say
        hybrid = config.hybrid
        bounds = self._limit, hybrid.patience_ms / 1e3, hybrid.age_max_ms / 1e3
        self.other_vm = OtherVm(config.mode == "hybrid", *bounds, self)
        self._mirrors = Mirrors(qemu, folder, self.other_vm.input)
        self._link: HybridLink | None = None
        self._calling: asyncio.Task[None] | None = None
        self._told: str | None = None
        self.urge: Callable[[], None] = lambda: None
        self.schedule: Callable[[], None] = lambda: None
        self.due_at = self.other_vm.due_at

    # -- a session ------------------------------------------------------------------------

    async def begin(self, netdevs: Sequence[str]) -> None:
        """Compare from the first copy on; the gate is in QEMU.  Raises GuestError."""
        virtio = self._gate.with_headers
        self.other_vm.begin([each in virtio for each in netdevs])
        await self._mirrors.install(netdevs, virtio)
        says = self.other_vm.says
        self._gate.set_rules([partial(says, number) for number in range(len(netdevs))])
        self._calling = asyncio.get_running_loop().create_task(self._call(len(netdevs)))

    async def _call(self, cards: int) -> None:
        """Have a link, again and again."""
        while True:
            try:
                sock = await call_hybrid(self._to, HybridHello(self._vm_name, *self._who(), cards))
            except ColoError as error:
                self._tell_news(f"no secondary VM: {error}")
                await asyncio.sleep(_AGAIN_S)
                continue
            lost = asyncio.get_running_loop().create_future()
            self._link = HybridLink(sock, cards, self._limit, self._hear, partial(_set, lost))
            self.other_vm.linked()
            try:
                await lost
            finally:
                self._unlinked()
            self._tell_news(f"the secondary VM is out of reach: {lost.result()}")
            await asyncio.sleep(_AGAIN_S)

    def _unlinked(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self.other_vm.unlinked(time.monotonic())

    def _tell_news(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._say_line(text)

    def close(self) -> None:
        """The session is over: nothing leaves by the rule any more."""
        if self._calling is not None:
            self._calling.cancel()
            self._calling = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self.other_vm.end()
        self._gate.set_rules([])

    async def remove(self) -> None:
        """Take what is of it out of QEMU."""
        await self._mirrors.remove()

    # -- checkpoints ----------------------------------------------------------------------

    def cover(self, number: int) -> None:
        """The VM is stopped for this checkpoint, which covers what it has said and got."""
        self._mirrors.drain()
        self.other_vm.cover(number, time.monotonic())

    def safe(self, number: int, held_s: float) -> None:
        """That checkpoint is safe.  ``held_s``: how long output was held for it."""
        self.other_vm.safe(number, held_s, time.monotonic())

    # -- what the decisions ask for -------------------------------------------------------

    def say(self, said: Said) -> None:
        """Have host B told this."""
        if self._link is not None:
            self._link.say(said)

    def release(self, card: int, count: int) -> None:
        """Let so many bytes out of what the card's gate holds, the oldest first."""
        self._gate.release_first(card, count)

    def may_release(self) -> bool:
        """Whether the other host still takes us for the primary; else the session ends."""
        try:
            self._check_heard(None)
        except ColoError as error:
            self._on_broken(error)
            return False
        return True

    def tell(self, text: str) -> None:
        """Tell the user a line, also where it is the one before."""
        self._told = None
        self._tell_news(text)

    def _hear(self, said: Said) -> None:
        self.other_vm.hear(said, time.monotonic())

    def status(self) -> dict[str, Any]:
        """What the status file has of it."""
        return {**self.other_vm.status(time.monotonic()), "trouble": self._told}


def _set(lost: asyncio.Future[ColoError], error: ColoError) -> None:
    if not lost.done():
        lost.set_result(error)
