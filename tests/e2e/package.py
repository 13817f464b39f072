"""The packages, built as ``make package`` does, once for all tests of a state of the sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.basics import ROOT, SLOWNESS

__all__ = ["Package", "packages"]

_SOURCES: Final = (
    "src", "scripts", "packaging", "docs", "requirements", "pyproject.toml", "README.md",
    "CHANGELOG.md", "LICENSE",
)  # fmt: skip
_BUILD_S: Final = 240.0 * SLOWNESS


@dataclass(frozen=True)
class Package:
    """The three files."""

    wheel: Path
    sdist: Path
    deb: Path

    def as_version(self, version: str, folder: Path) -> Path:
        """The Debian package under another version, in ``folder``."""
        tree, deb = folder / "tree", folder / f"colo_{version}_amd64.deb"
        subprocess.run(["dpkg-deb", "--raw-extract", str(self.deb), str(tree)], check=True)
        control = tree / "DEBIAN" / "control"
        text = control.read_text()
        control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", text, flags=re.M))
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        return deb


def packages() -> Package:
    """Build them into build/packages, where they are not there yet."""
    folder = ROOT / "build" / "packages"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = folder / "sources"
        if not sources.exists() or sources.read_text() != _fingerprint():
            shutil.rmtree(folder, ignore_errors=True)
            _build(folder)
            sources.write_text(_fingerprint())
    (wheel,), (sdist,), (deb,) = (
        folder.glob(f"colo[-_]*{kind}") for kind in (".whl", ".tar.gz", ".deb")
    )
    return Package(wheel, sdist, deb)


def _build(folder: Path) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "package", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith(".deb"), done.stdout


def _fingerprint() -> str:
    """Of all that goes into them."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)} {os.access(path, os.X_OK)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
