"""A primary's session, in memory: its bytes in, our answers out, and what the store holds."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.errors import (
    InvalidMessage,
    LimitExceeded,
    Misfit,
    PeerError,
    ShortRead,
    StreamError,
    UnexpectedMessage,
    UnsupportedFeature,
)
from colo.migration.ram import Limits, PageRun, RamBlock
from colo.migration.reader import Header, Migration
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import Do, SecondaryEvent, SecondaryState
from colo.session.secondary import Checks, Incoming
from colo.status.figures import Figures
from colo.store.export import migration_stream
from colo.store.store import Since, Store
from tests.streams import (
    QEMU_11,
    QEMU_72,
    RAM,
    RSDP,
    Checkpoint,
    Stream,
    blank,
    fill,
    full,
    later_devices,
    naive,
    paint,
)

hexed = bytes.fromhex
LIMITS = Limits(ram_bytes=128 << 10, device_bytes=4096, description_bytes=8192)

READY, REQUEST, REPLY = hexed("00000000"), hexed("00000001"), hexed("00000002")
SEND, RECEIVED, LOADED = hexed("00000003"), hexed("00000005"), hexed("00000006")

TINY = Stream(
    "tiny",
    parts=((fill(RAM, range(16)), fill(RSDP, [0], 9)),),
    checkpoints=(
        Checkpoint((fill(RAM, [1, 3], 7), fill(RSDP, [0], 1)), devices=later_devices(1)),
        Checkpoint((fill(RAM, [1], 8), fill(RAM, [3, 0])), devices=later_devices(2)),
    ),
)
each_stream = pytest.mark.parametrize(
    "stream", [TINY, QEMU_72, QEMU_11], ids=lambda stream: stream.title
)


def size_of(devices: bytes) -> bytes:
    return hexed("00000004") + len(devices).to_bytes(8, "big")


def turns(stream: Stream) -> list[bytes]:
    """What the primary says in one go, before it waits for an answer."""
    said, checkpoints = stream.wire
    said_all = [said]
    for ram, checkpoint in zip(checkpoints, stream.checkpoints, strict=True):
        devices = checkpoint.devices
        said_all += [REQUEST, SEND + ram + size_of(devices) + devices]
    return said_all


def wholes(stream: Stream) -> list[tuple[dict[str, bytes], bytes]]:
    """The memory and the devices of the first migration and of each checkpoint."""
    images = blank(stream.blocks)
    paint(images, stream.pages)
    found = [({name: bytes(image) for name, image in images.items()}, stream.devices)]
    for checkpoint in stream.checkpoints:
        paint(images, checkpoint.pages)
        found.append(({name: bytes(image) for name, image in images.items()}, checkpoint.devices))
    return found


class Session:
    """A session with its store; ``serves`` says whether requests are carried out at once."""

    def __init__(
        self,
        folder: Path,
        checks: Checks | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.now = 0.0
        self.serves = True
        self.figures = Figures()
        self.store = Store(folder / "store", (RAM,), limits)
        self.begin(checks)

    def begin(self, checks: Checks | None = None) -> None:
        self.sent = b""
        self.fed = 0
        self.requested: list[Do] = []
        self.incoming = Incoming("web1", self.store, self.figures, lambda: self.now, checks)

    def feed(self, data: bytes, size: int = 1 << 20) -> None:
        while data:
            window = self.incoming.writable(min(size, len(data)))
            window[:] = data[: len(window)]
            data = data[len(window) :]
            self.fed += len(window)
            self.incoming.received(len(window))
            if self.serves:
                self.serve()
            self.sent += self.incoming.to_send()

    def serve(self) -> None:
        """Do what the session asks for, in order, as the shell does."""
        while self.incoming.requests:
            request = self.incoming.requests.pop(0)
            self.requested.append(request)
            match request:
                case Do.APPLY:
                    self.apply()
                case Do.PREPARE:
                    self.apply()
                    if self.incoming.state is SecondaryState.PREPARING:
                        self.incoming.handle(SecondaryEvent.PREPARED)
                case _:
                    assert request in (Do.CLOSE, Do.TAKE_OVER)
        self.sent += self.incoming.to_send()

    def apply(self) -> None:
        if not self.store.is_applied:
            self.store.apply()
            self.incoming.applied()

    def images(self) -> dict[str, bytes]:
        return {name: image.pages.tobytes() for name, image in self.store.images.items()}

    def take_over(self) -> tuple[dict[str, bytes], bytes]:
        """Lose the primary, take over, and return memory and devices as they are exported."""
        self.incoming.handle(SecondaryEvent.LOST)
        assert self.incoming.state is SecondaryState.LOST
        self.incoming.handle(SecondaryEvent.FAILOVER)
        self.requested = []
        self.serve()
        assert self.requested[-2:] == [Do.CLOSE, Do.TAKE_OVER]
        found = naive(b"".join(migration_stream(self.store)))
        devices = found.tail[: found.tail.rindex(b'\6\0\0\0\x22{"page_size"')]
        return {name: bytes(image) for name, image in found.images.items()}, devices


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


# Answers


ANSWERS_72 = [READY, REPLY, RECEIVED + LOADED, REPLY, RECEIVED + LOADED]
ANSWERS = {
    TINY.title: ANSWERS_72,
    QEMU_72.title: ANSWERS_72,
    QEMU_11.title: [
        # PONG 1; SHUT 0; and only then ready
        hexed("0002 0004 00000001 0001 0004 00000000") + READY,
        *ANSWERS_72[1:],
    ],
}


@each_stream
def test_a_session_is_answered_turn_by_turn(stream: Stream, session: Session) -> None:
    for said, answer, state in zip(
        turns(stream),
        ANSWERS[stream.title],
        ["READY", "REPLIED", "READY", "REPLIED", "READY"],
        strict=True,
    ):
        session.sent = b""
        session.feed(said)
        assert session.sent == answer
        assert session.incoming.state.name == state
    assert session.requested == [Do.PREPARE, Do.APPLY] * 2
    assert (session.images(), stream.checkpoints[-1].devices) == wholes(stream)[-1]
    assert session.incoming.bytes_received == session.fed
    assert session.incoming.closed() is None
    assert session.incoming.to_send() == b"", "once only"


@each_stream
def test_an_answer_goes_out_with_the_byte_that_asks_for_it(
    stream: Stream, session: Session
) -> None:
    answered: list[int] = []
    for said in turns(stream):
        for at in range(0, len(said)):
            before = len(session.sent)
            session.feed(said[at : at + 1])
            if len(session.sent) > before:
                answered.append(session.fed)
    ends = list(itertools.accumulate(len(said) for said in turns(stream)))
    ping = [stream.data.index(hexed("08 0002")) + 9] if stream is QEMU_11 else []
    assert answered == ping + ends
    assert session.sent == b"".join(ANSWERS[stream.title])


def test_the_vm_waits_from_the_first_byte_of_a_checkpoint_to_the_answers(session: Session) -> None:
    """Its announcement comes before its devices are saved: that is too early to stay awake."""
    first, *checkpoints = turns(TINY)
    session.feed(first)
    for request, checkpoint in zip(checkpoints[0::2], checkpoints[1::2], strict=True):
        session.feed(request)
        assert not session.incoming.vm_waits
        session.feed(checkpoint[:4])
        assert not session.incoming.vm_waits
        for at in range(4, len(checkpoint) - 1):
            session.feed(checkpoint[at : at + 1])
            assert session.incoming.vm_waits
        session.feed(checkpoint[-1:])
        assert not session.incoming.vm_waits


def test_a_checkpoint_knows_since_when_the_vm_stood_still(session: Session) -> None:
    """Not since it was whole, and not since one that was cut off began."""
    first, request, one, again, two = turns(TINY)[:5]
    session.now = 1.0
    session.feed(first)
    session.now = 2.0
    session.feed(request)
    session.feed(one[:4])
    assert session.store.checkpoint is not None
    assert session.store.checkpoint.since == Since(stood=1.0, saved=1.0)
    session.now = 3.0
    session.feed(one[4:-1])
    session.now = 4.0
    session.feed(one[-1:])
    assert session.store.checkpoint.since == Since(stood=2.0, saved=3.0)
    session.now = 5.0
    session.feed(again)
    session.feed(two[:-1])
    assert session.store.checkpoint.since == Since(stood=2.0, saved=3.0)


@pytest.mark.parametrize(("number", "saved"), [(1, 2.25), (0, 3.0), (2, 3.0)])
def test_over_a_slow_wire_the_primary_tells_when_the_devices_were_saved(
    number: int, saved: float, session: Session
) -> None:
    """Of that checkpoint, and of no other."""
    first, request, one = turns(TINY)[:3]
    session.feed(first)
    session.now = 2.0
    session.feed(request)
    session.feed(one[:4])
    session.incoming.saved_after(number, 0.25)
    session.now = 3.0
    session.feed(one[4:])
    assert session.store.checkpoint is not None
    assert session.store.checkpoint.since == Since(stood=2.0, saved=saved)


@pytest.mark.parametrize("size", range(1, 200))
def test_the_pieces_in_which_bytes_come_change_nothing(size: int, session: Session) -> None:
    for said in turns(TINY):
        session.feed(said, size)
    assert session.sent == b"".join(ANSWERS_72)
    assert session.images() == wholes(TINY)[-1][0]
    assert session.incoming.bytes_received == session.fed


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_memory_is_exact_after_any_checkpoints(data: st.DataObject, tmp_path: Path) -> None:
    def runs() -> tuple[PageRun, ...]:
        found = []
        for _ in range(data.draw(st.integers(0, 5))):
            block = data.draw(st.sampled_from([RAM, RSDP]))
            numbers = data.draw(st.lists(st.integers(0, block.pages - 1), min_size=1, max_size=9))
            value = data.draw(st.sampled_from([None, 0, 1]))
            seed = data.draw(st.integers(1, 99))
            found.append(
                full(block, numbers, seed) if value is None else fill(block, numbers, value)
            )
        return tuple(found)

    checkpoints = tuple(
        Checkpoint(runs(), (runs(),), later_devices(n)) for n in range(data.draw(st.integers(0, 4)))
    )
    stream = Stream("drawn", parts=(runs(), runs()), end=runs(), checkpoints=checkpoints)
    session = Session(tmp_path)
    try:
        size = data.draw(st.integers(1, 50_000))
        for number, said in enumerate(turns(stream)):
            session.feed(said, size)
            assert session.images() == wholes(stream)[number // 2][0]
        assert session.take_over() == wholes(stream)[-1]
    finally:
        session.store.remove()


# Cut off anywhere


def cut_points(stream: Stream) -> list[int]:
    total = sum(len(said) for said in turns(stream))
    return list(range(total + 1)) if stream is TINY else list(range(0, total + 1, 251))


@pytest.mark.parametrize("applies_late", [False, True])
@each_stream
def test_a_session_cut_off_anywhere_leaves_the_last_whole_checkpoint(
    stream: Stream, applies_late: bool, tmp_path: Path
) -> None:
    said_all, expected = turns(stream), wholes(stream)
    for cut in cut_points(stream):
        session = Session(tmp_path)
        left, whole = cut, -1
        for number, said in enumerate(said_all):
            session.serves = number % 2 == 1 or not applies_late
            session.feed(said[:left])
            is_request, is_checkpoint = number % 2 == 1, number % 2 == 0 and number > 0
            if left < len(said):
                is_within = left > 0 or is_checkpoint
                break
            left -= len(said)
            whole += not is_request
            is_within = False
        cut_off = session.incoming.closed()
        if whole < 0:
            assert isinstance(cut_off, PeerError)
            session.incoming.handle(SecondaryEvent.LOST)
            assert session.incoming.state is SecondaryState.FAILED
            assert session.store.checkpoint is None
        else:
            assert (cut_off is not None) == is_within, cut
            assert session.store.checkpoint is not None
            assert session.store.checkpoint.number == whole
            assert session.take_over() == expected[whole], cut
            assert session.images() == expected[whole][0]
        session.store.remove()


def test_an_end_is_told_with_the_checkpoint_and_how_far_it_came(session: Session) -> None:
    migration, request, checkpoint, *_ = turns(TINY)
    assert str(session.incoming.closed()) == (
        "The channel ended inside the first migration, 0 bytes into it"
    )
    session.feed(migration[:300])
    assert "inside the first migration, " in str(session.incoming.closed())
    session.feed(migration[300:])
    assert session.incoming.closed() is None
    session.feed(request[:2])
    assert isinstance(session.incoming.closed(), ShortRead)
    session.feed(request[2:])
    for at, state in ((0, "REPLIED"), (9, "RECEIVING_RAM"), (len(checkpoint) - 1, "DEVICES")):
        session.feed(checkpoint[session.fed - len(migration) - 4 : at])
        found = str(session.incoming.closed())
        assert "inside checkpoint 1 (" in found and state in found
    session.feed(checkpoint[-1:])
    assert session.incoming.closed() is None


def test_how_far_a_checkpoint_came_is_never_less_than_nothing(session: Session) -> None:
    for said in turns(TINY):
        for byte in said:
            session.feed(bytes([byte]))
            found = session.incoming.closed()
            if isinstance(found, ShortRead):
                assert 0 <= found.got <= session.fed, found


def test_a_primary_may_come_again_after_one_that_was_cut_off(session: Session) -> None:
    session.feed(TINY.data[:-1])
    session.incoming.handle(SecondaryEvent.LOST)
    assert session.incoming.state is SecondaryState.FAILED
    session.begin()
    for said in turns(QEMU_72):
        session.feed(said)
    assert session.sent == b"".join(ANSWERS_72)
    assert session.images() == wholes(QEMU_72)[-1][0]


# Late work


def test_the_reply_waits_until_the_checkpoint_before_is_applied(session: Session) -> None:
    migration, request, first, request_2, second = turns(TINY)
    session.feed(migration)
    session.feed(request)
    session.feed(first)
    session.sent, session.serves = b"", False
    session.feed(request_2)
    assert session.incoming.state is SecondaryState.PREPARING
    assert session.incoming.requests == [Do.PREPARE]
    assert session.sent == b""
    session.incoming.handle(SecondaryEvent.PREPARED)
    assert session.incoming.to_send() == REPLY
    session.feed(second)
    assert session.sent == RECEIVED + LOADED


def test_the_next_request_may_come_before_the_pages_are_applied(session: Session) -> None:
    migration, request, first, request_2, second = turns(TINY)
    session.feed(migration)
    session.feed(request)
    session.serves = False
    session.feed(first)
    assert session.incoming.requests == [Do.APPLY]
    session.feed(request_2)
    assert session.incoming.requests == [Do.APPLY, Do.PREPARE]
    assert session.images() == wholes(TINY)[0][0]
    session.serve()
    assert session.images() == wholes(TINY)[1][0]
    session.feed(second)
    session.serve()
    assert session.images() == wholes(TINY)[2][0]


# What is refused


#: How far a session is led: its turns, and bytes of the next one; then what it expects.
PLACES: dict[str, tuple[int, int, bool, int | None]] = {
    "READY": (1, 0, True, 1),
    "PREPARING": (1, 4, False, None),
    "REPLIED": (2, 0, True, 3),
    "AWAITING_SIZE": (2, -39, True, 4),
    "READY again": (3, 0, True, 1),
}


@pytest.mark.parametrize(
    ("place", "number"),
    [
        (place, number)
        for place in PLACES
        for number in (0, 1, 2, 3, 4, 5, 6, 7, 0x51455645)
        if number != PLACES[place][3]
    ],
)
def test_a_message_out_of_place_is_refused_and_spoils_nothing(
    place: str, number: int, session: Session
) -> None:
    turn, length, serves, expected = PLACES[place]
    said = turns(TINY)
    assert len(later_devices(1)) == 27
    for each in said[:turn]:
        session.feed(each)
    session.serves = serves
    session.feed(said[turn][: length or None] if length else b"")
    assert session.incoming.state.name in place
    session.sent = b""
    state = session.incoming.state
    error = UnexpectedMessage if number <= 6 else InvalidMessage
    with pytest.raises(error) as caught:
        session.feed(number.to_bytes(4, "big") + bytes(8))
    assert session.incoming.state is state
    assert session.incoming.to_send() == b""
    if isinstance(caught.value, UnexpectedMessage):
        wanted = None if expected is None else COLOMessage(expected)
        assert (caught.value.message, caught.value.expected) == (number, wanted)
        number_text = "none" if expected is None else expected
        assert f"Unexpected COLO message {number}, expected {number_text} " in str(caught.value)
    whole = wholes(TINY)[1 if turn > 2 else 0]
    assert session.take_over() == whole


def test_a_message_in_the_midst_of_ram_is_refused(session: Session) -> None:
    for said in turns(TINY)[:2]:
        session.feed(said)
    with pytest.raises(StreamError, match="flags 0x0 in the ram section"):
        session.feed(SEND + hexed("03 00000002") + RECEIVED + LOADED[:-1] + b"\0")
    assert session.take_over() == wholes(TINY)[0]


@pytest.mark.parametrize("size", [LIMITS.device_bytes + 1, (1 << 64) - 1])
def test_device_state_over_its_limit_is_refused_before_it_is_sent(
    size: int, session: Session
) -> None:
    migration, request, first, *_ = turns(TINY)
    session.feed(migration)
    session.feed(request)
    session.feed(first[: first.index(size_of(later_devices(1)))])
    with pytest.raises(LimitExceeded, match=f"device state: {size} bytes, over the limit of 4096"):
        session.feed(hexed("00000004") + size.to_bytes(8, "big"))
    assert session.take_over() == wholes(TINY)[0]


def test_device_state_may_be_as_large_as_its_limit(session: Session) -> None:
    devices = bytes(LIMITS.device_bytes)
    stream = Stream("large", checkpoints=(Checkpoint((full(RAM, range(16)),), devices=devices),))
    for said in turns(stream):
        session.feed(said)
    assert session.take_over()[0] == wholes(stream)[-1][0]
    assert session.store.checkpoint is not None
    assert session.store.checkpoint.device_state == devices


def test_a_checkpoint_over_all_there_can_be_is_refused(session: Session) -> None:
    for said in turns(TINY)[:2]:
        session.feed(said)
    endless = Checkpoint((full(RAM, [0]),) * 400)
    data = Stream("endless", checkpoints=(endless,)).written()[1][0]
    with pytest.raises(LimitExceeded, match=r"a checkpoint: \d+ bytes, over the limit of \d+"):
        session.feed(SEND + data, 10_000)
    assert session.take_over() == wholes(TINY)[0]


class Judge(Checks):
    """Notes what it is shown, and refuses one kind of it."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.shown: list[object] = []

    def check_header(self, header: Header) -> None:
        self._judge("header", header)

    def check_blocks(self, blocks: tuple[RamBlock, ...]) -> None:
        self._judge("blocks", blocks)

    def check_devices(self, migration: Migration) -> None:
        self._judge("devices", migration.device_state)

    def _judge(self, kind: str, what: object) -> None:
        self.shown.append(what)
        if kind == self.refuses:
            raise Misfit(f"no such {kind} here")


