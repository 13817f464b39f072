"""Handing checkpoints on: a secondary as the primary of a further one.

A store that a QEMU primary is feeding feeds another secondary in turn, by our own primary: a stock
QEMU in COLO mode, whose VM then really runs between checkpoints, or another colo.  Nobody waits for
it: the protection of the VM, and the output that is held for it, rest on the first secondary alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from colo.errors import ColoError, PeerError
from colo.guest.stored import StoredGuest
from colo.node.retry import RETRY_MOST_S, RETRY_S, Retry
from colo.session.own_primary import Sending
from colo.store.store import Store
from colo.store.view import View
from colo.transport.address import Address

__all__ = ["Destination", "Forwarding"]

_log = logging.getLogger("colo.forwarding")


@dataclass(frozen=True)
class Destination:
    """A further secondary.  ``return_path``: see Sending; None: as the store's own primary does."""

    address: Address
    return_path: bool | None = None


class Forwarding:
    """Hands the checkpoints of ``store`` on to ``to``.

    ``settled`` returns when the store's images equal its last whole checkpoint.  ``fresh`` has to
    be set whenever it holds a new one.  ``limit_s``: see Sending.  A copy that was not taken makes
    the pause before the next one longer: it cost the whole VM's size.
    """

    def __init__(
        self,
        vm_name: str,
        store: Store,
        settled: Callable[[], Awaitable[None]],
        to: Destination,
        limit_s: float,
        say: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._vm_name = vm_name
        self._store = store
        self._settled = settled
        self._to = to.address
        self._return_path = to.return_path
        self._limit_s = limit_s
        self._say = say
        self._sleep = sleep
        self._session: Sending | None = None
        self._held: int | None = None
        self._retry = Retry()
        self._in_vain = False  # the last try sent a copy that was not taken
        self._error: str | None = None
        self.fresh = asyncio.Event()

    async def run(self) -> None:
        """Hand on whatever the store holds until cancelled; a session that ends is begun anew."""
        while True:
            while self._store.checkpoint is None:
                await self._due()
            try:
                await self._hand_on()
            except (ColoError, OSError) as error:
                self._tell(str(error) or "no answer")
            except Exception as error:  # whatever it is, the protection of the VM goes on
                if self._tell(f"an error of colo's own, see colo.log: {error!r}"):
                    _log.error("handing on to %s failed", self._to, exc_info=error)
            await self._sleep(self._retry.pause_s() if self._in_vain else RETRY_S)

    def status(self) -> dict[str, Any]:
        """What the status file has of this."""
        session = self._session
        return {
            "to": str(self._to),
            "state": session.state.name if session is not None else "CONNECTING",
            "checkpoint": self._held,
            "checkpoints": session.machine.number if session is not None else 0,
            "bytes": session.bytes_sent if session is not None else 0,
            "error": self._error,
        }

    def _tell(self, why: str) -> bool:
        """Say why nothing is handed on, unless that was said; return whether it is new."""
        if why == self._error:
            return False
        self._error = why
        again = f"every {RETRY_S:.0f} s"
        if self._in_vain:
            again = f"ever later, every {RETRY_MOST_S:.0f} s at last"
        self._say(f"nothing is handed on to {self._to}: {why}; trying again {again}")
        return True

    async def _hand_on(self) -> None:
        self._in_vain = False
        view = View(self._store)
        try:
            async with asyncio.timeout(self._limit_s):
                sock = await self._to.connect()
            self._held = None
            guest = StoredGuest(view, self._settled)
            path = view.return_path if self._return_path is None else self._return_path

            def held() -> None:
                self._held = guest.number

            self._session = Sending(self._vm_name, guest, sock, self._limit_s, held, path)
            try:
                self._in_vain = True
                await self._first_copy(self._session)
                held()
                self._in_vain = False
                self._retry.succeeded()
                self._error = None
                self._say(f"checkpoints are handed on to {self._to}")
                await self._session.run(self._due)
            finally:
                self._session.close()
                self._session = None
        finally:
            view.close()

    async def _first_copy(self, session: Sending) -> None:
        try:
            await session.migrate()
        except PeerError as error:
            raise PeerError(
                f"it did not take the first copy: {error}; its own log may say why"
            ) from error

    async def _due(self) -> None:
        await self.fresh.wait()
        self.fresh.clear()
