"""What a COLO primary sends, read for where each part of it ends."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import LimitExceeded, PeerError, StreamError, UnexpectedMessage
from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import CONTINUE, PAGE, ZERO
from colo.migration.ram import PageRun
from colo.session.primary_stream import Came, PrimaryReader
from tests.streams import LIMITS, SMALL_STREAMS, Page, Stream, pages_of, pieces

REQUEST, SEND, SIZE = (struct.pack(">I", number) for number in (1, 3, 4))
SMALL = [stream for stream in SMALL_STREAMS if stream.checkpoints]
each_stream = pytest.mark.parametrize("stream", SMALL, ids=lambda stream: stream.title)


def size_of(devices: bytes) -> bytes:
    return SIZE + struct.pack(">Q", len(devices))


def parts(stream: Stream) -> list[tuple[Came, bytes]]:
    """What of the stream ends where."""
    first, checkpoints = stream.wire
    found = [(Came.COPY, first)]
    for ram, checkpoint in zip(checkpoints, stream.checkpoints, strict=True):
        found += [
            (Came.REQUEST, REQUEST),
            (Came.BEGINNING, SEND),
            (Came.SAVED, ram + size_of(checkpoint.devices)),
            (Came.CHECKPOINT, checkpoint.devices),
        ]
    return found


def conversation(stream: Stream) -> bytes:
    return b"".join(data for _, data in parts(stream))


class Reading:
    """A reader, its buffer, and what it told: each part with the position of its end."""

    def __init__(self, room: int = 1 << 20, rewinds: bool = False) -> None:
        self.buffer = ReceiveBuffer(bytearray(room))
        self.pages: list[Page] = []
        self.reader = PrimaryReader(self.buffer, LIMITS, self._on_pages)
        self.told: list[tuple[Came, int]] = []
        self._rewinds = rewinds

    def _on_pages(self, run: PageRun, size: int) -> None:
        self.pages += pages_of([run])
        if size:
            kind = ZERO if run.is_fill else PAGE
            heads = (run.offsets | (kind | CONTINUE)).astype(">u8")
            records = np.hstack([heads.view(np.uint8).reshape(-1, 8), run.content])
            start = self.buffer.start
            assert bytes(self.buffer.data[start - size : start]) == records.tobytes()

    def feed(self, chunks: Iterable[bytes]) -> None:
        for chunk in chunks:
            self.buffer.append(chunk)
            while (came := self.reader.advance()) is not None:
                self.told.append((came, self.buffer.position))
            if self._rewinds:
                self.buffer.rewind()


def expected(stream: Stream) -> list[tuple[Came, int]]:
    at, found = 0, []
    for came, data in parts(stream):
        at += len(data)
        found.append((came, at))
    return found


@each_stream
@pytest.mark.parametrize("size", [1, 2, 3, 7, 4104, 1 << 20])
def test_each_part_is_told_where_it_ends_however_it_comes(stream: Stream, size: int) -> None:
    data = conversation(stream)
    reading = Reading()
    reading.feed(pieces(data, [size] * (len(data) // size)))
    assert reading.told == expected(stream)
    assert reading.pages == [page for each in stream.checkpoints for page in each.pages]
    assert reading.reader.device_bytes == len(stream.checkpoints[-1].devices)
    assert reading.reader.blocks == stream.blocks


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SMALL), st.lists(st.integers(1, 9000), max_size=40))
def test_a_part_is_told_neither_early_nor_late(stream: Stream, sizes: list[int]) -> None:
    data = conversation(stream)
    reading, at = Reading(rewinds=True), 0
    for chunk in pieces(data, sizes):
        at += len(chunk)
        reading.feed([chunk])
        assert reading.told == [each for each in expected(stream) if each[1] <= at]


def test_a_checkpoint_may_be_larger_than_the_memory_that_it_goes_through() -> None:
    stream = SMALL[0]
    devices = bytes(60_000)
    reading = Reading(room=16_384, rewinds=True)
    reading.feed(pieces(parts(stream)[0][1], [1000] * 100))
    pages = stream.wire[1][0]
    reading.feed(pieces(REQUEST + SEND + pages + size_of(devices) + devices, [1000] * 100))
    assert [came for came, _ in reading.told] == list(Came)


@pytest.mark.parametrize(
    ("place", "said", "error", "words"),
    [
        (1, SEND, UnexpectedMessage, "Unexpected COLO message 3, expected 1"),
        (2, REQUEST, UnexpectedMessage, "Unexpected COLO message 1, expected 3"),
        (3, b"\x08", StreamError, "item type 0x08 in a checkpoint's RAM"),
        (1, b"HTTP", PeerError, "1213486160"),
    ],
)
def test_what_is_out_of_place_is_refused(
    place: int, said: bytes, error: type[PeerError], words: str
) -> None:
    reading = Reading()
    reading.feed(data for _, data in parts(SMALL[0])[:place])
    with pytest.raises(error, match=words):
        reading.feed([said])


def test_more_devices_than_may_be_are_refused_before_they_come() -> None:
    reading = Reading()
    stream = SMALL[0]
    reading.feed([parts(stream)[0][1], REQUEST + SEND + stream.wire[1][0]])
    with pytest.raises(LimitExceeded, match="device state"):
        reading.feed([SIZE + struct.pack(">Q", LIMITS.device_bytes + 1)])
