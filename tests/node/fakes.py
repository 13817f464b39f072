"""What several tests of the nodes stand on instead of the real thing."""

from __future__ import annotations

from colo.migration.ram import RamBlock
from colo.migration.reader import Header, Migration

__all__ = ["FitsAnything"]


class FitsAnything:
    """A waiting QEMU's part in a first copy: it could load whatever comes."""

    def check_header(self, header: Header) -> None:
        pass

    def check_blocks(self, blocks: tuple[RamBlock, ...]) -> None:
        pass

    def check_devices(self, migration: Migration) -> None:
        pass
