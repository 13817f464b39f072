"""What coding pages for a slow link costs, and leaves to be sent, without a link.

A row for each kind of pages and each way: host A's work, host B's work, the share that is sent,
and the rate below which that way is better than sending the pages as they are.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, Final

import numpy as np

from bench.stats import median
from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Bytes, Offsets, PageRun, RamBlock
from colo.wire.choice import Choice, Cost, Way, break_even
from colo.wire.decoder import Decoder
from colo.wire.encoder import BATCH_PAGES, Encoder
from colo.wire.frames import PAGE_FLAGS, RECORD_SIZE
from colo.wire.sent import SentPages

__all__ = ["measure"]

_BLOCK: Final = RamBlock("pc.ram", 64 << 20)
_PAGES: Final = 8 * BATCH_PAGES
_REPEATS: Final = 7
#: Shares of a page's words that change.
_SHARES: Final = (0.0, 0.01, 0.1, 0.5)
_WORDS: Final = (
    b"checkpoint page memory guest host primary secondary the of a and is to 0 1 2 3 {} \n"
)


def measure(seed: int = 1) -> list[dict[str, Any]]:
    """One row for each kind of pages and way; the rate is None where the way never pays."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, old, new in _kinds(rng):
        numbers = np.sort(rng.permutation(_BLOCK.pages)[:_PAGES])
        plain, _ = _measure_way(Way.PLAIN, numbers, old, new)
        for way in (Way.DIFFERENCE, Way.ZSTD, Way.BOTH):
            cost, decode = _measure_way(way, numbers, old, new)
            rate = break_even({Way.PLAIN: plain, way: cost})[way]
            saved = max(0.0, plain.wire - cost.wire)
            both_ends = saved / (cost.work + max(0.0, decode))
            rows.append(
                {
                    **{"pages": name, "way": way.value, "wire": round(cost.wire, 3)},
                    "work_ns_per_byte": round(cost.work * 1e9, 3),
                    "decode_ns_per_byte": round(decode * 1e9, 3),
                    "break_even_mb_s": round(rate / 1e6) or None,
                    "break_even_both_ends_mb_s": round(both_ends / 1e6) or None,
                }
            )
    return rows


def _kinds(rng: np.random.Generator) -> Iterator[tuple[str, Bytes, Bytes]]:
    """Names, and what the pages were and are."""
    mixed = _mixed(rng)
    for share in _SHARES:
        changed = mixed.copy()
        words = changed.view(np.uint64)
        differs = rng.random(words.shape) < share
        words[differs] = rng.integers(0, 1 << 48, int(differs.sum()), np.uint64)
        yield f"{share:.0%} of words changed" if share else "unchanged", mixed, changed
    yield "text, new", _random(rng), _text(rng)
    yield "code and data, new", _random(rng), mixed
    yield "random, new", _random(rng), _random(rng)


def _random(rng: np.random.Generator) -> Bytes:
    return np.frombuffer(rng.bytes(_PAGES * PAGE_SIZE), np.uint8).reshape(-1, PAGE_SIZE)


def _text(rng: np.random.Generator) -> Bytes:
    words = np.array(_WORDS.split(b" "), object)
    data = b" ".join(words[rng.integers(0, len(words), _PAGES * PAGE_SIZE // 3)])
    return np.frombuffer(data[: _PAGES * PAGE_SIZE], np.uint8).reshape(-1, PAGE_SIZE)


def _mixed(rng: np.random.Generator) -> Bytes:
    """Pointers, counters, zeroes, text and a little noise: about what a guest's memory has."""
    pages = np.zeros((_PAGES, PAGE_SIZE), np.uint8)
    words = pages.view(np.uint64)
    words[:, :128] = rng.integers(0, 1 << 20, (_PAGES, 128), np.uint64)
    words[:, :128] += np.uint64(0xFFFF8880_00000000)
    words[:, 128:256] = rng.integers(0, 1000, (_PAGES, 128))
    pages[:, 2048:3072] = _text(rng)[:, :1024]
    pages[:, 3072:3584] = _random(rng)[:, :512]
    return pages


class _Fixed(Choice):
    """One way, whatever it costs."""

    def __init__(self, way: Way) -> None:
        super().__init__(tuple(Way))
        self._way = way

    def may_pay(self, rate: float | None) -> bool:
        return True

    def next(self, rate: float | None, usable: Collection[Way]) -> Way:
        return self._way if self._way in usable else Way.PLAIN


def _measure_way(way: Way, numbers: Offsets, old: Bytes, new: Bytes) -> tuple[Cost, float]:
    """What it costs host A, and host B's seconds for each byte."""
    sent = SentPages(_BLOCK.pages)
    encoder = Encoder(sent, True, time.perf_counter)
    encoder.set_blocks((_BLOCK,))
    encoder.choices = dict.fromkeys(encoder.choices, _Fixed(way))
    data = _stream(numbers, new)
    content = np.frombuffer(data, np.uint8).reshape(-1, RECORD_SIZE)[:, 8:]
    run = PageRun(_BLOCK, numbers * PAGE_SIZE, content)
    image = np.zeros((_BLOCK.pages, PAGE_SIZE), np.uint8)
    image[numbers] = old
    coded, decoded, size = [], [], 0
    for _ in range(_REPEATS):
        sent.learn(0, numbers, old)
        sent.begin_checkpoint()
        began = time.thread_time()  # preemption is not ours
        pieces = encoder.pages(run, data)
        coded.append(time.thread_time() - began)
        wire = b"".join(pieces)
        size = len(wire)
        decoded.append(_decode(wire, data, image))
    cost = Cost(median(coded) / len(data), size / len(data))
    return cost, median(decoded) / len(data)


def _decode(wire: bytes, expected: memoryview, image: Bytes) -> float:
    """Seconds, beyond those to receive what is on the wire."""
    buffer = ReceiveBuffer(bytearray(len(expected)))
    buffer.data[:] = bytes(len(expected))  # no page of it is touched for the first time
    decoder = Decoder(buffer, lambda _, numbers: image[numbers])
    decoder.set_blocks((_BLOCK,))
    at, spent = 0, 0.0
    while at < len(wire):
        window = decoder.writable(len(wire) - at)
        count = len(window)
        window[:] = wire[at : at + count]
        began = time.thread_time()
        decoder.received(count)
        spent += time.thread_time() - began
        at += count
    assert buffer.data == expected
    return spent


def _stream(numbers: Offsets, content: Bytes) -> memoryview:
    records = np.empty((len(numbers), RECORD_SIZE), np.uint8)
    heads = (numbers * PAGE_SIZE | PAGE_FLAGS).astype(">u8")
    records[:, :8] = heads.view(np.uint8).reshape(-1, 8)
    records[:, 8:] = content
    return records.reshape(-1).data