WHOLE_CASES = [Header("pc-i440fx-7.2"), (RAM, RSDP), TINY.devices]


@pytest.mark.parametrize(
    ("refuses", "shown"), [("header", 1), ("blocks", 2), ("devices", 3)], ids=lambda value: value
)
def test_a_machine_that_cannot_run_here_is_refused_as_soon_as_it_shows(
    tmp_path: Path, refuses: str, shown: int
) -> None:
    judge = Judge(refuses)
    session = Session(tmp_path, judge)
    with pytest.raises(Misfit, match=f"no such {refuses} here"):
        session.feed(TINY.data, 100)
    assert judge.shown == WHOLE_CASES[:shown]
    if refuses == "header":
        assert set(session.images()) == {"pc.ram"}
    if refuses != "devices":
        assert not any(map(any, session.images().values())), "no page was taken"
    assert session.sent == b"", "it is never told that it is ready"
    assert session.store.checkpoint is None
    session.incoming.handle(SecondaryEvent.LOST)
    assert session.incoming.state is SecondaryState.FAILED


def test_what_fits_is_looked_at_once(tmp_path: Path) -> None:
    judge = Judge()
    session = Session(tmp_path, judge)
    for said in turns(TINY):
        session.feed(said)
    assert judge.shown == WHOLE_CASES
    assert session.incoming.state.name == "READY"


