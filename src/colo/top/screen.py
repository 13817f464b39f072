"""What is drawn: lines of text and how they look, from what is known; no terminal is needed.

It fits 80 columns and 24 lines and makes use of more; what is too long is cut, and on a smaller
terminal what matters least goes first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

from rich.cells import cell_len, set_cell_size

from colo.status.history import Line
from colo.status.overview import Health, View, cells, trouble
from colo.terminal import printable
from colo.top.trend import Trends, sparkline

__all__ = ["Look", "Model", "Part", "as_text", "draw"]

_NAME_MAX: Final = 24
_PEER: Final = 20
_PEER_FROM: Final = 104
_SPARK_LEAST: Final = 4
_DETAILS: Final = 9
_KEYS: Final = "q quit  ↑↓ select  s switchover"


class Look(Enum):
    """How a part of a line looks; the values are ANSI's numbers for that."""

    PLAIN = ""
    BOLD = "1"
    DIM = "2"
    GOOD = "32"
    WARN = "33"
    BAD = "31"
    SELECTED = "7"
    ASKING = "1;33"


Part: TypeAlias = tuple[str, Look]

_LOOKS: Final = {
    Health.WELL: Look.GOOD,
    Health.OVER: Look.DIM,
    Health.WATCH: Look.WARN,
    Health.BAD: Look.BAD,
}


@dataclass
class Model:
    """What is known.  ``asked``: the VM of which a switchover is to be confirmed."""

    under: Path
    views: list[View] = field(default_factory=list)
    history: list[Line] = field(default_factory=list)
    trends: Trends = field(default_factory=Trends)
    selected: Path | None = None
    asked: View | None = None
    message: str = ""
    failed: bool = False
    ascii_only: bool = False

    @property
    def at(self) -> int:
        """Which of the views is selected; 0 where none is."""
        folders = [view.folder for view in self.views]
        return folders.index(self.selected) if self.selected in folders else 0

    @property
    def view(self) -> View | None:
        """The one that is selected."""
        return self.views[self.at] if self.views else None

    def move(self, by: int) -> None:
        """Select another."""
        if self.views:
            at = min(max(self.at + by, 0), len(self.views) - 1)
            self.selected = self.views[at].folder


def draw(model: Model, width: int, height: int, now: float) -> list[list[Part]]:
    """The lines of a screen of that size: ``height`` of them, none longer than ``width``."""
    foot = [_foot(model, width)]
    head = [_head(model, width, now), _titles(model, width)]
    details = _details(model, width, now)
    room = height - len(head) - len(foot)
    details = details if room - len(details) >= min(len(model.views), 3) else []
    room = max(room - len(details), 0)
    rows = _rows(model, width, room)
    empty: list[list[Part]] = [[] for _ in range(room - len(rows))]
    lines = [*head, *rows, *empty, *details]
    return [*lines[: height - 1], *foot][:height]


def _head(model: Model, width: int, now: float) -> list[Part]:
    views = model.views
    well = sum(view.health in (Health.WELL, Health.OVER) for view in views)
    rest = len(views) - well
    count = f"{len(views)} VM{'' if len(views) == 1 else 's'}"
    words = f"  {count}, {'all well' if not rest else f'{rest} to look at'}"
    if not views:
        words = f"  no VM has a state folder in {printable(str(model.under))}"
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    title = _fit("colo top", width)
    middle = _fit(words, max(width - len(title) - len(clock) - 1, 0), pad=True)
    look = Look.BAD if rest else Look.GOOD if views else Look.WARN
    return [(title, Look.BOLD), (middle, look), (_fit(f" {clock}", width - 18), Look.DIM)]


def _columns(model: Model, width: int) -> list[tuple[str, int]]:
    """Name and width of each column that there is room for."""
    names = [cell_len(printable(view.vm)) for view in model.views]
    longest = min(max([2, *names]), _NAME_MAX)
    columns = [("VM", longest), ("STATE", 13), ("AGE", 7), ("STOPPED ms", 10), ("HELD ms", 10)]
    if width >= _PEER_FROM:
        columns.insert(2, ("PEER", _PEER))
    while len(columns) > 2 and _width(columns) > width:
        columns.pop()
    left = width - _width(columns)
    if columns[-1][0] == "HELD ms" and left >= 2 * (_SPARK_LEAST + 1):
        spark = left // 2 - 1
        at = len(columns) - 1
        columns[at:at] = [("stopped", spark)]
        columns.append(("held", spark))
    return columns


def _width(columns: list[tuple[str, int]]) -> int:
    return 1 + sum(width + 1 for _, width in columns)


