"""The decision after a loss: who grants it, who is asked meanwhile, and what is never done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from colo.arbiters import asking
from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import about_to_write
from colo.config import VmConfig
from colo.errors import ColoError, GuestError, LocalError, LocalProtocolError
from colo.membership.grant import Grant, Record
from colo.node import running_on
from colo.node.orders import Answer
from colo.node.running_on import Solo, Verdict
from colo.node.standing import Standing
from colo.packets.gate import Gate, GateState
from colo.protocol.tables import ObserverEvent
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.monitor import Monitor
from colo.qemu.packet_filters import NetGate
from colo.session.awake import Awake
from colo.session.qemu_primary import Checkpointing
from colo.session.standstill import StandStill

HERE, THERE = "a/1/1", "b/2/2"
NFS = LocalError("arbiter /nfs/grant: no route to host")


class FakeArbiter:
    """A grant in memory; ``away`` is raised where it is out of reach, ``pause`` holds it up."""

    def __init__(self, automatic: bool = True) -> None:
        self.automatic = automatic
        self.grant = Grant(1, HERE)
        self.away: LocalError | None = None
        self.pause = threading.Event()
        self.pause.set()
        self.disk = threading.Event()
        self.disk.set()
        self.calls: list[str] = []

    def current(self) -> Record:
        self._call("current")
        return Record(self.grant.number, self.grant.holder)

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        self._call("take")
        if not self.automatic or self.grant.number != known:
            return None
        about_to_write()
        self.grant = Grant(known + 1, holder)
        self.disk.wait(5)
        return self.grant

    def order(self, holder: str) -> Grant:
        self._call("order")
        self.grant = Grant(self.grant.number + 1, holder)
        return self.grant

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.pause.wait(5)
        if self.away is not None:
            raise self.away


class FakeGate:
    """One gate, without a QEMU around it."""

    def __init__(self) -> None:
        self.gate = Gate(1 << 20)
        self.gate.hold()
        self.on_held: Callable[[], None] = lambda: None
        self.removed = False

    def open(self) -> None:
        self.gate.open(0)

    def shut(self) -> None:
        self.gate.shut()

    async def remove(self) -> None:
        self.removed = True


class FakeQemu(Monitor):
    """Answers, or is dead or hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.dead = self.hangs = False
        self.blocked = False  # it hangs in a write to the secondary
        self.asked: list[str] = []

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        self.asked.append(command)
        if self.dead:
            raise GuestError(f"QEMU died at {command}")
        if self.hangs:
            await asyncio.Event().wait()


class FakeColo:
    def __init__(self) -> None:
        self.ran = 0
        self.error: GuestError | None = None

    async def run_alone(self) -> None:
        if self.error is not None:
            raise self.error
        self.ran += 1


class Scene:
    def __init__(self, automatic: bool = True) -> None:
        self.arbiter, self.gate = FakeArbiter(automatic), FakeGate()
        self.qemu, self.colo, self.gone = FakeQemu(), FakeColo(), asyncio.Event()
        self.standing: list[Standing] = []
        self.said: list[str] = []
        self.broken: list[ColoError] = []
        self.hung_up = 0
        gate, colo = cast(NetGate, self.gate), cast(ColoPrimary, self.colo)
        config = VmConfig(name="web1")
        awake = Awake(config, self.said.append)
        still = StandStill(config, self.qemu, self.said.append)
        self.session = Checkpointing(
            config, colo, gate, awake, still, lambda: None, self.broken.append
        )
        self.solo = Solo(
            cast(Arbiter, self.arbiter),
            self.arbiter.grant,
            self.qemu,
            colo,
            gate,
            self.session,
            self.gone,
            self._hang_up,
            self.standing.append,
            self.said.append,
        )

    def _hang_up(self) -> None:
        self.hung_up += 1
        self.qemu.hangs &= not self.qemu.blocked

    def lost(self) -> asyncio.Task[Verdict]:
        """The secondary is lost, once more."""
        self.session.begin()
        self.session.machine.handle(ObserverEvent.LOST)
        self.gate.gate.hold()
        return asyncio.create_task(self.solo.decide())

    @property
    def silent(self) -> bool:
        """The VM has not been run, nor may it be heard."""
        return not self.colo.ran and self.gate.gate.state is not GateState.OPEN


def play(body: Callable[[Scene], Awaitable[None]], automatic: bool = True) -> None:
    async def run() -> None:
        scene = Scene(automatic)
        try:
            await asyncio.wait_for(body(scene), 10)
        finally:
            scene.arbiter.pause.set()
            scene.arbiter.disk.set()

    asyncio.run(run())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_S", "_QEMU_S", "_DYING_S"):
        monkeypatch.setattr(running_on, name, 0.02)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_the_vm_runs_alone_with_the_next_grant() -> None:
    async def scene(s: Scene) -> None:
        assert await s.lost() is Verdict.ALONE
        assert (s.solo.grant, s.arbiter.grant) == (Grant(2, HERE), Grant(2, HERE))
        assert s.gate.gate.state is GateState.OPEN and s.gate.removed and s.colo.ran == 1
        assert s.standing == [Standing.UNPROTECTED]

    play(scene)


