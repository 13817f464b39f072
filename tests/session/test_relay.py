"""The relay: bytes one way, untouched; messages the other, shown before they are passed on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from colo.errors import ColoError, InvalidMessage, InvariantBroken
from colo.migration.writer import pong, shut
from colo.protocol.messages import COLOMessage, Message, encode
from colo.session.relay import Relay

READY, REPLY = Message(COLOMessage.CHECKPOINT_READY), Message(COLOMessage.CHECKPOINT_REPLY)


class Bench:
    """A relay between two ends that the test holds."""

    def __init__(self, return_path: bool = False) -> None:
        self.qemu, qemu = socket.socketpair()
        self.secondary, secondary = socket.socketpair()
        for end in (self.qemu, self.secondary):
            end.setblocking(False)
        self.kept: COLOMessage | None = None
        self.seen: list[tuple[Message, bytes]] = []
        self.lost: list[ColoError | str] = []
        self.relay = Relay(
            qemu, secondary, return_path, self._message, self.lost.append, self.lost.append
        )

    def _message(self, message: Message) -> bool:
        try:
            before = self.qemu.recv(100, socket.MSG_PEEK)
        except BlockingIOError:
            before = b""
        self.seen.append((message, before))
        return message.kind is not self.kept

    def close(self) -> None:
        self.relay.close()
        self.qemu.close()
        self.secondary.close()


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


def test_what_qemu_sends_arrives_byte_for_byte_however_slowly_it_is_read() -> None:
    stream = bytes(range(256)) * 40_000

    async def play(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(bench.qemu, stream))
        assert await read(bench.secondary, len(stream)) == stream
        await sending
        assert bench.relay.bytes_sent == len(stream)

    played(False, play)


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


def test_a_message_that_is_kept_goes_on_when_it_is_sent() -> None:
    reply, received = (
        Message(kind) for kind in (COLOMessage.CHECKPOINT_REPLY, COLOMessage.VMSTATE_RECEIVED)
    )

    async def play(bench: Bench) -> None:
        bench.kept = COLOMessage.CHECKPOINT_REPLY
        bench.secondary.send(encode(reply) + encode(received))
        await until(lambda: len(bench.seen) == 2)
        assert bench.qemu.recv(100) == encode(received)
        bench.relay.send(reply)
        assert bench.qemu.recv(100) == encode(reply)

    played(False, play)


def test_answers_that_come_together_reach_qemu_together() -> None:
    """Its thread need not sleep between them: they are one packet of a SEQPACKET socket."""

    async def scene() -> None:
        qemu, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        secondary, theirs = socket.socketpair()
        answers = [
            Message(kind) for kind in (COLOMessage.VMSTATE_RECEIVED, COLOMessage.VMSTATE_LOADED)
        ]
        with qemu, secondary:
            qemu.setblocking(False)
            relay = Relay(ours, theirs, False, lambda message: True, print, print)
            both = b"".join(map(encode, answers))
            secondary.send(both)
            assert await asyncio.get_running_loop().sock_recv(qemu, 100) == both
            relay.close()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_what_is_sent_while_messages_are_shown_keeps_its_place() -> None:
    async def play(bench: Bench) -> None:
        show = bench.relay._on_message

        def answers(message: Message) -> bool:
            if message == REPLY:
                bench.relay.send(Message(COLOMessage.VMSTATE_LOADED))
            return show(message)

        bench.relay._on_message = answers
        bench.secondary.send(encode(READY) + encode(REPLY))
        assert await read(bench.qemu, 12) == b"".join(
            encode(each) for each in (READY, Message(COLOMessage.VMSTATE_LOADED), REPLY)
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
        def broken(message: Message) -> bool:
            raise InvariantBroken("gate: it would be heard")

        bench.relay._on_message = broken
        bench.secondary.send(encode(READY))
        await until(lambda: bench.lost)
        assert await read(bench.qemu, 1) == b""

    assert isinstance(played(False, play).lost[0], InvariantBroken)
