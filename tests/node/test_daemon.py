"""What a daemon does next: by the arbiter's record, by what it finds, by how a part has ended."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.config import VmConfig
from colo.config.vm import Failover
from colo.errors import ChannelLost, DiskError, GuestError, LocalError, Refused, UsageError
from colo.membership.grant import Ending, Grant
from colo.membership.member import Member
from colo.membership.states import State
from colo.node import daemon, host_qemu, left_here
from colo.node.daemon import Daemon
from colo.node.orders import Order, give_order
from colo.node.state_folder import StateFolder
from colo.qemu.identity import instance, living
from colo.qemu.libvirt_library import LibvirtError
from colo.qemu.process import LaunchPlan
from colo.qemu.running import NotRunning, Running
from colo.service.notify import Notifier
from colo.transport.address import Address

HOSTS = {"a": "unix:/a", "b": "unix:/b"}
DEAD = "a/999999999/1"
THEIRS = "b/7/7"


class FakeQemu:
    """A QEMU that is this very process."""

    def __init__(self, world: World, what: str) -> None:
        self.world, self.what = world, what
        self.pid, self.exited = os.getpid(), False

    async def start(self) -> None:
        self.world.did.append("starts QEMU")

    async def attach(self) -> None:
        if self.world.silent:
            raise GuestError("it does not answer")

    async def execute(self, command: str) -> dict[str, str]:
        return {"status": self.world.run_state}

    async def kill(self) -> None:
        self.exited = True
        self.world.did.append(f"ends its QEMU ({self.what})")

    async def detach(self) -> None:
        self.world.did.append(f"lets go of its QEMU ({self.what})")


class Adopted:
    """A QEMU that somebody else starts: what there is to adopt, if it ``runs``."""

    comes_back = True

    def __init__(self, world: World, runs: bool = True) -> None:
        self.world, self.runs = world, runs
        self.error: GuestError | None = None

    def __str__(self) -> str:
        return "the domain web1"

    async def attach(self, say: Callable[[str], None]) -> FakeQemu:
        if self.error is not None:
            raise self.error
        if not self.runs:
            raise NotRunning("the domain does not run: start it")
        return FakeQemu(self.world, "adopted")


class World:
    """Host a, its daemon, and what happens to it: ``leads`` and ``follows`` are how parts end."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder
        self.arbiter = Arbiter(FileRegister(folder / "grant"))
        self.did: list[str] = []
        self.said: list[str] = []
        self.leads: list[State | Exception] = []
        self.follows: list[State | Exception] = []
        self.peer: Exception | None = None
        self.peer_stays = False
        self.left: int | None = None
        self.run_state, self.silent, self.protected = "running", False, True
        self.adopted: Adopted | None = None
        self.elsewhere = False  # whether this very process is a QEMU of no state folder
        config = VmConfig("web1", failover=Failover(arbiter=f"file:{folder / 'grant'}"))
        self.config = replace(config, hosts=HOSTS)
        world = self

        class Primary:
            def __init__(self, *args: Any, start: object, host: str, member: Member) -> None:
                self.member = member
                member.facts = replace(member.facts, was_protected=world.protected)
                world.did.append("leads" + ("" if start is None else " a VM that it starts"))
                assert host == "a"

            async def run(self) -> int:
                how = world.leads.pop(0)
                if isinstance(how, Exception):
                    self.member.state = State.REFUSED
                    raise how
                self.member.state = how
                return 0

        class Secondary:
            def __init__(self, *args: Any, host: str, member: Member) -> None:
                self.member = member
                self.waiting = SimpleNamespace(qemu=FakeQemu(world, "taken over"))
                world.did.append("follows")

            async def run(self) -> int:
                how = world.follows.pop(0)
                if isinstance(how, Exception):
                    raise how
                self.member.state = how
                return 0

        async def call(to: Address, ours: object, limit_s: float) -> tuple[Any, object]:
            if world.peer is not None:
                error, world.peer = world.peer, world.peer if world.peer_stays else None
                raise error
            return SimpleNamespace(close=lambda: None), ours

        async def end(qemu: FakeQemu) -> None:
            await qemu.kill()
            world.left = None

        def kill(pid: int) -> None:
            world.did.append("kills what was left")
            world.left = None

        monkeypatch.setattr(daemon, "PrimaryNode", Primary)
        monkeypatch.setattr(daemon, "SecondaryNode", Secondary)
        monkeypatch.setattr(host_qemu, "Qemu", lambda *_: FakeQemu(self, "new"))
        monkeypatch.setattr(left_here, "AttachedQemu", lambda _: FakeQemu(self, "found"))
        monkeypatch.setattr(host_qemu, "_end", end)
        monkeypatch.setattr(left_here, "kill", kill)
        for module in (daemon, host_qemu):
            monkeypatch.setattr(module, "living", self._living)
        monkeypatch.setattr("colo.node.first_start.call", call)
        monkeypatch.setattr(daemon, "RETRY_S", 0.01)
        monkeypatch.setattr(StateFolder, "leftover", lambda _: self.left)
        monkeypatch.setattr(StateFolder, "clean_start", lambda _: None)

    def folder_has_control(self) -> bool:
        """Whether orders are taken."""
        return (self.path / "state" / "control.sock").exists()

    def _living(self, holder: str, host: str) -> int | None:
        """This process plays a QEMU that was left here; one of no state folder where it is said."""
        plays = holder == instance(os.getpid(), "a") and not self.elsewhere
        return None if plays else living(holder, host)

    def record(self, holder: str) -> None:
        """Somebody has the right by the arbiter's record."""
        self.arbiter.begin()
        self.arbiter.order(holder)

    def play(self, host: str = "a", also: Callable[[World], Any] | None = None) -> int:
        """Run the daemon to its end; ``also`` runs beside it."""

        async def run() -> int:
            folder = StateFolder(self.path / "state")
            self.folder = folder
            plan = cast(LaunchPlan, SimpleNamespace(unstarted=list, environment={}))
            addresses = {name: Address(path=f"/{name}") for name in HOSTS}
            try:
                made = Daemon(
                    self.config,
                    host,
                    addresses,
                    plan,
                    folder,
                    self.arbiter,
                    cast(Running | None, self.adopted),
                    self.said.append,
                    Notifier({}),
                )
                self.daemon = made
                work = asyncio.ensure_future(asyncio.wait_for(made.run(), 10))
                if also is not None:
                    await asyncio.wait_for(also(self), 10)
                return await work
            finally:
                folder.close()

        return asyncio.run(run())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_a_vm_that_never_ran_is_started_by_the_first_host(world: World) -> None:
    world.leads = [State.SHUTDOWN]
    assert world.play() == 0
    assert world.did == ["starts QEMU", "leads a VM that it starts", "ends its QEMU (new)"]
    assert world.arbiter.current().holder == instance(os.getpid(), "a")


