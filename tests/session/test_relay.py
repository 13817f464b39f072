"""The relay: QEMU's stream one way, unchanged; messages the other, and what QEMU hears of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest

from colo.errors import ColoError, InvalidMessage, InvariantBroken, UnexpectedMessage
from colo.migration.buffer import ReceiveBuffer
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.writer import pong, shut
from colo.protocol.messages import COLOMessage, Message, encode
from colo.session import relay as module
from colo.session.primary_stream import Came
from colo.session.relay import Relay, area_for
from colo.wire.decoder import Decoder
from colo.wire.encoder import Encoder
from colo.wire.rate import LinkRate
from colo.wire.sent import SentPages
from tests.session.test_primary_stream import REQUEST, SEND, conversation, parts
from tests.streams import QEMU_11, QEMU_72, RSDP, Checkpoint, Stream

READY, REPLY = Message(COLOMessage.CHECKPOINT_READY), Message(COLOMessage.CHECKPOINT_REPLY)
RECEIVED, LOADED = Message(COLOMessage.VMSTATE_RECEIVED), Message(COLOMessage.VMSTATE_LOADED)
LIMITS = Limits(ram_bytes=64 << 20, device_bytes=64 << 10, description_bytes=64 << 10)

LARGE_BLOCK = RamBlock("pc.ram", 16 << 20)
LARGE_PAGES = PageRun(
    LARGE_BLOCK,
    np.arange(0, 16 << 20, 4096),
    np.random.default_rng(1).integers(0, 256, (4096, 4096), np.uint8),
)
#: A first copy and a checkpoint of 16 MiB each.
LARGE = Stream(
    "large",
    blocks=(LARGE_BLOCK, RSDP),
    parts=((LARGE_PAGES,),),
    checkpoints=(Checkpoint((LARGE_PAGES,)),),
)
LARGE_CHECKPOINT = b"".join(each for _, each in parts(LARGE)[1:])


class Bench:
    """A relay between two ends that the test holds.  It does with messages as it is told."""

    def __init__(self, return_path: bool = False, coder: Encoder | None = None) -> None:
        self.qemu, qemu = socket.socketpair()
        self.secondary, secondary = socket.socketpair()
        for end in (self.qemu, self.secondary):
            end.setblocking(False)
        self.passes = True
        self.seen: list[tuple[Message, bytes]] = []
        self.came: list[Came] = []
        self.on_came: Callable[[Came], None] = lambda came: None
        self.lost: list[ColoError | str] = []
        self.relay = Relay(
            qemu,
            secondary,
            area_for(32 << 20, LIMITS),
            LIMITS,
            return_path,
            coder,
            self._message,
            self._came,
            self.lost.append,
            self.lost.append,
        )

    def _message(self, message: Message) -> None:
        try:
            before = self.qemu.recv(100, socket.MSG_PEEK)
        except BlockingIOError:
            before = b""
        self.seen.append((message, before))
        if self.passes:
            self.relay.send(message)

    def _came(self, came: Came) -> None:
        self.came.append(came)
        self.on_came(came)

    def close(self) -> None:
        self.relay.close()
        self.qemu.close()
        self.secondary.close()

    async def copied(self) -> None:
        """The large stream's first copy comes by, and arrives."""
        sending = self.qemu_sends(LARGE.data)
        assert await read(self.secondary, len(LARGE.data)) == LARGE.data
        await sending

    def qemu_sends(self, data: bytes) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        return asyncio.ensure_future(loop.sock_sendall(self.qemu, data))


def played(return_path: bool, play: Callable[[Bench], object]) -> Bench:
    """Play a scene on a bench, in an event loop of its own."""

    async def scene() -> Bench:
        bench = Bench(return_path)
        try:
            await asyncio.wait_for(play(bench), 10)  # type: ignore[arg-type]
        finally:
            bench.close()
        return bench

    return asyncio.run(scene())