def _titles(model: Model, width: int) -> list[Part]:
    text = " ".join(
        _fit("" if name.islower() else name, columns, pad=True)
        for name, columns in _columns(model, width)
    )
    return [(_fit(f" {text}", width), Look.DIM)]


def _rows(model: Model, width: int, room: int) -> list[list[Part]]:
    """The VMs, or as many of them as there is room for: the one that is selected is among them."""
    if room <= 0:
        return []
    first = min(max(model.at - room // 2, 0), max(len(model.views) - room, 0))
    columns = _columns(model, width)
    return [
        _row(model, view, columns, width, first + number == model.at)
        for number, view in enumerate(model.views[first : first + room])
    ]


def _row(
    model: Model, view: View, columns: list[tuple[str, int]], width: int, selected: bool
) -> list[Part]:
    vm, _, state, peer, age, stopped, held, _, _ = (printable(cell) for cell in cells(view))
    texts = {"VM": vm, "STATE": state, "PEER": peer, "AGE": age}
    texts |= {"STOPPED ms": stopped, "HELD ms": held}
    parts: list[Part] = [(">" if selected else " ", Look.SELECTED if selected else Look.PLAIN)]
    used = 1
    for name, wanted in columns:
        size = min(wanted, max(width - used, 0))
        if name in texts:
            text = _fit(texts[name], size, pad=True)
        else:
            text = sparkline(model.trends.of(view, name), size, model.ascii_only)
        look = _LOOKS[view.health] if name == "STATE" else Look.PLAIN
        parts.append((text, Look.SELECTED if selected and name != "STATE" else look))
        used += size
        if used < width:
            parts.append((" ", Look.SELECTED if selected else Look.PLAIN))
            used += 1
    return parts


def _details(model: Model, width: int, now: float) -> list[list[Part]]:
    """What there is to say of the VM that is selected."""
    view = model.view
    if view is None:
        return []
    look = _LOOKS[view.health]
    said = f" {view.role}  {view.state}: {view.meaning}"
    *_, held, lag = cells(view)
    there = f": it says {view.peer_state}" if view.peer_state else ""
    facts = [
        ("peer", f"{view.peer}{there}" if view.peer else ""),
        ("checkpoint", f"{view.checkpoint}" if view.checkpoint is not None else ""),
        ("lag", lag.replace("–", "")),
        ("held now", held.replace("–", "")),
        ("grant", f"{view.grant or ''}"),
        ("arbiter", view.arbiter),
        ("disks", " ".join(view.disks)),
    ]
    text = "  ".join(f"{name} {value}" for name, value in facts if value)
    lines: list[list[Part]] = [
        [("─" * width if not model.ascii_only else "-" * width, Look.DIM)],
        [
            (_fit(printable(view.vm), width), Look.BOLD),
            (_fit(printable(said), max(width - cell_len(printable(view.vm)), 0)), look),
        ],
        [(_fit(printable(f"  {text}"), width), Look.PLAIN)],
    ]
    if why := trouble(view):
        lines.append([(_fit(printable(f"  {why}"), width), Look.WARN)])
    for line in reversed(model.history[-(_DETAILS - len(lines)) :]):
        lines.append([(_fit(printable(f"  {_past(line, now)}"), width), Look.DIM)])
    return lines


def _past(line: Line, now: float) -> str:
    day = "%H:%M:%S" if now - line.at < 86_400 else "%Y-%m-%d %H:%M"
    when = time.strftime(day, time.localtime(line.at))
    took = f" in {line.takeover_ms:.0f} ms" if line.takeover_ms is not None else ""
    return f"{when}  {line.role} {line.state}{took}{f': {line.why}' if line.why else ''}"


def _foot(model: Model, width: int) -> list[Part]:
    if model.asked is not None:
        peer = model.asked.peer or "the other host"
        text = f"have {model.asked.vm} go over to {peer}? y/n"
        return [(_fit(printable(text), width), Look.ASKING)]
    keys = "q quit  up/down select  s switchover" if model.ascii_only else _KEYS
    if not model.message:
        return [(_fit(keys, width), Look.DIM)]
    said = printable(model.message)
    look = Look.BAD if model.failed else Look.BOLD
    if cell_len(said) + cell_len(keys) + 2 > width:
        return [(_fit(said, width), look)]
    return [(f"{said}  ", look), (keys, Look.DIM)]


def _fit(text: str, width: int, pad: bool = False) -> str:
    """The text in so many cells at most; with ``pad``, in just so many."""
    if width <= 0:
        return ""
    return set_cell_size(text, width) if pad or cell_len(text) > width else text


def as_text(lines: Sequence[Sequence[Part]]) -> list[str]:
    """The lines without their looks."""
    return ["".join(text for text, _ in line) for line in lines]
