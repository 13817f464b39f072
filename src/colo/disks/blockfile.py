"""A file or a block device that is read and written at any byte, and the real one.

``pread`` and ``pwrite`` do all that they are asked or raise; interrupted or partial calls go on.
Nothing is durable before ``sync`` has returned.  Once ``sync`` has failed nothing is known of what
was written before, and asking again does not change that: the kernel may have dropped it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from colo.errors import DiskError

__all__ = ["BlockFile", "Data", "RealFile"]

#: What can be written.
Data = bytes | bytearray | memoryview

# from linux/falloc.h
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
#: What zeroes a range: a hole gives room back, a zeroed range keeps it.
_ZEROING: Final = (_PUNCH_HOLE | _KEEP_SIZE, _ZERO_RANGE | _KEEP_SIZE)
#: By these a file system or a device says that it cannot do that.
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV})
_ZEROES: Final = bytes(1 << 20)

_FALLOCATE: Final = ctypes.CDLL(None, use_errno=True).fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class BlockFile(Protocol):
    """What a replica asks of its base and its journal.  All raise DiskError.

    They may be called from several threads at once, for ranges that do not overlap.
    """

    @property
    def size(self) -> int:
        """How many bytes it has; that does not change."""

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes."""

    def pwrite(self, offset: int, data: Data) -> None:
        """Write all of ``data``."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; it may give its room back."""

    def sync(self) -> None:
        """Return once all that was written before is durable."""

    def close(self) -> None:
        """Close it; it is not synced."""


def _fallocate(file: int, mode: int, offset: int, length: int) -> None:
    while _FALLOCATE(file, mode, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


class RealFile:
    """The file or block device at ``path``, which is there, for the disk named ``disk``.

    It is locked against another colo as long as it is open.  Raises DiskError.
    """

    def __init__(self, path: Path, disk: str) -> None:
        self._path = path
        self._disk = disk
        self._zeroing = list(_ZEROING)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._error("cannot open it", error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._size = os.lseek(self._file, 0, os.SEEK_END)
        except BlockingIOError as error:
            os.close(self._file)
            raise DiskError(disk, "another colo has it open", str(path)) from error
        except OSError as error:
            os.close(self._file)
            raise self._error("cannot use it", error) from error

    @classmethod
    def make(cls, path: Path, disk: str, size: int) -> RealFile:
        """Make a new file of ``size`` bytes, with all its room.  Raises DiskError.

        A file that is there already is left alone, and is an error.
        """
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DiskError(disk, f"cannot make it: {error.strerror}", str(path)) from error
        try:
            os.posix_fallocate(file, 0, size)
            os.fsync(file)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise DiskError(disk, f"cannot allocate it: {error.strerror}", str(path)) from error
        finally:
            os.close(file)
        return cls(path, disk)

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes.  Raises DiskError."""
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._file, length, offset)
            except OSError as error:
                raise self._error("cannot read", error) from error
            if not part:
                raise DiskError(self._disk, f"it ends at byte {offset}", str(self._path))
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, offset: int, data: Data) -> None:
        """Write all of ``data``.  Raises DiskError."""
        rest = memoryview(data)
        self._require_within(offset, len(rest))
        while rest:
            try:
                written = os.pwrite(self._file, rest, offset)
            except OSError as error:
                raise self._error("cannot write", error) from error
            if not written:
                raise DiskError(self._disk, f"byte {offset} is not written", str(self._path))
            rest = rest[written:]
            offset += written

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes.  Raises DiskError."""
        self._require_within(offset, length)
        for mode in tuple(self._zeroing) if length else ():
            try:
                _fallocate(self._file, mode, offset, length)
                return
            except OSError as error:
                if error.errno in _CANNOT:
                    self._zeroing.remove(mode)
                elif error.errno != errno.EINVAL:  # by that a device says: not at these bytes
                    raise self._error("cannot zero", error) from error
        for begin in range(offset, offset + length, len(_ZEROES)):
            part = min(offset + length - begin, len(_ZEROES))
            self.pwrite(begin, memoryview(_ZEROES)[:part])

    def sync(self) -> None:
        """Return once all is durable.  Raises DiskError."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise self._error("cannot sync", error) from error

    def close(self) -> None:
        """Close it.  Raises DiskError."""
        try:
            os.close(self._file)
        except OSError as error:
            raise self._error("cannot close", error) from error

    def _require_within(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self._size:
            raise DiskError(
                self._disk, f"bytes {offset} to {offset + length} are not in it", str(self._path)
            )

    def _error(self, text: str, error: OSError) -> DiskError:
        return DiskError(self._disk, f"{text}: {error.strerror}", str(self._path))
