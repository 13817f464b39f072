"""What a checkpoint costs as tables: by its pages, the link, the VM's size, and its moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from bench.cells import ms, table

__all__ = ["big", "floor", "links", "many", "pace", "wire"]

_Row = dict[str, Any]

_GUESTS: Final = {"files": "writes files", "build": "builds"}
#: A series of a link's row: its key, its heading, and how its values are shown.
_LINK_SERIES: Final = (
    ("round_trip_ms", "round trip, ms", "median p99"),
    ("answering_stopped_ms", "stopped meanwhile, ms", "median p99"),
    ("answering_kib", "KiB each", "median"),
    ("bulk_mib_per_s", "bulk, MiB/s", "median"),
    ("writing_stopped_ms", "writes files: stopped, ms", "median p99"),
    ("writing_mib", "MiB each", "median"),
    ("files_per_s", "files/s", "median"),
)


def floor(rows: Sequence[_Row]) -> str:
    """Stopped time by dirty pages, and its plot."""
    head = ["QEMU", "guest", "sent, MiB", "secondary", "median, ms", "p99", "max", "n", "work"]
    lines = table(head, (cells for row in rows for cells in _floor(row)))
    return f"{_image('The VM is stopped, by dirty pages', 'stopped-by-pages')}\n\n{lines}"


def _floor(row: _Row) -> Iterable[list[str]]:
    guest = f"{row['pages']:,} pages" if row["pages"] else _GUESTS[row["mode"]]
    where = [row["qemu"], f"{guest}, every {row['interval_ms']} ms", f"{row['sent']['mib']:.2f}"]
    for name, series in row["stopped_ms"].items():
        values = [ms(series[key]) for key in ("median", "p99", "max")]
        work = "" if row["pages"] else f"{row['work_per_s'][name]:.1f}/s"
        yield [*where, name, *values, str(series["n"]), work]
        where = [""] * len(where)


def links(rows: Sequence[_Row]) -> str:
    """Round trips, bulk and stopped time by the link, and their plots."""
    head = ["QEMU", "link", "without colo", ""]
    head += [*(heading for _, heading, _ in _LINK_SERIES), "protection lost, turns"]
    images = (
        _image("Round trip by the link's rate", "round-trip-by-link"),
        _image("The VM is stopped, by the link's rate", "stopped-by-link"),
    )
    return "\n\n".join((*images, table(head, map(_link, rows))))


def _link(row: _Row) -> list[str]:
    link, bare = row["link"], row.get("bare")
    where = [row["qemu"], link["name"] if link else ""]
    where.append(f"{bare['mib_per_s']:.0f} MiB/s, {ms(bare['round_trip_ms'])} ms" if bare else "")
    series = (_series(row.get(key), how) for key, _, how in _LINK_SERIES)
    return [*where, row["way"], *series, str(len(row.get("lost", ())) or "")]


def _series(series: _Row | None, how: str) -> str:
    if series is None:
        return ""
    return " (p99 ".join(ms(series[key]) for key in how.split()) + ")" * how.count("p99")


def big(rows: Sequence[_Row]) -> str:
    """A table of big VMs."""
    head = ["QEMU", "guest RAM", "", "first copy, s", "stopped, ms", "takeover, ms"]
    head += ["peak of host A's colo, MiB", "of host B's, MiB", "of that not the store's"]
    return table(head, (_big(row["qemu"], row) for row in rows))


def many(rows: Sequence[_Row]) -> str:
    """A table of idle VMs, one alone and several at once."""
    head = ["QEMU", "idle VMs", "", "stopped, ms: median", "p99", "max", "n"]
    head += ["host A's colo, % of a core", "host B's", "host A's has, MiB", "host B's", "store"]
    return table(head, (_many(row["qemu"], row) for row in rows))


def _big(qemu: str, row: _Row) -> list[str]:
    where = [qemu, f"{row['memory_mib'] >> 10} GiB", row["way"]]
    if "left_out" in row:
        return [*where, f"left out: {row['left_out']}", "", "", "", "", ""]
    peak = row["peak_mib"]
    return [
        *where,
        f"{row['first_copy_s']:.2f}",
        *(ms(row[key]) for key in ("stopped_ms", "takeover_ms")),
        *(f"{peak[key]:.0f}" for key in ("primary", "secondary", "secondary_own")),
    ]


def _many(qemu: str, row: _Row) -> list[str]:
    stopped, cpu, own = row["stopped_ms"], row["cpu_percent"], row["own_mib"]
    return [
        *(qemu, f"{row['vms']} × {row['memory_mib']} MiB", row["way"]),
        *(ms(stopped[key]) for key in ("median", "p99", "max")),
        str(stopped["n"]),
        *(f"{cpu[name]['median']:.1f} (max {cpu[name]['max']:.1f})" for name in own),
        *(f"{own[name]:.0f}" for name in own),
        f"{row['store_mib']:.0f}",
    ]


def pace(rows: Sequence[_Row]) -> str:
    """Round trips and the guest's work, by when checkpoints are taken."""
    head = ["QEMU", "guest", "checkpoints", "a second", "stopped, ms", "of its time"]
    return table([*head, "round trip, ms", "n", "work, 1/s"], map(_pace, rows))


def _pace(row: _Row) -> list[str]:
    protected = "checkpoints_per_s" in row
    return [
        *(row["qemu"], row["guest"], row["way"]),
        f"{row['checkpoints_per_s']['median']:.1f}" if protected else "",
        _series(row.get("stopped_ms"), "median p99"),
        f"{row['stopped_share']['median']:.1%}" if protected else "",
        _series(row["round_trip_ms"], "median p99"),
        str(row["round_trip_ms"]["n"]),
        f"{row['work_per_s']['median']:.2f}",
    ]


def _image(text: str, name: str) -> str:
    return f"![{text}](figures/{name}.svg)"


def wire(rows: Sequence[_Row]) -> str:
    """What coding costs and leaves, and below which rate it pays."""
    head = ["pages", "way", "sent, share", "host A, ns a byte", "host B", "pays below, MB/s"]
    return table(head, map(_wire, rows))


def _wire(row: _Row) -> list[str]:
    rate = row["break_even_mb_s"]
    return [
        row["pages"],
        row["way"],
        f"{row['wire']:.3f}",
        f"{row['work_ns_per_byte']:.2f}",
        f"{row['decode_ns_per_byte']:.2f}",
        f"{rate:,}" if rate else "never",
    ]