def test_where_there_is_no_record_the_second_host_makes_none(world: World) -> None:
    async def stop(world: World) -> None:
        await asyncio.sleep(0.05)
        world.daemon.stop()

    world.play("b", stop)
    assert world.did == []
    assert not (world.path / "grant").exists()
    assert "nobody has begun there with this VM" in world.said[0]


def test_a_record_that_was_there_and_is_not_any_more_is_no_new_beginning(world: World) -> None:
    world.leads = [State.ENDED]
    world.play()
    (world.path / "grant").unlink()
    world.did.clear()

    async def stop(world: World) -> None:
        await asyncio.sleep(0.05)
        world.daemon.stop()

    world.play(also=stop)
    assert world.did == []


def test_numbers_that_go_back_are_noticed(world: World) -> None:
    for _ in range(3):
        world.record(DEAD)
    world.peer, world.peer_stays = Refused("b runs it"), True

    async def restore(world: World) -> None:
        while not world.said:
            await asyncio.sleep(0)
        (world.path / "grant").unlink()
        world.record(DEAD)
        while not any("grant 1, and 3 was seen here" in line for line in world.said):
            await asyncio.sleep(0.001)
        world.daemon.stop()

    world.play(also=restore)
    assert "starts QEMU" not in world.did


def test_the_other_hosts_vm_is_followed_and_taken_over_and_led(world: World) -> None:
    world.record(THEIRS)
    world.follows, world.leads = [State.RUNNING], [State.ENDED]
    assert world.play() == 0
    assert world.did == ["follows", "leads", "lets go of its QEMU (taken over)"]


