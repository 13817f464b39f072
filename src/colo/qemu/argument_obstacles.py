"""What of QEMU's arguments stands in the way of protecting their VM, seen without starting it.

``qemu.obstacles`` asks a running QEMU, which knows better; what both say, they say in the same
words, which are here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from colo.findings import Finding, Topic, note
from colo.qemu.drives import Drive, drives, users
from colo.qemu.options import Option, is_off, is_on, machine_keys, options

__all__ = [
    "NOT_NAMED",
    "QUEUES",
    "SUPPRESSED",
    "VHOST",
    "argument_obstacles",
    "brings_memory",
    "has_vhost",
    "is_of_this_host",
    "is_versioned",
    "queues_of",
]

VHOST: Final = "vhost is on{}, which leads packets past QEMU: start the netdev with vhost=off"
QUEUES: Final = "netdev {} has several queues, which QEMU cannot filter: start it with 1"
NOT_NAMED: Final = (
    "disk {} is written and nobody replicates it: name it in [[disks]], take it out, make it "
    "read-only, or say --unprotected-disks"
)
SUPPRESSED: Final = "the machine has suppress-vmdesc=on: start QEMU without it"

#: Hardware of the host that is lent to the guest: it cannot go to another one.
_LENT: Final = re.compile(r"vfio-.*|usb-host|pci-assign|host-usb|tpm-passthrough")
_MEMORY: Final = re.compile(r"ivshmem.*|pc-dimm|nvdimm|virtio-p?mem-.*|cxl-type3")
#: What a part of their state is elsewhere of, or that QEMU does not migrate.
_STUCK: Final = {
    r"nvme|nvme-ns|nvme-subsys": "have the disk as virtio-blk or virtio-scsi",
    r"vhost-scsi.*|vhost-user-.*": "its state is in another process: have QEMU's own",
    r"virtio-(vga|gpu)-(gl|rutabaga).*": "take one without gl",
    r"virtio-.*-vhost-user.*|vhost-vdpa-.*": "its state is in another process: take it out",
}
_NETDEVS: Final = ("netdev", "nic", "net")
_ELSEWHERE: Final = ("vhost-user", "vhost-vdpa")
_SECRET_GUESTS: Final = ("sev-guest", "sev-snp-guest", "tdx-guest", "s390-pv-guest", "pef-guest")
_VERSION: Final = re.compile(r".*-(\d+\.\d+(\.\d+)?|rhel[\d.]+)([+.].*)?|microvm|none|isapc")


def argument_obstacles(args: Sequence[str], disks: Collection[str]) -> list[Finding]:
    """What stands in the way, a line each; ``disks``: the ids of ``[[disks]]``."""
    found = options(args)
    return [
        *_machine(args),
        *_processors(found),
        *_cards(found),
        *_devices(found),
        *_disks(found, disks),
    ]


def has_vhost(keys: dict[str, Any]) -> bool:
    """Whether a netdev's packets do not go through QEMU."""
    return (
        is_on(keys.get("vhost"))
        or is_on(keys.get("vhostforce"))
        or ("vhost" not in keys and any(key in keys for key in ("vhostfd", "vhostfds")))
        or keys.get("type") in _ELSEWHERE
    )


def queues_of(keys: dict[str, Any]) -> int:
    """How many queues a netdev has."""
    text = str(keys.get("queues", "1"))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1
    return max(number, *(str(keys.get(key, "")).count(":") + 1 for key in ("fds", "vhostfds")))


def is_of_this_host(driver: str) -> bool:
    """Whether a device is hardware of the host."""
    return _LENT.fullmatch(driver) is not None


def brings_memory(driver: str) -> bool:
    """Whether a device is memory besides the main one."""
    return _MEMORY.fullmatch(driver) is not None


def is_versioned(machine: str) -> bool:
    """Whether a machine's name says the same to every QEMU that knows it."""
    return _VERSION.fullmatch(machine) is not None


def _machine(args: Sequence[str]) -> Iterator[Finding]:
    machine = machine_keys(args)
    if is_on(machine.get("suppress-vmdesc")):
        yield Finding(Topic.VMDESC, SUPPRESSED)
    kind = str(machine.get("type", ""))
    if not is_versioned(kind):
        yield note(
            Topic.MACHINE,
            f"-machine {kind or '(none)'} is another machine in each version of QEMU: with a "
            f"version, such as {_versioned(kind)}, an upgrade of one host changes nothing",
        )


