"""Pages that the kernel gathers: the same bytes as those that are copied together."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from colo.errors import LocalError
from colo.migration.ram import PageRun, RamBlock
from colo.migration.writer import RamWriter
from colo.transport import page_vector
from colo.transport.page_vector import VECTOR_PAGES, Gathered, Outgoing, Text, Vector
from tests.streams import RAM, RSDP, fill, full

BIG = RamBlock("big", 2 * VECTOR_PAGES * 4096)
LONGEST = RamBlock("n" * 255, 2 * 4096)
EIGHT = full(BIG, range(8))
STRIDED = PageRun(BIG, np.arange(4) * 4096, EIGHT.content[::2])
ROWS = PageRun(BIG, np.arange(5) * 4096, EIGHT.content, np.array([7, 0, 3, 4, 1]))
WHOLE = full(BIG, range(VECTOR_PAGES))
LONG = PageRun(BIG, np.arange(2 * VECTOR_PAGES) * 4096, EIGHT.content, np.arange(8192) % 8)
GATHERED: dict[str, Gathered] = {
    "nothing": [],
    "no page": [b"bytes", [], b"", b"more"],
    "one page": [[full(RAM, [3])]],
    "bytes on both sides": [b"before", b" it", [full(RAM, [3])], b"after", b" it"],
    "runs": [b"b", [full(RAM, [3]), full(RAM, [4, 5, 9])], b"m", [full(RAM, [1, 0])], b"a"],
    "fills": [[fill(RAM, [1, 2], 7), fill(RAM, [6])], b"after"],
    "fills between pages": [[full(RAM, [3]), fill(RAM, [6]), full(RAM, [7])], b"after"],
    "blocks": [[full(RAM, [3]), full(RSDP, [0]), full(RAM, [5])]],
    "a block of the longest name": [[full(LONGEST, [1, 0]), full(RAM, [2])]],
    "rows": [[STRIDED, ROWS], b"after"],
    "a full one": [b"before", [WHOLE], b"after", [full(RAM, [1])]],
    "a longer one": [b"before", [LONG], b"after"],
    "many fills": [[fill(RAM, range(256))] * 100, b"after"],
    "many bytes": [bytes(1 << 20), [full(RAM, [1])], bytes(range(256)) * 1000],
}
WAYS = pytest.mark.parametrize("blocking", [True, False])


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def received(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 20):
        data += piece
    return data


def together(ram: RamWriter, gathered: Gathered) -> bytes:
    """What is to arrive."""
    pieces = ([each] if isinstance(each, bytes) else map(ram.pages, each) for each in gathered)
    return b"".join(data for piece in pieces for data in piece)


def send(here: socket.socket, vector: Vector, gathered: Gathered) -> int:
    """Send it all and count the bytes."""
    size = 0
    for each in vector.outgoing(gathered):
        assert each.left == each.size > 0
        size += each.size
        write(here, each)
    return size


def write(here: socket.socket, what: Outgoing) -> None:
    while what.left:
        try:
            what.write(here.fileno())
        except BlockingIOError:
            assert not here.getblocking()


def test_rows_of_a_larger_array() -> None:
    assert ROWS.content.tobytes() == EIGHT.content[[7, 0, 3, 4, 1]].tobytes()
    part = ROWS.cut(1, 3)
    assert part.content.tobytes() == EIGHT.content[[0, 3]].tobytes()
    assert list(part.offsets) == [4096, 8192] and np.shares_memory(part.source, EIGHT.source)
    assert STRIDED.cut(1, 9).content.tobytes() == EIGHT.content[2::2].tobytes()


@pytest.mark.parametrize("gathered", GATHERED.values(), ids=GATHERED.keys())
@WAYS
def test_the_same_bytes_as_the_writers(
    blocking: bool, gathered: Gathered, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = ends
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(received(there)))
    reader.start()
    here.setblocking(blocking)
    expected = together(RamWriter(), gathered)
    assert send(here, Vector(RamWriter()), gathered) == len(expected)
    here.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [expected]


@WAYS
def test_filled_again_and_again(blocking: bool, ends: tuple[socket.socket, socket.socket]) -> None:
    """Nothing of one filling is left in the next one, in whatever order."""
    here, there = ends
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(received(there)))
    reader.start()
    here.setblocking(blocking)
    vector, reference, expected = Vector(RamWriter()), RamWriter(), b""
    names = np.random.default_rng(1).permutation(list(GATHERED) * 3)
    for name in names:
        if name != "a longer one":
            send(here, vector, GATHERED[name])
            expected += together(reference, GATHERED[name])
    here.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [expected]


def test_cut_at_every_piece(ends: tuple[socket.socket, socket.socket]) -> None:
    """A pipe's room decides where a write stops."""
    gathered: Gathered = [[full(BIG, range(40))]]
    expected = together(RamWriter(), gathered)
    out, into = os.pipe2(os.O_NONBLOCK)
    got, stops = b"", set()
    (vector,) = Vector(RamWriter()).outgoing(gathered)
    for size in [*range(1, 5000, 701), *([1 << 20] * 100)]:
        try:
            vector.write(into)
        except BlockingIOError:
            stops.add(vector.size - vector.left)
        got += os.read(out, size)
        if not vector.left:
            break
    while len(got) < len(expected):
        got += os.read(out, 1 << 20)
    os.close(out)
    os.close(into)
    assert got == expected and len(stops) > 1