def test_who_was_fenced_ends_its_copy_and_follows(world: World) -> None:
    world.record(THEIRS)
    world.follows, world.leads = [State.RUNNING, State.SHUTDOWN], [State.FENCED]
    assert world.play() == 0
    assert world.did == ["follows", "leads", "ends its QEMU (taken over)", "follows"]
    assert world.said[-1] == "web1: the guest has shut down: it ends on both hosts"


def test_what_was_left_running_by_right_is_adopted(world: World) -> None:
    world.record(instance(os.getpid(), "a"))
    world.left, world.leads = os.getpid(), [State.ENDED]
    assert world.play() == 0
    assert world.did == ["leads", "lets go of its QEMU (found)"]


def test_whose_vm_was_taken_over_in_that_very_moment_looks_again(world: World) -> None:
    """Its colo began anew, saw its own grant, and the other host got the next one."""
    world.record(instance(os.getpid(), "a"))
    world.left, world.leads = os.getpid(), [UsageError("the right belongs to b")]
    world.follows = [State.SHUTDOWN]

    async def take_over(world: World) -> None:
        while "leads" not in world.did:
            await asyncio.sleep(0.001)
        world.arbiter.order(THEIRS)

    assert world.play(also=take_over) == 0
    assert world.did[0] == "leads"
    assert world.did[-2:] == ["ends its QEMU (found)", "follows"]


def test_a_stale_copy_is_ended_and_the_other_host_followed(world: World) -> None:
    world.record(THEIRS)
    world.left, world.follows = os.getpid(), [State.SHUTDOWN]

    assert world.play() == 0
    assert world.did == ["ends its QEMU (found)", "follows"]


def test_what_an_operator_has_forced_goes_on_under_the_next_colo(world: World) -> None:
    """Without the arbiter, which has only heard of the other host's grant so far."""
    world.record(THEIRS)
    folder = StateFolder(world.path / "state")
    folder.override(1)
    folder.close()
    world.left, world.leads = os.getpid(), [State.ENDED]

    assert world.play() == 0
    assert world.did == ["leads", "lets go of its QEMU (found)"]
    assert world.daemon.member.facts.owes


def test_what_was_forced_is_stale_once_another_grant_was_given(world: World) -> None:
    world.record(THEIRS)
    folder = StateFolder(world.path / "state")
    folder.override(1)
    folder.close()
    world.record(THEIRS)
    world.left, world.follows = os.getpid(), [State.SHUTDOWN]

    assert world.play() == 0
    assert world.did == ["ends its QEMU (found)", "follows"]


def test_a_copy_is_stale_too_where_the_other_host_has_given_its_grant_back(world: World) -> None:
    """Its VM runs on there without protection, or died: either way it is newer than this one."""
    world.record(THEIRS)
    world.arbiter.give_back(THEIRS, Ending.LEFT)
    world.left, world.follows = os.getpid(), [State.SHUTDOWN]

    assert world.play() == 0
    assert world.did == ["ends its QEMU (found)", "follows"]


@pytest.mark.parametrize("had", [True, False], ids=["had a grant", "never had one"])
def test_a_copy_is_stale_too_where_the_other_host_has_shut_the_vm_down(
    world: World, had: bool
) -> None:
    """One that never had a grant is new, and yet to be protected."""
    world.record(THEIRS)
    world.arbiter.give_back(THEIRS, Ending.SHUT_DOWN)
    if had:
        folder = StateFolder(world.path / "state")
        folder.note_grant(Grant(0, instance(os.getpid(), "a")))
        folder.close()
    world.left, world.leads = os.getpid(), [State.SHUTDOWN]
    assert world.play() == 0
    assert world.did[0] == ("ends its QEMU (found)" if had else "leads")
    assert any("and was shut down (grant 1)" in line for line in world.said) is had


