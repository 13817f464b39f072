"""The log of a colo in its state folder: each line is in the file as soon as it was said.

A file that cannot be written, as its folder is full, decides nothing and holds nobody up: that is
said once, and the lines are left out until it can be written again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path

from colo.errors import UsageError

__all__ = ["LogFile"]


class LogFile(logging.Handler):
    """Appends to the file at ``path``, which is made for its owner only.  Raises UsageError."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._told = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        self.setFormatter(
            logging.Formatter("%(asctime)s.%(msecs)03d %(name)s %(message)s", "%Y-%m-%d %H:%M:%S")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or say once that it cannot be written."""
        data = f"{self.format(record)}\n".encode(errors="backslashreplace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            if not self._told:
                self._told = True
                with contextlib.suppress(OSError):
                    print(
                        f"colo: {self._path}: {error.strerror}: lines are left out until it can "
                        "be written",
                        file=sys.stderr,
                    )

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()
