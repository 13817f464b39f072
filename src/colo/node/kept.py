"""What a secondary keeps of its primary's VM: the last whole checkpoint, and its session."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from colo.config import VmConfig
from colo.errors import ColoError
from colo.membership.grant import Grant
from colo.membership.words import Word
from colo.node.beside import Beside
from colo.node.replicas import Replicas
from colo.protocol.tables import SecondaryEvent
from colo.qemu.open_taps import OpenTaps
from colo.qemu.process import LaunchPlan
from colo.qemu.standby import WaitingQemu
from colo.session.intake import Receiving
from colo.status.figures import Figures
from colo.store.store import Store

__all__ = ["Kept"]


class Kept:
    """The copy in ``store``, of one session after the other; ``number`` is -1 where there is none.

    ``fresh`` is called with each new checkpoint's number, ``lost`` with why no more will come.
    ``waiting``: the QEMU that a first copy has to fit.  ``folder``: see Replicas.
    """

    def __init__(
        self,
        config: VmConfig,
        store: Store,
        waiting: WaitingQemu,
        fresh: Callable[[int], None],
        lost: Callable[[ColoError], None],
        folder: Path,
    ) -> None:
        self.store = store
        told = self._disks_are_here, self._disks_lost
        self.disks = Replicas(config, folder, self, *told)
        self.figures = Figures()
        self.session: Receiving | None = None
        self.number = -1
        #: Of the session that this copy is of: where from, where it was lost.
        self.facts: dict[str, Any] = {}
        self._config, self._folder = config, folder
        self._vm_name, self._silence_s = config.name, config.failover.silence_s
        self._waiting, self._fresh, self._on_lost = waiting, fresh, lost
        #: The secondary VM, where the VM file wants one.
        self.beside: Beside | None = None
        self._committed_at: float | None = None

    def receive(self, sock: socket.socket, peer: str, is_coded: bool) -> None:
        """Take in what the connection of ``peer`` brings, in frames or not."""
        self.facts = {"primary": peer}
        self.session = Receiving(
            self._vm_name,
            self.store,
            self.figures,
            sock,
            time.monotonic,
            self._checkpoint,
            self._lost,
            self._waiting,
            self.disks.intake,
            is_coded,
        )

    def saved(self, word: Word) -> None:
        """The primary says when it had saved a checkpoint's devices."""
        if word.saved is not None and self.session is not None:
            self.session.saved_after(*word.saved)

    def last_heard(self) -> float:
        """When something came last of a checkpoint, by the monotonic clock; 0 before that."""
        return self.session.last_heard() if self.session is not None else 0.0

    @property
    def lacks(self) -> bool:
        """Whether clients may have heard of more than is kept: a secondary VM spoke, and died."""
        return self.beside is not None and self.beside.lacks

    def holding(self, folder: Path) -> str:
        """What an operator is told whose order alone runs it; ``folder``: the state folder."""
        order = f"colo failover --state-dir {folder}"
        if not self.lacks:
            return f"holding checkpoint {self.number}: `{order}` starts it"
        return (
            "the secondary VM has died, and clients may have heard of more than checkpoint "
            f"{self.number} has: the primary may go on, or else `{order} --force` runs that one"
        )

    def _disks_are_here(self) -> None:
        if self.session is not None:
            self.session.disks_are_here()

    def _disks_lost(self, error: ColoError) -> None:
        """No checkpoint is whole any more without them."""
        if self.session is not None and self.session.connected:
            self.session.lose(error)

    def _checkpoint(self) -> None:
        """The store holds a new checkpoint."""
        assert self.store.checkpoint is not None
        self.number, self._committed_at = self.store.checkpoint.number, time.time()
        if self.beside is not None:
            self.beside.committed(self.number)
        self._fresh(self.number)

    def _lost(self, error: ColoError) -> None:
        """The channel is gone."""
        self._end_session()
        self._on_lost(error)

    def close(self) -> None:
        """Let go of the channel."""
        if self.session is not None and self.session.connected:
            self.session.close()
            self._end_session()

    def _end_session(self) -> None:
        assert self.session is not None
        self.facts["lost_in"] = self.session.state.name
        self.session.handle(SecondaryEvent.LOST)

    def forget(self) -> None:
        """Nothing of it counts any more."""
        self.close()
        if self.beside is not None:
            self.beside.forget()
        self.disks.forget()
        self.number, self._committed_at, self.facts = -1, None, {}

    def have_beside(self, plan: LaunchPlan, taps: OpenTaps, on_change: Callable[[], None]) -> None:
        """A secondary VM is to run beside its primary."""
        of = self._config, plan, self.store, self._folder
        of_vm = self._waiting, taps, self.settled, on_change
        self.beside = Beside(*of, *of_vm, self.disks)

    @property
    def origin(self) -> str:
        """What the VM that runs here has come from."""
        goes_on = self.beside is not None and self.beside.has_taken_over
        return f"{'as the secondary VM since' if goes_on else 'from'} checkpoint {self.number}"

    @property
    def read_only(self) -> dict[str, str]:
        """The digests of what a guest here would only read, by the drives' names."""
        return self._waiting.read_only

    def renew(self) -> None:
        """Have other QEMUs wait: a disk has another size than these know."""
        self._waiting.renew()
        if self.beside is not None:
            self.beside.renew()

    async def open(self) -> None:
        """Have what a QEMU needs to wait: disks, taps.  Raises UsageError, GuestError."""
        self.disks.prepare()
        if self.beside is not None:
            await self.beside.taps.open()

    async def prepare(self) -> None:
        """Have a QEMU wait for a secondary VM too, where there is to be one.  Raises GuestError."""
        if self.beside is not None:
            await self.beside.prepare()

    async def greet_hybrid(
        self, sock: socket.socket, primary: Callable[[], Grant | None]
    ) -> str | None:
        """Take in a hybrid link, or close it and return why.  See Beside."""
        if self.beside is None:
            sock.close()
            return "no secondary VM runs here: mode is periodic in this host's VM file"
        return await self.beside.greet(sock, primary)

    async def end(self) -> None:
        """Nothing is kept any more, and nothing runs beside."""
        if self.beside is not None:
            await self.beside.close()
        await self.disks.close()

    async def settled(self) -> None:
        """Wait until the store's images equal its last whole checkpoint.  Raises StoreError."""
        if self.session is not None:
            await self.session.applied()

    def bound_silence(self, has_link: bool) -> None:
        """Give a primary up that has the word and says nothing."""
        if self.session is not None:
            self.session.bound_silence(self._silence_s, has_link)

    def status(self, is_open: bool) -> dict[str, Any]:
        """What the status has of it; ``is_open``: there is a session."""
        phase = self.session.state.name if is_open and self.session is not None else None
        return {
            "session": phase,
            "checkpoint": self.number if self.number >= 0 else None,
            "checkpoint_at": self._committed_at,
            **self.figures.status(),
            **self.store.status(),
            "disks": self.disks.status(),
            "secondary_vm": self.beside.status() if self.beside is not None else None,
        }
