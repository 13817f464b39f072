"""``file:PATH``: the register is a file that both hosts reach, locked while it is looked at.

The file has to be on a file system that carries flock between the hosts (NFSv4 does).  It is made
by whoever sets it first; a file that is not there, or is empty, holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from colo.arbiters.asking import about_to_write
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer

__all__ = ["FileRegister"]

_FILE_BYTES: Final = 1024


class FileRegister:
    """One line of text in a file, at a fixed length."""

    def __init__(self, path: Path) -> None:
        self.name = f"the grant file {path}"
        self._path = path

    def read(self) -> Seen:
        """Return what it holds."""
        try:
            with self._locked(0) as file:
                return Seen(self._text(file))
        except FileNotFoundError:
            return Seen(None)
        except OSError as error:
            raise self._unreachable(error) from error

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where it still holds ``expected``."""
        data = new.encode().ljust(_FILE_BYTES - 1) + b"\n"
        if len(data) > _FILE_BYTES:
            raise LocalError(f"{self.name}: the holder's name is too long")
        try:
            with self._locked(os.O_CREAT if expected.text is None else 0) as file:
                if self._text(file) != expected.text:
                    return False
                about_to_write()
                try:
                    self._write(file, data)
                except OSError as error:  # some of it may be on the disk
                    raise NoAnswer(str(self._unreachable(error)), True) from error
                return True
        except OSError as error:
            raise self._unreachable(error) from error

    @contextlib.contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _text(self, file: int) -> str | None:
        data = os.pread(file, _FILE_BYTES, 0)
        return data.decode(errors="replace").strip() if data else None

    def _write(self, file: int, data: bytes) -> None:
        """Write in place, in one call and at a fixed length: the lock is on this very file."""
        os.pwrite(file, data, 0)
        os.fsync(file)

    def _unreachable(self, error: OSError) -> LocalError:
        return LocalError(f"{self.name}: {error.strerror}")