@pytest.mark.parametrize("what", ["silent", "prelaunch", "inmigrate"])
def test_what_was_left_and_runs_nothing_is_killed(world: World, what: str) -> None:
    world.record(THEIRS)
    world.left, world.follows = os.getpid(), [State.SHUTDOWN]
    world.silent, world.run_state = what == "silent", what
    world.play()
    assert world.did[-2:] == ["kills what was left", "follows"]


def test_what_has_the_vm_by_right_and_does_not_answer_is_waited_for(world: World) -> None:
    """It may be the only one, and its host may only be slow: that it is restarted ends no VM."""
    world.record(instance(os.getpid(), "a"))
    world.left, world.silent, world.leads = os.getpid(), True, [State.SHUTDOWN]

    async def answer(world: World) -> None:
        while not any("does not answer" in line for line in world.said):
            await asyncio.sleep(0.001)
        world.silent = False

    assert world.play(also=answer) == 0
    assert "kills what was left" not in world.did and "leads" in world.did
    assert f"end process {os.getpid()}" in world.said[0]


def test_somebody_elses_qemu_that_has_no_right_is_not_ended_but_refused(world: World) -> None:
    world.record(THEIRS)
    world.adopted = Adopted(world)
    with pytest.raises(
        UsageError,
        match=r"the domain web1 has .* b/7/7 has run it since \(grant 1\); end that QEMU",
    ):
        world.play()
    assert world.did == []


def test_a_vm_that_somebody_else_starts_is_waited_for(world: World) -> None:
    world.adopted = Adopted(world, runs=False)
    world.leads = [State.ENDED]

    async def start(world: World) -> None:
        while not world.said:
            await asyncio.sleep(0.001)
        assert world.adopted is not None
        world.adopted.runs = True

    assert world.play(also=start) == 0
    assert world.said[0] == "web1: the domain does not run: start it"
    assert world.did == ["leads", "lets go of its QEMU (adopted)"]


@pytest.mark.parametrize("how", ["died", "was shut down"])
def test_a_vm_that_somebody_else_has_started_anew_gets_a_grant(world: World, how: str) -> None:
    world.record(DEAD)
    if how == "was shut down":
        world.arbiter.give_back(DEAD, Ending.LEFT)  # its last writes are on this host's disks
    world.adopted = Adopted(world)
    world.leads = [State.ENDED]
    assert world.play() == 0
    assert world.did == ["lets go of its QEMU (adopted)", "leads", "lets go of its QEMU (adopted)"]
    assert world.arbiter.current().grant == Grant(2, instance(os.getpid(), "a"))


def test_a_vm_that_was_started_anew_waits_where_the_other_host_has_a_newer_state(
    world: World,
) -> None:
    world.record(DEAD)
    world.adopted = Adopted(world)
    world.peer, world.peer_stays = Refused("b refuses: checkpoint 7 waits"), True

    async def stop(world: World) -> None:
        while not world.said:
            await asyncio.sleep(0.001)
        world.daemon.stop()

    world.play(also=stop)
    assert "checkpoint 7 waits" in world.said[0] and "leads" not in world.did
    assert world.arbiter.current().grant == Grant(1, DEAD)


def test_a_domain_beside_the_qemu_that_runs_the_vm_is_refused(world: World) -> None:
    world.record(instance(os.getppid(), "a"))
    world.adopted = Adopted(world)
    with pytest.raises(UsageError, match="has a stale copy of web1: a/"):
        world.play()
    assert world.did == []


