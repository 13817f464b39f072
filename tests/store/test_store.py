"""The store always equals the last whole checkpoint: against a model, and at its edges."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from colo.errors import InvariantBroken, Misfit, PeerError, StoreError
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, Migration
from colo.store.store import Store
from tests.streams import RAM, RSDP, blank, content, fill, full, pages_of, paint

LIMITS = Limits(ram_bytes=1 << 20, device_bytes=64 << 10, description_bytes=64 << 10)
VGA = RamBlock("0000:00:02.0/vga.vram", 3 * 4096)


def migration(blocks: tuple[RamBlock, ...], state: bytes = b"state 0") -> Migration:
    return Migration(Header("q35"), 2, blocks, state, (), {})


def images(store: Store) -> dict[str, bytes]:
    return {name: image.pages.tobytes() for name, image in store.images.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "web1", (RAM,), LIMITS)


# The model


@st.composite
def runs(draw: st.DrawFn, blocks: tuple[RamBlock, ...]) -> PageRun:
    block = draw(st.sampled_from(blocks))
    numbers = draw(st.lists(st.integers(0, block.pages - 1), min_size=1, max_size=6))
    value = draw(st.sampled_from([None, 0, 0, 0x41]))
    if value is not None:
        return fill(block, numbers, value)
    # numbers may repeat: each page has its own content, so it shows which one won
    seed = draw(st.integers(1, 1000))
    data = b"".join(content(seed + index) for index in range(len(numbers)))
    array = np.frombuffer(data, np.uint8).reshape(-1, 4096)
    return PageRun(block, np.array(numbers, np.int64) * 4096, array)


class Model(RuleBasedStateMachine):
    """A store beside a dictionary of bytes, in any order that the protocol allows."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="colo-test-"))
        self.store = Store(self.folder / "store", (RAM,), LIMITS)
        self.blocks: tuple[RamBlock, ...] = (RAM,)
        self.whole: dict[str, bytearray] | None = None  # the last whole checkpoint
        self.in_images = blank([RAM])  # what the images hold
        self.staged: list[PageRun] = []
        self.number, self.state = -1, b""

    def teardown(self) -> None:
        self.store.remove()
        shutil.rmtree(self.folder)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self._migrate(data, (RAM, RSDP))

    @rule(data=st.data(), blocks=st.sampled_from([(RAM,), (RSDP, RAM), (RAM, VGA, RSDP)]))
    @precondition(lambda self: self.store.is_applied and not self.staged)
    def migrate_again(self, data: st.DataObject, blocks: tuple[RamBlock, ...]) -> None:
        self._migrate(data, blocks)

    def _migrate(self, data: st.DataObject, blocks: tuple[RamBlock, ...]) -> None:
        """A first migration sends every page at least once."""
        self.store.define(blocks)
        assert self.store.checkpoint is None
        self.blocks = blocks
        self.in_images = {
            block.name: self.in_images[block.name] if block == RAM else bytearray(block.length)
            for block in blocks
        }
        for block in blocks:
            self._write(fill(block, range(block.pages)))
        for run in data.draw(st.lists(runs(blocks), max_size=4)):
            self._write(run)
        self.store.commit_migration(migration(blocks))
        self.whole = {name: bytearray(image) for name, image in self.in_images.items()}
        self.number, self.state = 0, b"state 0"

    def _write(self, run: PageRun) -> None:
        self.store.write(run)
        paint(self.in_images, pages_of([run]))

    @rule(data=st.data())
    @precondition(lambda self: self.store.is_applied)
    def stage(self, data: st.DataObject) -> None:
        """As the reader does: the run points into the staging area."""
        run = data.draw(runs(self.blocks))
        buffer = self.store.staging.buffer
        buffer.append(run.content.tobytes())
        lying = np.frombuffer(buffer.take(run.content.size), np.uint8).reshape(run.content.shape)
        self.store.stage(PageRun(run.block, run.offsets, lying))
        self.staged.append(run)

    @rule()
    @precondition(lambda self: self.store.is_applied)
    def discard(self) -> None:
        self.store.discard()
        self.staged = []

    @rule(state=st.binary(max_size=20))
    @precondition(lambda self: self.store.is_applied)
    def commit(self, state: bytes) -> None:
        assert self.whole is not None
        self.number, self.state = self.number + 1, state
        self.store.commit(self.number, state)
        paint(self.whole, pages_of(self.staged))
        self.staged = []

    @rule()
    @precondition(lambda self: not self.store.is_applied)
    def apply_and_be_interrupted(self) -> None:
        assert self.whole is not None
        self.store.apply()
        self.in_images = {name: bytearray(image) for name, image in self.whole.items()}

    @rule()
    @precondition(lambda self: not self.store.is_applied)
    def apply(self) -> None:
        self.apply_and_be_interrupted()
        self.store.applied()
        assert self.store.is_applied

    @rule()
    @precondition(lambda self: not self.store.is_applied)
    def discard_what_came_after_a_commit(self) -> None:
        self.store.discard()

    @invariant()
    def the_images_are_as_expected(self) -> None:
        assert images(self.store) == self.in_images
        if self.store.is_applied and self.whole is not None:
            assert self.in_images == self.whole

    @invariant()
    def the_rest_is_of_the_same_checkpoint(self) -> None:
        if self.whole is None:
            assert self.store.checkpoint is None
            return
        checkpoint = self.store.checkpoint
        assert checkpoint is not None
        assert (checkpoint.number, checkpoint.device_state) == (self.number, self.state)
        assert checkpoint.blocks == self.blocks
        assert {path.stat().st_size for path in self.store.folder.iterdir()} >= {RAM.length}
        assert len(list(self.store.folder.iterdir())) == len(self.blocks)
        assert self.store.size == sum(block.length for block in self.blocks)


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# The rules one by one


