"""Builds ``tcg_preload.c``, which some QEMUs need to be a COLO primary under TCG."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from colo.errors import GuestError

__all__ = ["PRELOAD_NAME", "cache_folder", "needs_preload", "tcg_preload"]

#: The major versions that need the library whatever the VM.
_MAJORS: Final = (7,)
#: How the library's name begins.
PRELOAD_NAME: Final = "tcg-preload"

_SOURCE: Final = Path(__file__).with_name("tcg_preload.c")
_COMPILE_S: Final = 60


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
    """Return the library's path, built on first use and kept by its source's digest.

    Raises GuestError without a C compiler, or where it fails.
    """
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    try:
        library = cache_folder() / f"{PRELOAD_NAME}-{digest}.so"
        if library.exists():
            return library
    except (OSError, RuntimeError) as error:
        raise _no_folder(error) from error
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise GuestError(
            "this QEMU under TCG needs a small library, and there is no C compiler to build it: "
            "install gcc and libc6-dev, or use KVM, or QEMU 11 with memory of one block"
        )
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(error) from error
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
            done = subprocess.run(
                [*command, "-o", str(built), str(_SOURCE), "-ldl", "-lpthread"],
                capture_output=True,
                text=True,
                timeout=_COMPILE_S,
                check=False,
            )
            if done.returncode:
                raise GuestError(f"{compiler} cannot build {_SOURCE}", done.stderr.strip())
            built.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"cannot build {library}: {error}") from error
    return library


def _no_folder(error: OSError | RuntimeError) -> GuestError:
    """The folder for what is built cannot be had, or there is no home for it."""
    where = f"{cache_folder()}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return GuestError(
        f"{where}: this QEMU under TCG needs a small library that is kept there: set "
        "XDG_CACHE_HOME to a folder that colo may write"
    )
