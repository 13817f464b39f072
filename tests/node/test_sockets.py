"""What is about to come is waited for awake, and not for ever."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from colo.node.sockets import soon


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        yield here, there


def test_what_is_there_is_received(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    there.send(b"data")
    assert soon(lambda: here.recv(10)) == b"data"
    there.close()
    assert soon(lambda: here.recv(10)) == b""


def test_what_comes_a_little_later_is_received(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = ends
    monkeypatch.setattr("colo.node.sockets._SOON_S", 60)
    tries: list[int] = []

    def receive() -> bytes:
        tries.append(1)
        if len(tries) == 5:
            threading.Thread(target=there.send, args=(b"late",)).start()
        return here.recv(10)

    assert soon(receive) == b"late" and len(tries) >= 5


def test_what_does_not_come_blocks_and_is_left_to_the_event_loop(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    with pytest.raises(BlockingIOError):
        soon(lambda: here.recv(10))
    there.send(b"data")
    assert here.recv(10) == b"data"


def test_another_error_is_told_at_once(ends: tuple[socket.socket, socket.socket]) -> None:
    tries: list[int] = []

    def receive() -> bytes:
        tries.append(1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        soon(receive)
    assert len(tries) == 1