def test_a_commit_takes_effect_at_once_and_the_images_follow(store: Store) -> None:
    store.define((RAM,))
    store.commit_migration(migration((RAM,)))
    before = images(store)
    store.stage(full(RAM, [1]))
    assert images(store) == before
    store.commit(1, b"state 1")
    assert store.checkpoint is not None
    assert (store.checkpoint.number, store.checkpoint.device_state) == (1, b"state 1")
    assert images(store) == before and not store.is_applied
    store.apply()
    assert images(store) != before and not store.is_applied
    store.applied()
    assert store.is_applied


def test_discarding_the_next_checkpoint_leaves_the_one_before(store: Store) -> None:
    store.define((RAM,))
    store.commit_migration(migration((RAM,)))
    store.stage(full(RAM, [1]))
    store.commit(1, b"state 1")
    store.apply()
    store.applied()
    before = images(store)
    store.stage(full(RAM, [2]))
    store.discard()
    store.commit(2, b"state 2")
    store.apply()
    assert images(store) == before


def test_two_commits_need_an_apply_between_them(store: Store) -> None:
    store.define((RAM,))
    with pytest.raises(InvariantBroken):
        store.commit(1, b"")
    store.commit_migration(migration((RAM,)))
    store.stage(full(RAM, [1]))
    store.commit(1, b"")
    with pytest.raises(InvariantBroken):
        store.commit(2, b"")


# Files, room, limits


