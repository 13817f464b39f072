"""The channel: all that the primary sent counts, however it went away."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import pytest

from colo.errors import ColoError, ShortRead, StreamError
from colo.session.channel import Channel
from colo.session.secondary import Incoming


class FakeIncoming:
    """Takes bytes, answers each with ``answer``, and fails where it is told to."""

    vm_waits = False

    def __init__(self, answer: bytes = b"") -> None:
        self.data = bytearray()
        self.answer = answer
        self.fails: ColoError | None = None
        self._memory = memoryview(bytearray(1 << 16))
        self._out = b""

    def writable(self, at_most: int) -> memoryview:
        return self._memory[:at_most]

    def received(self, count: int) -> None:
        self.data += self._memory[:count]
        self._out += self.answer
        if self.fails is not None:
            raise self.fails

    def to_send(self) -> bytes:
        out, self._out = self._out, b""
        return out

    def closed(self) -> ColoError | None:
        return ShortRead("a checkpoint", 3) if len(self.data) % 2 else None


@pytest.fixture(autouse=True, params=["vm runs", "vm waits"])
def vm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon something is to come, the same is done with it."""
    monkeypatch.setattr(FakeIncoming, "vm_waits", request.param == "vm waits")


class Scene:
    def __init__(self, incoming: FakeIncoming) -> None:
        self.primary, sock = socket.socketpair()
        self.incoming = incoming
        self.progress = 0
        self.lost: list[ColoError] = []
        self.channel = Channel(
            sock,
            cast(Incoming, incoming),
            lambda: asyncio.get_running_loop().time(),
            self._progress,
            self.lost.append,
        )

    def _progress(self) -> None:
        self.progress += 1


def play(incoming: FakeIncoming, act: Callable[[Scene], None]) -> Scene:
    """Set a scene, act, and wait for the loss."""

    async def run() -> Scene:
        scene = Scene(incoming)
        act(scene)
        async with asyncio.timeout(10):
            while not scene.lost:
                await asyncio.sleep(0)
        scene.channel.close()
        scene.primary.close()
        return scene

    return asyncio.run(run())


def test_the_end_of_the_stream_is_told_with_where_it_cut() -> None:
    def act(scene: Scene) -> None:
        scene.primary.send(b"abc")
        scene.primary.close()

    scene = play(FakeIncoming(), act)
    assert scene.incoming.data == b"abc"
    assert str(scene.lost[0]) == "the primary closed the connection"
    assert isinstance(scene.lost[0].__cause__, ShortRead)


@pytest.mark.parametrize("answer", [b"", b"pong"], ids=["silent", "answering"])
def test_what_was_sent_before_a_reset_counts(answer: bytes) -> None:
    """A unix socket closed with unread answers resets the other end, behind what it sent."""

    def act(scene: Scene) -> None:
        scene.primary.send(b"all of it")
        scene.channel._sock.send(b"an answer that nobody reads")
        scene.primary.close()

    scene = play(FakeIncoming(answer), act)
    assert scene.incoming.data == b"all of it"
    assert len(scene.lost) == 1
    assert scene.progress


def test_a_session_that_refuses_ends_the_connection_with_its_reason() -> None:
    incoming = FakeIncoming()
    incoming.fails = StreamError("it is no stream", 0)

    def act(scene: Scene) -> None:
        scene.primary.send(b"x")

    scene = play(incoming, act)
    assert scene.lost == [incoming.fails]


def test_a_primary_that_does_not_read_its_answers_is_lost() -> None:
    async def run() -> None:
        scene = Scene(FakeIncoming())
        scene.incoming._out = b"x" * (8 << 20)
        scene.channel.flush()
        async with asyncio.timeout(10):
            while not scene.lost:
                await asyncio.sleep(0)
        assert "does not read the answers" in str(scene.lost[0])
        scene.primary.close()

    asyncio.run(run())
