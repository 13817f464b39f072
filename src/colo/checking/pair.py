"""What differs between the VM files of two hosts that has to be the same.

Most of it the two hosts would say to each other when they meet: it is what they say in their
hellos, and so it is compared by the same code, one property at a time, to find all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from colo.config import VmConfig
from colo.disks.words import DiskHello, OneDisk
from colo.findings import Finding, Topic, note
from colo.membership.words import Hello
from colo.qemu.command_line import named_accelerators
from colo.qemu.options import options

__all__ = ["differences"]

#: What of a hello belongs together.
_PROPERTIES: Final = (("vm",), ("machine",), ("arbiter",), ("heartbeat_s", "heartbeat_limit_s"))
_SHOWN_MOST: Final = 3


def differences(ours: VmConfig, other: VmConfig) -> Iterator[Finding]:
    """What of ``other`` does not go with this host's file, a line each."""
    for text in _texts(ours, other):
        yield Finding(Topic.TWO_FILES, f"the other file: {text}")
    for text in _own(ours, other):
        yield note(Topic.TWO_FILES, f"the other file has {text}")
    if ours.qemu.binary != other.qemu.binary:
        text = f"the other file has [qemu] binary = {other.qemu.binary!r}, this one"
        text = f"{text} {ours.qemu.binary!r}: have the same version on both hosts"
        yield note(Topic.TWO_FILES, text)


def _texts(ours: VmConfig, other: VmConfig) -> Iterator[str]:
    hello, theirs = Hello.ours(ours), Hello.ours(other)
    for names in _PROPERTIES:
        # As if nothing else differed.
        one = replace(hello, **{name: getattr(theirs, name) for name in names})
        if (said := one.refusal(hello)) is not None:
            yield said + (_args(ours, other) if names == ("machine",) else "")
    if ours.mode != other.mode:
        yield f"its mode is {other.mode}, this one's {ours.mode}"
    disks = [tuple(OneDisk(disk.id, 0) for disk in each.disks) for each in (ours, other)]
    said = DiskHello(ours.name, 0, "", disks[1]).refusal(ours.name, disks[0])
    if said is not None:
        yield said
    if list(ours.hosts.items()) != list(other.hosts.items()):
        yield (
            f"its [hosts] are {_hosts(other)}, this one's {_hosts(ours)}: the same, in the same "
            "order: the first one has [qemu.primary]"
        )
    if (ours.tls is None) != (other.tls is None):
        yield "only one of them has [tls]: both, or none"
    elif ours.tls is not None and other.tls is not None and ours.tls.name != other.tls.name:
        yield f"its [tls] name is {other.tls.name}, this one's {ours.tls.name}"
    accelerators = [_accelerator(each) for each in (ours, other)]
    if "auto" not in accelerators and accelerators[0] != accelerators[1]:
        yield f"its accelerator is {accelerators[1]}, this one's {accelerators[0]}"


def _own(ours: VmConfig, other: VmConfig) -> Iterator[str]:
    """What is each host's own: with one file for both it is the same in both."""
    paths = [
        {disk.id: (disk.primary, disk.secondary) for disk in each.disks} for each in (ours, other)
    ]
    if any(paths[1].get(name, at) != at for name, at in paths[0].items()):
        yield "[[disks]] with other paths: `primary` is the first host's"
    for side in ("primary", "secondary"):
        if getattr(ours.qemu, side) != getattr(other.qemu, side):
            yield f"another [qemu.{side}]: `colo node` takes it from its own host's file"


def _args(ours: VmConfig, other: VmConfig) -> str:
    """Which arguments differ."""
    mine, theirs = (list(map(str, options(each.qemu.args))) for each in (ours, other))
    parts = []
    for where, has, has_not in (("only there", theirs, mine), ("only here", mine, theirs)):
        only = [each for each in has if each not in has_not]
        more = " …" if len(only) > _SHOWN_MOST else ""
        if only:
            parts.append(f"{where} {', '.join(only[:_SHOWN_MOST])}{more}")
    return f" ({'; '.join(parts) or 'another order'})"


def _hosts(config: VmConfig) -> str:
    return ", ".join(f"{name} = {at}" for name, at in config.hosts.items()) or "none"


def _accelerator(config: VmConfig) -> str:
    return next(iter(named_accelerators(config.qemu.args)), config.qemu.accel)