async def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := await asyncio.get_running_loop().sock_recv(sock, 1 << 20)):
        data += more
    return data


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [QEMU_72, QEMU_11, LARGE], ids=lambda stream: stream.title)
@pytest.mark.parametrize("hurries", [True, False])
def test_what_qemu_sends_arrives_byte_for_byte_however_slowly_it_is_read(
    stream: Stream, hurries: bool
) -> None:
    data = conversation(stream)

    async def play(bench: Bench) -> None:
        bench.relay.hurries = hurries
        sending = bench.qemu_sends(data)
        assert await read(bench.secondary, len(data)) == data
        await sending
        assert bench.relay.bytes_sent == bench.relay.bytes_taken == len(data)
        assert bench.relay.held_bytes == 0

    bench = played(False, play)
    assert bench.came == [came for came, _ in parts(stream)]


@pytest.mark.parametrize("room_mib", [1, 4, 32])
def test_in_frames_the_same_arrives_however_little_may_lie_here(
    room_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinkRate, "add", lambda *_: None)
    data = conversation(LARGE)

    async def scene() -> None:
        coder = Encoder(SentPages(64), True, time.perf_counter)
        coder.rate = 1e6
        bench = Bench(coder=coder)
        bench.relay._rate.value = 1e6
        bench.relay.room = room_mib << 20
        got = ReceiveBuffer(bytearray(len(data) + 4096))
        decoder = Decoder(got, lambda block, numbers: np.zeros((len(numbers), 4096), np.uint8))
        decoder.set_blocks(LARGE.blocks)
        sending, most = bench.qemu_sends(data), 0
        stack.callback(bench.close)
        while got.end < len(data):
            some = await read(bench.secondary, 1)
            most = max(most, bench.relay.held_bytes)
            while some:
                room = decoder.writable(len(some))
                room[: len(some)] = some[: len(room)]
                decoder.received(min(len(room), len(some)))
                some = some[len(room) :]
        await sending
        assert bytes(got.data[: got.end]) == data
        assert most <= (room_mib << 20) + (2 << 20)

    with contextlib.ExitStack() as stack:
        asyncio.run(asyncio.wait_for(scene(), 60))


def test_a_link_on_which_nothing_is_ever_left_to_be_sent_has_no_rate() -> None:
    rate = LinkRate()
    for _ in range(100):
        rate.add(1000, 0.001, is_coded=False)
    assert rate.value is None
    rate.add(1 << 20, 0.01, is_coded=False)
    rate.add(1 << 20, 0.02, is_coded=False)
    assert rate.value == pytest.approx((1 << 20) / 0.01), "the best: a busy host is no slow link"
    for _ in range(8):
        rate.add(1 << 20, 0.02, is_coded=True)
    assert rate.value == pytest.approx((1 << 20) / 0.02)
    for _ in range(100):
        rate.add(1000, 0.001, is_coded=True)
    assert rate.value is not None, "little is left as it was coded"
    for _ in range(100):
        rate.add(1000, 0.001, is_coded=False)
    assert rate.value is None


@pytest.mark.parametrize("size", [13, 4096])
def test_it_arrives_unchanged_in_pieces_of_any_size(size: int) -> None:
    data = conversation(QEMU_72)

    async def play(bench: Bench) -> None:
        for at in range(0, len(data), size):
            bench.qemu.send(data[at : at + size])
            await asyncio.sleep(0)
        assert await read(bench.secondary, len(data)) == data

    assert played(False, play).came == [came for came, _ in parts(QEMU_72)]


def test_qemu_is_answered_though_the_secondary_has_read_nothing_of_a_checkpoint() -> None:
    """That is what it is for: the VM waits for memory, and not for the network."""

    async def play(bench: Bench) -> None:
        await bench.copied()
        bench.relay.room, bench.relay.hurries = 32 << 20, False
        bench.on_came = lambda came: bench.relay.send(LOADED) if came is Came.CHECKPOINT else None
        await bench.qemu_sends(LARGE_CHECKPOINT)
        assert await read(bench.qemu, 4) == encode(LOADED)
        assert bench.relay.held_bytes > 8 << 20
        assert bench.relay.memory_bytes >= len(LARGE_CHECKPOINT) - (4 << 20)
        assert await read(bench.secondary, len(LARGE_CHECKPOINT)) == LARGE_CHECKPOINT

    played(False, play)


