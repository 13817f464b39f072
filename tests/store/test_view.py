"""A view shows one checkpoint, whatever the store does meanwhile, and then only what is new."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.errors import StoreError
from colo.migration.ram import Limits, PageRun
from colo.migration.reader import Header, Migration
from colo.store.export import export_stream
from colo.store.store import Store
from colo.store.view import VIEWS_MAX, View
from tests.streams import DEVICES_72, RAM, RSDP, fill, full, later_devices, naive

LIMITS = Limits(ram_bytes=1 << 20, device_bytes=64 << 10, description_bytes=64 << 10)
ALL = [("pc.ram", number) for number in range(16)] + [(RSDP.name, 0)]


@pytest.fixture(autouse=True, scope="module")
def short_runs() -> Iterator[None]:
    """Have a view read a few pages at a time, so that much can happen in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("colo.store.view.RUN_PAGES", 3)
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = made(tmp_path / "store")
    yield store
    store.remove()


def made(folder: Path) -> Store:
    store = Store(folder, (RAM,), LIMITS)
    begin(store)
    return store


def begin(store: Store) -> None:
    """A first migration."""
    store.define((RAM, RSDP))
    for run in (full(RAM, range(8)), fill(RAM, range(4, 12), 5), full(RSDP, [0])):
        store.write(run)
    store.commit_migration(Migration(Header("q35"), 3, (RAM, RSDP), DEVICES_72, (), {}))


def checkpoint(store: Store, *runs: PageRun) -> None:
    """The next checkpoint, applied."""
    assert store.checkpoint is not None
    for run in runs:
        store.stage(run)
    number = store.checkpoint.number + 1
    store.commit(number, later_devices(number))
    store.apply()
    store.applied()


def read(view: View) -> dict[tuple[str, int], bytes]:
    """All that a view shows, page by page; a page shows once."""
    return gather(view.pages())


def gather(runs: Iterable[PageRun]) -> dict[tuple[str, int], bytes]:
    pages: dict[tuple[str, int], bytes] = {}
    for run in runs:
        for offset, content in zip(run.offsets, run.content, strict=True):
            key = run.block.name, int(offset) // 4096
            assert key not in pages
            pages[key] = content.tobytes() * (4096 if run.is_fill else 1)
    return pages


def held(store: Store) -> dict[tuple[str, int], bytes]:
    """What the store's images hold."""
    return {
        (name, number): page.tobytes()
        for name, image in store.images.items()
        for number, page in enumerate(image.pages)
    }


def test_it_shows_everything_first_and_then_only_what_was_written(store: Store) -> None:
    view = View(store)
    first = view.open()
    assert (first.number, read(view)) == (0, held(store))
    checkpoint(store, full(RAM, [2, 9], 50), fill(RSDP, [0], 0))
    assert read(view) == {}, "each page is read once"
    assert view.open().number == 1
    new = read(view)
    assert sorted(new) == [(RSDP.name, 0), ("pc.ram", 2), ("pc.ram", 9)]
    assert new.items() <= held(store).items()


def test_what_is_overwritten_meanwhile_is_shown_as_it_was(store: Store) -> None:
    view = View(store)
    view.open()
    before, pages = held(store), view.pages()
    some = next(pages)
    checkpoint(store, full(RAM, range(16), 60), full(RSDP, [0], 61))
    checkpoint(store, fill(RAM, range(16), 0))
    assert gather([some, *pages]) == before
    view.open()
    assert read(view) == held(store)


def test_zero_pages_come_as_fills(store: Store) -> None:
    view = View(store)
    view.open()
    assert {run.is_fill for run in view.pages()} == {True, False}


changes = st.lists(
    st.tuples(st.sampled_from(ALL), st.integers(0, 3), st.booleans()), min_size=1, max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rounds=st.lists(st.tuples(changes, st.integers(0, 20)), max_size=6), data=st.data())
