"""The figures as tables, put between the markers of a Markdown file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bench.cells import ms, spread, table
from bench.errors import BenchError
from bench.render_hybrid import hybrid
from bench.render_reach import big, floor, links, many, pace, wire

__all__ = ["render"]

_BEGIN: Final = "<!-- {name}: written by `python -m bench --render`, not by hand -->"
_END: Final = "<!-- {name}: end -->"

_Row = dict[str, Any]


def render(figures: _Row, text: str) -> str:
    """Return ``text`` with the tables of ``figures`` between its markers."""
    for name, write in _TABLES.items():
        if name not in figures:
            continue
        begin, end = _BEGIN.format(name=name), _END.format(name=name)
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise BenchError(f"there are no markers for {name}: {begin} … {end}")
        text = f"{before}{begin}\n\n{write(figures[name])}\n\n{end}{after}"
    return text


def _machine(machine: _Row) -> str:
    lines = [
        _hardware(machine),
        _software(machine),
        f"colo {machine['colo']}, QEMU {' and '.join(machine['qemu'])}, "
        f"accelerator {machine['accelerator']}",
    ]
    for run in machine.get("also", ()):
        other = run["machine"]
        differs = "" if _software(other) == _software(machine) else f", {_software(other)}"
        parts = ", ".join(f"`{name}`" for name in run["parts"])
        when = f"{run['date']}, `--rounds {run['rounds']}`"
        lines.append(f"{parts}: {when}, {_hardware(other)}{differs}")
    return "\n".join(f"- {line}" for line in lines)


def _hardware(machine: _Row) -> str:
    virtual = ", itself a virtual machine" if machine["virtual"] else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{virtual}"


def _software(machine: _Row) -> str:
    return f"Linux {machine['kernel']}, Python {machine['python']}, numpy {machine['numpy']}"


def _pauses(rows: Sequence[_Row]) -> str:
    head = [
        "QEMU",
        "guest",
        "over",
        "secondary",
        "median",
        "p95",
        "p99",
        "max",
        "n",
        "work",
        "ratio",
    ]
    return table(head, (cells for row in rows for cells in _pair(row)))


def _pair(row: _Row) -> Iterable[list[str]]:
    ratios = sorted(row["ratios"])
    ratio = f"**{ratios[len(ratios) // 2]:.2f}** ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    guest = f"{row['mode']}, {row['memory_mib']} MiB, every {row['interval_ms']} ms"
    for name, last in (("stock", ""), (row.get("rival", "colo"), ratio)):
        series = row[name]
        values = [ms(series[key]) for key in ("median", "p95", "p99", "max")]
        where = [row["qemu"], guest, row["transport"]] if name == "stock" else ["", "", ""]
        work = f"{series['work_per_s']:.1f}/s" if row["mode"] == "files" else ""
        yield [*where, name, *values, str(series["n"]), work, last]


def _costs(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "", "median", "p99", "max", "of each round: median (lowest–highest)"]
    return table(head, (cells for row in rows for cells in _cost(row)))


def _cost(row: _Row) -> Iterable[list[str]]:
    bulk = row["bulk"]
    for trip in row["round_trips"]:
        for name in ("unprotected", "protected"):
            last = f"**{spread(trip['added'])} ms added**" if name == "protected" else ""
            values = [ms(trip[name][key]) for key in ("median", "p99", "max")]
            yield [row["qemu"], f"round trip, {trip['kind']}, {name}, ms", *values, last]
    for name, text in (("open", "gate open"), ("protected", "protected")):
        last = f"**{spread(bulk['ratios'])} ×**" if name == "protected" else ""
        yield [row["qemu"], f"bulk, {text}, MiB/s", f"{bulk[name]['median']:.0f}", "", "", last]


def _clock(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "", "guest's clock", "", "stood still", "lost", "lost without the library"]
    bare = {_clock_key(row): row for row in rows if not row["library"]}
    return table(
        head,
        (
            [
                row["qemu"],
                row["accelerator"].upper(),
                row["clock"],
                row["case"],
                f"{row['stood_still_s'] / row['span_s']:.1%}" if "stood_still_s" in row else "",
                f"**{_lost(row)}**",
                _lost(bare[_clock_key(row)]) if _clock_key(row) in bare else "",
            ]
            for row in rows
            if row["library"]
        ),
    )


def _clock_key(row: _Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("qemu", "accelerator", "clock", "case"))


def _lost(row: _Row) -> str:
    if "stood_still_s" not in row:
        return f"{row['lost_ms']:.1f} ms"
    return f"{row['lost_ms'] / row['span_s'] / 1e3:.3%}"


def _gaps(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "host A", "median, ms", "p95", "max", "n"]
    return table(
        head,
        (
            [
                row["qemu"],
                text,
                *(f"{row[kind][key]:.0f}" for key in ("median", "p95", "max")),
                str(row[kind]["n"]),
            ]
            for row in rows
            for kind, text in (("kill", "killed: QEMU and colo"), ("freeze", "frozen: silent"))
        ),
    )


def _hosts(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "what happens", "noticed, ms", "taken over", "protected again", "gap", "n"]
    return table(
        head,
        (
            [
                row["qemu"],
                row["kind"],
                *(
                    f"{row[name]['median']:.0f} (max {row[name]['max']:.0f})"
                    for name in ("noticed", "taken_over", "protected_again", "gap")
                ),
                str(row["gap"]["n"]),
            ]
            for row in rows
        ),
    )


def _disks(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "the guest writes", "unprotected", "with its disk", "", "disk left out", ""]
    head += ["QEMU's own replication", ""]
    ways = {
        "sequential": "1 MiB each",
        "random": "4 KiB anywhere",
        "synced": "the same, with fsync",
        "transactions": "PostgreSQL, pgbench -c 4",
    }
    kinds = ("with its disk", "disk left out")
    return table(
        head,
        (
            [
                row["qemu"],
                text,
                f"{row['rates']['unprotected'][way]['median']:,.0f}/s",
                *(
                    cell
                    for kind in kinds
                    for cell in (
                        f"{row['rates'][kind][way]['median']:,.0f}/s",
                        f"{row['ratios'][kind][way]:.0%}",
                    )
                ),
                f"{row['own'][way]['median']:,.0f}/s",
                f"{row['own_ratios'][way]:.0%}",
            ]
            for row in rows
            for way, text in ways.items()
            if way in row["own"]
        ),
    )


def _stops(rows: Sequence[_Row]) -> str:
    head = ["QEMU", "", "with its disk", "disk left out", "ratio"]
    what = {
        "idle": "an idle guest stands still for a checkpoint",
        "takeover": "from the decision to take over to the VM running, an idle guest",
        "busy takeover": "the same, a guest that writes as fast as it can",
    }
    kinds = ("with its disk", "disk left out")
    return table(
        head,
        (
            [
                row["qemu"],
                text,
                *(f"{row[name]['ms'][kind]['median']:.1f} ms" for kind in kinds),
                f"{row[name]['ratio']:.2f}",
            ]
            for row in rows
            for name, text in what.items()
        ),
    )


def _replicas(row: _Row) -> str:
    head = ["an epoch of 64 MiB in writes of", "merged in", "dd, as much", "ratio"]
    merged = table(
        head,
        (
            [
                f"{each['write_bytes'] >> 10} KiB, anywhere",
                f"{each['merge_s'] * 1e3:,.0f} ms",
                f"{each['dd_s'] * 1e3:,.0f} ms",
                f"{each['ratio']:.2f}",
            ]
            for each in row["merge"]
        ),
    )
    resync = row["resync"]
    return (
        f"{merged}\n\nA second copy of {resync['disk_bytes'] >> 30} GiB of which 1 % differs: "
        f"{resync['sent_bytes'] / (1 << 20):,.0f} MiB on the wire, {resync['seconds']:.0f} s."
    )


def _takeover(rows: Sequence[_Row]) -> str:
    head = [
        "QEMU",
        "guest",
        "from SIGKILL: median",
        "p95",
        "max",
        "colo's part: median",
        "max",
        "n",
    ]
    return table(
        head,
        (
            [
                row["qemu"],
                f"{row['mode']}, {row['memory_mib']} MiB",
                *(ms(row["from_kill_ms"][key]) for key in ("median", "p95", "max")),
                *(ms(row["from_loss_ms"][key]) for key in ("median", "max")),
                str(row["from_kill_ms"]["n"]),
            ]
            for row in rows
        ),
    )


def _memory(rows: Sequence[_Row]) -> str:
    keys = {
        "guest_mib": "guest RAM",
        "images_mib": "images",
        "largest_epoch_mib": "largest epoch",
        "base_mib": "base",
        "peak_mib": "peak",
        "peak_less_base_mib": "peak less base",
        "allowed_mib": "allowed",
    }
    head = ["QEMU", "host A", *(f"{name}, MiB" for name in keys.values())]
    head.append("peak less base ÷ guest RAM")
    return table(
        head,
        (
            [
                row["qemu"],
                row["primary"],
                *(f"{row[key]:.0f}" for key in keys),
                f"{row['peak_less_base_by_guest']:.2f}",
            ]
            for row in rows
        ),
    )


def _receive(rows: Sequence[_Row]) -> str:
    head = ["pages", "number", "runs", "MiB", "parse, ms", "apply, ms"]
    return table(
        head,
        (
            [
                row["shape"],
                str(row["pages"]),
                str(row["runs"]),
                f"{row['mib']:.1f}",
                "" if row["parse_ms"] is None else ms(row["parse_ms"]),
                ms(row["apply_ms"]),
            ]
            for row in rows
        ),
    )


def _checkpoint(rows: Sequence[_Row]) -> str:
    head = ["dirty pages", "MiB", "", "median, ms", "p95", "max", "n", "ratio"]
    return table(head, (cells for row in rows for cells in _beside(row)))


def _beside(row: _Row) -> Iterable[list[str]]:
    pages = f"{row['pages']:,}" + ("" if row["stride"] == 1 else ", every other one")
    for name, text in (("bare", "bare"), ("stopped", "guest stopped"), ("cycle", "whole cycle")):
        series = row[f"{name}_ms"]
        where = [pages, f"{row['mib']:.1f}" if row["mib"] else ""] if name == "bare" else ["", ""]
        ratio = "" if name == "bare" else f"**{spread(row[f'{name}_ratios'])}**"
        values = [ms(series[key]) for key in ("median", "p95", "max")]
        yield [*where, text, *values, str(series["n"]), ratio]


_TABLES: Final[dict[str, Callable[[Any], str]]] = {
    "machine": _machine,
    "pauses": _pauses,
    "relay": _pauses,
    "costs": _costs,
    "gaps": _gaps,
    "hosts": _hosts,
    "disks": _disks,
    "stops": _stops,
    "replicas": _replicas,
    "clock": _clock,
    "takeover": _takeover,
    "memory": _memory,
    "receive": _receive,
    "wire": wire,
    "checkpoint": _checkpoint,
    "big": big,
    "floor": floor,
    "hybrid": hybrid,
    "links": links,
    "many": many,
    "pace": pace,
}
