"""Our primary and our secondary with a guest in memory: what is said, kept, taken over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from colo.errors import ChannelLost, PeerError
from colo.guest.memory import MemoryGuest
from colo.migration.writer import device_state
from colo.protocol.tables import PrimaryState, SecondaryEvent, SecondaryState
from colo.session.own_primary import Sending
from tests.node.pair import NAME, Pair, Uniform, Watched, contents, make_store, paired

KINDS = ("pair", "unix", "tcp", "tls")

FIRST = """
primary VM run → stop
primary MIGRATING → AWAITING_READY (MIGRATED)
primary received checkpoint-ready
primary AWAITING_READY → RESUMING (CHECKPOINT_READY)
primary VM stop → run
primary RESUMING → RUNNING (RESUMED)
secondary INCOMING → READY (MIGRATED)
secondary sends checkpoint-ready
"""
CHECKPOINT = """
primary RUNNING → REQUESTED (CHECKPOINT_DUE)
primary sends checkpoint-request
primary received checkpoint-reply
primary REQUESTED → SUSPENDING (CHECKPOINT_REPLY)
primary VM run → stop
primary SUSPENDING → SAVING_RAM (SUSPENDED)
primary sends vmstate-send
primary SAVING_RAM → SAVING_DEVICES (RAM_SAVED)
primary SAVING_DEVICES → AWAITING_RECEIVED (DEVICES_SAVED)
primary sends vmstate-size {size}
primary received vmstate-received
primary AWAITING_RECEIVED → AWAITING_LOADED (VMSTATE_RECEIVED)
primary received vmstate-loaded
primary AWAITING_LOADED → RESUMING (VMSTATE_LOADED)
primary VM stop → run
primary RESUMING → RUNNING (RESUMED)
secondary received checkpoint-request
secondary READY → PREPARING (CHECKPOINT_REQUEST)
secondary PREPARING → REPLIED (PREPARED)
secondary sends checkpoint-reply
secondary received vmstate-send
secondary REPLIED → RECEIVING_RAM (VMSTATE_SEND)
secondary RECEIVING_RAM → AWAITING_SIZE (RAM_RECEIVED)
secondary received vmstate-size {size}
secondary AWAITING_SIZE → RECEIVING_DEVICES (VMSTATE_SIZE)
secondary RECEIVING_DEVICES → READY (DEVICES_RECEIVED)
secondary sends vmstate-received
secondary sends vmstate-loaded
"""


def said(caplog: pytest.LogCaptureFixture, number: int) -> list[str]:
    """What the trace has of a checkpoint: first all of the primary, then all of the secondary."""
    head = f"pair #{number} "
    texts = [record.getMessage() for record in caplog.records if record.name == "colo.trace"]
    lines = [text.removeprefix(head) for text in texts if text.startswith(head)]
    return sorted(lines, key=lambda line: line.split()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_who_says_what_and_when(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "colo.trace")
    guest = Watched(4)

    async def run() -> None:
        async with paired(guest, tmp_path, kind) as pair:
            await pair.sending.migrate()
            assert pair.released == 0
            for number in range(1, 4):
                guest.scribble([number], number)
                await pair.sending.checkpoint()
                assert pair.released == number

    asyncio.run(run())
    assert guest.calls == ["suspend", "save", "resume"] * 4
    assert said(caplog, 0) == FIRST.strip().splitlines()
    for number in range(1, 4):
        size = len(device_state([("blob", bytes(number))])[0])
        assert said(caplog, number) == CHECKPOINT.format(size=size).strip().splitlines()


def shapes(pages: int) -> Iterator[list[int]]:
    """Which pages a checkpoint has: none, all, neighbours, far ones; then few and many."""
    random = np.random.default_rng(2)
    yield from ([], list(range(pages)), list(range(3, 3 + 256)), [0, pages - 1])
    while True:
        count = int(random.integers(0, pages // int(random.integers(1, 40))))
        yield random.permutation(pages)[:count].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_after_each_checkpoint_the_images_equal_the_guest(kind: str, tmp_path: Path) -> None:
    guest = Watched(1024)
    guest.scribble(list(range(100, 800)), 1)

    async def run() -> None:
        async with paired(guest, tmp_path, kind) as pair:
            await pair.sending.migrate()
            for number, numbers in zip(range(1, 51), shapes(1024), strict=False):
                guest.scribble(numbers, number)
                await pair.sending.checkpoint()
                await pair.receiving.applied()
                assert pair.store.checkpoint is not None
                assert pair.store.checkpoint.number == number
                copy = MemoryGuest(1024)
                await copy.load(pair.store)
                assert contents(copy) == contents(guest)

    asyncio.run(run())
    assert len(guest.whole) == 51


# -- the primary is cut off ----------------------------------------------------------------


class Cable:
    """Carries bytes between two connections; cut after ``left`` bytes from the primary."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.passed = 0
        (self.primary, self._here), (self._there, self.secondary) = (
            socket.socketpair(),
            socket.socketpair(),
        )
        for end in (self._here, self._there):
            end.setblocking(False)
        self.task = asyncio.create_task(self._carry())

    async def _carry(self) -> None:
        loop = asyncio.get_running_loop()
        back = asyncio.create_task(self._carry_back())
        while self.left and (data := await loop.sock_recv(self._here, min(self.left, 1 << 16))):
            self.left -= len(data)
            self.passed += len(data)
            await loop.sock_sendall(self._there, data)
        back.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await back
        self._here.close()
        self._there.close()

    async def _carry_back(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._there, 1 << 16):
            await loop.sock_sendall(self._here, data)


