"""Starting COLO on a QEMU that is the primary, and seeing how it ends."""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.errors import GuestError
from colo.guest.qemu import Qemu

__all__ = ["ColoPrimary"]

_STATUS_S: Final = 0.05
#: Versions whose primary never enters COLO, a regression of QEMU's own.
_BROKEN: Final = ((10, 0), (10, 1))
#: From this major version on, COLO needs the return path.
_RETURN_PATH_MAJOR: Final = 11
_BANDWIDTH_MAX: Final = 1 << 40  # bytes per second: no limit


class ColoPrimary:
    """COLO on one QEMU: start it, wait for its end, let the VM run on alone.

    ``allow_broken`` starts it even on QEMU 10.0 and 10.1, whose stable updates may be mended.
    """

    def __init__(self, qemu: Qemu, allow_broken: bool = False) -> None:
        self._qemu = qemu
        self._allow_broken = allow_broken
        self._exits = EventListener("COLO_EXIT")
        self._ended = asyncio.Event()

    async def start(self, uri: str, delay_ms: int) -> None:
        """Migrate to the secondary at ``uri`` (``unix:PATH``, ``tcp:HOST:PORT``) and enter COLO.

        ``delay_ms`` lies between two checkpoints.  Returns once COLO is on.  Raises GuestError.
        """
        version = (await self._qemu.execute("query-version"))["qemu"]
        major, minor = version["major"], version["minor"]
        if (major, minor) in _BROKEN and not self._allow_broken:
            raise GuestError(
                f"QEMU {major}.{minor} never enters COLO as a primary, by a regression of its own: "
                "use 7.2, or 11.0 and later"
            )
        on = ["x-colo"] + (["return-path"] if major >= _RETURN_PATH_MAJOR else [])
        await self._qemu.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in on],
        )
        await self._qemu.execute(
            "migrate-set-parameters", x_checkpoint_delay=delay_ms, max_bandwidth=_BANDWIDTH_MAX
        )
        # COLO starts the VM again.  Under TCG on QEMU 7.2 a first migration of a running VM
        # may miss pages; see tcg_preload.c.
        await self._qemu.execute("stop")
        self._qemu.qmp.register_listener(self._exits)
        await self._qemu.execute("migrate", uri=uri)
        await self._entered(uri)

    async def ended(self) -> str:
        """Wait until QEMU leaves COLO, or dies; return why, in QEMU's own words."""
        exit_event = asyncio.ensure_future(self._exits.get())
        death = asyncio.ensure_future(self._qemu.wait())
        await asyncio.wait({exit_event, death}, return_when=asyncio.FIRST_COMPLETED)
        if exit_event.done():
            death.cancel()
            data = cast(dict[str, Any], exit_event.result()["data"])
            reason = data["reason"]
            words = self._qemu.last_words()
            return f"QEMU left COLO, reason: {reason}" + (f" ({words})" if words else "")
        exit_event.cancel()
        return f"QEMU ended with code {death.result()}"

    async def run_alone(self) -> None:
        """Have the VM run without a secondary, whether it runs now or is stopped in COLO."""
        await self._qemu.execute("x-colo-lost-heartbeat")

    async def _entered(self, uri: str) -> None:
        while True:
            migration = await self._qemu.execute("query-migrate")
            status = migration.get("status")
            if status == "colo":
                return
            if status in ("failed", "cancelled", "completed"):
                await self._qemu.execute("cont")
                words = migration.get("error-desc") or self._qemu.last_words()
                raise GuestError(f"COLO to {uri} did not start, the migration {status}", words)
            await asyncio.sleep(_STATUS_S)
