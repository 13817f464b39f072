"""What is about to come is waited for awake, and not for ever."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.transport.sockets import accept_one, bind_private, listening, soon


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
    monkeypatch.setattr("colo.transport.sockets._SOON_S", 60)
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


@pytest.mark.parametrize("comes", [True, False])
def test_one_is_accepted_or_it_is_over(tmp_path: Path, comes: bool) -> None:
    async def run() -> None:
        over = asyncio.get_running_loop().create_future()
        path = tmp_path / "door"
        with listening(path) as server, socket.socket(socket.AF_UNIX) as visitor:
            accepting = asyncio.create_task(accept_one(server, {over}))
            await asyncio.sleep(0)
            if comes:
                visitor.connect(str(path))
            else:
                over.set_result(None)
            accepted = await accepting
            assert (accepted is not None) == comes and server.fileno() == -1
            if accepted is not None:
                accepted.close()
        assert not path.exists()

    asyncio.run(run())


def test_a_path_is_its_owners_alone_and_the_umask_of_all_threads_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as sock:
            patch.setattr(os, "umask", None)
            bind_private(sock, str(tmp_path / "sock"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o600
