"""Whether a QEMU that waits can load what a primary sends: found before anybody relies on it.

Strategy.  ``Machine`` is what the waiting QEMU has, as far as it could be learned; None stands for
what could not, and is not compared.  Only what QEMU certainly refuses to load counts, and
processors that the primary's VM never had: a right pair is never refused, also where the two
QEMUs are of different versions.  So memory and devices that only the waiting QEMU has are no
difference: QEMU loads a state that lacks them.

Source: ``parse_ramblocks`` in ``migration/ram.c`` and ``qemu_ram_resize`` in ``softmmu/physmem.c``
(memory); ``find_se`` in ``migration/savevm.c`` (sections); ``get_pci_config_device`` in
``hw/pci/pci.c`` (ids); ``vmstate_cpu_hotplug`` in ``hw/acpi/cpu.c`` (possible processors).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from colo.errors import Misfit
from colo.migration.ram import RamBlock
from colo.migration.reader import Migration
from colo.migration.vmdesc import walk

__all__ = ["Machine", "Memory", "PciId", "check_blocks", "check_devices"]

#: A vendor's number and its device's.
PciId = tuple[int, int]

_ADVICE: Final = "make [qemu] args the same as what the running QEMU was started with"
_SHOWN_MOST: Final = 3
#: ROM files and tables in fw_cfg: QEMU makes them resizable, to any size up to their largest.
_RESIZABLE: Final = "/rom@"
#: A device on the first PCI bus; what follows is a bus behind it, or what the section is of.
_ON_PCI: Final = re.compile(r"0000:00:([0-9a-f]{2}\.[0-7])([:/])(.*)", re.DOTALL)
_CPU: Final = "cpu_common"
_KVM_CLOCK: Final = "kvmclock"  # a device that only KVM has
_CPU_HOTPLUG: Final = "CPU hotplug state"
_PCI_CONFIG: Final = "pci config"
_VIRTIO: Final = "virtio"
_VIRTIO_CONFIG: Final = 4  # in its one field: behind the version of the PCI device's state
_MIB: Final = 1 << 20


@dataclass(frozen=True)
class Memory:
    """A block of the waiting QEMU's memory: the bytes in use, and what it can be resized to."""

    used: int
    largest: int


@dataclass(frozen=True)
class Machine:
    """What the waiting QEMU has; None where it could not be learned.

    ``cpus``: the indices of its processors, ``cpus_most``: how many there can be.  ``pci``: what
    is on the first PCI bus, by ``slot.function``.  ``kvm``: whether it runs under KVM.
    """

    blocks: Mapping[str, Memory] | None = None
    cpus: frozenset[int] | None = None
    cpus_most: int | None = None
    pci: Mapping[str, PciId] | None = None
    kvm: bool | None = None


def check_blocks(machine: Machine, blocks: Collection[RamBlock]) -> None:
    """Raise Misfit where the waiting QEMU cannot take these blocks of memory."""
    if machine.blocks is None:
        return
    names = {block.name for block in blocks}
    differences = []
    for block in blocks:
        ours = machine.blocks.get(block.name)
        if ours is None:
            place = block.name.partition("/")[0]
            instead = [
                name
                for name in machine.blocks
                if place and name.startswith(f"{place}/") and name not in names
            ]
            has = f"{', '.join(instead)} instead" if instead else "none"
            differences.append(f"memory {block.name}, the waiting QEMU has {has}")
        elif not _fits(block, ours):
            differences.append(
                f"{_size(block.length)} of memory {block.name}, the waiting QEMU has "
                f"{_size(ours.largest)}"
            )
    _refuse(differences)


