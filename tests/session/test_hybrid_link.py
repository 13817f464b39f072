"""The hybrid link over sockets: its hellos, its end, and who reads too slowly."""

from __future__ import annotations

import asyncio
import socket

import pytest

from colo.errors import ColoError, LimitExceeded, PeerError
from colo.packets.hybrid_words import Kind, Said
from colo.session.hybrid_link import HybridHello, HybridLink, answer_hybrid, call_hybrid
from colo.transport.address import Address

HELLO = HybridHello("vm", 3, "a/1", 2)


def test_a_hello_comes_back() -> None:
    assert HybridHello.decode(HELLO.encode()) == HELLO


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1]",
        b'"vm"',
        b'{"vm":1,"grant":1,"holder":"","cards":1,"version":1}',
        b'{"vm":"v","grant":true,"holder":"","cards":1,"version":1}',
        b"\xff",
        b"[" * 9000,
    ],
)
def test_what_is_no_hello_is_refused(line: bytes) -> None:
    with pytest.raises(PeerError):
        HybridHello.decode(line)


@pytest.mark.parametrize("answer", [None, "it is not wanted"])
def test_a_call_is_taken_in_or_refused(answer: str | None) -> None:
    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert (await reader.readline()).startswith(b"CHYB{")
            writer.write(answer_hybrid(answer))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        to = Address(host="127.0.0.1", port=port)
        if answer is None:
            (await call_hybrid(to, HELLO)).close()
        else:
            with pytest.raises(ColoError, match=answer):
                await call_hybrid(to, HELLO)
        server.close()

    asyncio.run(scenario())


def test_words_go_both_ways_and_an_end_is_told_once() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        heard: list[Said] = []
        lost: list[ColoError] = []
        for sock in (ours, theirs):
            sock.setblocking(False)
        near = HybridLink(ours, 1, 1 << 20, heard.append, lost.append)
        far = HybridLink(theirs, 1, 1 << 20, heard.append, lost.append)
        words = [Said(Kind.INPUT, payload=b"frame" * 1000), Said(Kind.CUT, number=7)]
        for word in words:
            near.say(word)
        far.say(Said(Kind.READY))
        while len(heard) < 3:
            await asyncio.sleep(0)
        assert sorted(heard, key=lambda said: said.kind) == [*words, Said(Kind.READY)]
        far.close()
        while not lost:
            await asyncio.sleep(0)
        near.say(words[0])
        assert len(lost) == 1
        assert not near.is_open

    asyncio.run(scenario())


def test_what_was_taken_does_not_count_against_the_limit() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        heard: list[Said] = []
        lost: list[ColoError] = []
        near = HybridLink(ours, 1, 1 << 20, lambda said: None, lost.append)
        far = HybridLink(theirs, 1, 1 << 20, heard.append, lost.append)
        for count in range(1, 30):
            near.say(Said(Kind.INPUT, payload=bytes(100_000)))
            while len(heard) < count and not lost:
                await asyncio.sleep(0)
        assert not lost
        near.close()
        far.close()

    asyncio.run(scenario())


def test_who_does_not_read_is_given_up() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        lost: list[ColoError] = []
        link = HybridLink(ours, 1, 1 << 20, lambda said: None, lost.append)
        while not lost:
            link.say(Said(Kind.INPUT, payload=bytes(100_000)))
        assert isinstance(lost[0], LimitExceeded)
        theirs.close()

    asyncio.run(scenario())
