"""Starting COLO on a QEMU that is the primary, and seeing how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, Final, cast

from qemu.qmp import EventListener

from colo.errors import GuestError
from colo.qemu.guest_clock import tell_own_stop
from colo.qemu.monitor import MIGRATION_OVER, Monitor

__all__ = ["ColoPrimary", "never_enters"]

_STATUS_S: Final = 0.05
_LEAVE_S: Final = 5.0
_GO_ON_S: Final = 0.002
#: Versions whose primary never enters COLO, a regression of QEMU's own.
_BROKEN: Final = ((10, 0), (10, 1))
#: From this major version on, COLO needs the return path.
_RETURN_PATH_MAJOR: Final = 11
_BANDWIDTH_MAX: Final = 1 << 40  # bytes per second: no limit
#: Capabilities that may be as they are; any other that COLO does not need is off meanwhile.
_HARMLESS: Final = frozenset({"auto-converge", "events"})
#: What is set while a VM is protected.
_PARAMETERS: Final = ("max-bandwidth", "x-checkpoint-delay")
#: The secondary's reply to a request may be held back, so requests may come early.
_SOON_MS: Final = 1


@dataclass(frozen=True)
class _Found:
    """What was set in QEMU before: the capabilities that were on, and parameters."""

    capabilities: frozenset[str]
    parameters: dict[str, Any]


def never_enters(version: tuple[int, int]) -> str | None:
    """Why a primary of this version of QEMU cannot be protected; None where it can be."""
    if version not in _BROKEN:
        return None
    return (
        f"QEMU {version[0]}.{version[1]} never enters COLO as a primary, by a "
        "regression of its own: use 7.2, or 11.0 and later"
    )


class ColoPrimary:
    """COLO on one QEMU: start it, wait for its end, let the VM run on alone.

    ``allow_broken`` starts it even on QEMU 10.0 and 10.1, whose stable updates may be mended.
    ``stood_since``: when the VM was stopped for its first copy, or None where it ran on.
    """

    def __init__(self, qemu: Monitor, allow_broken: bool = False) -> None:
        self._qemu = qemu
        self._allow_broken = allow_broken
        self._exits = EventListener("COLO_EXIT")
        self._version = (0, 0)
        self._delay_ms = _SOON_MS
        self._found: _Found | None = None
        self.stood_since: float | None = None
        qemu.listen(self._exits)

    async def check(self) -> None:
        """Learn the version.  Raises GuestError for one whose COLO does not work."""
        version = (await self._qemu.execute("query-version"))["qemu"]
        self._version = version["major"], version["minor"]
        broken = never_enters(self._version)
        if broken is not None and not self._allow_broken:
            raise GuestError(broken)

    @property
    def return_path(self) -> bool:
        """Whether the secondary of this QEMU first speaks the return-path protocol."""
        return self._version[0] >= _RETURN_PATH_MAJOR

    async def start(self, uri: str, delay_ms: int = _SOON_MS) -> None:
        """Migrate to the secondary at ``uri`` (``unix:PATH``, ``tcp:HOST:PORT``) and enter COLO.

        ``delay_ms`` after a checkpoint QEMU requests the next.  Returns once COLO is on.
        Raises GuestError.
        """
        self._delay_ms = delay_ms
        self.stood_since = None
        await self.check()
        await self._look()
        await self._have(self._needed)
        await self._qemu.execute(
            "migrate-set-parameters", x_checkpoint_delay=delay_ms, max_bandwidth=_BANDWIDTH_MAX
        )
        if not (await self._qemu.execute("query-kvm"))["enabled"]:
            # Under TCG, pages that a running VM writes while it is migrated may be missed: where
            # a sync of the dirty bitmap finds no page that it did not know, it takes their
            # marks away, but lets the vCPU's TLB write to them unnoticed.
            self.stood_since = time.monotonic()
            tell_own_stop(self._qemu.pid)
            await self._qemu.execute("stop")  # COLO starts it again
        await self._qemu.execute("migrate", uri=uri)
        await self._entered(uri)

    async def request(self) -> None:
        """Have QEMU request a checkpoint now, and start its timer anew."""
        await self._qemu.execute("migrate-set-parameters", x_checkpoint_delay=self._delay_ms)

    async def ended(self) -> str:
        """Wait until QEMU leaves COLO, or dies; return why, in QEMU's own words."""
        exit_event = asyncio.ensure_future(self._exits.get())
        death = asyncio.ensure_future(self._qemu.wait())
        await asyncio.wait({exit_event, death}, return_when=asyncio.FIRST_COMPLETED)
        if exit_event.done():
            death.cancel()
            data = cast(dict[str, Any], exit_event.result()["data"])
            words = self._qemu.last_words()
            return f"QEMU left COLO, reason: {data['reason']}" + (f" ({words})" if words else "")
        exit_event.cancel()
        return f"QEMU is gone: {death.result()}"

    async def run_alone(self) -> None:
        """Have the VM run without a secondary, wherever COLO stands.

        It may be running, stopped within a checkpoint, or still in its first migration.  What
        this sets in QEMU is set back.  Raises GuestError.
        """
        status = (await self._qemu.execute("query-migrate")).get("status")
        if status == "colo":
            with contextlib.suppress(GuestError):
                await self._qemu.execute("yank", oob=True, instances=[{"type": "migration"}])
            await self._qemu.execute("x-colo-lost-heartbeat")
        elif status not in MIGRATION_OVER:
            await self._qemu.execute("migrate_cancel")
        await self._left()
        await self._go_on()
        await self._set_back()

    @property
    def _needed(self) -> frozenset[str]:
        return frozenset({"x-colo"} | ({"return-path"} if self.return_path else set()))

    async def _look(self) -> None:
        """See what is set in QEMU, once, as long as it is not set back.

        Two things are not set back: x-colo and what goes with it, which a colo left that was
        killed, and x-ignore-shared, with which a VM was loaded that was taken over.
        """
        if self._found is None:
            on = {name for name, state in (await self._capabilities()).items() if state}
            on -= {"x-ignore-shared"} | (self._needed if "x-colo" in on else set())
            parameters = await self._qemu.execute("query-migrate-parameters")
            self._found = _Found(frozenset(on), {name: parameters[name] for name in _PARAMETERS})

    async def _set_back(self) -> None:
        await self._look()
        assert self._found is not None
        await self._have(self._found.capabilities)
        await self._qemu.execute("migrate-set-parameters", **self._found.parameters)
        self._found = None

    async def _have(self, wanted: frozenset[str]) -> None:
        """Switch these capabilities on and all others off, but for those that do no harm."""
        changes = [
            {"capability": name, "state": name in wanted}
            for name, state in (await self._capabilities()).items()
            if state != (name in wanted) and name not in _HARMLESS
        ]
        if changes:
            await self._qemu.execute("migrate-set-capabilities", capabilities=changes)

    async def _capabilities(self) -> dict[str, bool]:
        """The migration capabilities that this QEMU knows, and whether they are on."""
        found = await self._qemu.execute("query-migrate-capabilities")
        return {each["capability"]: each["state"] for each in found}

    async def _go_on(self) -> None:
        """Have the VM run; COLO, left within a checkpoint, starts it itself, a moment later."""
        deadline = asyncio.get_running_loop().time() + _LEAVE_S
        while not (status := await self._qemu.execute("query-status"))["running"]:
            if status["status"] != "colo" or asyncio.get_running_loop().time() > deadline:
                await self._qemu.execute("cont")
                return
            await asyncio.sleep(_GO_ON_S)

    async def _left(self) -> None:
        """Wait until no migration is under way."""
        deadline = asyncio.get_running_loop().time() + _LEAVE_S
        while True:
            status = (await self._qemu.execute("query-migrate")).get("status")
            if status in MIGRATION_OVER:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise GuestError(f"QEMU does not leave COLO: its migration is {status}")
            await asyncio.sleep(_STATUS_S)

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
