"""The small library for QEMU 7.2: what stands in the way of building it is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.errors import GuestError
from colo.qemu.preload import needs_preload, tcg_preload


def test_a_cache_folder_that_cannot_be_looked_into_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", forbidden)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(GuestError) as caught:
        tcg_preload()
    assert str(caught.value).startswith(f"{tmp_path}/colo: Permission denied: ")
    assert str(caught.value).endswith("set XDG_CACHE_HOME to a folder that colo may write")


def test_a_cache_folder_that_cannot_be_made_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(GuestError, match=r"Not a directory: .* set XDG_CACHE_HOME"):
        tcg_preload()


def test_no_home_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(GuestError, match="set XDG_CACHE_HOME"):
        tcg_preload()


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
