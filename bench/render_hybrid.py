"""Hybrid mode as tables: by load, beside its aims, and at a takeover."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bench.cells import ms, spread, table
from bench.loads import IDLE, RATES, REQUESTS

__all__ = ["hybrid"]

_Row = dict[str, Any]

_PROTECTED: Final = ("periodic", "hybrid", "auto", "QEMU's own")
_ADDED_MS: Final = 0.5
_STILL: Final = 0.01
_OF_TWO: Final = dict(zip(RATES, (0.8, 0.7), strict=True))


def hybrid(rows: Sequence[_Row]) -> str:
    """Three tables, and what else the machine did."""
    head = ["QEMU", "load", "", "its client: median (p99)", "checkpoints/s", "stands still"]
    head += ["stopped, ms: median (p99)", "host B, MiB"]
    head += ["alike / compared", "secondary VMs", "ended by"]
    loads = table(
        [*head, "lost"], (_load(row["qemu"], each) for row in rows for each in row["loads"])
    )
    aims = table(
        ["QEMU", "load", "aim", *_PROTECTED], (cells for row in rows for cells in _aims(row))
    )
    head = ["QEMU", "load", "", "silence after the kill, ms: median", "max", "n", "lost"]
    gaps = table(head, (_gap(row["qemu"], each) for row in rows for each in row["gaps"]))
    return "\n\n".join((*map(_beside, rows), loads, aims, gaps))


def _beside(row: _Row) -> str:
    shares = ", ".join(f"{share:.0%}" for share in row["others_share"])
    rates = (f"{load} {each['median']:.0f} MiB/s" for load, each in row["side_by_side"].items())
    return (
        f"QEMU {row['qemu']}: before each round, what else ran took of the processors: {shares}. "
        f"Two unprotected VMs at once reached, each: {', '.join(rates)}. "
        f"Each turn lasted {row['seconds']:.0f} s."
    )


def _load(qemu: str, row: _Row) -> list[str]:
    counts = row.get("counts")
    causes = (f"{name} {count}" for name, count in row.get("ended_by", {}).items())
    return [
        *(qemu, row["load"], row["way"], _client(row)),
        _middle(row, "checkpoints_per_s", "{:.1f}"),
        _middle(row, "stopped_share", "{:.1%}"),
        _two(row.get("stopped_ms")),
        _middle(row, "host_b_mib", "{:.0f}"),
        f"{counts['alike']:,} / {counts['compared']:,}" if counts else "",
        str(counts["spells"]) if counts else "",
        ", ".join(causes),
        str(len(row.get("lost", ())) or ""),
    ]


def _client(row: _Row) -> str:
    if "round_trip_ms" in row:
        return f"{_two(row['round_trip_ms'])} ms"
    if "mib_per_s" in row:
        return _middle(row, "mib_per_s", "{:.1f} MiB/s")
    if "lines_per_s" in row:
        silence = ms(row["silence_ms"]["median"])
        return _middle(row, "lines_per_s", "{:.0f} lines/s") + f", silent for {silence} ms"
    return ""


def _middle(row: _Row, name: str, how: str) -> str:
    return how.format(row[name]["median"]) if name in row else ""


def _two(series: _Row | None) -> str:
    return f"{ms(series['median'])} ({ms(series['p99'])})" if series else ""


def _aims(row: _Row) -> Iterable[list[str]]:
    by = {(each["load"], each["way"]): each for each in row["loads"]}
    for load in REQUESTS:
        cells = [_judged(_of(by, load, way, "added_ms"), "ms", _ADDED_MS) for way in _PROTECTED]
        yield [row["qemu"], load, f"round trip at most +{_ADDED_MS} ms", *cells]
    for load, least in _OF_TWO.items():
        cells = [_judged(_of(by, load, way, "of_two"), "×", least, True) for way in _PROTECTED]
        yield [row["qemu"], load, f"at least {least} × one of two unprotected", *cells]
    for load in (IDLE, *REQUESTS):
        found = (_of(by, load, way, "stopped_share") or {} for way in _PROTECTED)
        shares = (each.get("median") for each in found)
        cells = ["" if s is None else f"{s:.1%}, {_word(s < _STILL)}" for s in shares]
        yield [row["qemu"], load, f"stands still for less than {_STILL:.0%}", *cells]


def _of(by: Mapping[tuple[str, str], _Row], load: str, way: str, name: str) -> Any:
    """What a way has of that; an older file may not know it."""
    return by.get((load, way), {}).get(name)


def _judged(values: Sequence[float] | None, unit: str, limit: float, least: bool = False) -> str:
    """The rounds' median, their spread, and whether that is what it is to be."""
    if not values:
        return ""
    middle = sorted(values)[len(values) // 2]
    shown = spread(values) if len(values) > 1 else f"{middle:.2f}"
    return f"{shown} {unit}, {_word(middle >= limit if least else middle <= limit)}"


def _word(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _gap(qemu: str, row: _Row) -> list[str]:
    gap, lost = row.get("gap_ms"), str(len(row.get("lost", ())) or "")
    cells = [f"{gap['median']:.0f}", f"{gap['max']:.0f}", str(gap["n"])] if gap else ["", "", "0"]
    return [qemu, row["load"], row["way"], *cells, lost]
