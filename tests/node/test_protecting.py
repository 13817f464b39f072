"""The primary's shell, without a QEMU: what its surroundings do may not decide anything."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.config import VmConfig
from colo.config.vm import Failover
from colo.errors import GuestError, PeerError, QemuRefusal, UsageError
from colo.membership.grant import Grant
from colo.membership.states import Do, Event, State
from colo.membership.words import Word, WordKind
from colo.node import protecting
from colo.node.orders import Order
from colo.node.performer import Outcome
from colo.node.protecting import PrimaryNode
from colo.node.state_folder import StateFolder
from colo.qemu.monitor import Monitor
from colo.transport.address import parse_address
from colo.transport.control_link import Link
from colo.transport.sockets import listening


class FakeQemu(Monitor):
    """Refuses what it is told to refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refuses: set[str] = set()
        self.ends: list[socket.socket] = []  # of its character devices

    async def _perform(self, command: str, arguments: dict[str, Any], oob: bool) -> Any:
        self.asked.append(command)
        if command in self.refuses:
            raise GuestError(f"QEMU refuses {command}: there is a blocker")
        if command == "chardev-add":
            end = socket.socket(socket.AF_UNIX)
            end.connect(arguments["backend"]["data"]["addr"]["data"]["path"])
            self.ends.append(end)
        return ANSWERS.get(command)


ANSWERS: dict[str, Any] = {
    "query-version": {"qemu": {"major": 11, "minor": 1}},
    "query-migrate-capabilities": [{"capability": "x-colo", "state": False}],
    "query-migrate-parameters": {"max-bandwidth": 1, "x-checkpoint-delay": 1},
    "query-kvm": {"enabled": False},
    "query-block": [],
    "query-migrate": {},
    "query-status": {"running": False, "status": "paused"},
}


class Scene:
    def __init__(
        self, folder: StateFolder, config: VmConfig | None = None, stock: bool = True
    ) -> None:
        self.folder, self.qemu, self.said = folder, FakeQemu(), list[str]()
        self.arbiter = Arbiter(FileRegister(folder.path / "arbiter"))
        self.node = PrimaryNode(
            config or VmConfig("web1", failover=Failover(arbiter=f"file:{folder.path}/arbiter")),
            self.qemu,
            parse_address(f"unix:{folder.path}/b"),
            folder,
            self.arbiter,
            self.said.append,
            stock=stock,
        )

    def stand(self, state: State, **facts: Any) -> None:
        """Have it come this far."""
        self.node.member.state = state
        self.node.member.facts = replace(self.node.member.facts, **facts)

    def call(self) -> None:
        """The VM runs, and the secondary is to be reached now."""
        self.stand(State.UNPROTECTED)
        self.node.tell(Event.TIME)

    async def until(self, *states: State) -> None:
        """Wait until it stands so, or fails."""
        while self.node.state not in states and not self.node.over.done():
            await asyncio.sleep(0.001)

    async def until_it_migrates(self) -> None:
        while "migrate" not in self.qemu.asked:
            await asyncio.sleep(0.001)

    async def until_it_tries_again(self) -> None:
        while not any("trying again" in line for line in self.said):
            await asyncio.sleep(0.001)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StateFolder]:
    folder = StateFolder(tmp_path)
    yield folder
    folder.close()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(scene(), 20)

    asyncio.run(run())


def test_neither_a_full_folder_nor_a_dead_terminal_decides_anything(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "write_status", fail)

    async def scene() -> None:
        s = Scene(folder)
        s.node._tell_user = fail
        s.stand(State.COPYING, contested=True)
        s.node.tell(Event.LOST)
        assert s.node.state is State.LOST
        watching = asyncio.create_task(s.node._watch())
        await asyncio.sleep(0)
        assert not watching.done() and not s.node.over.done()
        watching.cancel()
        await s.node.close()

    play(scene)


def test_a_status_that_could_not_be_written_leaves_no_file(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = list(folder.path.iterdir())
    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="No space left"):
        folder.write_status({})
    assert list(folder.path.iterdir()) == before


def test_where_the_secondary_got_nothing_the_vm_runs_on_and_nobody_is_asked(
    folder: StateFolder,
) -> None:
    """The VM was stopped for its first copy, and QEMU then refuses to migrate."""

    async def scene() -> None:
        s = Scene(folder)
        s.qemu.refuses = {"migrate"}
        with listening(folder.path / "b") as server:
            s.call()
            await s.until_it_tries_again()
            channel, _ = server.accept()
            with channel:
                channel.setblocking(False)
                assert channel.recv(1) == b"", "the channel is closed"
        at = [s.qemu.asked.index(command) for command in ("stop", "migrate", "cont")]
        assert at == sorted(at)
        assert s.said[:3] == [
            "web1: the protection could not begin: QEMU refuses migrate: there is a blocker",
            "web1: UNPROTECTED: the VM runs here alone (grant 0)",
            "web1: trying again in 1 s",
        ]
        await s.node.close()
        assert not (folder.path / "arbiter").exists()

    play(scene)