@pytest.mark.parametrize(
    "run",
    [
        PageRun(BIG, np.array([5, 9, 11]) * 4096, EIGHT.content),  # its rows are forgotten
        PageRun(BIG, np.arange(9) * 4096, EIGHT.content),
        PageRun(BIG, np.arange(2) * 4096, EIGHT.content, np.array([0])),
        PageRun(BIG, np.arange(2) * 4096, EIGHT.content, np.array([0, -1])),
        PageRun(BIG, np.arange(2) * 4096, EIGHT.content, np.array([0, 8])),
        PageRun(BIG, np.arange(8) * 4096, EIGHT.content.astype(np.uint16)),
        PageRun(BIG, np.arange(4) * 4096, np.zeros((4, 8192), np.uint8)[:, ::2]),
    ],
    ids=["no rows", "too few", "too few rows", "before", "behind", "not bytes", "not in a piece"],
)
def test_pages_that_are_not_there_are_never_read(run: PageRun) -> None:
    with pytest.raises(LocalError, match="pages of big from"):
        next(Vector(RamWriter()).outgoing([[run]]))


def test_a_signal_does_not_end_it(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process was stopped and continued writev answers EINTR, SA_RESTART or not."""
    here, there = ends
    interrupted = 0
    real = page_vector._WRITEV

    def writev(file: int, address: int, count: int) -> int:
        nonlocal interrupted
        interrupted += 1
        if interrupted % 2:
            ctypes.set_errno(errno.EINTR)
            return -1
        return int(real(file, address, count))

    monkeypatch.setattr(page_vector, "_WRITEV", writev)
    gathered: Gathered = [[full(RAM, [3, 4])]]
    assert send(here, Vector(RamWriter()), gathered) == len(together(RamWriter(), gathered))
    here.shutdown(socket.SHUT_WR)
    assert received(there) == together(RamWriter(), gathered)
    assert interrupted > 1


def test_a_peer_that_is_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    there.close()
    with pytest.raises(BrokenPipeError):
        send(here, Vector(RamWriter()), [[full(RAM, [1])]])


@WAYS
def test_text(blocking: bool, ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    data = bytes(range(256)) * 5000
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(received(there)))
    reader.start()
    here.setblocking(blocking)
    text = Text(data)
    assert text.left == text.size == len(data)
    write(here, text)
    here.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [data]


def test_text_is_bounded() -> None:
    """However many fills there are: no more than a piece beyond the bound lies in memory."""
    fills = [fill(RAM, range(256))] * 1000
    sizes = [each.size for each in Vector(RamWriter()).outgoing([fills])]
    assert sum(sizes) == len(together(RamWriter(), [fills])) and len(sizes) > 10