def _versioned(kind: str) -> str:
    """A name of the same kind with a version, as an example; Proxmox has more behind a «+»."""
    alias = kind.partition("+")[0]
    return f"{alias}-7.2" if alias == "virt" else f"pc-{'q35' if alias == 'q35' else 'i440fx'}-7.2"


def _processors(found: Sequence[Option]) -> Iterator[Finding]:
    for keys in (each.keys for each in found if each.name == "cpu"):
        has = {str(key).lstrip("+") for key, value in keys.items() if not is_off(value)}
        if "invtsc" in has and "tsc-frequency" not in keys:
            yield Finding(
                Topic.CPU,
                "-cpu with invtsc has no migration: give tsc-frequency= too, the same on both "
                "hosts, or take invtsc out",
            )
        if is_off(keys.get("migratable", True)):
            yield Finding(Topic.CPU, "-cpu with migratable=off has no migration: take that out")
        if keys.get("model") in ("host", "max"):
            yield note(
                Topic.CPU,
                f"-cpu {keys['model']} is what this host has: where the other one's processor is "
                "another, name a model that both have",
            )


def _cards(found: Sequence[Option]) -> Iterator[Finding]:
    for each in found:
        if each.name not in _NETDEVS:
            continue
        keys = each.keys
        name = str(keys.get("id", keys.get("type", "")))
        if keys.get("type") in _ELSEWHERE:
            text = f"netdev {name} is {keys['type']}, which leads packets past QEMU: have a tap"
            yield Finding(Topic.VHOST, text)
        elif has_vhost(keys):
            yield Finding(Topic.VHOST, VHOST.format(f" at netdev {name}"))
        if queues_of(keys) > 1:
            yield Finding(Topic.QUEUES, QUEUES.format(name))


def _devices(found: Sequence[Option]) -> Iterator[Finding]:
    for each in found:
        keys = each.keys
        driver = str(keys.get("driver" if each.name == "device" else "type", ""))
        name = f"{driver} {keys['id']}" if "id" in keys else driver
        if each.name == "tpmdev":
            yield _tpm(driver)
        elif each.name == "object" and keys.get("qom-type") in _SECRET_GUESTS:
            text = f"{keys['qom-type']}: QEMU does not migrate a guest with secret memory: without"
            yield Finding(Topic.DEVICE, text)
        elif each.name == "virtfs" or driver.startswith("virtio-9p"):
            text = "a 9p folder has no migration while the guest has it mounted: have NFS instead"
            yield note(Topic.DEVICE, text)
        elif each.name != "device":
            continue
        elif is_of_this_host(driver):
            text = f"the device {name} is this host's hardware, which cannot go with the VM: take"
            yield Finding(Topic.DEVICE, f"{text} it out")
        elif brings_memory(driver):
            text = f"the device {name} is memory that is plugged in or shared: take it out"
            yield Finding(Topic.MEMORY_DEVICE, text)
        elif driver.startswith("vhost-vsock"):
            text = (
                f"what the guest says by {name} is not held: it may be said twice after a takeover"
            )
            yield note(Topic.DEVICE, text)
        else:
            for pattern, advice in _STUCK.items():
                if re.fullmatch(pattern, driver):
                    yield Finding(Topic.DEVICE, f"the device {name} has no migration: {advice}")


def _tpm(kind: str) -> Finding:
    if kind == "emulator":
        text = "the TPM is a swtpm: start one on each host, at that socket, before QEMU is started"
        return note(Topic.DEVICE, text)
    return Finding(
        Topic.DEVICE,
        f"the TPM is this host's hardware (-tpmdev {kind}), which cannot go with the VM: have an "
        "emulator (swtpm), or none",
    )


def _disks(found: Sequence[Option], disks: Collection[str]) -> Iterator[Finding]:
    used = users(found)
    made: dict[str, Drive] = {each.id: each for each in drives(found)}
    for drive in made.values():
        if drive.id in disks:
            text = (
                f"[[disks]] {drive.id}: [qemu] args have a drive of that name too, and colo adds "
            )
            yield Finding(Topic.DISK_NOT_USED, f"{text}it: take it out of [qemu] args")
        elif drive.written and drive.attached:
            yield Finding(Topic.DISK_NOT_NAMED, NOT_NAMED.format(drive.id))
    for name in disks:
        if name not in used and name not in made:
            yield Finding(
                Topic.DISK_NOT_USED,
                f"[[disks]] {name}: no device has it: [qemu] args need a -device with drive={name}",
            )
