"""What ``colo inspect`` shows to people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Final

import numpy as np
from rich.console import Console

from colo.errors import UsageError
from colo.inspection.difference import DeviceDifference, Difference, FieldDifference
from colo.inspection.pages import Statistics
from colo.inspection.source import Inspected
from colo.migration.fields import DeviceState, Value
from colo.migration.format import PAGE_SIZE
from colo.terminal import console, plain

__all__ = ["Wanted", "matching", "render_difference", "render_facts", "render_source"]

_BYTES_SHOWN: Final = 16
_ELEMENTS_SHOWN: Final = 16
_RANGES_SHOWN: Final = 4
_FIELDS_SHOWN: Final = 12
_DECIMAL_BELOW: Final = 10

#: Whether a device of this name is to be shown in full.
Wanted = Callable[[str], bool]


def matching(patterns: Iterable[str], *sources: Inspected) -> Wanted:
    """Return what tells whether a device's name matches one of the shell patterns.

    Raises UsageError for a pattern that no device of ``sources`` matches.
    """
    wanted = tuple(patterns)
    known = dict.fromkeys(device.name for source in sources for device in source.devices)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"--device {pattern}: no such device; there are {', '.join(known)}")
    return lambda name: any(fnmatchcase(name, pattern) for pattern in wanted)


def render_source(source: Inspected, wanted: Wanted | None, out: Console | None = None) -> None:
    """Print a summary; with ``wanted``, the fields of those devices instead."""
    out = out or console()
    out.print(f"[bold]{plain(source.name)}[/bold]  {plain(_machine(source))}")
    if wanted is None:
        _summary(source, out)
        return
    for device in source.devices:
        if wanted(device.name):
            title = f"{device.name} {device.instance}, version {device.version}"
            out.print(f"\n[bold]{plain(title)}[/bold]")
            rows = [(path, _text(value)) for path, value in _lines(device.fields)]
            _print_pairs(out, rows)


def render_difference(
    difference: Difference, wanted: Wanted | None, out: Console | None = None
) -> None:
    """Print what differs, some fields of each device; with ``wanted``, all of those devices'."""
    out = out or console()
    for title, source in (("old", difference.old), ("new", difference.new)):
        out.print(f"{title}  [bold]{plain(source.name)}[/bold]  {plain(_machine(source))}")
    if wanted is None:
        _blocks_that_differ(difference, out)
    devices = [device for device in difference.devices if device.is_different]
    shown = [device for device in devices if wanted is None or wanted(device.name)]
    for device in shown:
        out.print(f"\n[bold]{plain(_device_title(device))}[/bold]")
        fields = device.fields[: _FIELDS_SHOWN if wanted is None else None]
        _print_pairs(out, [(field.path, _change(field)) for field in fields])
        if len(fields) < len(device.fields):
            more = len(device.fields) - len(fields)
            out.print(f"  [dim]… {more} more: --device {plain(device.name)}[/dim]")
    if not shown:
        out.print("\nno difference in the devices")


def render_facts(name: str, facts: Mapping[str, object], out: Console | None = None) -> None:
    """Print what is known of a thing that has a name."""
    out = out or console()
    out.print(f"[bold]{plain(name)}[/bold]")
    _print_pairs(out, [(key.replace("_", " "), str(value)) for key, value in facts.items()])


# -- one ------------------------------------------------------------------------------------


def _summary(source: Inspected, out: Console) -> None:
    pages = sum(counted.pages for counted in source.statistics.values())
    followed = f"; {source.followed_by:,} bytes follow" if source.followed_by else ""
    out.print(f"  capabilities  {plain(', '.join(source.header.capabilities)) or 'none'}")
    out.print(
        f"  stream        {source.size:,} bytes, {source.pages_sent:,} pages in it for "
        f"{pages:,} of memory{followed}\n"
    )
    header = ("block", "size", "pages", "zero", "fill", "equal", "unique", "zlib -1", "sampled")
    rows = [_block_row(name, counted) for name, counted in source.statistics.items()]
    rows.append(_block_row("all", _total(source.statistics.values())))
    _print_table(out, header, rows)
    out.print(
        "  [dim]fill: one other byte, repeated · equal: as an earlier page · zlib -1: to what part "
        "the sampled\n  pages that are neither zero nor fill compress, each by itself[/dim]\n"
    )
    columns = ("device", "instance", "version", "bytes", "fields")
    _print_table(out, columns, [_device_row(device) for device in source.devices])


def _total(all_counted: Iterable[Statistics]) -> Statistics:
    rows = [
        (one.pages, one.zero, one.fill, one.equal, one.unique, one.sampled, one.sampled_bytes)
        for one in all_counted
    ]
    return Statistics(*(sum(column) for column in zip(*rows, strict=True)))