def check_devices(machine: Machine, migration: Migration) -> None:
    """Raise Misfit where the waiting QEMU has not the devices whose state this is."""
    seen = _Seen()
    walk(migration.description, memoryview(migration.device_state), visitor=seen)
    cpus = {device.instance for device in migration.devices if device.name == _CPU}
    if machine.kvm is False and _KVM_CLOCK in {device.name for device in migration.devices}:
        raise Misfit(
            "the primary's VM runs under KVM, the waiting QEMU does not: have KVM on both hosts, "
            'or set [qemu] accel = "tcg" and start the VM anew'
        )
    _refuse([*_processors(machine, cpus, seen.cpus_most), *_pci(machine, migration, seen.ids)])


def _fits(block: RamBlock, ours: Memory) -> bool:
    if block.name.startswith(_RESIZABLE) or ours.used != ours.largest:
        return block.length <= ours.largest
    return block.length == ours.largest


def _processors(machine: Machine, theirs: set[int], most: int | None) -> Iterable[str]:
    ours = machine.cpus
    if not theirs or ours is None:
        return
    # Only a machine with the newer CPU hotplug can have lost a processor since its start.
    if not theirs <= ours or (most is None and theirs != ours):
        yield f"{_count(len(theirs))}, the waiting QEMU has {len(ours)}"
        if len(theirs) == len(ours):
            yield f"processors of the numbers {sorted(theirs)}, not {sorted(ours)}"
    elif most is not None and machine.cpus_most not in (None, most):
        yield f"room for {_count(most)}, the waiting QEMU for {machine.cpus_most}"


def _pci(machine: Machine, migration: Migration, ids: Mapping[str, PciId]) -> Iterable[str]:
    if machine.pci is None:
        return
    for device in migration.devices:
        match = _ON_PCI.fullmatch(device.name)
        if match is None:
            continue
        address, separator, what = match.groups()
        ours, theirs = machine.pci.get(address), ids.get(device.name)
        if ours is None:
            what = what if separator == "/" else "a bridge"
            yield f"{what} at PCI address {address}, the waiting QEMU has nothing there"
        elif separator == "/" and theirs not in (None, ours):
            yield (
                f"{what} (PCI {_id(theirs)}) at PCI address {address}, the waiting QEMU has "
                f"{_id(ours)} there"
            )


class _Seen:
    """Picks out of a walk what can be compared."""

    def __init__(self) -> None:
        self.ids: dict[str, PciId] = {}
        self.cpus_most: int | None = None
        self._path: list[str] = []

    def begin(self, name: str, description: dict[str, Any]) -> None:
        self._path.append(name)
        content = description.get("struct", description)
        if content.get("vmsd_name") == _CPU_HOTPLUG:
            self.cpus_most = sum(
                field.get("array_len", 1) for field in content["fields"] if field["name"] == "devs"
            )

    def field(self, description: dict[str, Any], data: bytes) -> None:
        kind = description.get("type")
        if kind == _PCI_CONFIG:
            self._take_id(data)
        elif kind == _VIRTIO and len(self._path) == 1:
            self._take_id(data[_VIRTIO_CONFIG:])

    def end(self) -> None:
        self._path.pop()

    def _take_id(self, config: bytes) -> None:
        """A device's PCI configuration begins with who made it, and what it is."""
        found = int.from_bytes(config[:2], "little"), int.from_bytes(config[2:4], "little")
        self.ids.setdefault(self._path[0], found)


def _refuse(differences: Iterable[str]) -> None:
    found = list(dict.fromkeys(differences))
    if found:
        more = f"; and {len(found) - _SHOWN_MOST} more" if len(found) > _SHOWN_MOST else ""
        raise Misfit(f"the primary's VM has {'; '.join(found[:_SHOWN_MOST])}{more}: {_ADVICE}")


def _count(number: int) -> str:
    return f"{number} processor{'' if number == 1 else 's'}"


def _id(each: PciId | None) -> str:
    assert each is not None
    return f"{each[0]:04x}:{each[1]:04x}"


def _size(length: int) -> str:
    return f"{length // _MIB} MiB" if length % _MIB == 0 else f"{length >> 10} KiB"