def test_the_folder_is_made_for_its_owner_only_and_removed_with_all_in_it(store: Store) -> None:
    store.define((RAM, RSDP, VGA))
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    files = list(store.folder.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    store.remove()
    assert not store.folder.exists()
    store.remove()


def test_the_image_of_the_main_block_is_there_from_the_start_and_stays(store: Store) -> None:
    image = store.images["pc.ram"]
    inode = image.path.stat().st_ino
    for blocks in ((RAM, RSDP), (VGA, RAM), (RAM,)):
        store.define(blocks)
        assert store.images["pc.ram"] is image
        assert image.path.stat().st_ino == inode
        assert set(store.images) == {block.name for block in blocks}


def test_a_block_may_have_another_size_the_next_time(store: Store) -> None:
    store.define((RAM, RamBlock("vga", 4096)))
    store.write(full(RamBlock("vga", 4096), [0]))
    store.define((RAM, RamBlock("vga", 8192)))
    assert images(store)["vga"] == bytes(8192)


def test_a_folder_that_exists_belongs_to_somebody(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").touch()
    with pytest.raises(StoreError, match="exists already: remove what an earlier run left"):
        Store(tmp_path / "theirs", (RAM,), LIMITS)
    assert (tmp_path / "theirs" / "file").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/store: Not a directory"):
        Store(tmp_path / "file" / "store", (RAM,), LIMITS)


def test_too_little_room_is_told_with_its_figures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(f_blocks=1, f_bsize=4096, f_frsize=4096, f_bavail=64 << 8)
    monkeypatch.setattr(os, "statvfs", lambda folder: fake)
    limits = Limits(ram_bytes=576 << 20)
    with pytest.raises(StoreError) as caught:
        Store(tmp_path / "store", (RamBlock("pc.ram", 512 << 20),), limits)
    assert str(caught.value) == (
        f"{tmp_path / 'store'} has 64 MiB free, the checkpoint store needs 576 MiB: make room, "
        "or point [store] folder in the VM file at another one (a container often has a small "
        "/dev/shm)"
    )
    assert list(tmp_path.iterdir()) == []


def test_room_that_goes_away_in_the_meantime_leaves_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, at: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StoreError, match="No space left on device"):
        Store(tmp_path / "store", (RAM,), LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_the_primarys_memory_has_to_be_as_long_as_ours(store: Store) -> None:
    with pytest.raises(PeerError) as caught:
        store.define((RamBlock("pc.ram", 2 << 20), RSDP))
    assert str(caught.value) == (
        "the primary's memory pc.ram has 2 MiB, the VM file says 0 MiB: make -m the same on "
        "both sides"
    )
    with pytest.raises(PeerError) as caught:
        store.define((RSDP,))
    assert "has no such block" in str(caught.value)
    assert str(caught.value).endswith(", and the memory backends: one is to be pc.ram")


def test_blocks_over_the_limit_are_refused(store: Store) -> None:
    room = LIMITS.ram_bytes - RAM.length
    store.define((RAM, RamBlock("vga", room)))
    with pytest.raises(Misfit) as caught:
        store.define((RAM, RamBlock("vga", room + (1 << 20))))
    assert str(caught.value) == (
        "the primary's memory besides -m takes 2 MiB, in this host's VM file [store] "
        "other_memory_mib has room for 1 MiB: make it larger"
    )


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_block_that_can_be_no_file_is_an_error_of_ours_to_tell(store: Store, name: str) -> None:
    with pytest.raises((StoreError, PeerError)):
        store.define((RAM, RamBlock(name, 4096)))


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """It may be a mount that is missing."""
    with pytest.raises(StoreError, match=rf"^\[store\] folder = {tmp_path}/none: it is not there"):
        Store(tmp_path / "none" / "web1", (RAM,), LIMITS)
    assert list(tmp_path.iterdir()) == []


NODES = (RamBlock("a", 4 << 20), RamBlock("b", 2 << 20))


def test_main_memory_may_be_several_blocks(tmp_path: Path) -> None:
    store = Store(tmp_path / "web1", NODES, Limits(ram_bytes=8 << 20))
    inodes = {name: image.path.stat().st_ino for name, image in store.images.items()}
    assert list(inodes) == ["a", "b"]
    store.define((RSDP, NODES[1], NODES[0]))
    store.write(full(NODES[1], [5], 7))
    assert {block.name: store.images[block.name].path.stat().st_ino for block in NODES} == inodes
    assert images(store)["b"][5 * 4096 : 6 * 4096] == full(NODES[1], [5], 7).content.tobytes()
    assert store.status()["guest_bytes"] == 6 << 20
    assert store.status()["store_bytes"] == (6 << 20) + RSDP.length
    store.define(NODES)
    assert list(store.images) == ["a", "b"]
    store.remove()
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ((NODES[0],), "memory b has no such block, the VM file says 2 MiB"),
        ((NODES[0], RamBlock("b", 1 << 20)), "memory b has 1 MiB, the VM file says 2 MiB"),
        ((*NODES, RamBlock("vga", 3 << 20)), "besides -m takes 3 MiB"),
    ],
)
def test_each_block_of_main_memory_has_to_be_as_long_as_ours(
    theirs: tuple[RamBlock, ...], told: str, tmp_path: Path
) -> None:
    store = Store(tmp_path / "web1", NODES, Limits(ram_bytes=8 << 20))
    with pytest.raises(Misfit, match=told):
        store.define(theirs)
