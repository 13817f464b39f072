"""Anything at all as a stream: documented errors, bounded memory, bounded steps.

Each test is one seed, named in its id; run that one again to see the same stream.
"""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import PeerError
from colo.migration.ram import Limits
from tests.streams import QEMU_11, QEMU_72, STREAMS, Reading, pieces

LIMITS = Limits(ram_bytes=1 << 20, device_bytes=8 << 10, description_bytes=8 << 10)
MEMORY_MAX = 4 << 20
VALID = [stream for stream in STREAMS if len(stream.data) < 15_000]
INTERESTING = [b"\0\6", b'{"', b"\x7e", b"\0" * 8, b"\xff" * 8, b"ram", b"\0\0\0\0\0\0\0\x10"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes, often where the format is dense."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(changed), rng.choice([40, 150, 400, 1 << 20])) or 1)
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes(
                    [(changed[at] if changed else 0) ^ 1 << rng.randrange(8)]
                )
            case 2:
                del changed[at : at + rng.randint(1, 30)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 30))
            case 4:
                changed[at : at + rng.choice([0, 2, 8])] = rng.choice(INTERESTING)
            case 5:
                end = at + rng.randint(1, 200)
                changed[at:at] = changed[rng.randrange(end) : end]
            case 6 if rng.randrange(3) == 0:
                del changed[at:]
        changed = changed or bytearray(1)
    return bytes(changed)


def outcome(data: bytes, size: int, live: bool) -> str:
    """Read a stream, and what follows as checkpoints; return the name of what came out."""
    reading = Reading(LIMITS, room=len(data) + 1)
    steps = 0
    try:
        for piece in pieces(data, itertools.repeat(size)):
            steps += 1
            reading.feed(piece)
        while live and reading.reader.done and reading.buffer.available:
            steps += 1
            if not reading.checkpoint(2).advance():
                return "waits in a checkpoint"
        if not reading.reader.done:
            reading.reader.close()
        ended = "whole"
    except PeerError as error:
        ended = type(error).__name__
    assert reading.calls <= len(data), "one call for some bytes at least"
    return ended


@pytest.mark.parametrize("seed", range(16))
def test_a_valid_stream_that_was_changed(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(120):
        stream = rng.choice(VALID)
        data = mutated(stream.data, rng)
        outcomes.add(outcome(data, rng.choice([17, 4096, 1 << 20]), False))
    assert outcomes >= {"ShortRead", "StreamError"}
    assert outcomes <= {
        "whole",
        "ShortRead",
        "StreamError",
        "LimitExceeded",
        "UnsupportedFeature",
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_checkpoint_that_was_changed(seed: int) -> None:
    rng = random.Random(seed)
    outcomes = set()
    for _ in range(120):
        stream = rng.choice([QEMU_72, VALID[4]])
        data = stream.data + mutated(rng.choice(stream.wire[1]), rng)
        outcomes.add(outcome(data, 1 << 20, True))
    assert "StreamError" in outcomes
    assert "ShortRead" not in outcomes, "the first migration was whole"


@pytest.mark.parametrize("seed", range(4))
def test_pure_garbage(seed: int) -> None:
    rng = random.Random(seed)
    start = QEMU_11.data.index(b"\x02\0\0\0\1")
    for _ in range(100):
        garbage = rng.randbytes(rng.choice([1, 50, 4000]))
        assert outcome(garbage, 64, False) in ("StreamError", "ShortRead")
        headed = QEMU_11.data[: rng.choice([8, 13, 31, 41, start, start + 5])] + garbage
        assert outcome(headed, 640, False) != "whole"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.data())
def test_any_change_that_hypothesis_finds(stream: object, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from(VALID)).data
    at = data.draw(st.integers(0, len(valid)))
    cut = data.draw(st.integers(0, 40))
    inserted = data.draw(st.binary(max_size=40))
    changed = valid[:at] + inserted + valid[at + cut :]
    ended = outcome(changed, 1 << 20, False)
    assert ended == "whole" or ended.endswith(("Read", "Error", "Exceeded", "Feature"))


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\0" * 300_000, id="zeros"),
        pytest.param(b'\0\6\0\0\x10\0{"' * 30_000, id="candidates"),
        pytest.param(b"\0\6\0\0\x10\0" + b'{"devices": [' + b"[" * 200_000, id="nesting"),
        pytest.param(bytes.fromhex("02 00000001 0000000000000010 7e 00000001") * 9000, id="parts"),
        pytest.param(bytes.fromhex("08 0002 0004 00000001") * 30_000, id="pings"),
        pytest.param(b"\x7e" * 300_000, id="footers"),
    ],
)
@pytest.mark.parametrize("where", [b"\x08\0\x0b", b"\x04\0\0\0\x09"])
def test_memory_and_steps_are_bounded_whatever_comes(tail: bytes, where: bytes) -> None:
    data = QEMU_11.data[: QEMU_11.data.index(where)] + tail
    tracemalloc.start()
    try:
        reading = Reading(LIMITS, room=64 << 10)
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(PeerError):
            for piece in pieces(data, itertools.repeat(4096)):
                reading.feed(piece)
                reading.pages.clear()
                reading.commands.clear()
            reading.reader.close()
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert reading.calls <= len(data) // 9