@pytest.mark.parametrize("runs", [False, True])
def test_disks_that_no_vm_may_run_on_are_told(
    world: World, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before somebody else starts it they are looked to; after that, only looked at."""

    def bad(config: VmConfig, folder: Path) -> None:
        raise DiskError("root", "it is a mixture")

    monkeypatch.setattr(host_qemu, "runs_on" if runs else "run_on", bad)
    world.record(DEAD)
    world.adopted = Adopted(world, runs)

    async def stop(world: World) -> None:
        while not world.said or len(world.did) < 2 * runs:
            await asyncio.sleep(0.001)
        world.daemon.stop()

    world.play(also=stop)
    assert world.said == ["web1: disk root: it is a mixture"]
    assert "leads" not in world.did
    assert set(world.did) == ({"lets go of its QEMU (adopted)"} if runs else set())


def test_libvirt_that_does_not_answer_is_waited_for(world: World) -> None:
    world.adopted = adopted = Adopted(world)
    adopted.error = LibvirtError("libvirt does not answer")
    world.leads = [State.ENDED]

    async def answer(world: World) -> None:
        while not world.said:
            await asyncio.sleep(0.001)
        adopted.error = None

    assert world.play(also=answer) == 0
    assert "whether the VM runs here: libvirt does not answer" in world.said[0]
    assert world.did[0] == "leads"
    adopted.error = GuestError("it is no process of this host")
    with pytest.raises(GuestError, match="no process"):
        world.play()


def test_the_other_hosts_vm_is_followed_where_the_domain_does_not_run(world: World) -> None:
    world.record(THEIRS)
    world.adopted = Adopted(world, runs=False)
    world.follows = [State.SHUTDOWN]
    world.play()
    assert world.did == ["follows"]


def test_a_vm_that_came_back_to_colos_own_qemu_is_no_domain_any_more(world: World) -> None:
    """It is refused in the very moment of a takeover, and ended as what colo has started."""
    world.record(instance(os.getpid(), "a"))
    world.adopted = Adopted(world, runs=False)
    world.left, world.leads = os.getpid(), [UsageError("the right belongs to b")]
    world.follows = [State.SHUTDOWN]

    async def take_over(world: World) -> None:
        while "leads" not in world.did:
            await asyncio.sleep(0.001)
        world.arbiter.order(THEIRS)

    world.play(also=take_over)
    assert world.did[0] == "leads" and world.did[-1] == "follows"


def test_a_vm_that_was_a_domain_here_and_came_back_is_none_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, where the domain ran here before, and its VM has gone over and come back."""
    world.record(instance(os.getpid(), "a"))
    world.adopted = adopted = Adopted(world)
    world.leads = [State.FENCED, UsageError("the right belongs to b")]
    world.follows = [State.RUNNING, State.SHUTDOWN]

    async def end(qemu: FakeQemu) -> None:
        await qemu.kill()
        adopted.runs = False
        world.arbiter.order(THEIRS)

    monkeypatch.setattr(host_qemu, "_end", end)
    assert world.play() == 0
    took = ["leads", "lets go of its QEMU (taken over)", "follows"]
    assert world.did == ["leads", "ends its QEMU (adopted)", "follows", *took]


def test_what_runs_by_right_and_is_not_found_here_is_not_taken_for_dead(world: World) -> None:
    """It was adopted, and its next colo is not told of it: no second VM starts."""
    world.record(instance(os.getpid(), "a"))
    world.elsewhere = True

    async def stop(world: World) -> None:
        while not world.said:
            await asyncio.sleep(0.001)
        world.daemon.stop()

    world.play(also=stop)
    assert world.did == []
    assert f"the VM runs here by right (grant 1), in process {os.getpid()}" in world.said[0]


@pytest.mark.parametrize("how", [State.FENCED, State.DEAD])
def test_somebody_elses_qemu_whose_vm_has_gone_over_is_not_looked_for_again(
    world: World, how: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record(instance(os.getpid(), "a"))
    world.adopted = Adopted(world)
    world.adopted.comes_back = False
    world.leads, world.follows = [how], [State.SHUTDOWN]

    async def end(qemu: FakeQemu) -> None:
        await qemu.kill()
        world.silent = True
        world.arbiter.order(THEIRS)

    monkeypatch.setattr(host_qemu, "_end", end)
    assert world.play() == 0
    assert world.did == ["leads", "ends its QEMU (adopted)", "follows"]


def test_a_vm_that_died_with_its_host_is_started_where_the_other_one_has_nothing(
    world: World,
) -> None:
    world.record(DEAD)
    world.leads = [State.SHUTDOWN]
    assert world.play() == 0
    assert world.did[:2] == ["starts QEMU", "leads a VM that it starts"]


def test_it_is_not_started_while_the_other_one_may_have_a_newer_state(world: World) -> None:
    world.record(DEAD)
    world.peer = Refused("b refuses: checkpoint 7 of the primary that was lost waits")
    world.leads = [State.SHUTDOWN]
    world.play()
    assert "waits" in world.said[0] and "failover" not in world.said[0]

    world.did.clear()
    world.record(DEAD)
    world.peer = ChannelLost("no answer")
    world.leads = [State.SHUTDOWN]
    world.play()
    assert any("if that host is gone for good, `colo failover`" in line for line in world.said)


def test_it_is_started_where_the_other_host_is_surely_off(world: World) -> None:
    world.record(DEAD)
    world.peer, world.peer_stays = ChannelLost("no answer"), True
    world.leads = [State.SHUTDOWN]
    asked: list[str] = []

    def is_off(host: str) -> bool:
        asked.append(host)
        return len(asked) > 1

    world.arbiter.is_off = is_off  # type: ignore[method-assign]
    assert world.play() == 0
    assert asked == ["b", "b"]
    assert world.did[:2] == ["starts QEMU", "leads a VM that it starts"]


def test_no_qemu_is_started_where_nothing_could_be_granted(world: World) -> None:
    asked: list[int] = []

    def ready() -> None:
        asked.append(len(world.did))
        if len(asked) < 3:
            raise LocalError("nobody has promoted this host")

    world.arbiter.ready = ready  # type: ignore[method-assign]
    world.leads = [State.SHUTDOWN]
    assert world.play() == 0
    assert asked == [0, 0, 0]
    assert world.said == ["web1: no grant to start the VM: nobody has promoted this host"]


def test_the_status_of_a_host_that_waits_says_whose_turn_it_is(world: World) -> None:
    def ready() -> None:
        raise LocalError("nobody has promoted this host")

    async def stop(world: World) -> None:
        async with asyncio.timeout(10):
            while not world.folder_has_control():
                await asyncio.sleep(0.01)
        world.daemon.stop()

    world.arbiter.ready = ready  # type: ignore[method-assign]
    world.play(also=stop)
    assert json.loads((world.path / "state" / "status.json").read_text())["turn"] == "START"


def test_an_operator_does_without_a_host_that_is_gone_for_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "RETRY_S", 60)
    world.record(DEAD)
    world.peer, world.leads = ChannelLost("no answer"), [State.SHUTDOWN]
    answers = []

    async def order(world: World) -> None:
        while not world.folder_has_control():
            await asyncio.sleep(0.01)
        where, loop = world.folder.path, asyncio.get_running_loop()
        answers.append(await loop.run_in_executor(None, give_order, where, Order("failover")))

    assert world.play(also=order) == 0
    assert answers[0].ok
    assert world.did[:2] == ["starts QEMU", "leads a VM that it starts"]


def test_of_two_that_begin_at_once_the_slower_one_follows(world: World) -> None:
    """The grant went to the other host between the look and the taking."""
    world.arbiter.begin()
    take = world.arbiter.take

    def late(known: int, holder: str, void: Grant | None = None) -> Grant | None:
        world.arbiter.order(THEIRS)
        return take(known, holder, void)

    world.arbiter.take = late  # type: ignore[method-assign]
    world.follows = [State.SHUTDOWN]
    assert world.play() == 0
    assert world.did == ["starts QEMU", "ends its QEMU (new)", "follows"]


def test_a_vm_that_died_while_it_ran_alone_is_started_again(world: World) -> None:
    world.protected = False
    world.leads = [State.DEAD, State.SHUTDOWN]

    async def given_back(world: World) -> None:
        while "ends its QEMU (new)" not in world.did:
            await asyncio.sleep(0)
        world.arbiter.give_back(world.arbiter.current().holder, Ending.LEFT)

    assert world.play(also=given_back) == 0
    assert world.did.count("leads a VM that it starts") == 2


def test_to_end_while_it_leads_leaves_the_vm_to_the_next(world: World) -> None:
    world.record(instance(os.getpid(), "a"))
    world.left = os.getpid()
    world.leads = [State.ENDED]
    assert world.play() == 0
    assert world.did == ["leads", "lets go of its QEMU (found)"]
