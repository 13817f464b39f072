"""The disks of a running QEMU, mirrored to NBD exports: what is there, and what the guest writes.

A mirror is a job of QEMU's that is added to whatever drive there is; nothing of it has to be said
when QEMU is started.  With ``copy-mode=write-blocking`` a write of the guest is done once it is in
its own disk and the export has answered, from the moment on at which the job is ready.  A job whose
export fails ends by itself, and the guest's writes go on.  Source: ``qapi/block-core.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qemu.qmp import EventListener

from colo.errors import GuestError, QemuRefusal
from colo.qemu.monitor import Monitor

__all__ = ["Mirrors", "Progress", "Source", "disk_names", "find_disks"]

_JOB: Final = "colo-disk-"
_LOOK_S: Final = 0.01
_END_S: Final = 5.0


@dataclass(frozen=True)
class Source:
    """A disk of a running QEMU: its id in the VM file, its node, its size in bytes."""

    id: str
    node: str
    size: int


@dataclass(frozen=True)
class Progress:
    """How far a mirror is: bytes of those that it has to copy; ``ready``: it is in step."""

    done: int
    total: int
    ready: bool


def disk_names(entry: dict[str, Any]) -> set[str]:
    """What a drive in ``query-block`` may be called: by its drive, its device or its node."""
    device = str(entry.get("qdev") or "")
    parts = device.split("/")
    names = {entry["device"], device, entry.get("inserted", {}).get("node-name")}
    if parts[:3] == ["", "machine", "peripheral"]:
        names.add(parts[3])
    return {str(name) for name in names if name}


async def find_disks(qemu: Monitor, ids: Sequence[str]) -> tuple[Source, ...]:
    """The drives that the VM file calls so.  Raises GuestError where one is not there."""
    entries = [each for each in await qemu.execute("query-block") if each.get("inserted")]
    found = []
    for name in ids:
        fitting = [each for each in entries if name in disk_names(each)]
        if len(fitting) != 1:
            has = sorted(
                min(disk_names(each), key=lambda name: (len(name), name)) for each in entries
            )
            raise GuestError(
                f"[[disks]] {name}: this QEMU has {len(fitting) or 'no'} drives of that name (it "
                f"has {', '.join(has) or 'none'}): take a drive's id, its device's or its node's"
            )
        inserted = fitting[0]["inserted"]
        found.append(Source(name, inserted["node-name"], inserted["image"]["virtual-size"]))
    return tuple(found)


class Mirrors:
    """The mirrors of one QEMU; ``on_ended`` is called when one ends that should go on."""

    def __init__(self, qemu: Monitor, on_ended: Callable[[GuestError], None]) -> None:
        self._qemu = qemu
        self._on_ended = on_ended
        self._sources: tuple[Source, ...] = ()
        self._listener: EventListener | None = None
        self._listening: asyncio.Task[None] | None = None

    async def begin(self, sources: tuple[Source, ...], socket: Path) -> None:
        """Mirror each to the export of its id at ``socket``; ``clean`` comes before all.

        Raises GuestError.
        """
        self._sources = sources
        self._listener = EventListener(("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"))
        self._qemu.listen(self._listener)
        self._listening = asyncio.create_task(self._listen(self._listener))
        for number, source in enumerate(sources):
            job = f"{_JOB}{number}"
            await self._qemu.execute(
                "blockdev-add",
                driver="nbd",
                node_name=job,
                server={"type": "unix", "path": str(socket)},
                export=source.id,
            )
            await self._qemu.execute(
                "blockdev-mirror",
                job_id=job,
                device=source.node,
                target=job,
                sync="full",
                copy_mode="write-blocking",
                filter_node_name=f"{job}-top",
            )

    async def progress(self) -> list[Progress]:
        """How far each is, in the order of the sources.  Raises GuestError."""
        jobs = {each["device"]: each for each in await self._qemu.execute("query-block-jobs")}
        found = []
        for number, source in enumerate(self._sources):
            job = jobs.get(f"{_JOB}{number}")
            if job is None:
                raise GuestError(f"QEMU does not mirror disk {source.id} any more")
            found.append(Progress(job["offset"], job["len"], job["ready"]))
        return found

    async def _listen(self, listener: EventListener) -> None:
        async for event in listener:
            data: dict[str, Any] = event["data"]  # type: ignore[assignment]
            if str(data["device"]).startswith(_JOB):
                source = self._sources[int(data["device"].removeprefix(_JOB))]
                why = data.get("error") or "it was cancelled"
                self._on_ended(GuestError(f"QEMU does not mirror disk {source.id} any more: {why}"))

    def forget(self) -> None:
        """Whatever ends from now on is meant to."""
        if self._listening is not None and self._listener is not None:
            self._listening.cancel()
            self._qemu.unlisten(self._listener)
            self._listening = self._listener = None

    async def clean(self) -> None:
        """Leave no mirror in QEMU, also none of a colo that was killed.  Raises GuestError."""
        self.forget()
        deadline = asyncio.get_running_loop().time() + _END_S
        while jobs := await self._jobs():
            for job in jobs:
                with contextlib.suppress(QemuRefusal):  # it is about to end
                    await self._qemu.execute("block-job-cancel", device=job, force=True)
            if asyncio.get_running_loop().time() > deadline:
                raise GuestError(f"QEMU does not end the mirror {jobs[0]}")
            await asyncio.sleep(_LOOK_S)
        for node in await self._qemu.execute("query-named-block-nodes", flat=True):
            if node["node-name"].startswith(_JOB):
                with contextlib.suppress(QemuRefusal):
                    await self._qemu.execute("blockdev-del", node_name=node["node-name"])

    async def _jobs(self) -> list[str]:
        jobs = await self._qemu.execute("query-block-jobs")
        return [each["device"] for each in jobs if each["device"].startswith(_JOB)]