def test_a_vm_that_may_have_been_copied_is_silent_where_its_qemu_fails(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU has the VM run again then, and the secondary may have all of it."""
    monkeypatch.setitem(ANSWERS, "query-migrate", {"status": "active"})

    async def scene() -> None:
        s, held = Scene(folder), list[bool]()
        s.arbiter.begin()
        monkeypatch.setattr(s.node._gate, "hold", lambda: held.append(not s.said))
        with listening(folder.path / "b"):
            s.call()
            await s.until_it_migrates()
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                await s.until(State.COPYING)
                ANSWERS["query-migrate"] = {"status": "failed"}
                await s.until(State.LOST)
                await s.node.close()
        assert "the secondary is lost: COLO to unix:" in s.said[0]
        assert held == [True], "before anybody was asked"

    play(scene)


@pytest.mark.parametrize("content", [{}, {"final": False}, {"final": True}, {"final": 1}])
def test_a_first_copy_that_was_refused_is_tried_again_unless_that_changes_nothing(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    monkeypatch.setitem(ANSWERS, "query-migrate", {"status": "active"})

    async def scene() -> None:
        s = Scene(folder)
        s.arbiter.begin()
        with listening(folder.path / "b"):
            s.call()
            await s.until_it_migrates()
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                await s.until(State.COPYING)
                ANSWERS["query-migrate"] = {}
                s.node._hear(Word(WordKind.REFUSED, {"why": "another VM", **content}))
                await s.until(State.UNPROTECTED, State.ENDED)
        final = content.get("final") is True
        assert s.node.over.done() == final
        why = f"unix:{folder.path}/b refuses: another VM"
        lines = ["web1: UNPROTECTED: the VM runs here alone (grant 0)"]
        if final:
            with pytest.raises(PeerError, match=why):
                await s.node._ended()
        else:
            lines = [f"web1: the secondary is lost: {why}", *lines, "web1: trying again in 1 s"]
        assert s.said == lines
        assert s.arbiter.current().number == 0, "nobody was asked"
        await s.node.close()

    play(scene)


@pytest.mark.parametrize("hangs", [True, False])
def test_of_a_vm_that_hangs_the_gate_is_not_taken_out(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """Once it answers it would do what it was told, and by then the other host's VM is heard."""
    monkeypatch.setattr("colo.node.guest_here._DYING_S", 0.01)

    async def scene() -> None:
        s = Scene(folder)
        await s.node._gate.install(["n0"])
        s.stand(State.LOST, connected=True, contested=True, busy=Do.LOOK)
        if hangs:
            s.qemu.refuses.add("query-status")
            s.node.ask(s.node._guest.look())
        else:
            s.node.tell(Event.DIED)
        await s.until(State.DEAD)
        assert await s.node._ended() == 1
        assert ("object-del" in s.qemu.asked) is not hangs
        assert ("end its QEMU" in s.said[-1]) is hangs
        for end in s.qemu.ends:
            end.close()

    play(scene)


@pytest.mark.parametrize("arbiter", ["file", "manual"])
def test_a_vm_that_nobody_else_has_is_waited_for_where_it_hangs(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, arbiter: str
) -> None:
    """No grant is missing, whoever gives it."""
    monkeypatch.setattr("colo.node.guest_here._DYING_S", 0.01)
    monkeypatch.setattr("colo.node.protecting.RETRY_S", 0.01)
    name = "manual" if arbiter == "manual" else f"file:{folder.path}/arbiter"

    async def scene() -> None:
        s = Scene(folder, VmConfig("web1", failover=Failover(arbiter=name)))
        if arbiter == "manual":
            s.arbiter.automatic = False
        s.stand(State.LOST, connected=True, busy=Do.LOOK)
        s.qemu.refuses.add("query-status")
        s.node.ask(s.node._guest.look())
        while s.qemu.asked.count("query-status") < 3:
            await asyncio.sleep(0.001)
        assert s.node.state is State.LOST
        s.qemu.refuses.clear()
        assert s.said == [
            "web1: QEMU does not answer, and no other host has its VM: it is waited for"
        ]
        await s.until(State.UNPROTECTED)  # it answers
        await s.node.close()

    play(scene)


def test_an_order_has_no_place_but_where_the_secondary_is_lost(folder: StateFolder) -> None:
    async def scene() -> None:
        s = Scene(folder)
        answer = await s.node._obey(Order("failover", force=True))
        assert (answer.ok, answer.text) == (False, "nothing to decide: the VM is STARTING")
        assert not (await s.node._obey(Order("export"))).ok

    play(scene)


def test_a_first_copy_that_stands_still_is_lost(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stock secondary that hangs, or waits for what this QEMU does not say."""
    monkeypatch.setattr(protecting, "_STATUS_S", 0.01)
    monkeypatch.setitem(ANSWERS, "query-migrate", {"status": "active"})

    async def scene() -> None:
        s = Scene(folder, VmConfig("web1", failover=Failover(silence_s=0.1)))
        s.arbiter.begin()
        with listening(folder.path / "b"):
            watching = asyncio.create_task(s.node._watch())
            s.call()
            await s.until_it_migrates()
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                await s.until(State.LOST)
            assert s.said[0] == "web1: the secondary is lost: the first copy did not move for 0 s"
            ANSWERS["query-migrate"] = {}
            await s.until(State.UNPROTECTED)
            watching.cancel()
            await s.node.close()
        assert s.said[1] == "web1: UNPROTECTED: the VM runs here alone (grant 1)"

    play(scene)


@pytest.mark.parametrize("contested", [True, False])
def test_a_dead_vms_grant_is_left_to_the_host_that_may_have_its_copy(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, contested: bool
) -> None:
    """Given back, it would be anybody's: a ``colo run`` would begin anew, and the copy be lost."""
    said: list[Word] = []

    async def scene() -> None:
        s = Scene(folder)
        s.arbiter.begin()
        s.node._right.holder = "a"
        granted = s.arbiter.take(0, "a")
        s.node._peer._link = cast(Link, SimpleNamespace(say=said.append, close=lambda: None))
        state = State.PROTECTED if contested else State.BEGINNING
        s.stand(state, contested=contested, grant=granted, unheard=2)
        s.node.tell(Event.DIED)
        assert await s.node._ended() == 1
        assert s.arbiter.current().grant == Grant(1, "a" if contested else "")
        assert said == [Word(WordKind.DEAD, {"grant": 2})]

    play(scene)


def test_a_protection_that_does_not_begin_says_so_in_the_status(folder: StateFolder) -> None:
    async def scene() -> None:
        s = Scene(folder)
        s.arbiter.begin()
        s.arbiter.take(0, "elsewhere/7/7")
        with pytest.raises(UsageError, match="belongs to elsewhere") as caught:
            await s.node.run()
        status = json.loads(folder.status.read_text())
        assert (status["state"], status["error"]) == ("REFUSED", str(caught.value))
        assert s.arbiter.current().grant == Grant(1, "elsewhere/7/7")

    play(scene)


def test_a_protection_that_can_never_be_leaves_the_vm_and_says_why(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VM runs on: what ended is colo, and the last error is why."""

    async def scene() -> None:
        s = Scene(folder)

        async def refuse(*_: object) -> socket.socket:
            raise PeerError("its VM is web2")

        async def fits() -> Outcome:
            return Event.FIT, {}

        monkeypatch.setattr(s.node._peer, "reach", refuse)
        monkeypatch.setattr(s.node, "_fit", fits)
        with pytest.raises(PeerError):
            await s.node.run()
        status = json.loads(folder.status.read_text())
        assert (status["state"], status["error"]) == ("ENDED", "its VM is web2")
        assert s.arbiter.current().grant == Grant(1, "")

    play(scene)


@pytest.mark.parametrize("refuses", ["object-add", "migrate"])
def test_what_qemu_refuses_is_not_tried_again(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    """The VM runs on alone, and colo ends with what QEMU says."""

    async def scene() -> None:
        s = Scene(folder)
        s.arbiter.begin()
        refusals = [QemuRefusal(f"QEMU refuses {refuses}: Parameter 'id' expects an identifier")]

        async def refuse(*_: object) -> None:
            if refusals:
                raise refusals.pop()

        if refuses == "object-add":
            monkeypatch.setattr(s.node._gate, "install", refuse)
        else:
            monkeypatch.setattr(s.node._colo, "start", refuse)
        with listening(folder.path / "b"):
            s.call()
            await s.until(State.ENDED)
        with pytest.raises(GuestError) as caught:
            await s.node._ended()
        assert str(caught.value) == (
            f"QEMU refuses {refuses}: Parameter 'id' expects an identifier; mend that, then start "
            "colo again"
        )
        assert s.said == ["web1: UNPROTECTED: the VM runs here alone (grant 0)"]

    play(scene)


def test_a_daemon_that_is_refused_for_good_says_why_and_looks_again(folder: StateFolder) -> None:
    async def scene() -> None:
        s = Scene(folder)
        s.node.member.means = replace(s.node.member.means, node=True)
        s.stand(State.BEGINNING, contested=False)
        s.node._hear(Word(WordKind.REFUSED, {"why": "another machine", "final": True}))
        await s.until(State.UNPROTECTED)
        await s.until_it_tries_again()
        to = f"unix:{folder.path}/b"
        assert f"web1: {to} refuses: another machine; trying again in 1 s" in s.said
        assert not s.node.over.done()
        await s.node.close()

    play(scene)
