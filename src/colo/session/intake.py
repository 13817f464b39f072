"""Our own secondary: one primary's session, from its connection into the store.

This joins the channel, the session's logic and the copying of committed pages into the images,
which goes on in a thread while the primary's VM runs again.  Taking over is for others: when the
session has ended, the store holds the last whole checkpoint.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from colo.errors import ChannelLost, ColoError, LocalProtocolError, StoreError
from colo.protocol.tables import Do, SecondaryEvent, SecondaryState
from colo.session.channel import Channel
from colo.session.secondary import Checks, EpochDisks, Incoming
from colo.status.figures import Figures
from colo.store.store import Store

__all__ = ["Receiving"]

#: States in which the primary has the word: it has to send, or it is lost.  A colo primary may
#: leave REPLIED unanswered until a checkpoint is due; whether it lives is seen by the link.
_PRIMARY_SENDS: Final = frozenset(
    {
        SecondaryState.INCOMING,
        SecondaryState.REPLIED,
        SecondaryState.RECEIVING_RAM,
        SecondaryState.AWAITING_SIZE,
        SecondaryState.RECEIVING_DEVICES,
    }
)


class Receiving:
    """The secondary's role for ``sock``, which it owns: any connected stream socket.

    ``clock`` gives seconds and never goes back.  ``on_checkpoint`` is called when the store holds
    a new one; ``on_lost`` once, with what went wrong, when the connection is of no more use, and
    after whatever came whole before.  ``checks``, ``disks``, ``is_coded``: see Incoming.
    """

    def __init__(
        self,
        vm_name: str,
        store: Store,
        figures: Figures,
        sock: socket.socket,
        clock: Callable[[], float],
        on_checkpoint: Callable[[], None],
        on_lost: Callable[[ColoError], None],
        checks: Checks | None = None,
        disks: EpochDisks | None = None,
        is_coded: bool = False,
    ) -> None:
        self._store = store
        self._figures = figures
        self._clock = clock
        self._on_checkpoint = on_checkpoint
        self._on_lost = on_lost
        self._number = -1
        self.applying: asyncio.Task[None] | None = None
        self._failure: StoreError | None = None
        store.abandon()
        self._session = Incoming(vm_name, store, figures, clock, checks, disks, is_coded)
        self._channel: Channel | None = Channel(
            sock, self._session, clock, self._progress, self._lose
        )

    @property
    def state(self) -> SecondaryState:
        """The machine's state."""
        return self._session.state

    def saved_after(self, number: int, seconds: float) -> None:
        """So long after its VM was stopped the devices of checkpoint ``number`` were saved."""
        self._session.saved_after(number, seconds)

    def last_heard(self) -> float:
        """When something came last from the primary, by ``clock``; 0 where nothing can."""
        return self._channel.last_heard if self._channel is not None else 0.0

    @property
    def connected(self) -> bool:
        """Whether the primary's connection still is of use."""
        return self._channel is not None

    def bound_silence(self, limit_s: float, has_link: bool) -> None:
        """Give a primary up that has the word and has been silent for more than ``limit_s``."""
        if self._channel is None or self.state not in _PRIMARY_SENDS:
            return
        if self.state is SecondaryState.REPLIED and has_link:
            return
        silence = self._clock() - self._channel.last_heard
        if silence > limit_s:
            self.lose(
                self._session.stalled()
                or ChannelLost(
                    f"the primary was silent for {silence:.1f} s within "
                    f"{'the first migration' if self._number < 0 else 'a checkpoint'}"
                )
            )

    def can(self, event: SecondaryEvent) -> bool:
        """Whether this event has its place now."""
        return self._session.machine.can(event)

    def handle(self, event: SecondaryEvent) -> None:
        """Take an event from outside: the decision, and how a takeover went."""
        self._session.handle(event)
        self._carry_out()

    def disks_are_here(self) -> None:
        """What was asked of the disks is here: a checkpoint that waited for it is whole."""
        if self._channel is None:
            return
        try:
            self._session.disks_are_here()
        except ColoError as error:
            self.lose(error)
            return
        self._channel.flush()
        self._progress()

    def close(self) -> None:
        """Close the connection; nothing is called any more."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def lose(self, error: ColoError) -> None:
        """Give the primary up."""
        self.close()
        self._lose(error)

    async def applied(self) -> None:
        """Wait until the images equal the last whole checkpoint.

        Copying that failed is tried once more; raises StoreError where it fails again.
        """
        if self.applying is None and not self._store.is_applied:
            self.applying = asyncio.create_task(self._apply())
        while self.applying is not None:
            await asyncio.shield(self.applying)
        if not self._store.is_applied:
            raise StoreError(str(self._failure)) from self._failure

    def _lose(self, error: ColoError) -> None:
        self._channel = None
        self._on_lost(error)

    def _progress(self) -> None:
        """Carry out what the session asks for, after bytes were taken."""
        if self.state is SecondaryState.INCOMING:
            return  # what the store holds, if anything, is not of this session
        checkpoint = self._store.checkpoint
        if checkpoint is not None and checkpoint.number != self._number:
            self._number = checkpoint.number
            self._on_checkpoint()
        self._carry_out()

    def _carry_out(self) -> None:
        """Perform what the table asks for and the session has not: what takes time."""
        while self._session.requests:
            match self._session.requests.pop(0):
                case Do.APPLY:
                    self.applying = asyncio.create_task(self._apply())
                case Do.PREPARE if self.applying is None:
                    self._prepared()
                case Do.PREPARE:
                    pass  # it is done when the last checkpoint has been applied
                case Do.CLOSE:
                    self.close()
                case Do.TAKE_OVER:
                    pass  # by whoever told of FAILOVER: see ``node.taking_over``
                case other:
                    raise LocalProtocolError(f"a secondary without a VM cannot {other.value}")

    async def _apply(self) -> None:
        """Copy the committed pages into the images, while the primary's VM runs."""
        began = self._clock()
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._store.apply)
            self._store.applied()
            self._figures.phases["apply"].append(self._clock() - began)
            self._failure = None
        except (ColoError, OSError, MemoryError) as error:
            why = error if str(error) else "out of memory"
            self._failure = StoreError(f"checkpoint {self._number} cannot be applied: {why}")
            self._failure.__cause__ = error
        finally:
            self.applying = None
        if self._channel is None:
            return
        if self._failure is not None:
            self.lose(self._failure)
        elif self.state is SecondaryState.PREPARING:
            self._prepared()

    def _prepared(self) -> None:
        if self._channel is not None:
            self._session.handle(SecondaryEvent.PREPARED)
            self._channel.flush()
