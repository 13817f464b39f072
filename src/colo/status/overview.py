"""All VMs of a host: what their state folders say, a view for each.

A folder may hold anything, as others may have written it: what is no status becomes a view that
says so, and never an error of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from colo.errors import ColoError, UsageError
from colo.status.report import FRESH_S, read_status
from colo.store.image import mib
from colo.terminal import console, plain

__all__ = [
    "COLUMNS",
    "STATE_FOLDERS",
    "STYLES",
    "Health",
    "Pair",
    "View",
    "cells",
    "find",
    "health_of",
    "look",
    "show",
    "trouble",
]

#: Where the unit has the state folders of a host's VMs.
STATE_FOLDERS: Final = Path("/var/lib/colo")
COLUMNS: Final = ("vm", "role", "state", "peer", "age", "stopped ms", "held ms", "held", "lag")
_UNKNOWN: Final = "UNKNOWN"


class Health(Enum):
    """Whether somebody has to look at it."""

    WELL = "the VM is protected, or its checkpoints are kept here"
    OVER = "the VM has ended in good order"
    WATCH = "it is not protected now"
    BAD = "it may be silent, or colo does not run"


_WELL: Final = frozenset({"PROTECTED", "KEEPING"})
_OVER: Final = frozenset({"SHUTDOWN", "GONE"})
_BAD: Final = frozenset(
    {"LOST", "ORPHANED", "FENCED", "REFUSED", "WAITING", "DEAD", "LEFT", _UNKNOWN}
)


@dataclass(frozen=True)
class Pair:
    """The median and the 99th percentile of the last samples, in milliseconds."""

    median: float
    p99: float


@dataclass(frozen=True)
class View:
    """One VM on this host, as far as its state folder says; times in seconds.

    ``age_s``: of the last safe checkpoint; ``lag_s``: of what the secondary has.  ``stopped`` and
    ``held``: how long the VM stands still for a checkpoint, and how long output waits for it.
    ``sums``: by phase, how many there were since the start and how long they took together.
    ``is_alive``: its colo runs.
    """

    folder: Path
    vm: str
    role: str
    state: str
    meaning: str
    health: Health
    is_alive: bool
    peer: str = ""
    peer_state: str = ""
    checkpoint: int | None = None
    age_s: float | None = None
    stopped: Pair | None = None
    held: Pair | None = None
    held_bytes: int | None = None
    lag_s: float | None = None
    grant: int | None = None
    arbiter: str = ""
    error: str = ""
    waits_for: str = ""
    disks: tuple[str, ...] = ()
    sums: Mapping[str, tuple[int, float]] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same for scripts."""
        pairs = {
            f"{name}_ms": None if pair is None else {"median": pair.median, "p99": pair.p99}
            for name, pair in (("stopped", self.stopped), ("held", self.held))
        }
        return {
            "vm": self.vm,
            "state_dir": str(self.folder),
            "role": self.role,
            "state": self.state,
            "meaning": self.meaning,
            "health": self.health.name,
            "alive": self.is_alive,
            "peer": self.peer,
            "peer_state": self.peer_state,
            "checkpoint": self.checkpoint,
            "age_s": self.age_s,
            **pairs,
            "held_bytes": self.held_bytes,
            "lag_s": self.lag_s,
            "grant": self.grant,
            "arbiter": self.arbiter,
            "error": self.error,
            "waits_for": self.waits_for,
            "disks": list(self.disks),
        }


#: How each is shown.
STYLES: Final = {
    Health.WELL: "green",
    Health.OVER: "dim",
    Health.WATCH: "yellow",
    Health.BAD: "red",
}


def find(under: Path) -> list[Path]:
    """The state folders in a folder, by their names.  Raises UsageError where it cannot be read."""
    try:
        return sorted(each for each in under.iterdir() if _has_status(each))
    except OSError as error:
        raise UsageError(f"{under}: {error.strerror}; say --under DIR") from error


def _has_status(folder: Path) -> bool:
    try:
        return (folder / "status.json").exists()
    except OSError:  # it may not be looked at; whoever looks at it says so
        return True


def look(folder: Path, now: float | None = None) -> View:
    """What a state folder says."""
    now = time.time() if now is None else now
    try:
        content = read_status(folder)
        return _view(folder, content, now)
    except ColoError as error:
        return _unknown(folder, str(error))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return _unknown(
            folder, f"{folder / 'status.json'}: it is no status that a colo has written"
        )
    except OSError as error:
        return _unknown(folder, f"{folder}: {error.strerror}")


def _unknown(folder: Path, why: str) -> View:
    return View(folder, folder.name, "", _UNKNOWN, why, Health.BAD, False, error=why)


