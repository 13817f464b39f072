"""What QEMU's arguments say: its memory, its accelerators.  It starts nothing and asks nobody.

Strategy.  Of an option that comes more than once the last value of each key counts (``options``
takes them apart).  Sizes are what both QEMU 7.2 and 11 take, and what they make of them.

The main memory is one block of the stream, or one for each NUMA node that has a backend.  On the
host that waits each is a file, so ``with_files`` puts a backend of colo's own in the place of each
that the arguments have, whatever kind that is, or adds the one that QEMU would make by itself.

Source: ``do_strtosz`` in ``util/cutils.c`` (sizes), ``machine_set_mem`` and
``numa_init_memdev_container`` in ``hw/core`` (memory), ``configure_accelerators`` in
``softmmu/vl.c``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from colo.errors import UsageError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import RamBlock
from colo.qemu.options import escape, is_on, machine_keys, option_name, pairs, read_keys

__all__ = [
    "Backend",
    "Tap",
    "largest_first",
    "main_memory",
    "named_accelerators",
    "parse_size",
    "taps",
    "with_files",
    "with_open_taps",
]

_DEFAULT_MEMORY: Final = 128 << 20
_MEMORY_UNIT: Final = 8192
#: What a tap has only where QEMU opens it.
_OF_OPENING: Final = frozenset({"ifname", "script", "downscript", "vnet_hdr", "helper", "br"})
#: What QEMU calls the memory that it makes by itself, by the first word of the machine's name.
_DEFAULT_IDS: Final = {"microvm": "microvm.ram"}
_PC_ID: Final = "pc.ram"
_BACKEND: Final = "memory-backend-"
#: With it the block is named after the object's whole path; machines before 4.0 have it on.
_WHOLE_PATH: Final = "x-use-canonical-path-for-ramblock-id"

_UNITS: Final = {unit: 1 << 10 * power for power, unit in enumerate("bkmgtpe")}
_SIZE: Final = re.compile(r"\s*\+?(?P<whole>\d*)(?P<part>(?:\.\d*)?)(?P<unit>[bkmgtpe]?)", re.ASCII)
_HEX: Final = re.compile(r"\s*\+?0x([0-9a-f]+)")
_SIZE_LIMIT: Final = 1 << 64


@dataclass(frozen=True)
class Backend:
    """A memory backend: its object's id, its block in the stream, where that lies in the memory."""

    id: str
    block: RamBlock
    address: int = 0
    whole_path: bool = False


def parse_size(text: str) -> int:
    """The bytes that QEMU takes ``text`` for where it asks for a size.  Raises ValueError."""
    text = text.lower()
    if found := _HEX.fullmatch(text):
        return int(found[1], 16)
    match = _SIZE.fullmatch(text)
    if match is None or not any(each.isdigit() for each in text):
        raise ValueError(text)
    unit = _UNITS[match["unit"] or "b"]
    # QEMU has the part behind the point as a double, times 2^64.
    part = int(float(f"0{match['part']}") * _SIZE_LIMIT) * unit
    if unit == 1 and part:
        raise ValueError(text)
    size = int(match["whole"] or 0) * unit + (part >> 64) + (part >> 63 & 1)
    if size >= _SIZE_LIMIT:
        raise ValueError(text)
    return size


def named_accelerators(args: Sequence[str]) -> tuple[str, ...]:
    """The accelerators that QEMU's arguments name, in the order in which it tries them."""
    named: list[str] = []
    for option, value in pairs(args):
        if option == "enable-kvm":
            named.append("kvm")
        elif option == "accel":
            named.append(str(read_keys(value, "accel").get("accel", "")))
    machine = str(machine_keys(args).get("accel", ""))
    return tuple(named) or tuple(each for each in machine.split(":") if each)


def main_memory(args: Sequence[str]) -> tuple[Backend, ...]:
    """The backends that the machine's memory is made of, by address.  Raises UsageError."""
    objects = _backends(args)
    nodes = dict(_numa_backends(args))
    _refuse_others(args, objects)
    if nodes:
        return tuple(_placed(_backend(objects, nodes[number]) for number in sorted(nodes)))
    machine = machine_keys(args)
    if "memory-backend" in machine:
        return (_backend(objects, str(machine["memory-backend"])),)
    kind = str(machine.get("type", "")).split("-")[0]
    own = _DEFAULT_IDS.get(kind, _PC_ID)
    return (Backend(own, RamBlock(own, _memory_size(args))),)


def largest_first(args: Sequence[str]) -> str | None:
    """Which of the main backends has to be named first, and is not; None where that is right.

    Under TCG QEMU ends itself where it clears what is written of a block that is longer than the
    one that it made first: ``tlb_reset_dirty_range_all`` in ``system/physmem.c`` of 9.0 and later.
    """
    given = [each for name in _backends(args) for each in main_memory(args) if each.id == name]
    largest = max(given, key=lambda each: each.block.length, default=None)
    if largest is None or largest.block.length == given[0].block.length:
        return None
    return largest.id


def with_files(args: Sequence[str], files: Mapping[str, str], is_shared: bool = True) -> list[str]:
    """The arguments with the main memory in ``files``, by the names of the blocks.

    What is written to memory that is not ``is_shared`` is seen by that QEMU alone.
    Raises UsageError, as ``main_memory``.
    """
    ours = {each.id: each for each in main_memory(args)}
    given = _backends(args).keys() & ours.keys()
    changed = list(args)
    for at, (option, value) in enumerate(itertools.pairwise(args)):
        if option_name(option) == "object":
            backend = ours.get(str(read_keys(value, "qom-type").get("id", "")))
            if backend is not None:
                changed[at + 1] = _file_backend(backend, files, is_shared)
    for backend in ours.values():
        if backend.id not in given:
            changed += ["-object", _file_backend(backend, files, is_shared)]
            changed += ["-machine", f"memory-backend={backend.id}"]
    return changed


