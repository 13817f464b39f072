"""The secondary VM of hybrid mode: a QEMU that runs the last checkpoint beside its primary.

Its memory is the store's image, of which it keeps to itself what it writes: so the image still is
the checkpoint, no second copy of the memory is needed, and ending this VM undoes all that it did.
Its cards get what the primary VM's get, and what it says is held here.  It is ended before the
next checkpoint is put into the image, or it becomes the VM: ``unleash``.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from colo.errors import GuestError
from colo.packets.gate import Rule
from colo.qemu.guest_clock import tell_since
from colo.qemu.incoming import load_stream
from colo.qemu.mirrored_input import Feeds
from colo.qemu.monitor import Monitor
from colo.qemu.open_taps import OpenTaps
from colo.qemu.packet_filters import NetGate, cards
from colo.qemu.process import Qemu
from colo.store.store import Since

__all__ = ["Disks", "SecondaryVm"]

_BEGIN_S: Final = 10.0
_ANNOUNCED: Final[dict[str, Any]] = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
_PRIVATE: Final = ("Private_Dirty:", "Anonymous:", "Swap:")


class Disks(Protocol):
    """The disks that it sees instead of the files that its QEMU was started on."""

    async def begin(self, qemu: Monitor) -> None:
        """Have its QEMU, which waits, see them.  Raises GuestError."""

    def let_go(self) -> None:
        """It is about to be stopped: no write of it waits any more."""

    async def become_files(self, qemu: Monitor) -> None:
        """It stands, and the files have all: have it go on upon those.  Raises GuestError."""

    async def close(self) -> None:
        """It does without them from now on."""


class SecondaryVm:
    """The VM in ``qemu``, which waits for a stream; it is owned from here on.

    ``images``: the files that are its memory.  ``limit``: how much of what it says is held, in
    bytes, a card.  ``rule``: makes a rule for each card, which hears all that it says.  ``disks``:
    those that it has beside the primary's.
    """

    def __init__(
        self,
        qemu: Qemu,
        folder: Path,
        images: Mapping[str, Path],
        taps: OpenTaps,
        limit: int,
        rule: Callable[[int], Rule],
        disks: Disks,
    ) -> None:
        self.qemu = qemu
        self._disks = disks
        self._folder = folder
        self._images = images
        self._taps, self._rule = taps, rule
        self._sizes: dict[str, int] = {}
        self._offloads: dict[str, int] = {}
        self._gate = NetGate(qemu, folder, limit, vnet=True)
        self._feeds = Feeds(qemu, folder)
        self.is_running = False
        self.is_ended = False
        self._stands = False

    async def begin(self, stream: Iterable[bytes], since: Since | None) -> None:
        """Load a checkpoint and run it.  Raises GuestError; it is of no use then."""
        try:
            async with asyncio.timeout(_BEGIN_S):
                netdevs = await cards(self.qemu)
                await self._gate.install(netdevs)
                self._gate.hold()
                await self._feeds.install(netdevs, self._gate.with_headers)
                self._see_untouched()
                await self.qemu.execute("migrate-set-parameters", announce_rounds=1)
                await self._disks.begin(self.qemu)
                if since is not None:
                    tell_since(self.qemu.pid, since.stood, since.saved)
                await load_stream(self.qemu, self._folder / "incoming.sock", stream)
                self._gate.drop_all()  # QEMU announces it, which is not where the network has it
                self._gate.set_rules([self._rule(number) for number in range(len(netdevs))])
                await self.qemu.execute("cont")
                self._sizes = self._taps.sizes()
                self._offloads = self._taps.offloads(self.qemu.pid)
        except TimeoutError:
            raise GuestError("the secondary VM did not start in time") from None
        except OSError as error:
            raise GuestError(f"the secondary VM did not start: {error}") from error
        self.is_running = True

    def _see_untouched(self) -> None:
        """Make sure that all of its memory is the store's, and nothing of it its own already."""
        paths = {str(path.resolve()) for path in self._images.values()}
        is_ours = False
        for line in Path(f"/proc/{self.qemu.pid}/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                is_ours = words[-1] in paths
            elif is_ours and words[0] in _PRIVATE and words[1] != "0":
                raise GuestError(
                    "QEMU has written to the guest's memory before it had a state to load: is "
                    "prealloc= on, or firmware in it?"
                )

    def feed(self, card: int, data: bytes) -> None:
        """The network has brought this for a card."""
        if not self.is_ended:
            self._feeds.feed(card, data)

    @property
    def unfed_bytes(self) -> int:
        """How much of that it has not taken yet."""
        return self._feeds.unsent_bytes

    def drop(self, card: int, count: int) -> None:
        """So many bytes of what it said on a card were heard: they need not be repeated."""
        if not self.is_ended:
            self._gate.drop_first(card, count)

    @property
    def is_dead(self) -> bool:
        """Whether it was ended, or has ended by itself."""
        return self.is_ended or self.qemu.exited

    def kill(self) -> None:
        """End it, now: nothing that it says from here on counts."""
        if not self.is_ended:
            self.is_ended = True
            self._feeds.close()
            self._gate.set_rules([])
            if not self.qemu.exited:
                os.kill(self.qemu.pid, signal.SIGKILL)

    async def clear(self) -> None:
        """Remove what is left of it, once it was killed."""
        await self._gate.remove()
        await self.qemu.kill()
        await self._disks.close()

    async def take_disks(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        """Have it go on upon the disks' files, once ``hand_over`` has put into them what it wrote.

        It stands from here on, until ``unleash``.  Raises GuestError, or what ``hand_over`` does.
        """
        try:
            async with asyncio.timeout(_BEGIN_S):
                self._disks.let_go()
                await self.qemu.execute("stop")
                await hand_over()
                await self._disks.become_files(self.qemu)
        except TimeoutError:
            raise GuestError("the secondary VM did not take its disks over in time") from None
        await self._disks.close()
        self._stands = True

    async def unleash(self) -> None:
        """It is the VM from now on: the network hears it, and what nobody may have heard yet.

        It is not to be dead.  No other QEMU that has the taps may start any more.  Raises
        GuestError.
        """
        self._taps.restore(self._sizes, self._offloads)
        self._gate.set_rules([])
        self._gate.open()
        if self._stands:
            await self.qemu.execute("cont")
        await self._feeds.remove()
        await self._gate.remove()
        # The network has to learn where the VM is: it may have nothing to say by itself.
        await self.qemu.execute("announce-self", **_ANNOUNCED)
