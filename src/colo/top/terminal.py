"""A terminal that one program has for itself for a while, and gets back as it was.

Plain ANSI and termios: what is drawn is a table of text, twice a second, and keys are seven.  It is
given back however the program ends, but for SIGKILL, and while it is stopped by Ctrl-Z.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from colo.errors import UsageError
from colo.top.screen import Look, Part

__all__ = ["Key", "Keys", "Terminal"]

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[0m\x1b[?25h\x1b[?1049l"
_SIZE: Final = (80, 24)


class Key(Enum):
    """What a user may press, and nothing else counts."""

    QUIT = "q"
    UP = "up"
    DOWN = "down"
    FIRST = "home"
    LAST = "end"
    SWITCHOVER = "s"
    YES = "y"
    NO = "n"


_LETTERS: Final = {
    "q": Key.QUIT,
    "Q": Key.QUIT,
    "k": Key.UP,
    "j": Key.DOWN,
    "g": Key.FIRST,
    "G": Key.LAST,
    "s": Key.SWITCHOVER,
    "y": Key.YES,
    "n": Key.NO,
    "\x1b": Key.NO,
}
_ENDS: Final = {"A": Key.UP, "B": Key.DOWN, "H": Key.FIRST, "F": Key.LAST}
_NUMBERED: Final = {"1~": Key.FIRST, "7~": Key.FIRST, "4~": Key.LAST, "8~": Key.LAST}
_SEQUENCE: Final = re.compile(r"\x1b[\[O]([0-9;]*)([A-Za-z~])")
_BEGUN: Final = re.compile(r"\x1b[\[O][0-9;]{0,16}$")


class Keys:
    """Finds keys in what a terminal sends, which may come in pieces."""

    def __init__(self) -> None:
        self._begun = ""

    def take(self, data: bytes) -> list[Key]:
        """The keys that are whole by now."""
        text, found = self._begun + data.decode("latin-1"), []
        self._begun = ""
        while text:
            if match := _SEQUENCE.match(text):
                numbers, end = match.groups()
                key = _NUMBERED.get(numbers + end) if end == "~" else _ENDS.get(end)
                text = text[match.end() :]
            elif _BEGUN.match(text):
                self._begun = text
                break
            else:
                key, text = _LETTERS.get(text[0]), text[1:]
            if key is not None:
                found.append(key)
        return found


class Terminal:
    """The terminal of this process.  Raises UsageError where it has none."""

    def __init__(self) -> None:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError("`colo top` needs a terminal; `colo status --all` does not")
        self.keyboard, self._screen = sys.stdin.fileno(), sys.stdout.fileno()
        encoding = sys.stdout.encoding or "ascii"
        self.ascii_only = not _can("▁█↑↓─–", encoding)
        self._encoding = encoding
        self._is_plain = bool(os.environ.get("NO_COLOR"))
        self._before: list[Any] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; as a terminal had them once, where it does not say."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(self._screen)
            if columns and lines:
                return columns, lines
        return _SIZE

    def enter(self) -> None:
        """Have it for us: keys come at once and are not shown, and what was there stays behind."""
        self._before = termios.tcgetattr(self.keyboard)
        mode = termios.tcgetattr(self.keyboard)
        mode[0] &= ~(termios.IXON | termios.ICRNL)  # Ctrl-S would have us stand still
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.keyboard, termios.TCSADRAIN, mode)
        self._write(_ENTER)

    def leave(self) -> None:
        """Give it back as it was, as far as it is still there."""
        before, self._before = self._before, None
        if before is None:
            return
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.keyboard, termios.TCSADRAIN, before)

    def show(self, lines: Sequence[Sequence[Part]]) -> None:
        """Draw a screen.  Raises OSError where it is gone."""
        rows = ("".join(self._part(*part) for part in line) + "\x1b[K" for line in lines)
        self._write("\x1b[H" + "\r\n".join(rows) + "\x1b[J")

    def _part(self, text: str, look: Look) -> str:
        code = look.value
        if self._is_plain and look not in (Look.SELECTED, Look.BOLD):
            code = ""
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, errors="replace")
        while data:
            data = data[os.write(self._screen, data) :]


def _can(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