@dataclass(frozen=True)
class Tap:
    """A tap device that a network backend opens; ``vnet``: with virtio-net headers."""

    netdev: str
    interface: str
    vnet: bool


def taps(args: Sequence[str]) -> tuple[Tap, ...]:
    """The tap devices of ``-netdev tap``.  Raises UsageError where one has no ``ifname=``."""
    found = []
    for option, value in pairs(args):
        keys = read_keys(value, "type") if option in ("netdev", "nic") else {}
        if keys.get("type") != "tap":
            continue
        name, on = str(keys.get("ifname", "")), keys.get("vnet_hdr", "on")
        if option == "nic" or not name or "queues" in keys:
            raise UsageError(
                f"-{option} {value}: for a secondary VM beside it, it has to be a -netdev tap with "
                "id= and ifname=, and without queues="
            )
        found.append(Tap(str(keys.get("id", "")), name, is_on(on)))
    return tuple(found)


def with_open_taps(args: Sequence[str], files: Mapping[str, int]) -> list[str]:
    """The arguments with taps that are open already, by their netdevs' ids: descriptors."""
    changed = list(args)
    for at, (option, value) in enumerate(itertools.pairwise(args)):
        keys = read_keys(value, "type") if option_name(option) == "netdev" else {}
        number = files.get(str(keys.get("id", "")))
        if keys.get("type") == "tap" and number is not None:
            kept = {key: text for key, text in keys.items() if key not in _OF_OPENING}
            parts = [f"{key}={escape(text)}" for key, text in kept.items() if key != "type"]
            changed[at + 1] = ",".join(["tap", *parts, f"fd={number}"])
    return changed


# -- memory --------------------------------------------------------------------------------------


def _memory_size(args: Sequence[str]) -> int:
    """The bytes that ``-m`` asks for.  What may be plugged in later is no part of it."""
    keys: dict[str, Any] = {}
    for option, value in pairs(args):
        if option == "m":
            keys |= read_keys(value, "size")
    text = str(keys.get("size", "0"))
    try:
        size = parse_size(f"{text}M" if text[-1:].isdigit() else text)
        parse_size(text)  # the size of a part needs a unit of its own
    except ValueError:
        raise UsageError(
            f"-m {text}: not a size that QEMU 7.2 and 11 take alike, such as 512, 1.5G or 0.25G"
        ) from None
    return -(-size // _MEMORY_UNIT) * _MEMORY_UNIT or _DEFAULT_MEMORY


def _backends(args: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The memory backends among the objects, by their ids."""
    objects = [read_keys(value, "qom-type") for option, value in pairs(args) if option == "object"]
    return {
        str(keys.get("id", "")): keys
        for keys in objects
        if str(keys.get("qom-type", "")).startswith(_BACKEND)
    }


def _numa_backends(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The number of each NUMA node that has a backend, and the backend's id."""
    count = 0
    for option, value in pairs(args):
        keys = read_keys(value, "type") if option == "numa" else {}
        if keys.get("type") != "node":
            continue
        number = str(keys.get("nodeid", count))
        count += 1
        if "memdev" in keys:
            if not (number.isascii() and number.isdigit()):
                raise UsageError(f"-numa {value}: nodeid has to be a number")
            yield int(number), str(keys["memdev"])


def _refuse_others(args: Sequence[str], objects: Mapping[str, object]) -> None:
    """Refuse devices that bring memory of their own, or share theirs with somebody."""
    for option, value in pairs(args):
        keys = read_keys(value, "driver") if option == "device" else {}
        if str(keys.get("memdev")) in objects:
            raise UsageError(
                f"[qemu] args: take out the device {keys.get('driver')} with memdev="
                f"{keys['memdev']}: memory that is plugged in, shared or a file's is not protected"
            )


def _backend(objects: Mapping[str, Mapping[str, Any]], name: str) -> Backend:
    keys = objects.get(name)
    if keys is None:
        raise UsageError(
            f"[qemu] args: the memory backend {name!r} is used, and no -object {_BACKEND}… there "
            "has that id: both hosts need it, so it belongs to [qemu] args"
        )
    try:
        given = keys["size"]
        size = given if type(given) is int else parse_size(str(given))
    except (KeyError, ValueError):
        raise UsageError(
            f"[qemu] args: the memory backend {name!r} needs a size= that QEMU knows, such as 512M"
        ) from None
    if size <= 0 or size % PAGE_SIZE:
        raise UsageError(
            f"[qemu] args: the memory backend {name!r} of {size} bytes: not a multiple of "
            f"{PAGE_SIZE} bytes"
        )
    whole_path = is_on(keys.get(_WHOLE_PATH))
    return Backend(name, RamBlock(f"/objects/{name}" if whole_path else name, size), 0, whole_path)


def _placed(backends: Iterator[Backend]) -> Iterator[Backend]:
    """One behind the other in the machine's memory."""
    address = 0
    for each in backends:
        yield Backend(each.id, each.block, address, each.whole_path)
        address += each.block.length


def _file_backend(backend: Backend, files: Mapping[str, str], is_shared: bool) -> str:
    block, share = backend.block, "on" if is_shared else "off"
    text = f"{_BACKEND}file,id={escape(backend.id)},share={share},size={block.length}"
    text += f",mem-path={escape(files[block.name])}"
    return f"{text},{_WHOLE_PATH}=on" if backend.whole_path else text