def _block_row(name: str, counted: Statistics) -> tuple[str, ...]:
    numbers = (counted.pages, counted.zero, counted.fill, counted.equal, counted.unique)
    ratio = "–" if counted.ratio is None else f"{counted.ratio:.0%}"
    return (
        name,
        _size(counted.pages * PAGE_SIZE),
        *(f"{number:,}" for number in numbers),
        ratio,
        f"{counted.sampled:,}",
    )


def _device_row(device: DeviceState) -> tuple[str, ...]:
    fields = sum(1 for _ in _lines(device.fields))
    numbers = (device.instance, device.version, device.size, fields)
    return (device.name, *(f"{number:,}" for number in numbers))


def _lines(value: Value, path: str = "") -> Iterator[tuple[str, Value]]:
    """Each field and the way to it; an array of plain values is one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _lines(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _lines(inner, f"{path}[{number}]")
    else:
        yield path, value


def _text(value: Value) -> str:
    """A value as one text that is not too long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value} ({value:#x})" if value >= _DECIMAL_BELOW else str(value)
    if isinstance(value, bytes):
        return _bytes_text(value)
    texts = [_element_text(element) for element in value]
    groups = [(text, sum(1 for _ in same)) for text, same in groupby(texts)]
    shown = [text if count == 1 else f"{count} × {text}" for text, count in groups]
    more = f", … of {len(texts)}" if len(shown) > _ELEMENTS_SHOWN else ""
    return f"[{', '.join(shown[:_ELEMENTS_SHOWN])}{more}]"


def _element_text(value: Value | str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= _DECIMAL_BELOW:
        return f"{value:#x}"
    return value if isinstance(value, str) else _text(value)


def _bytes_text(value: bytes) -> str:
    name = value.rstrip(b"\0")
    if len(name) > 1 and name.isascii() and name.decode().isprintable():
        text = f'"{name.decode()}"'
    elif len(value) <= _BYTES_SHOWN:
        return value.hex(" ") or "no bytes"
    else:
        text = value[:_BYTES_SHOWN].hex(" ") + " …" if name else "zeros"
    return f"{text} ({len(value):,} bytes)"


# -- two ------------------------------------------------------------------------------------


def _blocks_that_differ(difference: Difference, out: Console) -> None:
    rows = [
        (
            block.name,
            *(
                "–" if pages is None else f"{pages:,}"
                for pages in (block.old_pages, block.new_pages)
            ),
            f"{block.changed:,}",
            f"{len(block.ranges):,}",
            ", ".join(_range(*each) for each in block.ranges[:_RANGES_SHOWN])
            + (" …" if len(block.ranges) > _RANGES_SHOWN else ""),
        )
        for block in difference.blocks
        if block.is_different
    ]
    out.print()
    if rows:
        header = ("block", "old pages", "new pages", "differ", "ranges", "bytes from–to")
        _print_table(out, header, rows, texts=(0, 5))
    else:
        out.print("no difference in memory")


def _range(first: int, count: int) -> str:
    return f"{first * PAGE_SIZE:#x}–{(first + count) * PAGE_SIZE - 1:#x}"


def _device_title(device: DeviceDifference) -> str:
    title = f"{device.name} {device.instance}"
    if device.old_version is None:
        return f"{title}: only in the new one"
    if device.new_version is None:
        return f"{title}: only in the old one"
    if device.old_version != device.new_version:
        return f"{title}, version {device.old_version} → {device.new_version}"
    return f"{title}: {len(device.fields)} differ"


def _change(field: FieldDifference) -> str:
    old, new = field.old, field.new
    if isinstance(old, bytes) and isinstance(new, bytes) and len(old) == len(new) > _BYTES_SHOWN:
        differs = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
        first = int(differs[0])
        part = slice(first, min(int(differs[-1]) + 1, first + _BYTES_SHOWN))
        more = "" if part.stop > differs[-1] else " …"
        return (
            f"from byte {first} on {old[part].hex(' ')} → {new[part].hex(' ')}{more}; "
            f"{len(differs):,} of {len(old):,} bytes differ"
        )
    return " → ".join("–" if value is None else _text(value) for value in (old, new))


# -- both -----------------------------------------------------------------------------------


def _machine(source: Inspected) -> str:
    return f"{source.header.machine}, {len(source.devices)} devices"


def _size(size: int) -> str:
    return f"{size >> 20:,} MiB" if size >= 1 << 20 else f"{size >> 10:,} KiB"


def _print_pairs(out: Console, rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        out.print(f"  {plain(f'{name:<{width}}  {text}')}")


def _print_table(
    out: Console,
    header: tuple[str, ...],
    rows: list[tuple[str, ...]],
    texts: tuple[int, ...] = (0,),
) -> None:
    """Print rows in columns: those numbered in ``texts`` on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if number in texts else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = plain("  " + "  ".join(cells).rstrip())
        out.print(f"[dim]{line}[/dim]" if row is header else line)
