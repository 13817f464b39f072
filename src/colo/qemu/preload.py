"""Builds the small libraries that a QEMU of colo's gets by LD_PRELOAD.

``tcg_preload.c`` is what some QEMUs need to be a COLO primary under TCG; ``clock_preload.c`` keeps
the guest's clock.
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

__all__ = [
    "CLOCK_NAME",
    "PRELOAD_NAME",
    "cache_folder",
    "clock_preload",
    "needs_preload",
    "tcg_preload",
]

#: The major versions that need the library whatever the VM.
_MAJORS: Final = (7,)
#: How the library's name begins.
PRELOAD_NAME: Final = "tcg-preload"

#: How the name of the library for the guest's clock begins.
CLOCK_NAME: Final = "clock-preload"

_COMPILE_S: Final = 60


@dataclass(frozen=True)
class _Needs:
    """What a library is for, and what does without it."""

    what: str
    otherwise: str = ""


_TCG: Final = _Needs(
    "this QEMU under TCG needs a small library",
    ", or use KVM, or QEMU 11 with memory of one block",
)
_CLOCK: Final = _Needs("the guest's clock is kept by a small library")


def needs_preload(major: int, accelerator: str, main_blocks: int) -> bool:
    """Whether a QEMU of this major version needs the library as a primary.

    With several blocks of main memory every version does: only of the block that it made first does
    QEMU look for what was written after it had been sent.
    """
    return accelerator == "tcg" and (major in _MAJORS or main_blocks > 1)


def cache_folder() -> Path:
    """Where colo keeps what it built: ``$XDG_CACHE_HOME/colo``, or ``~/.cache/colo``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "colo"


def tcg_preload() -> Path:
    """Return the path of the library that some QEMUs need to be a primary under TCG.

    Raises GuestError without a C compiler, or where it fails.
    """
    return _built(PRELOAD_NAME, _TCG)


def clock_preload() -> Path:
    """Return the path of the library that keeps the guest's clock.  Raises GuestError, as above."""
    return _built(CLOCK_NAME, _CLOCK)


def _built(name: str, needs: _Needs) -> Path:
    """The library's path: built on first use and kept by its source's digest."""
    source = Path(__file__).with_name(f"{name.replace('-', '_')}.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    try:
        library = cache_folder() / f"{name}-{digest}.so"
        if library.exists():
            return library
    except (OSError, RuntimeError) as error:
        raise _no_folder(error, needs) from error
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise GuestError(
            f"{needs.what}, and there is no C compiler to build it: install gcc and libc6-dev"
            f"{needs.otherwise}"
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(error, needs) from error
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
            done = subprocess.run(
                [*command, "-o", str(built), str(source), "-ldl", "-lpthread"],
                capture_output=True,
                text=True,
                timeout=_COMPILE_S,
                check=False,
            )
            if done.returncode:
                raise GuestError(f"{compiler} cannot build {source}", done.stderr.strip())
            built.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"cannot build {library}: {error}") from error
    return library


def _no_folder(error: OSError | RuntimeError, needs: _Needs) -> GuestError:
    """The folder for what is built cannot be had, or there is no home for it."""
    where = f"{cache_folder()}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return GuestError(
        f"{where}: {needs.what} that is kept there: set XDG_CACHE_HOME to a folder that colo may "
        "write"
    )
