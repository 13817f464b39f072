"""Who is at the door is told by its first four bytes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from colo.node import reception
from colo.node.address import Address
from colo.node.reception import Reception


class Host:
    """Notes who was led where."""

    def __init__(self) -> None:
        self.channels: list[bytes] = []
        self.links: list[bytes] = []
        self.strangers: list[str] = []

    def channel(self, sock: socket.socket, peer: str) -> None:
        with sock:
            self.channels.append(sock.recv(100))

    def link(self, sock: socket.socket, peer: str) -> None:
        with sock:
            self.links.append(sock.recv(100))

    def stranger(self, peer: str, why: str) -> None:
        self.strangers.append(f"{peer}: {why}")


def visit(path: Path, *said: bytes) -> Host:
    """Connect, say some pieces and end; return who was led where."""

    async def run() -> Host:
        host, address, loop = Host(), Address(path=str(path)), asyncio.get_running_loop()
        with address.listen() as server:
            door = Reception(server, host.channel, host.link, host.stranger)
            serving = asyncio.create_task(door.serve())
            with await address.connect() as visitor:
                for piece in said:
                    await loop.sock_sendall(visitor, piece)
                    await asyncio.sleep(0.005)
                if not said:
                    visitor.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(10):
                    while not (host.channels or host.links or host.strangers):
                        await asyncio.sleep(0.001)
            serving.cancel()
        return host

    return asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "door"


def test_a_migration_is_led_to_the_channel_with_its_magic(path: Path) -> None:
    assert visit(path, b"QEVM\0\0\0\3").channels == [b"QEVM\0\0\0\3"]


def test_a_magic_may_come_in_pieces(path: Path) -> None:
    assert visit(path, b"QE", b"V", b"M").channels == [b"QEVM"]


def test_a_control_link_is_led_on_without_its_magic(path: Path) -> None:
    assert visit(path, b'COLO{"word"').links == [b'{"word"']


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"\x11\x22\x33\x44\0\0", "multifd channel: switch the capability multifd off"),
        (b"GET / HTTP/1.1", "neither a QEMU migration nor a colo"),
    ],
)
def test_a_stranger_is_named(path: Path, said: bytes, text: str) -> None:
    host = visit(path, said)
    assert text in host.strangers[0]
    assert host.strangers[0].startswith("a unix socket: ")


def test_one_who_ends_at_once_is_a_stranger(path: Path) -> None:
    assert "neither" in visit(path).strangers[0]


def test_one_who_says_nothing_is_shown_the_door(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "_FIRST_WORD_S", 0.05)
    assert visit(path, b"Q").strangers == ["a unix socket: it said nothing"]