def test_a_reader_that_opens_again_and_again_has_each_checkpoint_whole(
    rounds: list[tuple[list[tuple[tuple[str, int], int, bool]], int]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    store = made(tmp_path_factory.mktemp("s") / "store")
    view = View(store)
    copy: dict[tuple[str, int], bytes] = {}
    blocks = {RAM.name: RAM, RSDP.name: RSDP}
    for writes, pause_after in rounds:
        view.open()
        shown = held(store)
        for count, run in enumerate(view.pages()):
            copy.update(gather([run]))
            if count == pause_after % 3:  # the store goes on in the middle of reading
                checkpoint(
                    store,
                    *(
                        full(blocks[name], [number], seed)
                        if whole
                        else fill(blocks[name], [number], seed)
                        for (name, number), seed, whole in writes
                    ),
                )
        assert copy == shown
    store.remove()


def test_a_reader_in_another_thread_never_sees_two_checkpoints(store: Store) -> None:
    view = View(store)
    ended, turn = threading.Event(), threading.Lock()
    written = 0

    def write() -> None:
        nonlocal written
        while not ended.is_set():
            with turn:  # no view is opened within a checkpoint; reading goes on
                written += 1
                value = written % 250 + 1
                checkpoint(store, fill(RAM, range(16), value), fill(RSDP, [0], value))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen: set[int] = set()
        while len(seen) < 100:
            with turn:
                number = view.open().number
            if pages := read(view):
                assert number == 0 or len({page[:1] for page in pages.values()}) == 1
                seen.add(number)
    finally:
        ended.set()
        thread.join()


def test_it_ends_with_its_checkpoint(store: Store) -> None:
    view = View(store)
    view.open()
    pages = view.pages()
    next(pages)
    begin(store)  # a new primary
    with pytest.raises(StoreError, match="is no more"):
        list(pages)
    with pytest.raises(StoreError, match="is no more"):
        view.open()
    other = View(store)
    store.give_up()
    with pytest.raises(StoreError, match="its VM runs"):
        other.open()
    with pytest.raises(StoreError, match="its VM runs"):
        View(store)
    store.take_back()
    assert View(store).open().number == 0


def test_there_is_none_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no whole checkpoint"):
        View(Store(tmp_path / "empty", (RAM,), LIMITS))


def test_a_closed_view_costs_the_store_nothing(store: Store) -> None:
    first, second = View(store), View(store)
    first.close()
    assert all(len(image.watchers) == 1 for image in store.images.values())
    second.close()
    assert not any(image.watchers for image in store.images.values())


def test_an_export_is_of_its_moment(store: Store) -> None:
    view = View(store)
    stream = export_stream(view)
    before = held(store)
    checkpoint(store, full(RAM, range(16), 70))
    found = naive(b"".join(stream))
    for name, image in found.images.items():
        for number in range(len(image) // 4096):
            assert image[number * 4096 : (number + 1) * 4096] == before[name, number]
    assert found.tail.startswith(DEVICES_72)
    view.close()
    assert not any(image.watchers for image in store.images.values())
    assert np.array_equal(store.images["pc.ram"].pages[:16], full(RAM, range(16), 70).content)


@pytest.mark.parametrize("error", [StoreError("cannot reserve"), MemoryError()])
def test_where_no_memory_is_left_the_view_ends_and_the_store_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full_up(size: int) -> None:
        raise error

    view, other = View(store), View(store)
    view.open()
    pages = view.pages()
    next(pages)
    with monkeypatch.context() as patch:
        patch.setattr("colo.store.view.reserve", full_up)
        checkpoint(store, full(RAM, range(16), 80))
    assert store.is_applied
    assert np.array_equal(store.images["pc.ram"].pages[:16], full(RAM, range(16), 80).content)
    with pytest.raises(StoreError, match="no memory was left to keep what was still to be read"):
        list(pages)
    with pytest.raises(StoreError, match="no memory"):
        view.open()
    checkpoint(store, full(RAM, range(16), 81))
    other.open()
    assert read(other) == held(store)


def test_only_so_many_read_at_once(store: Store) -> None:
    views = [View(store) for _ in range(VIEWS_MAX)]
    with pytest.raises(StoreError, match=f"{VIEWS_MAX} others read this store already"):
        View(store)
    views.pop().close()
    View(store)
