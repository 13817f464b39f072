"""Extents over a base: written into it or laid over it, the result is the same."""

from __future__ import annotations

from random import Random

import pytest

from colo.disks import overlay
from colo.disks.extents import Extents, Source
from colo.disks.overlay import painted, write_into
from tests.disks.simulated import SimulatedFile


def load(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source
    size, position, _ = source
    return bytes([position]) * size


@pytest.mark.parametrize("seed", range(20))
def test_writing_and_painting_are_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_RUN_BYTES", 600)
    random = Random(seed)
    size = 8192
    base = SimulatedFile("base", random.randbytes(size))
    layers = [Extents(), Extents()]
    model = bytearray(base.cache)
    for layer in layers:
        for _ in range(30):
            start = random.randrange(size)
            end = min(start + random.choice((1, 100, 512, 2000)), size)
            source = random.choice(
                (
                    None,
                    random.randbytes(end - start),
                    (end - start, random.randrange(256), 0),
                )
            )
            layer.put(start, end, source)
            model[start:end] = load(source) if source is not None else bytes(end - start)
    pieces = [each for layer in layers for each in layer.overlaps(100, 7000)]
    assert painted(base, 100, 6900, pieces, load) == model[100:7000]
    for layer in layers:
        write_into(base, layer, load)
    assert base.cache == model


def test_neighbours_are_written_at_once() -> None:
    base = SimulatedFile("base", bytes(16384))
    writes = []
    base.on_step = lambda file, what: writes.append(what)
    extents = Extents()
    for block in (0, 1, 2, 8, 9):
        extents.put(block * 512, block * 512 + 512, bytes([block + 1]) * 512)
    write_into(base, extents, load)
    assert writes == ["write"] * 2
    assert base.cache[:1536] == b"\1" * 512 + b"\2" * 512 + b"\3" * 512
    assert base.cache[4096:5120] == b"\x09" * 512 + b"\x0a" * 512


def test_a_source_of_several_neighbours_is_loaded_once() -> None:
    base = SimulatedFile("base", bytes(4096))
    extents = Extents()
    extents.put(0, 1000, (1000, 7, 0))
    extents.put(300, 400, None)
    loaded = []

    def counting(source: Source) -> bytes:
        loaded.append(source)
        return load(source)

    write_into(base, extents, counting)
    assert base.cache[:1001] == b"\7" * 300 + bytes(100) + b"\7" * 600 + b"\0"
    assert len(loaded) == 1
