"""The secondary as its primary reaches it: a control link, where it has one, and channels."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import ChannelLost, PeerError
from colo.membership.words import Hello, Word, WordKind
from colo.transport.address import Address
from colo.transport.control_link import Link, call
from colo.wire.frames import WIRE_MAGIC, WIRE_VERSION

__all__ = ["Peer"]

_CALL_S: Final = 3.0
_CERTAIN: Final = 0.75


class Peer:
    """The secondary at ``to``; ``figures``, ``hear`` and ``lost``: see Link.

    ``stock``: it is a stock QEMU, which has no control link.
    """

    def __init__(
        self,
        config: VmConfig,
        to: Address,
        stock: bool,
        figures: Callable[[], dict[str, Any]],
        hear: Callable[[Word], None],
        lost: Callable[[PeerError], None],
    ) -> None:
        self.to = to
        self._stock = stock
        self._beats = config.failover.heartbeat_s, config.failover.limits_s
        self._figures, self._hear, self._lost = figures, hear, lost
        self._link: Link | None = None
        self._channel: socket.socket | None = None
        self._limit_s = self._own_limit_s = config.failover.heartbeat_limit_s
        #: Whether the last ``reach`` had a channel; whether a channel carries frames.
        self.was_reached = self.is_coded = False

    @property
    def figures(self) -> dict[str, Any] | None:
        """What it said of itself with its last heartbeat."""
        return self._link.peer_figures if self._link is not None else None

    async def reach(self, ours: Hello) -> None:
        """Open the control link; to a stock QEMU, the channel.

        Raises ChannelLost, OSError or TimeoutError where it cannot be had now, PeerError where it
        never can.
        """
        self.was_reached = self.is_coded = False
        if not self._stock:
            sock, theirs = await call(self.to, ours, _CALL_S)
            self.is_coded = ours.wire == theirs.wire == WIRE_VERSION
            self._limit_s = theirs.heartbeat_limit_s or self._own_limit_s
            self._link = Link(sock, *self._beats, self._figures, self._hear, self._lost)
        else:
            self._channel = await self._connect()
        self.was_reached = True

    async def channel(self) -> socket.socket:
        """The connection of a new channel.  Raises OSError or ChannelLost."""
        channel, self._channel = self._channel, None
        try:
            channel = channel or await self._connect()
            if self.is_coded:
                channel.send(WIRE_MAGIC)
            return channel
        except TimeoutError:
            raise ChannelLost(f"{self.to} does not answer") from None

    async def _connect(self) -> socket.socket:
        return await asyncio.wait_for(self.to.connect(), _CALL_S)

    def check_heard(self, at: float | None) -> None:
        """Make sure that the other host has not counted us as lost, and decided by itself.

        It has not while the last beat that it has heard of us is younger than its limit; three
        quarters of it, as clocks do not run alike.  Raises ChannelLost: this host stood still, or
        what it says does not get there.  What was sent at ``at`` is what the other one answers now.
        """
        if at is not None and self._link is not None:
            self._link.was_heard(at)
        silence_s = self._link.silence_s() if self._link is not None else 0.0
        if silence_s > _CERTAIN * self._limit_s:
            raise ChannelLost(
                f"for {silence_s:.1f} s it is not certain that the other host hears this one, and "
                f"it waits no longer than {self._limit_s} s"
            )

    def be_strict(self) -> None:
        """The other host has a whole copy."""
        if self._link is not None:
            self._link.be_strict()

    def say(self, kind: WordKind, **content: int) -> None:
        """Say a word, where there is a link."""
        if self._link is not None:
            self._link.say(Word(kind, content))

    def say_saved(self, number: int, seconds: float) -> None:
        """Say how long after its VM was stopped the devices of a checkpoint were saved."""
        self.say(WordKind.SAVED, checkpoint=number, after_ns=int(seconds * 1e9))

    def close(self) -> None:
        """Close the link, and a channel that nobody has taken."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._link is not None:
            self._link.close()
            self._link = None
