"""Our own primary beside a scripted secondary: every fault, at every place where it can come."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest

from colo.errors import (
    ChannelLost,
    ColoError,
    InvalidMessage,
    LocalError,
    PeerError,
    ShortRead,
    UnexpectedMessage,
)
from colo.guest.interface import Saved
from colo.migration.ram import PageRun
from colo.migration.writer import pong, shut
from colo.protocol.messages import COLOMessage, Message, encode
from colo.protocol.tables import PrimaryState
from colo.session.own_primary import Sending
from tests.node.pair import NAME, Watched

READY, REPLY, RECEIVED, LOADED = (
    encode(Message(kind))
    for kind in (
        COLOMessage.CHECKPOINT_READY,
        COLOMessage.CHECKPOINT_REPLY,
        COLOMessage.VMSTATE_RECEIVED,
        COLOMessage.VMSTATE_LOADED,
    )
)
#: Where the primary waits for an answer: what it has heard until then.
WAITS = {
    PrimaryState.AWAITING_READY: b"",
    PrimaryState.REQUESTED: READY,
    PrimaryState.AWAITING_RECEIVED: READY + REPLY,
    PrimaryState.AWAITING_LOADED: READY + REPLY + RECEIVED,
}
EXPECTED = {
    PrimaryState.AWAITING_READY: READY,
    PrimaryState.REQUESTED: REPLY,
    PrimaryState.AWAITING_RECEIVED: RECEIVED,
    PrimaryState.AWAITING_LOADED: LOADED,
}
LIMIT_S = 0.1
at_each_wait = pytest.mark.parametrize("state", WAITS, ids=lambda state: state.name)


class Scene:
    """A primary, and a peer that takes all it is sent and says what it is told to."""

    def __init__(self, guest: Watched, return_path: bool = False) -> None:
        self.guest = guest
        self.released = 0
        here, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.heard = bytearray()
        asyncio.get_running_loop().add_reader(self.peer, self._hear)
        self.sending = Sending(NAME, guest, here, LIMIT_S, self._release, return_path)

    def _hear(self) -> None:
        try:
            self.heard += self.peer.recv(1 << 20)
        except OSError:
            asyncio.get_running_loop().remove_reader(self.peer)

    def _release(self) -> None:
        self.released += 1

    async def protect(self) -> None:
        await self.sending.migrate()
        self.guest.scribble([1, 2], 1)
        await self.sending.checkpoint()

    def close(self) -> None:
        self.sending.close()
        with contextlib.suppress(ValueError):
            asyncio.get_running_loop().remove_reader(self.peer)
        self.peer.close()


def play(body: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(body(), 20)

    asyncio.run(run())


@contextlib.contextmanager
def scene(guest: Watched | None = None, return_path: bool = False) -> Iterator[Scene]:
    scene = Scene(guest or Watched(4), return_path)
    try:
        yield scene
    finally:
        scene.close()


async def lost_at(state: PrimaryState, fault: Callable[[Scene], object]) -> tuple[Scene, ColoError]:
    """Bring a primary to where it waits, have the fault come, and judge what every loss owes."""
    with scene() as it:
        it.peer.send(WAITS[state])
        protecting = asyncio.create_task(it.protect())
        while it.sending.state is not state:
            await asyncio.sleep(0)
        released = it.released
        fault(it)
        with pytest.raises(PeerError) as caught:
            await protecting
        assert it.sending.state is PrimaryState.LOST
        assert it.released == released, "nothing is released by a loss"
        runs = state is PrimaryState.REQUESTED
        assert it.guest.running.is_set() is runs, "it stays as it was, until the decision"
        await it.sending.failover()
        assert it.sending.state.name == "SOLO"
        assert it.guest.running.is_set() and it.released == released + 1
        return it, caught.value


@at_each_wait
@pytest.mark.parametrize("wrong", [READY, REPLY, RECEIVED, LOADED], ids=lambda m: m.hex())
def test_another_message_than_the_one_that_may_come(state: PrimaryState, wrong: bytes) -> None:
    if wrong == EXPECTED[state]:
        return

    async def run() -> None:
        _, error = await lost_at(state, lambda it: it.peer.send(wrong))
        assert isinstance(error, UnexpectedMessage)
        numbers = int.from_bytes(wrong, "big"), int.from_bytes(EXPECTED[state], "big")
        assert "Unexpected COLO message {}, expected {} ".format(*numbers) in str(error)
        assert error.state == state.name

    play(run)


@at_each_wait
def test_what_is_no_message(state: PrimaryState) -> None:
    async def run() -> None:
        _, error = await lost_at(state, lambda it: it.peer.send(b"HTTP"))
        assert isinstance(error, InvalidMessage)

    play(run)


@at_each_wait
def test_silence_and_where_it_was(state: PrimaryState) -> None:
    async def run() -> None:
        _, error = await lost_at(state, lambda it: None)
        assert isinstance(error, ChannelLost)
        assert str(error) == f"the secondary was silent for {LIMIT_S:.1f} s ({state.name})"

    play(run)


@at_each_wait
def test_the_end(state: PrimaryState) -> None:
    async def run() -> None:
        def close(it: Scene) -> None:
            asyncio.get_running_loop().remove_reader(it.peer)
            it.peer.close()

        _, error = await lost_at(state, close)
        assert isinstance(error, ChannelLost)
        assert str(error) == "the secondary ended the connection"

    play(run)


@at_each_wait
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_end_within_an_answer(state: PrimaryState, size: int) -> None:
    async def run() -> None:
        def cut(it: Scene) -> None:
            it.peer.send(EXPECTED[state][:size])
            it.peer.shutdown(socket.SHUT_WR)

        _, error = await lost_at(state, cut)
        assert isinstance(error, ShortRead) and error.got == size

    play(run)


def test_a_message_while_nothing_is_due() -> None:
    async def run() -> None:
        with scene() as it:
            it.peer.send(READY)
            await it.sending.migrate()
            it.peer.send(LOADED)
            with pytest.raises(UnexpectedMessage):
                await it.sending.run(asyncio.Event().wait)
            assert it.sending.state is PrimaryState.LOST and it.guest.running.is_set()

    play(run)


def test_what_decides_when_may_fail_and_ends_the_session() -> None:
    async def run() -> None:
        async def due() -> None:
            raise RuntimeError("no clock")

        with scene() as it:
            it.peer.send(READY)
            await it.sending.migrate()
            with pytest.raises(RuntimeError, match="no clock"):
                await it.sending.run(due)
            assert it.sending.state is PrimaryState.LOST and it.sending.machine.number == 0

    play(run)


# -- as QEMU 11 speaks ---------------------------------------------------------------------


def test_the_return_path_confirms_the_first_copy() -> None:
    async def run() -> None:
        with scene(return_path=True) as it:
            it.peer.send(pong(1) + shut() + READY)
            await it.sending.migrate()
            assert it.sending.state is PrimaryState.RUNNING and it.guest.running.is_set()

    play(run)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (pong(1) + shut(5), "could not load the first migration"),
        (bytes.fromhex("0002 ffff"), "a message of the return path"),
        (bytes.fromhex("1234 0004 00000000"), "silent"),
    ],
    ids=["refused", "over-long", "unknown"],
)
def test_a_return_path_that_says_something_else(said: bytes, text: str) -> None:
    async def run() -> None:
        with scene(return_path=True) as it:
            it.peer.send(said)
            with pytest.raises(PeerError, match=text):
                await it.sending.migrate()
            assert it.sending.state is PrimaryState.LOST and not it.guest.running.is_set()

    play(run)


@pytest.mark.parametrize("said", [b"", pong(1), pong(1) + shut()[:5]], ids=["0", "8", "13"])
def test_a_return_path_that_ends_or_falls_silent(said: bytes) -> None:
    async def run() -> None:
        for ends in (True, False):
            with scene(return_path=True) as it:
                it.peer.send(said)
                if ends:
                    it.peer.shutdown(socket.SHUT_WR)
                with pytest.raises(ChannelLost, match="ended" if ends else "silent"):
                    await it.sending.migrate()
                assert it.sending.state is PrimaryState.LOST

    play(run)


# -- a guest that fails ---------------------------------------------------------------------


class Failing(Watched):
    """It fails at ``at``: one of suspend, save, pages, resume, counted from the first migration."""

    at = ""

    def _fail(self, at: str) -> None:
        if self.at == at:
            raise OSError(5, "the guest's disk")

    async def suspend(self) -> None:
        await super().suspend()
        self._fail("suspend")

    async def save(self, everything: bool) -> Saved:
        saved = await super().save(everything)
        self._fail("save")

        def pages() -> Iterator[PageRun]:
            yield from saved.pages
            self._fail("pages")

        return Saved(pages(), saved.device_state, saved.description)

    async def resume(self) -> None:
        self._fail("resume")
        await super().resume()


@pytest.mark.parametrize("at", ["suspend", "save", "pages", "resume"])
@pytest.mark.parametrize("first", [True, False], ids=["first copy", "checkpoint"])
def test_what_the_guest_raises_is_the_guests(at: str, first: bool) -> None:
    """It ends the session, and is not told as the secondary's doing."""

    async def run() -> None:
        guest = Failing(4)
        with scene(guest) as it:
            it.peer.send(READY + REPLY + RECEIVED + LOADED)
            if not first:
                await it.sending.migrate()
            guest.at = at
            with pytest.raises(OSError, match="the guest's disk"):
                await (it.sending.migrate() if first else it.sending.checkpoint())
            assert it.sending.state is PrimaryState.LOST
            assert not guest.running.is_set()
            guest.at = ""
            await it.sending.failover()
            assert guest.running.is_set()

    play(run)


