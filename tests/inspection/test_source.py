"""Reading a file or a store: it is whole, or one line says what is wrong."""

from __future__ import annotations

import errno
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.errors import ColoError
from colo.inspection.source import load_source, load_stream
from colo.migration.format import Command
from colo.migration.ram import PageRun, RamBlock
from colo.migration.reader import Header
from tests.inspection.conftest import Written
from tests.streams import (
    QEMU_11,
    QEMU_72,
    RAM,
    RSDP,
    SMALL_DEVICES,
    STREAMS,
    Stream,
    fill,
    full,
    pieces,
)

PLAIN = Stream("a plain migration", before=(), parts=((full(RAM, [1]), fill(RAM, [2], 3)),))


def no_store(path: Path) -> Iterator[bytes]:
    raise AssertionError(f"{path} was taken for a state folder")


@pytest.mark.parametrize("stream", [QEMU_72, QEMU_11, PLAIN], ids=lambda stream: stream.title)
def test_a_file(stream: Stream, written: Written) -> None:
    path = written("vm.mig", stream)
    found = load_source(path, no_store)
    assert (found.name, found.size, found.followed_by) == (str(path), len(stream.data), 0)
    assert found.header == stream.header
    assert found.pages_sent == len(stream.pages)
    assert list(found.statistics) == [RAM.name, RSDP.name]
    names = [description["name"] for description in stream.description["devices"]]
    assert [device.name for device in found.devices] == names
    assert sum(device.size for device in found.devices) == len(stream.devices) - 1


def test_its_pages() -> None:
    found = load_stream("s", [PLAIN.data]).statistics[RAM.name]
    assert (found.zero, found.fill, found.equal, found.unique) == (14, 1, 0, 1)


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.title)
def test_however_it_is_cut(stream: Stream) -> None:
    whole = load_stream("s", [stream.data])
    parts = load_stream("s", pieces(stream.data, itertools.cycle((1, 7, 4096, 50_000))))
    assert parts.statistics == whole.statistics
    assert parts.devices == whole.devices


def test_a_stream_that_goes_on() -> None:
    """As one that was recorded from a primary in COLO."""
    found = load_stream("s", [QEMU_72.data + b"more", b"and more"])
    assert (found.size, found.followed_by) == (len(QEMU_72.data), 12)


def test_the_store_of_a_state_folder(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    asked = []

    def fetch(path: Path) -> Iterator[bytes]:
        asked.append(path)
        yield from pieces(PLAIN.data, itertools.repeat(100))
        asked.append(path)  # whether the checkpoint is whole is known only at the end

    found = load_source(tmp_path, fetch)
    assert asked == [tmp_path, tmp_path]
    assert found.header.machine == PLAIN.header.machine


def test_a_store_that_ends_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")

    def fetch(path: Path) -> Iterator[bytes]:
        yield PLAIN.data[:1000]
        raise ColoError("no checkpoint any more")

    with pytest.raises(ColoError, match=r"^no checkpoint any more$"):
        load_source(tmp_path, fetch)


def test_a_folder_that_is_no_state_folder(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match="is no state folder of colo: no status"):
        load_source(tmp_path, no_store)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match=r"absent\.mig: No such file or directory"):
        load_source(tmp_path / "absent.mig", no_store)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match=r"x: File name too long$"):
        load_source(tmp_path / ("x" * 300), no_store)


@pytest.mark.parametrize("of", ["is_dir", "exists"])
def test_a_folder_that_one_may_not_enter(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, of, denied)
    with pytest.raises(ColoError) as caught:
        load_source(tmp_path, no_store)
    assert str(caught.value) == f"{tmp_path}: Permission denied"


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ColoError, match=r"/empty is empty$"):
        load_source(tmp_path / "empty", no_store)


@pytest.mark.parametrize("stream", [QEMU_72, QEMU_11], ids=lambda stream: stream.title)
def test_a_file_that_is_cut_off_anywhere(stream: Stream) -> None:
    for cut in range(1, len(stream.data), 37):
        with pytest.raises(ColoError) as caught:
            load_stream("vm.mig", [stream.data[:cut]])
        assert str(caught.value).startswith("vm.mig")
    with pytest.raises(ColoError, match=r"vm.mig is not whole: .* after 1,234 bytes$"):
        load_stream("vm.mig", [stream.data[:1234]])


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"LibvirtQemudSave", "this is no QEMU migration"),
        (b"\x7fELF" * 4096, "this is no QEMU migration"),
        (b"QEVM\0\0\0\2" + bytes(100), "version 2, not 3"),
        (b"\x11\x22\x33\x44" + bytes(100), "multifd"),
        (
            Stream("postcopy", before=((Command.POSTCOPY_ADVISE, None),)).data,
            "switch the capability postcopy-ram off",
        ),
        (
            Stream("mapped-ram", header=Header("pc", ("mapped-ram",))).data,
            "switch the capability mapped-ram off",
        ),
        (
            QEMU_72.data[: QEMU_72.data.index(b'{"page_size"') - 5],
            "without -machine suppress-vmdesc=on",
        ),
    ],
)
def test_what_cannot_be_read_is_named(data: bytes, text: str) -> None:
    with pytest.raises(ColoError) as caught:
        load_stream("vm.mig", [data])
    assert str(caught.value).startswith("vm.mig: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_memory_takes_little_here() -> None:
    block = RamBlock("pc.ram", 32 << 20)

    def runs() -> Iterator[PageRun]:
        for first in range(0, block.pages, 512):
            yield full(block, range(first, first + 512))

    stream = Stream(
        "large", blocks=(block,), before=(), parts=(tuple(runs()),), devices=SMALL_DEVICES
    )
    cut = list(pieces(stream.data, itertools.repeat(1 << 20)))
    tracemalloc.start()
    found = load_stream("s", cut)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.statistics["pc.ram"].unique == block.pages
    assert most < 8 << 20
