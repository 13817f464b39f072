"""The control link's shell: words, heartbeats, and silence."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import pytest

from colo.config import VmConfig
from colo.errors import ChannelLost, PeerError
from colo.membership.words import Hello, LinkReader, Word, WordKind
from colo.transport.address import Address
from colo.transport.control_link import Link, call
from colo.transport.tls import Tls
from tests.certificates import Authority

SOON_S = 0.01
NEVER_S = 60.0


class End:
    """One end of a link, with all that it heard."""

    def __init__(self, sock: socket.socket, limit_s: float = NEVER_S) -> None:
        self.words: list[Word] = []
        self.lost: list[PeerError] = []
        figures = {"checkpoint": 7}
        self.link = Link(
            sock, SOON_S, (limit_s, limit_s), lambda: figures, self.words.append, self.lost.append
        )


def scene(play: Callable[[socket.socket, socket.socket], Awaitable[None]]) -> None:
    async def run() -> None:
        left, right = socket.socketpair()
        with left, right:
            await asyncio.wait_for(play(left, right), 10)

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(SOON_S / 10)


def test_words_arrive_and_heartbeats_carry_figures() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a, b = End(left), End(right)
        a.link.say(Word(WordKind.DEAD))
        await until(lambda: b.words and b.link.peer_figures)
        assert b.words == [Word(WordKind.DEAD)]
        assert b.link.peer_figures == {"checkpoint": 7}
        a.link.close()
        b.link.close()

    scene(play)


def test_a_closed_link_is_lost_once() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a, b = End(left), End(right)
        a.link.close()
        await until(lambda: b.lost)
        b.link.say(Word(WordKind.BYE))
        assert [str(error) for error in b.lost] == ["the other side closed the control link"]
        assert not a.lost

    scene(play)


def test_a_silent_side_is_lost_and_one_that_beats_is_not() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left, limit_s=10 * SOON_S)
        await until(lambda: a.lost)
        assert "the other side was silent" in str(a.lost[0])

    async def beating(left: socket.socket, right: socket.socket) -> None:
        a, b = End(left, limit_s=NEVER_S), End(right)
        await until(lambda: a.link.peer_figures)
        assert not a.lost
        a.link.close()
        b.link.close()

    scene(play)
    scene(beating)


def test_before_the_first_copy_is_whole_a_silence_may_be_longer() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        lost: list[PeerError] = []
        link = Link(left, SOON_S, (NEVER_S, 5 * SOON_S), dict, lambda word: None, lost.append)
        await asyncio.sleep(10 * SOON_S)
        assert not lost
        link.be_strict()
        await until(lambda: lost)
        assert "the other side was silent" in str(lost[0])

    scene(play)


def test_the_last_word_is_heard_though_a_heartbeat_is_sent_into_the_closed_link() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left)
        right.send(Word(WordKind.REFUSED, {"why": "another VM"}).encode())
        right.close()
        a.link.say(Word(WordKind.HEARTBEAT))  # before the loop has looked at what has come
        assert [word.kind for word in a.words] == [WordKind.REFUSED]
        assert len(a.lost) == 1

    scene(play)


@pytest.mark.parametrize("beats", [0, 1, 3])
def test_the_last_word_is_heard_behind_heartbeats_whose_answers_find_nobody(beats: int) -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        beat = Word(WordKind.HEARTBEAT, {"beat": 1})
        left.send(b"".join(word.encode() for word in [*[beat] * beats, Word(WordKind.BYE)]))
        left.close()
        b = End(right)
        await until(lambda: b.lost)
        assert b.words == [Word(WordKind.BYE)]
        assert len(b.lost) == 1

    scene(play)


def test_who_stood_still_is_lost_to_itself_whatever_has_come_meanwhile() -> None:
    """The other side has beaten all the time: that is in the socket, and is old."""

    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left, 0.2)
        beat = Word(WordKind.HEARTBEAT, {}).encode()
        right.send(beat * 3)
        time.sleep(0.3)  # the process is paused
        assert a.link.silence_s() > 0.2, "and whoever asks before anything is read is told"
        await until(lambda: a.lost)
        assert "this host stood still for" in str(a.lost[0])

    scene(play)


def test_who_is_not_heard_any_more_knows_it_though_the_other_side_beats_on() -> None:
    """A wire is cut one way: the other side takes over, and its last words are on their way."""

    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left)
        a.link.be_strict()
        began = time.monotonic()
        while time.monotonic() < began + 20 * SOON_S:
            right.send(Word(WordKind.HEARTBEAT, {"beat": 7}).encode())
            await asyncio.sleep(SOON_S)
        assert not a.lost
        now = time.monotonic()
        assert a.link.silence_s() >= now - began
        assert right.recv(1 << 16).count(Word(WordKind.HEARD, {"beat": 7}).encode()) > 1

    scene(play)


def heard_at(link: Link) -> float:
    """At the latest since then the other side may have heard nothing."""
    now = time.monotonic()
    return now - link.silence_s()


def test_who_is_answered_was_heard_when_it_said_what_is_answered() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a, reader = End(left), LinkReader()
        a.link.be_strict()
        right.setblocking(False)
        data = await asyncio.get_running_loop().sock_recv(right, 1 << 16)
        (beat,) = (word.beat for word in reader.feed(data))
        assert beat is not None
        assert heard_at(a.link) < beat / 1e9 - SOON_S / 2
        right.send(Word(WordKind.HEARD, {"beat": beat}).encode())
        await until(lambda: heard_at(a.link) > beat / 1e9 - 1e-6)
        silence_s = a.link.silence_s()
        assert silence_s <= time.monotonic() - beat / 1e9 + 1e-6, "and not since the answer"
        right.send(Word(WordKind.HEARD, {"beat": time.monotonic_ns() + 10**9}).encode())
        await until(lambda: a.lost)
        assert "never said" in str(a.lost[0])

    scene(play)


def test_two_sides_that_hear_each_other_are_never_silent_for_long() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a, b = End(left), End(right)
        a.link.be_strict()
        b.link.be_strict()
        began = time.monotonic()
        await until(lambda: a.link.silence_s() + 5 * SOON_S < time.monotonic() - began)
        await until(lambda: b.link.silence_s() + 5 * SOON_S < time.monotonic() - began)
        a.link.close()
        b.link.close()

    scene(play)


def test_who_is_heard_on_another_way_is_not_silent() -> None:
    """On a busy wire beats queue behind a checkpoint: its bytes tell as well."""

    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left, limit_s=10 * SOON_S)
        until_s = time.monotonic() + 50 * SOON_S
        a.link.also_heard = lambda: min(time.monotonic(), until_s)
        await until(lambda: a.lost)
        assert time.monotonic() >= until_s + 9 * SOON_S

    scene(play)


def test_what_the_other_side_answers_elsewhere_it_has_heard() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left)
        a.link.be_strict()
        await asyncio.sleep(20 * SOON_S)
        before, sent_at = a.link.silence_s(), time.monotonic() - 5 * SOON_S
        a.link.was_heard(sent_at)
        assert a.link.silence_s() == pytest.approx(time.monotonic() - sent_at, abs=SOON_S)
        assert a.link.silence_s() < before
        a.link.was_heard(sent_at - 1)
        assert a.link.silence_s() < before, "it has heard more than that"
        a.link.close()

    scene(play)


def test_a_control_link_over_tcp_goes_before_other_traffic() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            sock = socket.create_connection(server.getsockname())
            end = End(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) == 6
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xC0
            end.link.close()

    asyncio.run(run())


def test_garbage_on_the_link_ends_it() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a = End(left)
        right.send(b"GET / HTTP/1.1\r\n")
        await until(lambda: a.lost)
        assert "not a word" in str(a.lost[0])

    scene(play)


def test_a_hello_is_a_word_like_any_other() -> None:
    async def play(left: socket.socket, right: socket.socket) -> None:
        a, b = End(left), End(right)
        hello = Hello.ours(VmConfig(name="web1"), 3)
        a.link.say(hello.word())
        await until(lambda: b.words)
        assert Hello.of(b.words[0]) == hello
        a.link.close()
        b.link.close()

    scene(play)


def test_a_call_to_one_who_has_tls_is_told_so(authority: Authority) -> None:
    async def play() -> None:
        tls, loop = Tls(authority.files("a")), asyncio.get_running_loop()
        with Address(host="127.0.0.1", port=0).listen() as server:
            server.setblocking(False)
            address = Address(host="127.0.0.1", port=server.getsockname()[1])
            calling = asyncio.create_task(call(address, Hello.ours(VmConfig(name="web1")), 10))
            sock, _ = await loop.sock_accept(server)
            with pytest.raises(ChannelLost, match="does not speak TLS"):
                await tls.accept(sock)
            with pytest.raises(ChannelLost, match=r"with \[tls\] in both"):
                await calling

    asyncio.run(play())
