"""What stands in the way of protecting a running QEMU, found before anything is changed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from colo.config import VmConfig
from colo.config.vm import QemuArgs
from colo.errors import GuestError
from colo.findings import Finding, Topic
from colo.qemu.accelerator import Outcome, try_kvm
from colo.qemu.argument_obstacles import NOT_NAMED, QUEUES, SUPPRESSED, VHOST
from colo.qemu.command_line import Backend, largest_first
from colo.qemu.mirrors import disk_names
from colo.qemu.monitor import MIGRATION_OVER, Monitor
from colo.qemu.preload import TCG_LIBRARY, needs_preload
from colo.qemu.process import NOT_LARGEST_FIRST

__all__ = ["obstacles"]

_VHOST_DEVICE: Final = "/dev/vhost-net"


async def obstacles(
    qemu: Monitor,
    config: VmConfig,
    netdevs: list[str],
    allow_disks: bool,
    started: bool = True,
) -> list[Finding]:
    """Return what stands in the way, a line each, with what to do.  Raises GuestError.

    ``config``: the VM file that is to describe it.  ``started``: the VM is to run already.
    """
    found = []
    state = (await qemu.execute("query-status"))["status"]
    if started and state != "running" and not await _left_by_colo(qemu):
        text = f"the VM does not run ({state}), and protecting it would start it: do that by `cont`"
        found.append(Finding(Topic.VM_STOPPED, text))
    migration = await qemu.execute("query-migrate")
    if migration.get("status") not in MIGRATION_OVER:
        text = f"a migration is {migration['status']}: wait for its end, or migrate_cancel"
        found.append(Finding(Topic.MIGRATION, text))
    for reason in migration.get("blocked-reasons", ()):
        text = f"QEMU cannot migrate this VM: {reason}; take out what blocks it"
        found.append(Finding(Topic.MIGRATION_BLOCKED, text))
    if (await qemu.execute("query-migrate-parameters")).get("tls-creds"):
        text = (
            "the migration parameter tls-creds is set, and QEMU migrates to colo's own socket: "
            'set it to ""; between the hosts it is [tls] in the VM file that encrypts'
        )
        found.append(Finding(Topic.TLS_CREDS, text))
    if await _property(qemu, "/machine", "suppress-vmdesc"):
        found.append(Finding(Topic.VMDESC, SUPPRESSED))
    if not await qemu.execute("qom-list", path="/machine/unattached"):
        found.append(Finding(Topic.NO_DEVICES, "the machine has no devices: is this a VM?"))
    for name in sorted({name for name in netdevs if netdevs.count(name) > 1}):
        found.append(Finding(Topic.QUEUES, QUEUES.format(name)))
    if await _lacks_preload(qemu, len(config.backends)):
        found.append(Finding(Topic.TCG_LIBRARY, await _preload_advice()))
    if netdevs and _opens(qemu.pid, _VHOST_DEVICE):
        found.append(Finding(Topic.VHOST, VHOST.format("")))
    replicated = {disk.id for disk in config.disks}
    if not allow_disks:
        for disk in await qemu.execute("query-block"):
            inserted = disk.get("inserted")
            if inserted and not inserted["ro"] and not disk_names(disk) & replicated:
                name = disk["device"] or disk.get("qdev") or inserted["node-name"]
                found.append(Finding(Topic.DISK_NOT_NAMED, NOT_NAMED.format(name)))
    found += await _memory(qemu, config.backends)
    first = largest_first(config.qemu.args)
    if first is not None and not (await qemu.execute("query-kvm"))["enabled"]:
        found.append(Finding(Topic.MEMORY_ORDER, NOT_LARGEST_FIRST.format(first)))
    if started and await _spins(qemu, config.qemu):
        text = (
            f"it runs under KVM, which does not work on this host: {Outcome.SPINS.value}: start "
            "QEMU on another host, or with -accel tcg"
        )
        found.append(Finding(Topic.KVM, text))
    return found


async def _memory(qemu: Monitor, ours: tuple[Backend, ...]) -> list[Finding]:
    """What of its memory is not as the VM file says, or cannot be protected."""
    sizes = {each.get("id"): each.get("size") for each in await qemu.execute("query-memdev")}
    lines = [
        f"the VM's memory has no backend {each.id} of {each.block.length} bytes (its backends: "
        f"{', '.join(f'{name} of {size}' for name, size in sizes.items()) or 'none'}): make -m, "
        "-object memory-backend-… and -numa in [qemu] args what QEMU was started with"
        for each in ours
        if sizes.get(each.id) != each.block.length
    ]
    found = [Finding(Topic.MEMORY, line) for line in lines]
    for device in await qemu.execute("query-memory-devices"):
        content = device["data"]
        name = content.get("id") or content.get("memdev")
        text = f"the memory device {name} ({device['type']}) is plugged in: take it out"
        found.append(Finding(Topic.MEMORY_DEVICE, text))
    return found


async def _spins(qemu: Monitor, ours: QemuArgs) -> bool:
    """Whether this host's KVM does not get a VM on, as far as can be known."""
    if not (await qemu.execute("query-kvm"))["enabled"]:
        return False
    return await asyncio.to_thread(try_kvm, ours.binary, ours.args) is Outcome.SPINS


async def _left_by_colo(qemu: Monitor) -> bool:
    """Whether a colo was killed while this QEMU stood still for it, or was in COLO."""
    capabilities = await qemu.execute("query-migrate-capabilities")
    return any(each["state"] for each in capabilities if each["capability"] == "x-colo")


async def _lacks_preload(qemu: Monitor, main_blocks: int) -> bool:
    """Whether this QEMU needs the library and has it not, as far as we may see."""
    major = (await qemu.execute("query-version"))["qemu"]["major"]
    accelerator = "kvm" if (await qemu.execute("query-kvm"))["enabled"] else "tcg"
    if not needs_preload(major, accelerator, main_blocks):
        return False
    try:
        return TCG_LIBRARY.name not in Path(f"/proc/{qemu.pid}/maps").read_text(errors="replace")
    except OSError:
        return False


async def _preload_advice() -> str:
    try:
        library = str(await asyncio.to_thread(TCG_LIBRARY.built))
    except GuestError:  # no compiler here: whoever builds it is told so
        library = "the library that the manual names"
    return (
        "this QEMU under TCG does not get its memory through checkpoints: start it by `colo run`, "
        f"with LD_PRELOAD={library}, or with KVM"
    )


async def _property(qemu: Monitor, path: str, name: str) -> bool:
    try:
        return bool(await qemu.execute("qom-get", path=path, property=name))
    except GuestError:
        return False


def _opens(pid: int, device: str) -> bool:
    """Whether a process has a device open, as far as we may see."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if os.readlink(link) == device:
                return True
        except OSError:
            continue
    return False
