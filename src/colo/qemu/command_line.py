"""What QEMU's arguments say: its memory, its accelerator.  It starts nothing and asks nobody."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

from colo.errors import UsageError
from colo.migration.format import PAGE_SIZE

__all__ = ["RAM_BLOCK", "memory_size", "named_accelerator"]

#: What QEMU calls the main memory of its pc and q35 machines, and so its block in the stream.
RAM_BLOCK: Final = "pc.ram"

_QEMU_DEFAULT_MIB: Final = 128
_UNITS: Final = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def named_accelerator(args: Sequence[str]) -> str | None:
    """Return "kvm", "tcg" or another that QEMU's arguments name, or None where they name none."""
    for option, value in zip(args, [*args[1:], ""], strict=False):
        if option in ("-enable-kvm", "--enable-kvm"):
            return "kvm"
        if option in ("-accel", "--accel"):
            return value.split(",")[0].removeprefix("accel=")
        if option in ("-machine", "-M", "--machine"):
            for part in value.split(","):
                if part.startswith("accel="):
                    return part.removeprefix("accel=").split(":")[0]
    return None


def memory_size(args: Sequence[str]) -> int:
    """Return the bytes that the last ``-m`` of QEMU's arguments asks for, or QEMU's default."""
    text = f"{_QEMU_DEFAULT_MIB}"
    for option, value in itertools.pairwise(args):
        if option in ("-m", "--m"):
            text = value
    size = ""
    for part in text.split(","):
        key, _, value = part.rpartition("=")
        if key in ("", "size"):
            size = value
        elif key in ("slots", "maxmem"):
            raise UsageError(f"-m {text}: memory that is plugged in later cannot be protected")
    match = re.fullmatch(r"(\d+)([bkmgt]?)", size.lower())
    if match is None:
        raise UsageError(f"-m {text}: not a size that QEMU knows, such as 512 or 2G")
    memory = int(match[1]) * _UNITS[match[2]]
    if not memory or memory % PAGE_SIZE:
        raise UsageError(f"-m {text}: not a multiple of {PAGE_SIZE} bytes")
    return memory
