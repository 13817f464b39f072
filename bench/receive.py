"""How fast a checkpoint's bytes are parsed and applied, without QEMU and without a socket."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.stats import median
from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits, PageRun, RamBlock, RamReader
from colo.migration.reader import Header, Migration
from colo.migration.writer import RamWriter
from colo.store.store import Store

__all__ = ["measure"]

_BLOCK: Final = RamBlock("pc.ram", 64 << 20)
_REPEATS: Final = 9
_MIB: Final = 1 << 20


def measure() -> list[dict[str, Any]]:
    """One row for each shape of stream, and one for copying as many bytes."""
    with tempfile.TemporaryDirectory(prefix="colo-bench-", dir="/dev/shm") as folder:
        store = Store(Path(folder) / "store", (_BLOCK,), Limits(2 * _BLOCK.length))
        store.commit_migration(Migration(Header("pc"), 0, (_BLOCK,), b"", (), {}))
        rows = [_measure_shape(store, name, runs) for name, runs in _shapes()]
    return [*rows, _measure_copy()]


def _shapes() -> Iterator[tuple[str, Iterable[PageRun]]]:
    """Names, and runs in stream order."""
    pages = _BLOCK.pages
    everything = np.arange(pages)
    yield "neighbouring pages", [_run(everything, True)]
    yield "every other page", [_run(everything[::2], True)]
    some = np.sort(np.random.default_rng(1).permutation(pages)[: pages // 4])
    yield "scattered pages", [_run(some, True)]
    yield "zero pages", [_run(everything, False)]
    groups = np.split(everything, pages // 16)
    yield "16 full, 16 zero", [_run(g, i % 2 == 0) for i, g in enumerate(groups)]
    turns = everything[: pages // 4, np.newaxis]
    yield "1 full, 1 zero", [_run(page, i % 2 == 0) for i, page in enumerate(turns)]


def _run(numbers: np.ndarray[Any, np.dtype[np.int64]], full: bool) -> PageRun:
    content = np.full((len(numbers), PAGE_SIZE if full else 1), 1 if full else 0, np.uint8)
    return PageRun(_BLOCK, numbers * PAGE_SIZE, content)


def _measure_shape(store: Store, name: str, runs: Iterable[PageRun]) -> dict[str, Any]:
    writer = RamWriter()
    stream = b"".join(writer.pages(run) for run in runs) + writer.end()
    parsed, applied = [], []
    for number in range(1, _REPEATS + 1):
        buffer = ReceiveBuffer(bytearray(stream))
        buffer.end = len(stream)
        reader = RamReader(buffer, store.limits)
        reader.blocks[_BLOCK.name] = _BLOCK
        parsed.append(_timed(partial(next, reader.read_pages(store.stage), None)))
        pages, count = store.staging.pages, len(store.staging.runs)
        store.commit(number, b"")
        applied.append(_timed(store.apply))
        store.applied()
    return _row(name, pages, count, len(stream), parsed, applied)


def _measure_copy() -> dict[str, Any]:
    source = np.ones(_BLOCK.length, np.uint8)
    target = np.zeros_like(source)
    copied = [_timed(lambda: np.copyto(target, source)) for _ in range(_REPEATS)]
    return _row("(a plain copy)", _BLOCK.pages, 1, _BLOCK.length, [], copied)


def _row(
    name: str, pages: int, runs: int, size: int, parsed: list[float], applied: list[float]
) -> dict[str, Any]:
    return {
        **{"shape": name, "pages": pages, "runs": runs, "mib": round(size / _MIB, 1)},
        "parse_ms": round(median(parsed), 2) if parsed else None,
        "apply_ms": round(median(applied), 2),
    }


def _timed(work: Callable[[], object]) -> float:
    began = time.thread_time()  # preemption is not ours
    work()
    return (time.thread_time() - began) * 1e3