@pytest.mark.parametrize("length", [0x8000, 1 << 20, 1 << 40])
def test_memory_of_another_size_is_refused_for_its_size(session: Session, length: int) -> None:
    """Also where all blocks together are over the limit: it is -m that is wrong."""
    stream = Stream("other", blocks=(RamBlock("pc.ram", length), RSDP))
    with pytest.raises(Misfit, match="make -m the same on both sides"):
        session.feed(stream.data)


def test_silence_is_explained_where_that_can_be_done(session: Session) -> None:
    end = TINY.data.index(TINY.devices) + len(TINY.devices)
    session.feed(TINY.data[: end - 1])
    assert session.incoming.stalled() is None
    session.feed(TINY.data[end - 1 : end])
    assert isinstance(session.incoming.stalled(), UnsupportedFeature)
    session.feed(TINY.data[end:])
    assert session.incoming.state is SecondaryState.READY
    assert session.incoming.stalled() is None


# Figures


def test_each_checkpoint_leaves_its_figures(session: Session) -> None:
    migration, request, first, *_ = turns(TINY)
    ram = len(SEND) + len(TINY.wire[1][0])
    session.feed(migration)
    session.serves = False
    session.now = 10.0
    session.feed(request)
    session.now = 10.5
    session.serve()
    session.now = 11.0  # the primary takes its time until it stops the VM
    session.feed(first[: len(SEND)])
    session.now = 12.5
    session.feed(first[len(SEND) : ram])
    session.now = 15.5
    session.feed(first[ram:])
    phases = {name: list(samples) for name, samples in session.figures.phases.items()}
    assert phases == {
        "prepare": [0.5],
        "ram": [1.5],
        "devices": [3.0],
        "received": [4.5],
        "apply": [],
    }
    assert list(session.figures.pages) == [3]
    assert list(session.figures.bytes) == [len(first) - len(SEND)]
