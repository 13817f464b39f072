"""A protected session: what the secondary's messages do to the gate, and when it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from colo.config import VmConfig
from colo.config.vm import Checkpoints
from colo.errors import ChannelLost, ColoError, InvariantBroken, UnexpectedMessage
from colo.protocol.messages import COLOMessage, Message
from colo.protocol.tables import COURIER, CourierEvent, CourierState, Do, Effect, Step
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.packet_filters import NetGate
from colo.session import qemu_primary
from colo.session.awake import Awake
from colo.session.comparing import Comparing
from colo.session.primary_stream import Came
from colo.session.qemu_primary import Checkpointing
from colo.session.standstill import StandStill

ROUND = (
    COLOMessage.CHECKPOINT_REPLY,
    COLOMessage.VMSTATE_RECEIVED,
    COLOMessage.VMSTATE_LOADED,
)
#: As it was before checkpoints were taken aside.
THROUGH = VmConfig(name="web1", checkpoints=Checkpoints(aside_mib=0))
#: The same, with time for a busy machine to look before a checkpoint is due.
LATER = VmConfig(name="web1", checkpoints=Checkpoints(aside_mib=0, run_min_ms=500))


class FakeGate:
    """Notes what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.held_since: float | None = None
        self.held_bytes = 0
        self.on_held: Callable[[], None] = lambda: None

    def hold(self) -> None:
        self.told.append("hold")

    def cover(self) -> None:
        self.told.append("cover")

    def release(self) -> None:
        self.told.append("release")
        self.held_since, self.held_bytes = None, 0

    def flush(self) -> None:
        self.told.append("flush")

    def holds(self, size: int = 60) -> None:
        """A packet comes."""
        self.held_since, self.held_bytes = asyncio.get_running_loop().time(), size
        self.on_held()


class FakeColo:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.stood_since: float | None = None

    async def request(self) -> None:
        self.asked += 1


class FakeAwake:
    """Counts checkpoints, and remembers whether it was closed after the last."""

    def __init__(self) -> None:
        self.checkpoints, self.closed = 0, False

    def checkpoint(self) -> None:
        self.checkpoints, self.closed = self.checkpoints + 1, False

    def close(self) -> None:
        self.closed = True


class FakeStandStill:
    """Notes how long the VM stood still."""

    def __init__(self) -> None:
        self.protected_times = 0
        self.stops: list[float] = []

    def protected(self) -> None:
        self.protected_times += 1

    def stopped(self, seconds: float, now: float) -> None:
        self.stops.append(seconds)

    def status(self) -> None:
        return None


class Scene:
    def __init__(self, config: VmConfig) -> None:
        self.gate, self.colo, self.protected = FakeGate(), FakeColo(), 0
        self.awake, self.still = FakeAwake(), FakeStandStill()
        self.passed: list[COLOMessage] = []
        self.broken: list[ColoError] = []
        self.stood_still = False
        self.cuts: list[int] = []
        self.heard_at: list[float | None] = []
        self.session = Checkpointing(
            config,
            cast(ColoPrimary, self.colo),
            cast(NetGate, self.gate),
            cast(Awake, self.awake),
            cast(StandStill, self.still),
            self._protected,
            self.broken.append,
            self.check_heard,
        )
        self.session.carrier = self
        self.session.cut = self.cuts.append
        self.session.begin()

    def _protected(self) -> None:
        self.protected += 1

    def check_heard(self, at: float | None) -> None:
        self.heard_at.append(at)
        if self.stood_still:
            raise ChannelLost("this host stood still for 5.0 s")

    #: What a relay has to say.
    whole_bytes = 0
    whole_sent_at: float | None = None
    saved_s: float | None = None

    def send(self, message: Message) -> None:
        self.passed.append(message.kind)

    @property
    def vm(self) -> str:
        return self.session.machine.vm.value

    def hear(self, *kinds: COLOMessage) -> None:
        for kind in kinds:
            self.session.received(Message(kind))

    def protect(self) -> None:
        """The first copy comes by, and the secondary has it."""
        self.session.came(Came.COPY)
        self.hear(COLOMessage.CHECKPOINT_READY)

    async def stopped(self) -> None:
        """The secondary is ready, a packet is held, and the VM is stopped for its checkpoint."""
        self.protect()
        self.hear(COLOMessage.CHECKPOINT_REPLY)
        self.gate.holds()
        await until(lambda: self.vm == "stop")

    def whole(self) -> None:
        """The checkpoint under way has come from QEMU."""
        self.session.came(Came.CHECKPOINT)

    async def round(self) -> None:
        """A checkpoint from the reply to its end."""
        self.hear(COLOMessage.CHECKPOINT_REPLY)
        await until(lambda: self.vm == "stop")
        self.whole()
        self.hear(COLOMessage.VMSTATE_RECEIVED, COLOMessage.VMSTATE_LOADED)