def test_pages_that_are_not_where_the_guest_says_are_its_error() -> None:
    """Nothing is sent of them: the checkpoint is not whole, and the one before counts."""

    class Slip(Watched):
        async def save(self, everything: bool) -> Saved:
            saved = await super().save(everything)
            if everything:
                return saved
            numbers = np.array([2, 3], np.int64)
            return Saved(
                [PageRun(self.block, numbers * 4096, self.memory)],
                saved.device_state,
                saved.description,
            )

    async def run() -> None:
        with scene(Slip(4)) as it:
            it.peer.send(READY + REPLY)
            await it.sending.migrate()
            with pytest.raises(LocalError, match="2 pages of memory from"):
                await it.sending.checkpoint()
            assert it.sending.state is PrimaryState.LOST

    play(run)


# -- the guest is not resumed while it is read ---------------------------------------------


class Slow(Watched):
    """Its save takes time, and so does reading its pages; it notes whether it ran meanwhile."""

    def __init__(self) -> None:
        super().__init__(4096)
        self.ran_meanwhile = False
        self.saving = asyncio.Event()
        self.reading = asyncio.Event()

    async def save(self, everything: bool) -> Saved:
        saved = await super().save(everything)
        self.saving.set()
        await asyncio.sleep(0.05)
        self.ran_meanwhile |= self.running.is_set()
        loop = asyncio.get_running_loop()

        def pages() -> Iterator[PageRun]:
            for run in saved.pages:
                for start in range(0, len(run), 64):
                    loop.call_soon_threadsafe(self.reading.set)
                    time.sleep(0.002)
                    self.ran_meanwhile |= self.running.is_set()
                    yield run.cut(start, start + 64)

        return Saved(pages(), saved.device_state, saved.description)


