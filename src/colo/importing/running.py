"""An import from a QEMU that runs: what it says of itself, beside what it was started with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from colo.checking.running import check_qemu, machine_of
from colo.config.vm import parse
from colo.errors import GuestError
from colo.findings import Topic
from colo.importing.draft import Draft, Kind, vm_file
from colo.importing.known import Seen
from colo.importing.process import read_process
from colo.importing.sorting import sort
from colo.qemu.mirrors import disk_names
from colo.qemu.monitor import AttachedQemu, Monitor
from colo.qemu.options import options

__all__ = ["import_process", "import_running"]


def import_process(pid: int, name: str | None) -> Draft:
    """Make a draft of what a process was started with.  Raises UsageError."""
    words, known = read_process(pid)
    draft = sort(words, f"the QEMU with the process {pid}", known, name)
    text = "without --qmp QEMU itself was not asked: what was plugged in since is not in the file"
    draft.say(Kind.NOTE, text, Topic.QMP)
    return draft


async def import_running(socket: Path, pid: int | None, name: str | None) -> Draft:
    """Make a draft of a QEMU by its QMP socket; ``pid``: its process, where that is not the peer.

    Nothing is changed in it.  Raises UsageError, GuestError.
    """
    qemu = AttachedQemu(socket)
    await qemu.attach()
    try:
        words, known = read_process(pid or qemu.pid)
        known = replace(known, machine=await machine_of(qemu) or "", disks=await _disks(qemu))
        source = f"the QEMU with the process {pid or qemu.pid}"
        draft = sort(words, source, known, name)
        await _plugged(qemu, words, draft)
        for each in await check_qemu(parse(vm_file(draft)), qemu, allow_disks=False):
            draft.say(Kind.TO_DO if each.refused else Kind.NOTE, each.text, each.topic)
        return draft
    finally:
        await qemu.detach()


async def _disks(qemu: Monitor) -> dict[str, Seen]:
    """The files that disks lie on now, by all names of each."""
    found = {}
    for entry in await qemu.execute("query-block"):
        image = entry.get("inserted", {}).get("image", {})
        path = str(image.get("filename", ""))
        if path.startswith("/"):
            for name in disk_names(entry):
                found[name] = Seen(path, str(image.get("format", "")))
    return found


async def _plugged(qemu: Monitor, words: Sequence[str], draft: Draft) -> None:
    """Say which devices came or went since it was started."""
    try:
        listed = await qemu.execute("qom-list", path="/machine/peripheral")
    except GuestError:
        return
    now = {str(each["name"]) for each in listed if each["name"] != "type"}
    made = {"device", "nic", "net"}
    given = {
        str(each.keys["id"])
        for each in options(words[1:])
        if each.name in made and "id" in each.keys
    }
    for name in sorted(now - given):
        text = (
            f"the device {name} was plugged in while the VM ran: give it a -device in [qemu] args"
        )
        draft.say(Kind.TO_DO, text, Topic.DEVICE)
    for name in sorted(given - now):
        text = f"the device {name} is not in the VM any more: take it out of [qemu] args"
        draft.say(Kind.TO_DO, text, Topic.DEVICE)
