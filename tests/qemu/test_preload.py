"""The small library for QEMU 7.2: what stands in the way of building it is one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from colo.errors import GuestError
from colo.qemu import preload
from colo.qemu.preload import CLOCK_LIBRARY, TCG_LIBRARY, needs_preload


def test_a_cache_folder_that_cannot_be_looked_into_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", forbidden)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(GuestError) as caught:
        TCG_LIBRARY.built()
    assert str(caught.value).startswith(f"{tmp_path}/colo: Permission denied: ")
    assert str(caught.value).endswith("set XDG_CACHE_HOME to a folder that colo may write")


def test_a_cache_folder_that_cannot_be_made_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(GuestError, match=r"Not a directory: .* set XDG_CACHE_HOME"):
        TCG_LIBRARY.built()


def test_no_home_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(GuestError, match="set XDG_CACHE_HOME"):
        TCG_LIBRARY.built()


def test_a_copy_has_a_name_that_stays_and_is_for_every_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        copies = [CLOCK_LIBRARY.copied(tmp_path / "new" / "folder") for _ in range(2)]
    finally:
        os.umask(before)
    for path in copies:
        assert path == tmp_path / "new" / "folder" / "clock-preload.so"
        assert path.read_bytes() == CLOCK_LIBRARY.built().read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        assert list(path.parent.iterdir()) == [path]
        assert [each.stat().st_mode & 0o777 for each in path.parents[:2]] == [0o755, 0o755]


def test_a_copy_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GuestError, match=r"clock-preload.so: Not a directory$"):
        CLOCK_LIBRARY.copied(tmp_path / "file" / "folder")


def test_one_that_came_with_colo_is_taken_as_long_as_it_is_of_this_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copy(CLOCK_LIBRARY.source, tmp_path))
    shipped = tmp_path / CLOCK_LIBRARY.file_name
    shipped.touch()
    monkeypatch.setattr(preload, "__file__", str(tmp_path / "preload.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "false")
    assert CLOCK_LIBRARY.built() == shipped
    source.write_text("changed")
    with pytest.raises(GuestError, match="cannot build"):
        CLOCK_LIBRARY.built()


@pytest.mark.parametrize(
    ("major", "accelerator", "main_blocks", "needed"),
    [
        (7, "tcg", 1, True),
        (7, "kvm", 2, False),
        (11, "tcg", 1, False),
        (11, "tcg", 2, True),
        (11, "kvm", 2, False),
    ],
)
def test_it_is_for_tcg_of_an_old_qemu_or_of_memory_in_several_blocks(
    major: int, accelerator: str, main_blocks: int, needed: bool
) -> None:
    assert needs_preload(major, accelerator, main_blocks) is needed