@pytest.mark.parametrize("when", ["saving", "reading"])
@pytest.mark.parametrize("first", [True, False], ids=["first copy", "checkpoint"])
def test_a_decision_waits_until_the_guest_is_not_read_any_more(when: str, first: bool) -> None:
    async def run() -> None:
        guest = Slow()
        with scene(guest) as it:
            it.peer.send(READY + REPLY)
            if not first:
                await it.sending.migrate()
                guest.scribble(list(range(4096)), 1)
            guest.saving.clear()
            guest.reading.clear()
            step = asyncio.create_task(it.sending.migrate() if first else it.sending.checkpoint())
            await (guest.saving if when == "saving" else guest.reading).wait()
            await it.sending.failover()
            assert it.sending.state is PrimaryState.SOLO and guest.running.is_set()
            with pytest.raises(PeerError):
                await step
            assert it.sending.state.name == "SOLO" and guest.running.is_set()
            assert guest.ran_meanwhile is False

    play(run)


def test_a_cancellation_while_the_thread_sends_ends_that_first() -> None:
    async def run() -> None:
        guest = Slow()
        with scene(guest) as it:
            it.peer.send(READY)
            step = asyncio.create_task(it.sending.migrate())
            await guest.reading.wait()
            step.cancel()
            await asyncio.wait({step}, timeout=5)
            assert step.cancelled() and it.sending.state is PrimaryState.LOST
            read = len(guest.calls)
            await it.sending.failover()
            await asyncio.sleep(0.02)
            assert not guest.ran_meanwhile and len(guest.calls) == read + 1

    play(run)


# -- the event loop has others to serve ----------------------------------------------------


def test_a_first_copy_of_free_memory_leaves_the_loop_to_others() -> None:
    """Zero pages are few bytes, and finding them takes long; heartbeats must go out meanwhile."""
    turns: list[float] = []

    class Free(Watched):
        async def save(self, everything: bool) -> Saved:
            saved = await super().save(everything)

            def pages() -> Iterator[PageRun]:
                for number in range(200):
                    time.sleep(0.001)
                    offsets = np.array([number % 4 * 4096], np.int64)
                    yield PageRun(self.block, offsets, np.zeros((1, 1), np.uint8))

            return Saved(pages(), saved.device_state, saved.description)

    async def run() -> None:
        async def others() -> None:
            while True:
                turns.append(time.monotonic())
                await asyncio.sleep(0.001)

        with scene(Free(4)) as it:
            it.peer.send(READY)
            beating = asyncio.create_task(others())
            await asyncio.sleep(0)
            before = len(turns)
            await it.sending.migrate()
            beating.cancel()
            assert len(turns) - before > 20, "the loop turned while the pages were read"

    play(run)
