"""Who is at the door is told by its first four bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from colo.errors import ChannelLost
from colo.transport import acceptor, sockets
from colo.transport.acceptor import Reception, Refusals
from colo.transport.address import Address
from colo.transport.tls import Tls
from tests.certificates import Authority


class Host:
    """Notes who was led where."""

    def __init__(self) -> None:
        self.channels: list[bytes] = []
        self.coded: list[bool] = []
        self.links: list[bytes] = []
        self.disk_links: list[bytes] = []
        self.hybrid_links: list[bytes] = []
        self.strangers: list[str] = []

    async def channel(self, sock: socket.socket, peer: str, is_coded: bool) -> None:
        self.coded.append(is_coded)
        with sock:
            self.channels.append(sock.recv(100))

    def link(self, sock: socket.socket, peer: str) -> None:
        with sock:
            self.links.append(sock.recv(100))

    async def disks(self, sock: socket.socket, peer: str) -> None:
        with sock:
            self.disk_links.append(sock.recv(100))

    async def hybrid(self, sock: socket.socket, peer: str) -> None:
        with sock:
            self.hybrid_links.append(sock.recv(100))

    def stranger(self, peer: str, why: str) -> None:
        self.strangers.append(f"{peer}: {why}")


def visit(path: Path, *said: bytes) -> Host:
    """Connect, say some pieces and end; return who was led where."""

    async def run() -> Host:
        host, address, loop = Host(), Address(path=str(path)), asyncio.get_running_loop()
        with address.listen() as server:
            door = Reception(
                server, host.channel, host.link, host.disks, host.hybrid, host.stranger
            )
            serving = asyncio.create_task(door.serve())
            with await address.connect() as visitor:
                for piece in said:
                    await loop.sock_sendall(visitor, piece)
                    await asyncio.sleep(0.005)
                if not said:
                    visitor.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(10):
                    led = host.channels, host.links, host.disk_links, host.hybrid_links
                    while not (any(led) or host.strangers):
                        await asyncio.sleep(0.001)
            serving.cancel()
        return host

    return asyncio.run(run())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "door"


def test_a_migration_is_led_to_the_channel_with_its_magic(path: Path) -> None:
    host = visit(path, b"QEVM\0\0\0\3")
    assert (host.channels, host.coded) == ([b"QEVM\0\0\0\3"], [False])


def test_a_channel_in_frames_is_one_too(path: Path) -> None:
    host = visit(path, b"CWIR\1\0\0\0")
    assert (host.channels, host.coded) == ([b"\1\0\0\0"], [True])


def test_a_magic_may_come_in_pieces(path: Path) -> None:
    assert visit(path, b"QE", b"V", b"M").channels == [b"QEVM"]


def test_a_control_link_is_led_on_without_its_magic(path: Path) -> None:
    assert visit(path, b'COLO{"word"').links == [b'{"word"']


def test_a_hybrid_link_is_led_on_without_its_magic(path: Path) -> None:
    assert visit(path, b'CHYB{"vm"').hybrid_links == [b'{"vm"']


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"\x11\x22\x33\x44\0\0", "multifd channel: switch the capability multifd off"),
        (b"GET / HTTP/1.1", "neither a QEMU migration nor a colo, it begins with 'GET '"),
    ],
)
def test_a_stranger_is_named(path: Path, said: bytes, text: str) -> None:
    host = visit(path, said)
    assert text in host.strangers[0]
    assert host.strangers[0].startswith("a unix socket: ")


def test_one_who_ends_at_once_is_a_stranger(path: Path) -> None:
    assert "ended the connection without a word" in visit(path).strangers[0]


def test_one_who_says_nothing_is_shown_the_door(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "_FIRST_WORD_S", 0.05)
    assert visit(path, b"Q").strangers == ["a unix socket: it said nothing"]


def test_a_refusal_of_the_same_host_for_the_same_reason_is_not_new() -> None:
    refusals = Refusals()
    assert refusals.is_new("tcp:10.0.0.1:40000", "why")
    assert not refusals.is_new("tcp:10.0.0.1:40001", "why"), "each try has another port"
    assert refusals.is_new("tcp:10.0.0.2:40000", "why")
    assert refusals.is_new("tcp:fe80::1:40000", "why")
    assert refusals.is_new("tcp:fe80::2:40000", "why")
    assert refusals.is_new("tcp:10.0.0.1:40000", "why else")
    assert not refusals.is_new("tcp:10.0.0.1:40002", "why")
    refusals.clear()
    assert refusals.is_new("tcp:10.0.0.1:40003", "why")


def test_what_was_refused_is_not_remembered_without_end() -> None:
    refusals = Refusals()
    for number in range(1000):
        refusals.is_new("a unix socket", f"why {number}")
    assert not refusals.is_new("a unix socket", "why 999")
    assert refusals.is_new("a unix socket", "why 0")


def test_however_many_say_nothing_who_does_is_led_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And accepting may fail for a while: descriptors are a thing that a process can run out of."""
    monkeypatch.setattr(acceptor, "_FIRST_WORD_S", 60.0)
    monkeypatch.setattr(acceptor, "_VISITS_MAX", 8)
    monkeypatch.setattr(sockets, "_AGAIN_S", 0.001)

    async def run() -> None:
        host, address, loop = Host(), Address(path=str(path)), asyncio.get_running_loop()
        accept, failures, most = loop.sock_accept, [OSError(24, "Too many open files")] * 3, 0

        async def failing(server: socket.socket) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return await accept(server)

        monkeypatch.setattr(loop, "sock_accept", failing)
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(address.listen())
            door = Reception(
                server, host.channel, host.link, host.disks, host.hybrid, host.stranger
            )
            serving = asyncio.create_task(door.serve())
            for _ in range(50):
                stack.enter_context(await address.connect())
                await asyncio.sleep(0.002)
                most = max(most, len(door._visits))
            visitor = stack.enter_context(await address.connect())
            await loop.sock_sendall(visitor, b"QEVM\0\0\0\3")
            async with asyncio.timeout(10):
                while not host.channels:
                    await asyncio.sleep(0.001)
            assert not serving.done() and not failures
            assert most == 8
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            await asyncio.sleep(0.01)
            assert not door._visits

    asyncio.run(run())