def test_who_is_second_is_fenced() -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.grant = Grant(2, THERE)
        assert await s.lost() is Verdict.FENCED
        assert s.silent and s.gate.gate.state is GateState.SHUT
        assert "stop" in s.qemu.asked and s.standing == [Standing.FENCED]
        assert f"FENCED: {THERE} has the right to run this VM (grant 2)" in s.said[-1]

    play(scene)


@pytest.mark.parametrize("parting", [False, True])
def test_who_is_fenced_stays_so_where_the_owner_cannot_be_learnt(parting: bool) -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.grant = Grant(2, THERE)
        take = s.arbiter.take

        def last_answer(known: int, holder: str, void: Grant | None = None) -> Grant | None:
            answer = take(known, holder)
            s.arbiter.away = NFS
            return answer

        s.arbiter.take = last_answer  # type: ignore[method-assign]
        assert await (s.solo.part() if parting else s.lost()) is Verdict.FENCED
        assert s.silent and s.gate.gate.state is GateState.SHUT
        assert s.hung_up and "FENCED: another host" in s.said[-1]
        with pytest.raises(LocalProtocolError):
            await s.solo.alone()

    play(scene)


def test_parting_takes_the_grant_first_and_goes_on_without_an_arbiter() -> None:
    async def scene(s: Scene) -> None:
        assert await s.solo.part() is Verdict.ALONE
        assert s.solo.grant == Grant(2, HERE) and s.colo.ran == 1
        s.session.begin()
        s.arbiter.away = NFS
        assert await s.solo.part() is Verdict.ALONE
        assert s.solo.grant == Grant(2, HERE) and s.colo.ran == 2
        assert str(NFS) in s.said[-2]

    play(scene)


def test_parting_from_a_vm_that_hangs_leaves_it_to_the_other_host() -> None:
    async def hanging(s: Scene) -> None:
        s.qemu.hangs = True
        assert await s.solo.part() is Verdict.HUNG
        assert s.silent and s.gate.gate.state is GateState.SHUT and s.arbiter.calls == []

    async def blocked(s: Scene) -> None:
        s.qemu.hangs = s.qemu.blocked = True
        assert await s.solo.part() is Verdict.ALONE

    play(hanging)
    play(blocked)


# -- an operator's order ------------------------------------------------------------------


def test_an_order_while_the_arbiter_is_away_is_answered_and_ends_nothing() -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.away = NFS
        deciding = s.lost()
        await until(lambda: s.said)
        assert s.said == [
            f"no grant: {NFS}; the VM stays silent until the arbiter answers, or "
            "`colo failover --force`"
        ]
        assert await s.solo.order(False) == Answer(False, f"{NFS}; --force does without it")
        assert s.silent and not deciding.done()
        s.arbiter.away = None
        assert await deciding is Verdict.ALONE

    play(scene)


def test_a_forced_order_does_without_the_arbiter() -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.away = NFS
        deciding = s.lost()
        await until(lambda: s.said)
        assert await s.solo.order(True) == Answer(True, "the VM runs here alone")
        assert await deciding is Verdict.ALONE
        assert s.colo.ran == 1 and s.gate.gate.state is GateState.OPEN
        assert s.solo.grant == Grant(1, HERE), "the number that the arbiter knows"
        assert f"by order, without a grant: {NFS}" in s.said

    play(scene)


def test_an_order_is_no_way_around_an_arbiter_that_has_granted_the_other_host() -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.away = NFS
        deciding = s.lost()
        await until(lambda: s.said)
        s.arbiter.grant, s.arbiter.away = Grant(2, THERE), None
        assert not (await s.solo.order(False)).ok
        assert await deciding is Verdict.FENCED
        assert "order" not in s.arbiter.calls

    play(scene)


def test_without_an_automatic_arbiter_only_an_order_decides() -> None:
    async def scene(s: Scene) -> None:
        deciding = s.lost()
        await until(lambda: s.said)
        assert s.said == ["no grant; the VM stays silent until `colo failover`"]
        await asyncio.sleep(0.1)
        assert s.silent and not s.arbiter.calls
        assert (await s.solo.order(False)).ok
        assert await deciding is Verdict.ALONE
        assert s.solo.grant == Grant(2, HERE)

    play(scene, automatic=False)


def test_an_order_is_not_left_for_the_next_loss() -> None:
    """It came while the arbiter was being asked, which then answered by itself."""

    async def scene(s: Scene) -> None:
        s.arbiter.pause.clear()
        deciding = s.lost()
        await until(lambda: s.arbiter.calls)
        orders = [asyncio.create_task(s.solo.order(force)) for force in (False, True)]
        await asyncio.sleep(0.01)
        s.arbiter.pause.set()
        assert await deciding is Verdict.ALONE
        assert [(await each).ok for each in orders] == [True, True]
        s.arbiter.grant = Grant(3, THERE)
        assert await s.lost() is Verdict.FENCED
        assert "order" not in s.arbiter.calls

    play(scene)