def _view(folder: Path, content: Mapping[str, Any], now: float) -> View:
    alive, state = bool(content["alive"]), str(content["state"])
    stale = alive and state not in _OVER and now - float(content["written_at"]) > FRESH_S
    peer = content.get("peer")
    gates = list((content.get("network") or {}).values())
    age = content.get("checkpoint_at")
    lag = (content.get("aside") or {}).get("lag_s")
    phases = content.get("phases_ms") or {}
    meaning = str(content["meaning"])
    if not alive and state not in _OVER:
        meaning = f"colo does not run; it was {state}"
    return View(
        folder,
        str(content["vm"]),
        str(content["role"]),
        state,
        f"{meaning}; it wrote nothing for some time" if stale else meaning,
        _health(state, alive, stale),
        alive,
        str(content.get("secondary") or content.get("primary") or ""),
        str(peer.get("state", "")) if isinstance(peer, dict) else "",
        _whole(content.get("checkpoint")),
        None if age is None else max(0.0, now - _number(age)),
        _pair(phases.get("stopped")),
        _worst([gate.get("held_ms") for gate in gates]),
        sum(_whole(gate["held_bytes"]) or 0 for gate in gates) if gates else None,
        None if lag is None or not alive else _number(lag),
        _whole(content.get("grant")),
        str(content.get("arbiter", "")),
        str(content.get("error") or ""),
        str(content.get("waits_for") or ""),
        tuple(str(disk["id"]) for disk in content.get("disks") or ()),
        _sums(content, gates),
    )


def health_of(state: str) -> Health:
    """What a state means where its colo runs."""
    return _health(state, True, False)


def _health(state: str, alive: bool, stale: bool) -> Health:
    if state in _OVER:
        return Health.OVER
    if not alive or stale or state in _BAD:
        return Health.BAD
    return Health.WELL if state in _WELL else Health.WATCH


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _pair(summary: Any) -> Pair | None:
    return Pair(_number(summary["median"]), _number(summary["p99"])) if summary else None


def _worst(summaries: Iterable[Any]) -> Pair | None:
    """Of several network cards, the one whose output waits longest."""
    pairs = [pair for pair in map(_pair, summaries) if pair is not None]
    return max(pairs, key=lambda pair: pair.median, default=None)


def _sums(content: Mapping[str, Any], gates: list[Any]) -> dict[str, tuple[int, float]]:
    found = dict(content.get("times") or {})
    sums = {name: (int(each["counts"][-1]), _number(each["sum_s"])) for name, each in found.items()}
    held = [each["held"] for each in gates if "held" in each]
    if held:
        count = sum(int(each["counts"][-1]) for each in held)
        sums["held"] = count, sum(_number(each["sum_s"]) for each in held)
    return sums


def cells(view: View) -> tuple[str, ...]:
    """What a line of a table has of it, one text for each of ``COLUMNS``."""
    return (
        view.vm,
        view.role or "–",
        view.state if view.is_alive or view.state == _UNKNOWN else f"({view.state})",
        view.peer.removeprefix("tcp:") or "–",
        _seconds(view.age_s),
        _milliseconds(view.stopped),
        _milliseconds(view.held),
        "–" if view.held_bytes is None else _bytes(view.held_bytes),
        _seconds(view.lag_s),
    )


def _milliseconds(pair: Pair | None) -> str:
    return "–" if pair is None else f"{_short(pair.median)}/{_short(pair.p99)}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.0f} h"


def _bytes(value: int) -> str:
    if value < 1024:
        return f"{value} B"
    return f"{value / 1024:.0f} KiB" if value < 1 << 20 else mib(value)


def trouble(view: View) -> str:
    """What is wrong, as far as it says; "" where nothing is."""
    if view.health in (Health.WELL, Health.OVER):
        return ""
    why = view.waits_for or view.error
    if view.is_alive:
        return why or view.meaning
    return f"{view.meaning}; {why}" if why and why != view.meaning else view.meaning


def show(views: list[View]) -> None:
    """Print a line for each VM, and below them what is wrong with whom."""
    out = console()
    rows = [cells(view) for view in views]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    out.print(f"[dim]{_line(COLUMNS, widths)}[/dim]")
    for view, row in zip(views, rows, strict=True):
        out.print(f"[{STYLES[view.health]}]{plain(_line(row, widths))}[/]")
    for view in views:
        if why := trouble(view):
            out.print(f"  {plain(view.vm)}: {plain(why)}")


def _line(row: Sequence[str], widths: list[int]) -> str:
    padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
    return "  ".join(padded).rstrip()