def play(scene: Callable[[Scene], object], config: VmConfig | None = None) -> None:
    async def run() -> None:
        await asyncio.wait_for(
            scene(Scene(config or VmConfig(name="web1"))),  # type: ignore[arg-type]
            10,
        )

    asyncio.run(run())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


class FakeComparing:
    """Tells a gate's notes what it is told itself."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def cover(self, number: int) -> None:
        self.told.append(f"comparing covers {number}")

    def safe(self, number: int, held_s: float) -> None:
        self.told.append(f"comparing has {number} safe")

    def due_at(self, *_: object) -> float:
        return float("inf")


def test_what_was_held_during_a_first_copy_has_left_before_anything_is_compared() -> None:
    """Whoever ends the protection meanwhile has it held; the rule counts from the copy on."""

    async def scene(it: Scene) -> None:
        it.session.have_comparing(cast(Comparing, FakeComparing(it.gate.told)))
        it.gate.hold()
        it.protect()
        assert it.gate.told == [
            "hold", "cover", "comparing covers 0", "hold", "release", "comparing has 0 safe",
        ]  # fmt: skip

    play(scene)


def test_packets_are_held_from_the_moment_the_first_copy_is_whole() -> None:
    async def scene(s: Scene) -> None:
        assert (s.gate.told, s.protected) == ([], 0)
        s.protect()
        assert (s.gate.told, s.protected, s.cuts) == (["cover", "hold"], 1, [0])
        assert s.session.machine.state is CourierState.RUNNING

    play(scene)


def test_a_checkpoint_that_goes_through_has_the_vm_wait_for_the_secondary() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        await asyncio.sleep(0)
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        s.gate.told.clear()
        s.gate.holds()
        assert s.awake.checkpoints == 0
        await until(lambda: COLOMessage.CHECKPOINT_REPLY in s.passed)
        assert s.awake.checkpoints == 1
        assert s.gate.told == []
        s.whole()
        assert s.gate.told == ["cover"] and s.vm == "stop"
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        assert s.gate.told == ["cover", "release"] and s.vm == "stop"
        s.hear(COLOMessage.VMSTATE_LOADED)
        assert s.gate.told == ["cover", "release"] and s.vm == "run"
        await until(lambda: s.gate.told[-1] == "flush")  # once QEMU has the message
        assert s.session.count == 1
        assert s.passed == [COLOMessage.CHECKPOINT_READY, *ROUND]

    play(scene, LATER)


def test_a_checkpoint_that_is_taken_aside_lets_the_vm_run_and_releases_later() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        await asyncio.sleep(0)
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        s.gate.holds()
        await until(lambda: s.vm == "stop")
        s.gate.told.clear()
        s.whole()
        assert s.passed == [COLOMessage.CHECKPOINT_READY, *ROUND]
        assert (s.vm, s.gate.told, s.cuts) == ("run", ["cover"], [0, 1])
        await asyncio.sleep(0)
        assert (s.gate.told, len(s.still.stops), s.session.count) == (["cover"], 1, 0)
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        assert (s.gate.told, s.session.count) == (["cover", "release"], 1)
        s.session.came(Came.REQUEST)
        assert s.gate.told == ["cover", "release", "flush"], "its VM runs by now"
        s.hear(COLOMessage.VMSTATE_LOADED)
        assert s.passed == [COLOMessage.CHECKPOINT_READY, *ROUND], "QEMU has heard it"

    play(scene)


def test_what_is_released_once_the_vm_runs_goes_at_once() -> None:
    async def scene(s: Scene) -> None:
        await s.stopped()
        s.whole()
        s.session.came(Came.REQUEST)
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        assert s.gate.told[-2:] == ["release", "flush"]

    play(scene)


def test_the_next_checkpoint_waits_for_the_secondarys_reply_however_much_is_held() -> None:
    async def scene(s: Scene) -> None:
        await s.stopped()
        s.whole()
        s.session.came(Came.REQUEST)
        s.gate.holds(8 << 20)
        await asyncio.sleep(0.01)
        assert s.vm == "run" and "release" not in s.gate.told
        s.hear(COLOMessage.VMSTATE_RECEIVED, COLOMessage.VMSTATE_LOADED)
        s.gate.holds()
        await asyncio.sleep(0.01)
        assert s.vm == "run"
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await until(lambda: s.vm == "stop")

    play(scene)


def test_how_old_the_secondarys_state_is() -> None:
    async def scene(s: Scene) -> None:
        assert s.session.lag_s is None
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await asyncio.sleep(0.02)
        s.gate.holds()
        await until(lambda: s.vm == "stop")
        s.whole()
        before = s.session.lag_s
        assert before is not None and before > 0.02, "it has the first copy until it says more"
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        assert s.session.lag_s is not None and s.session.lag_s < before

    play(scene)


def test_that_the_secondary_has_a_checkpoint_says_that_it_has_heard_this_host() -> None:
    """On a busy wire its heartbeats queue behind the very bytes that are answered."""

    async def scene(s: Scene) -> None:
        s.protect()
        s.whole_sent_at = 7.5
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        s.gate.holds()
        await until(lambda: s.vm == "stop")
        s.whole()
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        assert s.heard_at == [None, 7.5]

    play(scene)


def test_a_host_that_stood_still_releases_nothing() -> None:
    """The other host may have taken over from that very checkpoint, and its VM been heard."""

    async def scene(s: Scene) -> None:
        await s.stopped()
        s.whole()
        s.stood_still = True
        with pytest.raises(ChannelLost, match="stood still"):
            s.session.received(Message(COLOMessage.VMSTATE_RECEIVED))
        assert "release" not in s.gate.told

    play(scene)


def test_a_message_out_of_place_releases_nothing() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        for kind in COLOMessage:
            if kind not in (COLOMessage.CHECKPOINT_REPLY, COLOMessage.VMSTATE_SIZE):
                with pytest.raises(UnexpectedMessage):
                    s.hear(kind)
        assert s.gate.told == ["cover", "hold"]

    play(scene)


def test_a_request_that_leads_to_no_reply_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_primary, "_LATE_S", 0.01)

    async def scene(s: Scene) -> None:
        s.protect()
        s.gate.holds()
        await until(lambda: s.colo.asked == 2)
        await s.round()
        await until(lambda: s.colo.asked == 3)
        s.session.came(Came.REQUEST)
        await asyncio.sleep(0.03)
        assert s.colo.asked == 3, "it has asked: the secondary is busy"
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await asyncio.sleep(0.03)
        assert s.colo.asked == 3

    play(scene)


def test_the_reply_is_held_until_a_packet_is() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await asyncio.sleep(0.01)
        assert s.passed == [COLOMessage.CHECKPOINT_READY]
        assert s.session.machine.state is CourierState.REPLIED
        assert s.vm == "run"
        s.gate.holds()
        assert s.passed[1:] == [COLOMessage.CHECKPOINT_REPLY]
        assert s.vm == "stop"

    play(scene)


def test_a_packet_that_came_first_waits_for_the_reply() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.gate.holds()
        await asyncio.sleep(0.01)
        assert s.session.machine.state is CourierState.RUNNING
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        assert s.passed[-1] is COLOMessage.CHECKPOINT_REPLY

    play(scene)


def test_a_second_reply_is_out_of_place() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        with pytest.raises(UnexpectedMessage):
            s.hear(COLOMessage.CHECKPOINT_REPLY)

    play(scene)


def test_an_idle_vm_is_checkpointed_when_the_last_one_is_too_old() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await until(lambda: s.passed[-1] is COLOMessage.CHECKPOINT_REPLY)

    play(scene, VmConfig("web1", checkpoints=Checkpoints(age_max_ms=20)))


def test_nothing_begins_after_the_end() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        s.session.end()
        assert s.awake.closed
        s.gate.holds()
        await asyncio.sleep(0.03)
        assert s.passed == [COLOMessage.CHECKPOINT_READY]

    play(scene, VmConfig("web1", checkpoints=Checkpoints(age_max_ms=10)))


def test_a_checkpoint_that_does_not_end_is_overdue() -> None:
    async def scene(s: Scene) -> None:
        await s.stopped()
        await asyncio.sleep(0.002)
        assert s.session.overdue(0.001)
        assert not s.session.overdue(60)

    play(scene)


@pytest.mark.parametrize("held", [False, True], ids=["silent", "heard"])
def test_a_checkpoint_that_is_not_asked_for_is_overdue(held: bool) -> None:
    """A QEMU that hangs just then asks for none, and may have sent nothing since."""

    async def scene(s: Scene) -> None:
        s.protect()
        if held:
            s.gate.holds()
        assert not s.session.stalled(7, 0.001)
        await asyncio.sleep(0.002)
        assert s.session.stalled(7, 0.001)
        assert not s.session.stalled(7, 60)

    play(scene)


def test_an_idle_vm_that_could_be_checkpointed_at_any_moment_is_not_overdue() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        assert not s.session.stalled(7, 0.001)
        await asyncio.sleep(0.002)
        assert not s.session.overdue(0.001) and not s.session.stalled(7, 0.001)

    play(scene)


def test_one_that_takes_long_to_be_sent_is_not_overdue_while_bytes_move() -> None:
    async def scene(s: Scene) -> None:
        await s.stopped()
        s.whole()
        for moved in range(3):
            await asyncio.sleep(0.002)
            assert not s.session.overdue(0.001) and not s.session.stalled(moved, 0.001)
        await asyncio.sleep(0.002)
        assert s.session.stalled(2, 0.001)

    play(scene)


def test_a_first_copy_that_does_not_move_has_stalled() -> None:
    async def scene(s: Scene) -> None:
        assert not s.session.stalled(0, 0.001)
        await asyncio.sleep(0.002)
        assert s.session.stalled(0, 0.001) and not s.session.stalled(0, 60)
        assert not s.session.stalled(4096, 0.001)
        await asyncio.sleep(0.002)
        assert s.session.stalled(4096, 0.001)
        s.session.begin()
        assert not s.session.stalled(4096, 0.001), "another session"
        await asyncio.sleep(0.002)
        s.protect()
        assert not s.session.stalled(4096, 0.001), "it is there"

    play(scene)


def test_a_step_that_breaks_an_invariant_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come from a timer, where nobody else would hear of it."""
    row = (CourierState.REPLIED, CourierEvent.CHECKPOINT_DUE)
    wrong = Step(CourierState.STOPPED, (Effect(Do.RELEASE),))
    monkeypatch.setitem(cast("dict[object, object]", COURIER), row, wrong)

    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        await until(lambda: s.broken)
        assert [type(error) for error in s.broken] == [InvariantBroken]
        assert "release" not in s.gate.told

    play(scene, VmConfig(name="web1", checkpoints=Checkpoints(age_max_ms=10)))


