"""The store as a migration stream: what a plain reader makes of it is what the store holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo.errors import UnsupportedFeature
from colo.migration.ram import Limits
from colo.migration.reader import Header, Migration
from colo.store.export import migration_stream
from colo.store.store import Store
from tests.streams import (
    DEVICES_72,
    RAM,
    RSDP,
    SMALL_DEVICES,
    Reading,
    fill,
    full,
    later_devices,
    naive,
)

LIMITS = Limits(ram_bytes=1 << 20, device_bytes=64 << 10, description_bytes=64 << 10)
hexed = bytes.fromhex


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store", RAM, LIMITS)
    store.define((RAM, RSDP))
    for run in (full(RAM, range(8)), fill(RAM, range(4, 12), 5), full(RSDP, [0])):
        store.write(run)
    store.commit_migration(Migration(Header("q35", ("x",)), 3, (RAM, RSDP), DEVICES_72, (), {}))
    return store


def test_an_ordinary_stream_holds_every_page_and_the_devices(store: Store) -> None:
    found = naive(b"".join(migration_stream(store)))
    assert found.header == b"QEVM" + hexed("00000003 07 00000003") + b"q35"
    assert found.blocks == (RAM, RSDP)
    assert found.commands == []
    assert found.images == {name: image.pages.tobytes() for name, image in store.images.items()}
    assert sorted((name, offset) for name, offset, _ in found.pages) == [
        ("/rom@etc/acpi/rsdp", 0),
        *(("pc.ram", number * 4096) for number in range(16)),
    ]
    description = json.dumps({"page_size": 4096, "devices": []}).encode()
    assert found.tail == DEVICES_72 + b"\6" + len(description).to_bytes(4, "big") + description


def test_it_is_of_the_last_checkpoint(store: Store) -> None:
    store.stage(fill(RAM, range(16)))
    store.stage(full(RAM, [3], 99))
    store.commit(1, SMALL_DEVICES)
    store.apply()
    store.applied()
    found = naive(b"".join(migration_stream(store)))
    assert found.images["pc.ram"].count(0) > 14 * 4096
    assert found.images["pc.ram"][0x3000:0x4000] == full(RAM, [3], 99).content.tobytes()
    assert found.tail.startswith(SMALL_DEVICES + b"\6")


MAPPED = (
    b"QEVM" + hexed("00000003 07 00000003") + b"q35"
    + hexed("05 1a") + b"configuration/capabilities" + hexed("00000001 00000001 0f")
    + b"x-ignore-shared"
    + hexed("01 00000003 03") + b"ram" + hexed("00000000 00000004 0000000000011004")
    + hexed("06") + b"pc.ram" + hexed("0000000000010000 0000000000000000")
    + hexed("12") + b"/rom@etc/acpi/rsdp" + hexed("0000000000001000 0000000000000000")
    + hexed("0000000000000010 7e 00000003")
    + hexed("02 00000003 0000000000000008 12") + b"/rom@etc/acpi/rsdp"
)  # fmt: skip


def test_a_stream_for_mapped_memory_leaves_that_memory_out(store: Store) -> None:
    data = b"".join(migration_stream(store, {"pc.ram"}))
    assert data.startswith(MAPPED)
    found = naive(data, with_addresses=True)
    assert found.addresses == (0, 0)
    assert {name for name, _, _ in found.pages} == {RSDP.name}
    assert found.images[RSDP.name] == store.images[RSDP.name].pages.tobytes()
    assert found.tail.startswith(DEVICES_72)
    assert len(data) < 4096 + 2000
    with pytest.raises(UnsupportedFeature, match="x-ignore-shared"):
        Reading().feed(data)


def test_everything_may_be_mapped(store: Store) -> None:
    found = naive(b"".join(migration_stream(store, {"pc.ram", RSDP.name})), with_addresses=True)
    assert (found.pages, found.blocks) == ([], (RAM, RSDP))


def test_a_stream_begins_only_from_a_whole_checkpoint_that_is_applied(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        next(migration_stream(Store(tmp_path / "empty", RAM, LIMITS)))
    store.stage(full(RAM, [0]))
    store.commit(1, later_devices(1))
    with pytest.raises(AssertionError):
        next(migration_stream(store))


def test_a_stream_comes_in_bounded_pieces(store: Store) -> None:
    assert max(len(piece) for piece in migration_stream(store)) < 257 * 4104