def test_qemu_is_not_read_beyond_the_room_that_there_is() -> None:
    async def play(bench: Bench) -> None:
        await bench.copied()
        bench.relay.room, bench.relay.hurries = 4 << 20, False
        sending = bench.qemu_sends(LARGE_CHECKPOINT)
        for _ in range(200):
            await asyncio.sleep(0)
        assert not sending.done()
        assert Came.CHECKPOINT not in bench.came
        assert 4 << 20 <= bench.relay.held_bytes <= 6 << 20
        assert await read(bench.secondary, len(LARGE_CHECKPOINT)) == LARGE_CHECKPOINT
        await sending

    assert played(False, play).came[-1] is Came.CHECKPOINT


def test_memory_that_one_large_checkpoint_took_is_given_back() -> None:
    async def play(bench: Bench) -> None:
        await bench.copied()
        bench.relay.room, bench.relay.hurries = 32 << 20, False
        await bench.qemu_sends(LARGE_CHECKPOINT)
        await until(lambda: bench.came[-1] is Came.CHECKPOINT)
        await read(bench.secondary, len(LARGE_CHECKPOINT))
        assert bench.relay.memory_bytes > 8 << 20
        ending = b"".join(each for _, each in parts(QEMU_72)[3:5])
        for _ in range(70):
            bench.qemu.send(REQUEST + SEND + ending)
            await read(bench.secondary, 8 + len(ending))
        assert bench.relay.memory_bytes <= 4 << 20

    played(False, play)


def test_the_last_byte_of_a_checkpoint_does_not_leave_before_it_is_known_to_be_whole() -> None:
    """Else the secondary might have it, and say so, before its output was covered."""
    data = conversation(QEMU_72)
    ends = len(b"".join(each for _, each in parts(QEMU_72)[:5]))

    async def play(bench: Bench) -> None:
        left: list[int] = []

        def came(what: Came) -> None:
            if what is Came.CHECKPOINT:
                left.append(bench.relay.bytes_sent)

        bench.on_came = came
        await bench.qemu_sends(data)
        await read(bench.secondary, len(data))
        assert left[0] < ends

    played(False, play)


def test_what_qemu_says_out_of_place_ends_it() -> None:
    async def play(bench: Bench) -> None:
        await bench.qemu_sends(QEMU_72.data + SEND)
        await until(lambda: bench.lost)

    (error,) = played(False, play).lost
    assert isinstance(error, UnexpectedMessage)


def test_a_message_is_shown_before_qemu_can_have_it() -> None:
    async def play(bench: Bench) -> None:
        bench.secondary.send(encode(READY) + encode(REPLY))
        assert await read(bench.qemu, 8) == encode(READY) + encode(REPLY)

    bench = played(False, play)
    assert bench.seen[0] == (READY, b"")
    assert bench.seen[1][0] == REPLY


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_return_path_is_passed_on_and_then_come_messages(size: int) -> None:
    said = pong(1) + pong(2) + shut() + encode(READY) + encode(REPLY)

    async def play(bench: Bench) -> None:
        for at in range(0, len(said), size):
            bench.secondary.send(said[at : at + size])
            await asyncio.sleep(0)
        assert await read(bench.qemu, len(said)) == said

    assert [message for message, _ in played(True, play).seen] == [READY, REPLY]


def test_half_a_message_waits_for_the_other_half() -> None:
    async def play(bench: Bench) -> None:
        bench.secondary.send(encode(REPLY)[:2])
        for _ in range(5):
            await asyncio.sleep(0)
        assert not bench.seen
        bench.secondary.send(encode(REPLY)[2:])
        assert await read(bench.qemu, 4) == encode(REPLY)

    played(False, play)


def test_a_secondary_that_ends_is_told_apart_from_a_qemu_that_ends() -> None:
    async def secondary_ends(bench: Bench) -> None:
        bench.secondary.close()
        await until(lambda: bench.lost)

    async def qemu_ends(bench: Bench) -> None:
        bench.qemu.close()
        await until(lambda: bench.lost)

    assert str(played(False, secondary_ends).lost[0]) == "the secondary ended the connection"
    assert played(False, qemu_ends).lost == ["QEMU ended COLO's connection"]


