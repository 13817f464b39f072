"""A program in a terminal that is a test's: what it shows, and what is pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyte

__all__ = ["PtyScreen"]

_WAIT_S = 20.0
_STEP_S = 0.05


class PtyScreen:
    """``colo`` with these arguments, on a screen of so many columns and lines.

    ``more``: what else its environment has.
    """

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        lines: int = 24,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.master, self.slave = pty.openpty()
        self._size(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self.code: int | None = None
        self.raw = b""
        colo = str(Path(sys.executable).parent / "colo")
        environment = {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1", **(more or {})}
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            for file in (0, 1, 2):
                os.dup2(self.slave, file)
            os.execvpe(colo, ["colo", *arguments], environment)

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """The window gets another size; the kernel tells the program."""
        self._screen.resize(lines, columns)
        self._size(columns, lines)

    @property
    def mode(self) -> list[Any]:
        """The terminal's settings now."""
        return termios.tcgetattr(self.slave)

    @property
    def is_ours(self) -> bool:
        """Whether the program has left it as it was: the shell's screen, a cursor, its settings."""
        left, entered = self.raw.rfind(b"\x1b[?1049l"), self.raw.rfind(b"\x1b[?1049h")
        shown, hidden = self.raw.rfind(b"\x1b[?25h"), self.raw.rfind(b"\x1b[?25l")
        return left >= entered and shown >= hidden and self.mode == self.before

    def text(self) -> str:
        """What the screen shows now."""
        self._take(0)
        return "\n".join(line.rstrip() for line in self._screen.display)

    def _take(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.raw += data
            self._stream.feed(data)
            seconds = 0

    def press(self, keys: bytes) -> None:
        """The user presses keys."""
        os.write(self.master, keys)

    def wait(self, condition: Callable[[str], Any], what: str) -> str:
        """Wait until what is shown is so, and return it."""
        deadline = time.monotonic() + _WAIT_S
        while not condition(text := self.text()):
            assert time.monotonic() < deadline, f"waited for {what}; there is\n{text}"
            self._take(_STEP_S)
        return text

    def wait_for(self, *texts: str) -> str:
        """Wait until all of these are shown."""
        return self.wait(lambda shown: all(text in shown for text in texts), repr(texts))

    def end(self, number: int | None = None) -> int:
        """Wait for its end, after a signal if there is a number; return its exit code."""
        if number is not None:
            os.kill(self.pid, number)
        deadline = time.monotonic() + _WAIT_S
        while True:
            self._take(_STEP_S)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._take(0)
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
            assert time.monotonic() < deadline, f"it does not end; there is\n{self.text()}"

    def wait_stopped(self) -> None:
        """Wait until the program is stopped by a signal."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            self._take(_STEP_S)
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid:
                assert os.WIFSTOPPED(status), status
                self._take(0)
                return
            assert time.monotonic() < deadline, "it was not stopped"

    def close(self) -> None:
        """End it, if it is still there."""
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)
        os.close(self.slave)
