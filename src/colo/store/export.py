"""The store's checkpoint as a migration stream that a stock QEMU loads."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from colo.migration.format import PAGE_SIZE, Section
from colo.migration.reader import Header
from colo.migration.writer import (
    RamWriter,
    description,
    header,
    page_runs,
    ram_section,
)
from colo.store.store import Store

__all__ = ["IGNORE_SHARED", "migration_stream"]

#: The capability under which QEMU takes mapped memory as it is.
IGNORE_SHARED = "x-ignore-shared"


def migration_stream(store: Store, mapped: Collection[str] = ()) -> Iterator[bytes]:
    """Yield the last whole checkpoint as an ordinary migration stream, from magic to description.

    The pages of the blocks named in ``mapped`` are left out: the QEMU that loads this has the
    capability x-ignore-shared on and the images of those blocks as its shared memory.  The
    store must be applied.
    """
    checkpoint = store.checkpoint
    assert checkpoint is not None and store.is_applied
    ram = RamWriter()
    capabilities = (IGNORE_SHARED,) if mapped else ()
    yield header(Header(checkpoint.header.machine, capabilities))
    blocks = ram.blocks(checkpoint.blocks, {} if mapped else None)
    yield ram_section(Section.START, checkpoint.ram_section, blocks)
    for block in checkpoint.blocks:
        if block.name not in mapped:
            for run in page_runs(block, store.images[block.name].pages.reshape(-1)):
                content = ram.pages(run) + ram.end()
                yield ram_section(Section.PART, checkpoint.ram_section, content)
    yield ram_section(Section.END, checkpoint.ram_section, ram.end())
    yield checkpoint.device_state
    yield description({"page_size": PAGE_SIZE, "devices": []})