# -- with TLS -----------------------------------------------------------------------------


def visit_tls(tls: Tls | None, visitor: Tls | None, silent: int = 0) -> Host:
    """Connect over TCP, after some who say nothing; say a magic, and return who was led where."""

    async def run() -> Host:
        host, loop = Host(), asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(Address(host="127.0.0.1", port=0).listen())
            door = Reception(
                server, host.channel, host.link, host.disks, host.hybrid, host.stranger, tls
            )
            serving = asyncio.create_task(door.serve())
            address = Address(host="127.0.0.1", port=server.getsockname()[1])
            for _ in range(silent):
                stack.enter_context(await address.connect())
            with contextlib.suppress(ChannelLost):
                sock = await replace(address, tls=visitor).connect()
                await loop.sock_sendall(stack.enter_context(sock), b"QEVM\0\0\0\3")
            async with asyncio.timeout(10):
                while not (host.channels or host.links or host.strangers):
                    await asyncio.sleep(0.001)
            serving.cancel()
        return host

    return asyncio.run(run())


def test_who_is_secured_is_led_on(authority: Authority) -> None:
    """And is not held up by others, however many, who are in no hurry."""
    host = visit_tls(Tls(authority.files("b")), Tls(authority.files("a")), silent=20)
    assert host.channels == [b"QEVM\0\0\0\3"]
    assert not host.strangers


def test_who_has_no_tls_is_told_so(authority: Authority) -> None:
    host = visit_tls(Tls(authority.files("b")), None)
    assert host.strangers[0].endswith(": it does not speak TLS: both VM files need [tls]")
    assert host.strangers[0].startswith("tcp:127.0.0.1:")


def test_who_has_tls_where_there_is_none_is_told_so(authority: Authority) -> None:
    host = visit_tls(None, Tls(authority.files("a")))
    assert host.strangers[0].endswith(": it speaks TLS: both VM files need [tls], or neither")


def test_who_has_a_certificate_of_another_ca_is_told_so(
    authority: Authority, tmp_path: Path
) -> None:
    other = replace(Authority.make(tmp_path / "ca").issue("c"), ca=authority.files("a").ca)
    host = visit_tls(Tls(authority.files("b")), Tls(other))
    assert ": its certificate is not accepted: " in host.strangers[0]
    assert not host.channels