class Cut:
    """A primary that is cut off ``after`` so many bytes, within two checkpoints.

    ``marks``: how many bytes had passed after each step; ``found``: what was taken over, if
    there was anything.
    """

    def __init__(self, after: int, guest: Watched) -> None:
        self.after = after
        self.guest = guest
        self.marks: list[int] = []
        self.found: tuple[bytes, bytes] | None = None

    async def run(self, folder: Path) -> None:
        cable = Cable(self.after)
        store = make_store(folder, self.guest.block)
        pair = Pair(self.guest, store, (cable.primary, cable.secondary))
        with contextlib.suppress(ChannelLost):
            await pair.sending.migrate()
            self.marks.append(cable.passed)
            for number in (1, 2):
                self.guest.scribble([number], number)
                await pair.sending.checkpoint()
                self.marks.append(cable.passed)
        pair.sending.close()
        await cable.task
        await pair.gone.wait()
        if pair.receiving.state is SecondaryState.FAILED:
            assert store.checkpoint is None
        else:
            pair.receiving.handle(SecondaryEvent.FAILOVER)
            self.found = contents(await pair.taken_over())
            pair.receiving.handle(SecondaryEvent.RESUMED)
            assert pair.receiving.state is SecondaryState.RUNNING
        store.remove()


@pytest.mark.parametrize(("kind", "stride"), [(Uniform, 1), (Watched, 89)])
def test_wherever_it_is_cut_off_the_last_whole_checkpoint_is_taken_over(
    kind: type[Watched], stride: int, tmp_path: Path
) -> None:
    async def run() -> None:
        uncut = Cut(1 << 30, kind(3))
        await uncut.run(tmp_path / "store")
        first, second, end = uncut.marks
        whole = uncut.guest.whole
        assert uncut.found == whole[2] and len(set(whole)) == 3
        for after in (*range(0, end, stride), first, second, end - 1):
            cut = Cut(after, kind(3))
            await cut.run(tmp_path / "store")
            expected = None if after < first else whole[0] if after < second else whole[1]
            assert cut.found == expected, f"cut after {after} of {uncut.marks}"

    asyncio.run(run())


def test_a_secondary_that_takes_nothing_is_lost() -> None:
    guest = Watched(4096)
    guest.scribble(list(range(4096)), 1)

    async def run() -> None:
        here, there = socket.socketpair()
        with there:
            sending = Sending(NAME, guest, here, limit_s=0.2)
            with pytest.raises(ChannelLost, match=r"silent for 0\.2 s"):
                await sending.migrate()
            assert sending.state is PrimaryState.LOST
            assert not guest.running.is_set()
            await sending.failover()
            assert guest.running.is_set()

    asyncio.run(run())