def test_the_loss_is_told_before_qemus_connection_is_closed() -> None:
    async def play(bench: Bench) -> None:
        open_then: list[bool] = []

        def told(error: ColoError) -> None:
            with pytest.raises(BlockingIOError):
                bench.qemu.recv(1)
            open_then.append(True)

        bench.relay._on_lost = told
        bench.secondary.close()
        await until(lambda: open_then)
        assert await read(bench.qemu, 1) == b""

    played(False, play)


def test_what_is_no_message_ends_it_and_never_reaches_qemu() -> None:
    async def play(bench: Bench) -> None:
        bench.secondary.send(b"HTTP")
        await until(lambda: bench.lost)
        assert await read(bench.qemu, 1) == b""

    assert isinstance(played(False, play).lost[0], InvalidMessage)


def test_qemu_hears_what_is_sent_to_it_and_nothing_else() -> None:
    async def play(bench: Bench) -> None:
        bench.passes = False
        bench.secondary.send(encode(REPLY) + encode(RECEIVED))
        await until(lambda: len(bench.seen) == 2)
        with pytest.raises(BlockingIOError):
            bench.qemu.recv(100)
        bench.relay.send(REPLY)
        assert bench.qemu.recv(100) == encode(REPLY)

    played(False, play)


def test_answers_that_come_together_reach_qemu_together() -> None:
    """Its thread need not sleep between them: they are one packet of a SEQPACKET socket."""

    async def scene() -> None:
        qemu, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        secondary, theirs = socket.socketpair()
        with qemu, secondary:
            qemu.setblocking(False)

            def answer(message: Message) -> None:
                relay.send(message)

            area = area_for(module.COPY_ROOM, LIMITS)
            relay = Relay(ours, theirs, area, LIMITS, False, None, answer, print, print, print)
            both = encode(RECEIVED) + encode(LOADED)
            secondary.send(both)
            assert await asyncio.get_running_loop().sock_recv(qemu, 100) == both
            relay.close()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_what_is_sent_while_messages_are_shown_keeps_its_place() -> None:
    async def play(bench: Bench) -> None:
        show = bench.relay._on_message

        def answers(message: Message) -> None:
            if message == REPLY:
                bench.relay.send(LOADED)
            show(message)

        bench.relay._on_message = answers
        bench.secondary.send(encode(READY) + encode(REPLY))
        assert await read(bench.qemu, 12) == b"".join(
            encode(each) for each in (READY, LOADED, REPLY)
        )

    played(False, play)


def test_what_was_said_before_nonsense_does_not_reach_qemu_either() -> None:
    """The session is over then; QEMU learns it by the connection's end."""

    async def play(bench: Bench) -> None:
        bench.secondary.send(encode(READY) + b"HTTP")
        await until(lambda: bench.lost)
        assert await read(bench.qemu, 1) == b""

    bench = played(False, play)
    assert isinstance(bench.lost[0], InvalidMessage) and len(bench.lost) == 1


def test_sending_to_a_qemu_that_is_gone_is_its_loss() -> None:
    async def play(bench: Bench) -> None:
        bench.qemu.close()
        bench.relay.send(Message(COLOMessage.CHECKPOINT_REPLY))
        bench.relay.send(Message(COLOMessage.CHECKPOINT_REPLY))
        assert len(bench.lost) == 1
        assert "QEMU ended COLO's connection" in str(bench.lost[0])

    played(False, play)


def test_a_qemu_that_does_not_read_is_told_as_that() -> None:
    async def play(bench: Bench) -> None:
        bench.relay._qemu.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        answers = encode(READY) * 64
        while not bench.lost:
            with contextlib.suppress(BlockingIOError):
                bench.secondary.send(answers)
            await asyncio.sleep(0)

    assert played(False, play).lost == ["QEMU does not read the secondary's answers"]


def test_an_error_of_ours_ends_it_as_one_of_the_secondary_does() -> None:
    async def play(bench: Bench) -> None:
        def broken(message: Message) -> None:
            raise InvariantBroken("gate: it would be heard")

        bench.relay._on_message = broken
        bench.secondary.send(encode(READY))
        await until(lambda: bench.lost)
        assert await read(bench.qemu, 1) == b""

    assert isinstance(played(False, play).lost[0], InvariantBroken)
