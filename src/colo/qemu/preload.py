"""The small libraries that QEMU is started with: each is one C file beside this module.

A library comes with colo, beside its source, as in the Debian package; else it is built on first
use, with the host's C compiler, and kept.  It is named by its source's digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from colo.errors import GuestError

__all__ = ["CLOCK_LIBRARY", "TCG_LIBRARY", "Library", "cache_folder", "needs_preload"]

#: The major versions that need ``TCG_LIBRARY`` whatever the VM.
_MAJORS: Final = (7,)

_COMPILE_S: Final = 60


@dataclass(frozen=True)
class Library:
    """One of them.  ``name``: how its file's name begins; ``need``: what is said where there is
    none; ``otherwise``: what the user can do besides having it built."""

    name: str
    need: str
    otherwise: str = ""

    @property
    def source(self) -> Path:
        """The C file that it is built from."""
        return Path(__file__).with_name(f"{self.name.replace('-', '_')}.c")

    @property
    def file_name(self) -> str:
        """What the built library is called: of another source it is another one."""
        digest = hashlib.sha256(self.source.read_bytes()).hexdigest()[:16]
        return f"{self.name}-{digest}.so"

    def built(self) -> Path:
        """Return its path: of the one that came with colo, or one that is built on first use.

        Raises GuestError without a C compiler, or where it fails.
        """
        shipped = self.source.with_name(self.file_name)
        if shipped.is_file():
            return shipped.resolve()
        try:
            path = cache_folder() / self.file_name
            if path.exists():
                return path
        except (OSError, RuntimeError) as error:
            raise self._no_folder(error) from error
        self.build(path)
        return path

    def copied(self, folder: Path) -> Path:
        """Copy it into a folder, which is made, under a name without the digest; return its path.

        A QEMU that has the one that was there keeps it.  Raises GuestError.
        """
        built, path = self.built(), folder.absolute() / f"{self.name}.so"
        try:
            made = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for each in made:
                each.chmod(0o755)
            with tempfile.TemporaryDirectory(dir=folder) as near:
                copy = Path(shutil.copyfile(built, Path(near, path.name)))
                copy.chmod(0o644)
                copy.replace(path)
        except OSError as error:
            raise GuestError(f"{path}: {error.strerror}") from error
        return path

    def build(self, path: Path) -> None:
        """Build it as ``path``, whose folder is made.

        Raises GuestError without a C compiler, or where it fails.
        """
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise GuestError(
                f"{self.need} a small library, and there is no C compiler to build it: "
                f"install gcc and libc6-dev{self.otherwise}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._no_folder(error) from error
        self._compile(compiler, path)

    def _compile(self, compiler: str, path: Path) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                built = Path(folder) / path.name
                command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
                done = subprocess.run(
                    [*command, "-o", str(built), str(self.source), "-ldl", "-lpthread"],
                    capture_output=True,
                    text=True,
                    timeout=_COMPILE_S,
                    check=False,
                )
                if done.returncode:
                    raise GuestError(f"{compiler} cannot build {self.source}", done.stderr.strip())
                built.replace(path)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GuestError(f"cannot build {path}: {error}") from error

    def _no_folder(self, error: OSError | RuntimeError) -> GuestError:
        """The folder for what is built cannot be had, or there is no home for it."""
        where = f"{cache_folder()}: {error.strerror}" if isinstance(error, OSError) else str(error)
        return GuestError(
            f"{where}: {self.need} a small library that is kept there: set XDG_CACHE_HOME "
            "to a folder that colo may write"
        )


#: What some QEMUs need to be a COLO primary under TCG.
TCG_LIBRARY: Final = Library(
    "tcg-preload",
    "this QEMU under TCG needs",
    ", or use KVM, or QEMU 11 with memory of one block",
)
#: What keeps a guest's clock right over checkpoints and takeovers.
CLOCK_LIBRARY: Final = Library("clock-preload", "QEMU needs, for the guest's clock to be kept,")


def needs_preload(major: int, accelerator: str, main_blocks: int) -> bool:
    """Whether a QEMU of this major version needs ``TCG_LIBRARY`` as a primary.

    With several blocks of main memory every version does: only of the block that it made first does
    QEMU look for what was written after it had been sent.
    """
    return accelerator == "tcg" and (major in _MAJORS or main_blocks > 1)


def cache_folder() -> Path:
    """Where colo keeps what it built: ``$XDG_CACHE_HOME/colo``, or ``~/.cache/colo``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "colo"
