"""Pages that the kernel gathers: the same bytes as those that are copied together."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from colo.migration.ram import PageRun, RamBlock
from colo.migration.writer import RamWriter
from colo.node.vectored import VECTOR_PAGES, Vector
from tests.streams import RAM, RSDP, fill, full

BIG = RamBlock("big", 4 << 20)
STRIDED = PageRun(BIG, np.arange(4) * 4096, full(BIG, range(8)).content[::2])
RUNS = [
    full(RAM, [3]),
    full(RAM, [4, 5, 9]),
    fill(RAM, [1, 2], 7),
    fill(RAM, [6]),
    full(RSDP, [0]),
    full(RAM, [1, 0]),
    full(BIG, range(VECTOR_PAGES)),
    STRIDED,
]


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


@pytest.mark.parametrize("before", [b"", b"before"])
@pytest.mark.parametrize("blocking", [True, False])
def test_the_same_bytes_as_the_writers(
    blocking: bool, before: bytes, ends: tuple[socket.socket, socket.socket]
) -> None:
    here, there = ends
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(received(there)))
    reader.start()
    here.setblocking(blocking)
    expected, ram, reference = b"", RamWriter(), RamWriter()
    for run in RUNS:
        expected += before + reference.pages(run)
        vector = Vector(ram, run, before)
        assert vector.left == vector.size
        while vector.left:
            try:
                vector.write(here.fileno())
            except BlockingIOError:
                assert not blocking
    here.shutdown(socket.SHUT_WR)
    reader.join()
    assert got == [expected]


def test_cut_at_every_piece(ends: tuple[socket.socket, socket.socket]) -> None:
    """A pipe's room decides where a write stops."""
    run, ram = full(BIG, range(40)), RamWriter()
    expected = RamWriter().pages(run)
    out, into = os.pipe2(os.O_NONBLOCK)
    got, stops = b"", set()
    vector = Vector(ram, run)
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


def test_a_peer_that_is_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    there.close()
    with pytest.raises(BrokenPipeError):
        Vector(RamWriter(), full(RAM, [1])).write(here.fileno())