def test_a_checkpoint_that_is_wanted_is_taken_at_once_and_told_when_its_output_may_leave() -> None:
    async def scene(s: Scene) -> None:
        s.protect()
        s.hear(COLOMessage.CHECKPOINT_REPLY)
        wanted = asyncio.ensure_future(s.session.fresh())
        await until(lambda: s.passed[-1] is COLOMessage.CHECKPOINT_REPLY)
        s.whole()
        assert s.vm == "stop", "whoever waits for it wants nothing done since"
        s.hear(COLOMessage.VMSTATE_RECEIVED)
        await asyncio.sleep(0)
        assert not wanted.done(), "its VM does not go on yet"
        s.hear(COLOMessage.VMSTATE_LOADED)
        await wanted
        assert s.gate.told[-2:] == ["release", "flush"]

    play(scene)


def test_a_checkpoint_that_was_under_way_when_one_was_wanted_is_not_that_one() -> None:
    async def scene(s: Scene) -> None:
        await s.stopped()
        wanted = asyncio.ensure_future(s.session.fresh())
        await asyncio.sleep(0)
        s.whole()
        s.hear(COLOMessage.VMSTATE_RECEIVED, COLOMessage.VMSTATE_LOADED)
        await asyncio.sleep(0.01)
        assert not wanted.done()
        await s.round()
        await wanted

    play(scene)
