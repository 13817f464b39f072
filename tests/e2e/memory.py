"""The guest's memory, page by page: on the primary, and in a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.e2e.basics import wait
from tests.e2e.harness import Host
from tests.e2e.vm import PrimaryVm, VmFile

__all__ = ["Pages", "differing", "primary_memory", "store_memory", "wait_equal"]

COMPARED_S = 20.0
PAGE = 4096
#: There the processor sees graphics memory, not the memory that the block holds.
VGA_WINDOW = slice(0xA0000 // PAGE, 0xC0000 // PAGE)

Pages = NDArray[np.uint8]


def primary_memory(primary: PrimaryVm, folder: Path, vm: VmFile) -> Pages:
    """The memory of the primary's VM, as QEMU sees it."""
    path = folder / "memory"
    primary.execute("pmemsave", val=0, size=vm.memory_mib << 20, filename=str(path))
    pages = np.fromfile(path, np.uint8).reshape(-1, PAGE)
    path.unlink()
    return pages


def store_memory(host: Host) -> Pages:
    """What the secondary's store holds."""
    store = host.state / "store"
    parts = [np.fromfile(store / each.block.name, np.uint8) for each in host.backends]
    return np.concatenate(parts).reshape(-1, PAGE)


def wait_equal(truth: Pages, host: Host, what: str) -> None:
    """Wait until the store has applied the checkpoint, and its memory is the VM's."""
    found: list[int] = []

    def is_equal() -> bool:
        found[:] = differing(truth, store_memory(host))
        return not found

    try:
        wait(is_equal, "equal memory", COMPARED_S)
    except AssertionError:
        pages = ", ".join(f"{number:#x}" for number in found[:20])
        pytest.fail(f"{what}: {len(found)} pages differ: {pages}")


def differing(one: Pages, other: Pages) -> list[int]:
    """The numbers of the pages that differ."""
    assert one.shape == other.shape
    unequal = (one.view(np.uint64) != other.view(np.uint64)).any(axis=1)
    unequal[VGA_WINDOW] = False
    return [int(number) for number in np.flatnonzero(unequal)]
