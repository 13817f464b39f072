"""The figures as plots: PNG and SVG, drawn from the same file as the tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.errors import BenchError
from bench.ways import LINK_WAYS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_Row = dict[str, Any]

#: Colours that colour-blind people can tell apart (Okabe and Ito), and a mark for each as well.
_STYLES: Final = (
    ("#000000", "o"),
    ("#0072b2", "s"),
    ("#d55e00", "^"),
    ("#cc79a7", "v"),
    ("#009e73", "D"),
    ("#e69f00", "x"),
)
#: Who has which, the same in all plots.
_NAMES: Final = (
    *("null sink", "stock QEMU", *(way.name for way in LINK_WAYS)),
    "stock QEMU, multifd",
)
_PANEL_INCHES: Final = (4.6, 3.6)
_SETTINGS: Final[Any] = {
    "svg.hashsalt": "colo",  # the same figures give the same bytes
    "font.size": 9.0,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 120,
}
#: What would change from day to day, and from version to version.
_METADATA: Final[dict[str, dict[str, Any]]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def draw(figures: _Row, folder: Path) -> list[Path]:
    """Draw what ``figures`` has into ``folder``; return the files.

    Raises BenchError where there is something to draw, and no matplotlib.
    """
    rows = {name: figures.get(name, []) for name in ("floor", "links")}
    if not any(rows.values()):
        return []
    try:
        import matplotlib
    except ImportError:
        raise BenchError("plots need matplotlib: `make setup-test` installs it") from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(_SETTINGS):
        if rows["floor"]:
            files += _save(_by_pages(rows["floor"]), folder / "stopped-by-pages")
        if rows["links"]:
            trips = {"a client asks": "round_trip_ms"}
            stops = {"a client asks": "answering_stopped_ms", "writes files": "writing_stopped_ms"}
            trip = _by_rate(rows["links"], trips, "round trip, ms")
            files += _save(trip, folder / "round-trip-by-link")
            stopped = _by_rate(rows["links"], stops, "VM stopped for a checkpoint, ms")
            files += _save(stopped, folder / "stopped-by-link")
    return files


def _by_pages(rows: Sequence[_Row]) -> Figure:
    """A panel for each QEMU."""
    qemus = _unique(row["qemu"] for row in rows)
    figure, panels = _panels(1, len(qemus))
    for panel, qemu in zip(panels, qemus, strict=True):
        of_qemu = [row for row in rows if row["qemu"] == qemu and row["pages"]]
        pages = [row["pages"] for row in of_qemu]
        for name in _unique(name for row in of_qemu for name in row["stopped_ms"]):
            _line(panel, pages, [row["stopped_ms"][name] for row in of_qemu], name)
        panel.set_xscale("log", base=4)
        panel.set_xticks(pages, [f"{each:,}" for each in pages], rotation=45)
        panel.minorticks_off()
        _finish(panel, f"QEMU {qemu}", "dirty pages of 4 KiB", "VM stopped for a checkpoint, ms")
    _legend(figure, panels)
    return figure


def _by_rate(rows: Sequence[_Row], kinds: dict[str, str], what: str) -> Figure:
    """A panel for each QEMU and kind of guest; a row for each QEMU where there are some kinds."""
    qemus = _unique(row["qemu"] for row in rows)
    figure, panels = _panels(*((len(qemus), len(kinds)) if len(kinds) > 1 else (1, len(qemus))))
    where = iter(panels)
    for qemu in qemus:
        of_qemu = [row for row in rows if row["qemu"] == qemu]
        limited = [row for row in of_qemu if row["link"] and row["link"]["delay_ms"] is None]
        limited.sort(key=lambda row: row["link"]["mbit"] or float("inf"))
        links = _unique(row["link"]["name"] for row in limited)
        for kind, key in kinds.items():
            panel = next(where)
            for way in _unique(row["way"] for row in limited):
                of_way = [row for row in limited if row["way"] == way and key in row]
                xs = [links.index(row["link"]["name"]) for row in of_way]
                _line(panel, xs, [row[key] for row in of_way], way)
            for row in of_qemu:
                if not row["link"] and key in row:
                    bare, label = row[key]["median"], row["way"]
                    panel.axhline(bare, color=_STYLES[0][0], linewidth=1, label=label)
            panel.set_xticks(range(len(links)), links)
            _finish(panel, f"QEMU {qemu}: {kind}", "rate of the link between the hosts", what)
    _legend(figure, panels)
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    width, height = _PANEL_INCHES
    figure = Figure(figsize=(columns * width, rows * height + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey="row")
    return figure, list(panels.flat)


def _line(panel: Axes, xs: Sequence[float], series: Sequence[_Row], name: str) -> None:
    """The medians, and above them the 99th percentiles."""
    colour, mark = _STYLES[_NAMES.index(name)]
    medians = [each["median"] for each in series]
    panel.plot(xs, medians, color=colour, marker=mark, markersize=4, label=name)
    panel.plot(xs, [each["p99"] for each in series], color=colour, linestyle=":", linewidth=1)


def _finish(panel: Axes, title: str, x: str, y: str) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_tick_params(labelleft=True)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, and what the dotted lines are."""
    found: dict[str, Any] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    title = "solid: median, dotted: 99th percentile"
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=2, title=title, fontsize=9
    )


def _save(figure: Figure, path: Path) -> list[Path]:
    files = []
    for kind, metadata in _METADATA.items():
        files.append(path.with_suffix(f".{kind}"))
        figure.savefig(files[-1], format=kind, metadata=metadata)
    return files


def _unique(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(values))
