"""What has become of a VM on this host: ``history.jsonl`` in its state folder, a line per state.

It outlives the colos that write it, so takeovers are counted over all of them.  It is for people
and their graphs, and nothing is decided by it: where it cannot be written, the VM goes on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

__all__ = ["HISTORY", "History", "Line", "read_history"]

#: What it is called.
HISTORY: Final = "history.jsonl"
#: Where it gets longer, only the last half of it is kept, and so many takeovers of before.
_BYTES_MAX: Final = 256 << 10
_TAKEOVERS: Final = 50
#: What others say may be long; so much of it is kept.
_WHY_MAX: Final = 300


@dataclass(frozen=True)
class Line:
    """From ``at`` on, in seconds since 1970, the VM stood so here.

    ``why`` is the last error then.  ``takeovers``: how often this host has taken the VM over by
    then; ``takeover_ms``: how long it took to start it, in the line of one.
    """

    at: float
    role: str
    state: str
    meaning: str
    grant: int | None = None
    checkpoint: int | None = None
    why: str = ""
    takeovers: int = 0
    takeover_at: float | None = None
    takeover_ms: float | None = None

    @classmethod
    def of(cls, text: str) -> Line:
        """Read one.  Raises ValueError, KeyError or TypeError where it is none."""
        content = json.loads(text)
        kinds = {"at": float, "takeovers": int, "takeover_at": float, "takeover_ms": float}
        kinds |= {"grant": int, "checkpoint": int}
        values: dict[str, Any] = {}
        for each in fields(cls):
            value = content.get(each.name, each.default)
            if value is MISSING:
                raise KeyError(each.name)
            kind = kinds.get(each.name, str)
            values[each.name] = None if value is None and each.default is None else kind(value)
        line = cls(**values)
        for number in (line.at, line.takeover_at, line.takeover_ms):
            if number is not None and not math.isfinite(number):
                raise ValueError(number)
        return line


class History:
    """The history of one state folder, which nobody else writes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HISTORY
        self.last = next(iter(read_history(folder, 1)), None)

    def note(self, status: dict[str, Any]) -> None:
        """Add a line, where this status tells of another state than the one before."""
        last = self.last
        now = (status.get("role", ""), status.get("state", ""))
        if not now[1] or (last is not None and now == (last.role, last.state)):
            return
        took = status.get("takeover") if now[1] == "RUNNING" else None
        at = time.time()
        line = Line(
            at,
            *now,
            status.get("meaning", ""),
            status.get("grant"),
            status.get("checkpoint"),
            str(status.get("error") or "")[:_WHY_MAX],
            (last.takeovers if last is not None else 0) + bool(took),
            at if took else (last.takeover_at if last is not None else None),
            took["total_ms"] if took else None,
        )
        self.last = line
        with suppress(OSError):  # it is full, or gone
            self._append(line)

    def _append(self, line: Line) -> None:
        content = json.dumps(asdict(line)).encode() + b"\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            try:
                is_whole = os.write(file, content) == len(content)
            except OSError:
                if not size:
                    self._path.unlink(missing_ok=True)
                raise
            if not is_whole:
                os.ftruncate(file, size)
        finally:
            os.close(file)
        if size > _BYTES_MAX:
            self._cut()

    def _cut(self) -> None:
        lines = read_history(self._path.parent, _BYTES_MAX)
        at = len(lines) // 2
        kept = [line for line in lines[:at] if line.takeover_ms is not None][-_TAKEOVERS:]
        content = "".join(json.dumps(asdict(line)) + "\n" for line in (*kept, *lines[at:]))
        half = self._path.with_name(f".{HISTORY}-12345678")  # as all halves are called
        half.touch(0o600)
        half.write_text(content)
        os.replace(half, self._path)


def read_history(folder: Path, most: int) -> list[Line]:
    """The last lines of a state folder's history, ``most`` of them, the newest last.

    What is no line is left out; none where there is no history.
    """
    try:
        with (folder / HISTORY).open("rb") as file:
            data = file.read(2 * _BYTES_MAX)
    except OSError:
        return []
    return list(_lines(data.decode(errors="replace").splitlines()))[-most:]


def _lines(texts: list[str]) -> Iterator[Line]:
    for text in texts:
        with suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError):
            yield Line.of(text)
