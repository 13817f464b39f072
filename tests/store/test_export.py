"""The store as a migration stream: what a plain reader makes of it is what the store holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.errors import StoreError, UnsupportedFeature
from colo.inspection.source import load_stream
from colo.migration.ram import Limits
from colo.migration.reader import Header, Migration
from colo.store.export import export_stream, migration_stream, new_file
from colo.store.store import Store
from colo.store.view import View
from tests.streams import (
    DEVICES_72,
    RAM,
    RSDP,
    SMALL_DESCRIPTION,
    SMALL_DEVICES,
    Reading,
    device,
    devices,
    fill,
    full,
    later_devices,
    naive,
    plain,
    subsection,
)

LIMITS = Limits(ram_bytes=1 << 20, device_bytes=64 << 10, description_bytes=64 << 10)
hexed = bytes.fromhex


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store", (RAM,), LIMITS)
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
    data = b"".join(migration_stream(store, {"pc.ram": 0}))
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
    found = naive(
        b"".join(migration_stream(store, {"pc.ram": 0, RSDP.name: 0x10000})), with_addresses=True
    )
    assert (found.pages, found.blocks, found.addresses) == ([], (RAM, RSDP), (0, 0x10000))


def test_a_stream_begins_only_from_a_whole_checkpoint_that_is_applied(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        next(migration_stream(Store(tmp_path / "empty", (RAM,), LIMITS)))
    store.stage(full(RAM, [0]))
    store.commit(1, later_devices(1))
    with pytest.raises(AssertionError):
        next(migration_stream(store))


def test_a_stream_comes_in_bounded_pieces(store: Store) -> None:
    assert max(len(piece) for piece in migration_stream(store)) < 257 * 4104


def write_file(path: Path, stream: Iterator[bytes]) -> None:
    with new_file(path) as file:
        for piece in stream:
            file.write(piece)
            assert not path.exists()


def test_a_file_is_there_only_once_it_is_whole(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "vm.mig"
    write_file(path, migration_stream(store))
    assert path.read_bytes() == b"".join(migration_stream(store))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["vm.mig"]


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "vm.mig"
    path.write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        write_file(path, iter([b"new"]))
    assert path.read_text() == "mine"


def test_a_stream_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"QEVM"
        raise StoreError("no more")

    with pytest.raises(StoreError, match="no more"):
        write_file(tmp_path / "vm.mig", broken())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "words"),
    [("nowhere/vm.mig", "No such file"), ("file/vm.mig", "Not a directory")],
)
def test_where_no_file_can_be_written_that_is_said(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=words):
        write_file(tmp_path / path, iter([b"x"]))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write .*: No space left"):
        write_file(tmp_path / "vm.mig", _full_disk())
    assert not list(tmp_path.iterdir())


def _full_disk() -> Iterator[bytes]:
    with open("/dev/full", "wb", buffering=0) as full_disk:
        full_disk.write(b"x")
    yield b""


def exported(store: Store, description: dict[str, Any], devices: bytes) -> bytes:
    """What is exported of a later checkpoint with these devices."""
    migration = Migration(Header("q35"), 3, (RAM, RSDP), SMALL_DEVICES, (), description)
    store.commit_migration(migration)
    store.commit(1, devices)
    store.apply()
    store.applied()
    return b"".join(export_stream(View(store)))


def test_an_export_describes_the_devices_as_they_are_now(store: Store) -> None:
    clock = (plain("now", b"\7\7"), subsection("clock/more", 1, plain("x", b"\3")))
    later, _ = devices(device(7, "clock", 1, *clock))
    found = load_stream("export", [exported(store, SMALL_DESCRIPTION, later)])
    assert [each.fields for each in found.devices] == [
        {"now": b"\7\7", "clock/more": {"data": b"\3"}}
    ]


def test_an_export_does_without_a_description_if_none_can_be_made(store: Store) -> None:
    tail = naive(exported(store, SMALL_DESCRIPTION, DEVICES_72)).tail
    assert tail.startswith(DEVICES_72 + b"\6")
    assert tail.endswith(b'"devices": []}')