def test_an_order_is_refused_once_a_grant_is_in_hand() -> None:
    async def scene(s: Scene) -> None:
        running = asyncio.Event()
        s.colo.run_alone = running.wait  # type: ignore[assignment]
        deciding = s.lost()
        await until(lambda: s.gate.gate.state is GateState.OPEN)
        assert not (await s.solo.order(True)).ok
        running.set()
        assert await deciding is Verdict.ALONE
        assert not (await s.solo.order(True)).ok
        s.arbiter.grant = Grant(3, THERE)
        assert await s.lost() is Verdict.FENCED

    play(scene)


def test_an_order_is_told_that_the_vm_does_not_run() -> None:
    async def scene(s: Scene) -> None:
        s.colo.error = GuestError("QEMU does not leave COLO")
        deciding = s.lost()
        await until(lambda: s.said)
        assert await s.solo.order(False) == Answer(False, "QEMU does not leave COLO")
        with pytest.raises(GuestError):
            await deciding

    play(scene, automatic=False)


# -- what else happens meanwhile ----------------------------------------------------------


@pytest.mark.parametrize("automatic", [True, False])
def test_no_grant_is_taken_for_a_vm_that_is_gone(automatic: bool) -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.away = NFS
        deciding = s.lost()
        await until(lambda: s.said)
        s.qemu.dead = True
        s.gone.set()
        s.arbiter.away = None
        assert await deciding is Verdict.GONE
        assert s.silent and s.arbiter.grant == Grant(1, HERE)

    play(scene, automatic)


def test_a_grant_that_comes_too_late_runs_nothing() -> None:
    async def scene(s: Scene) -> None:
        s.arbiter.pause.clear()
        deciding = s.lost()
        await until(lambda: s.arbiter.calls)
        s.gone.set()
        s.arbiter.pause.set()
        assert await deciding is Verdict.GONE
        assert s.silent and s.solo.grant == s.arbiter.grant, "so it can be given back"

    play(scene)


@pytest.mark.parametrize(("hangs_in", "last"), [("disk", 2), ("pause", 1)])
def test_the_last_grant_that_a_dead_vm_may_have_is_known(
    hangs_in: str, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody heard of it: so the other host has to be told that it may be in its way."""
    monkeypatch.setattr("colo.arbiters.asking._ANSWER_S", 0.02)

    async def scene(s: Scene) -> None:
        hangs: threading.Event = getattr(s.arbiter, hangs_in)
        hangs.clear()
        deciding = s.lost()
        await until(lambda: s.said)
        s.gone.set()
        assert await deciding is Verdict.GONE
        hangs.set()
        assert s.solo.grant == Grant(1, HERE) and s.solo.last_number == last
        await until(lambda: not any(thread.is_alive() for thread in asking._calls))
        assert s.arbiter.grant == Grant(last, HERE)

    play(scene)


def test_a_qemu_that_has_just_died_is_gone_and_one_that_hangs_is_silenced() -> None:
    async def scene(s: Scene) -> None:
        s.qemu.hangs = True
        assert await s.lost() is Verdict.HUNG
        assert s.gate.gate.state is GateState.SHUT and not s.gate.removed
        assert s.arbiter.calls == [] and s.silent

    async def dying(s: Scene) -> None:
        s.qemu.dead = True
        asyncio.get_running_loop().call_later(0.005, s.gone.set)
        assert await s.lost() is Verdict.GONE
        assert s.arbiter.calls == []

    play(scene)
    play(dying)


def test_a_first_ctrl_c_says_what_is_missing_and_a_second_ends_the_wait() -> None:
    async def scene(s: Scene) -> None:
        s.solo.interrupt()
        assert s.said == []
        s.arbiter.away = NFS
        deciding = s.lost()
        await until(lambda: s.said)
        s.solo.interrupt()
        assert len(s.said) == 2 and "Ctrl-C once more" in s.said[1] and str(NFS) in s.said[1]
        await asyncio.sleep(0.05)
        assert not deciding.done()
        s.solo.interrupt()
        assert await deciding is Verdict.LEFT
        assert s.silent and not s.gate.removed and len(s.said) == 2

    play(scene)


def test_where_nothing_is_contested_nobody_is_asked() -> None:
    async def scene(s: Scene) -> None:
        s.session.begin()
        assert await s.solo.decide(contested=False) is Verdict.ALONE
        assert s.colo.ran == 1 and s.arbiter.calls == [] and s.solo.grant == Grant(1, HERE)
        s.session.begin()
        s.qemu.dead = True
        s.gone.set()
        assert await s.solo.decide(contested=False) is Verdict.GONE

    play(scene, automatic=False)