def test_a_secondary_may_be_silent_while_nothing_is_due(tmp_path: Path) -> None:
    async def run() -> None:
        async with paired(Watched(4), tmp_path) as pair:
            await pair.sending.migrate()
            pair.sending._limit_s = 0.01
            session = asyncio.create_task(pair.sending.run(asyncio.Event().wait))
            await asyncio.wait({session}, timeout=0.2)
            assert not session.done() and pair.sending.state is PrimaryState.RUNNING
            session.cancel()
            await asyncio.wait({session})

    asyncio.run(run())


# -- the decision to run alone -------------------------------------------------------------


async def failed_over(pair: Pair, step: int, turns: int) -> bool:
    """Have the guest run alone in this step, after so many turns of the loop in it.

    Step 0 is the first migration.  Returns whether the step had ended before.
    """

    async def protect(step: int) -> None:
        if step:
            pair.guest.scribble(list(range(step, 60)), step)
            await pair.sending.checkpoint()
        else:
            await pair.sending.migrate()

    for before in range(step):
        await protect(before)
    protecting = asyncio.create_task(protect(step))
    for _ in range(turns):
        await asyncio.sleep(0)
    done = protecting.done()
    await pair.sending.failover()
    assert pair.sending.state is PrimaryState.SOLO
    assert pair.guest.running.is_set()
    with contextlib.suppress(PeerError):
        await protecting
    assert pair.sending.state is PrimaryState.SOLO
    assert pair.guest.running.is_set()
    return done


@pytest.mark.parametrize("kind", [Uniform, Watched])
def test_failover_between_any_two_steps(kind: type[Watched], tmp_path: Path) -> None:
    """Few bytes go out at once, many by a thread; the secondary keeps the last whole checkpoint."""

    async def run() -> None:
        numbers = set()
        for step in range(3):
            done, turns = False, 0
            while not done:
                async with paired(kind(64), tmp_path) as pair:
                    done = await failed_over(pair, step, turns)
                    await pair.gone.wait()
                    if (whole := pair.store.checkpoint) is None:
                        assert pair.released == 1
                    else:
                        numbers.add(whole.number)
                        assert contents(await pair.taken_over()) == pair.guest.whole[whole.number]
                        assert pair.released - whole.number in (0, 1)  # the last: by the decision
                turns += 1
        assert numbers == {0, 1, 2}

    asyncio.run(run())


@pytest.mark.parametrize("kind", KINDS)
def test_failover_while_nothing_is_due(kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with paired(Watched(4), tmp_path, kind) as pair:
            await pair.sending.migrate()
            idle = asyncio.create_task(pair.sending.run(asyncio.Event().wait))
            for _ in range(10):
                await asyncio.sleep(0)
            await pair.sending.failover()
            with pytest.raises(PeerError):
                await asyncio.wait_for(idle, 5)
            assert pair.sending.state is PrimaryState.SOLO
            await pair.gone.wait()

    asyncio.run(run())


def test_a_session_is_cancelled_also_while_its_connection_ends(tmp_path: Path) -> None:
    async def run() -> None:
        for turns in range(20):
            async with paired(Watched(4), tmp_path) as pair:
                await pair.sending.migrate()
                idle = asyncio.create_task(pair.sending.run(asyncio.Event().wait))
                await asyncio.sleep(0)
                pair.receiving.close()
                for _ in range(turns):
                    await asyncio.sleep(0)
                was_cancelled = idle.cancel()
                await asyncio.wait({idle}, timeout=5)
                assert idle.cancelled() is was_cancelled
                if not was_cancelled:
                    with pytest.raises(PeerError):
                        idle.result()

    asyncio.run(run())


def test_what_runs_alone_can_be_protected_again(tmp_path: Path) -> None:
    guest = Watched(512)

    async def run() -> None:
        for session in range(3):
            guest.scribble([session, 300 + session], session + 1)
            async with paired(guest, tmp_path) as pair:
                await pair.sending.migrate()
                guest.scribble([100 + session], session + 1)
                await pair.sending.checkpoint()
                await pair.sending.failover()
                assert contents(await pair.taken_over()) == contents(guest)

    asyncio.run(run())
