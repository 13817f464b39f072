"""The primary's shell, without a QEMU: what its surroundings do may not decide anything."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
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
from colo.membership.words import Word, WordKind
from colo.node import protecting
from colo.node.ending import End
from colo.node.orders import Order
from colo.node.protecting import PrimaryNode
from colo.node.standing import Standing
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

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        self.asked.append(command)
        if command in self.refuses:
            raise GuestError(f"QEMU refuses {command}: there is a blocker")
        return ANSWERS.get(command)


ANSWERS: dict[str, Any] = {
    "query-version": {"qemu": {"major": 11, "minor": 1}},
    "query-migrate-capabilities": [{"capability": "x-colo", "state": False}],
    "query-migrate-parameters": {"max-bandwidth": 1, "x-checkpoint-delay": 1},
    "query-kvm": {"enabled": False},
    "query-migrate": {},
    "query-status": {"running": False, "status": "paused"},
}


class Scene:
    def __init__(self, folder: StateFolder, config: VmConfig | None = None) -> None:
        self.folder, self.qemu, self.said = folder, FakeQemu(), list[str]()
        self.arbiter = Arbiter(FileRegister(folder.path / "arbiter"))
        self.node = PrimaryNode(
            config or VmConfig("web1", failover=Failover(arbiter=f"file:{folder.path}/arbiter")),
            self.qemu,
            parse_address(f"unix:{folder.path}/b"),
            folder,
            self.arbiter,
            self.said.append,
            stock=True,
        )


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
        s.node._tell = fail
        s.node._protected()
        s.node._stand(Standing.LOST)
        watching = asyncio.create_task(s.node._watch())
        await asyncio.sleep(0)
        assert not watching.done()
        watching.cancel()

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
            assert await s.node._protect() is not None
            channel, _ = server.accept()
            with channel:
                channel.setblocking(False)
                assert channel.recv(1) == b"", "the channel is closed"
        at = [s.qemu.asked.index(command) for command in ("stop", "migrate", "cont")]
        assert at == sorted(at)
        assert s.said == [
            "web1: the protection could not begin: QEMU refuses migrate: there is a blocker",
            "web1: UNPROTECTED: the VM runs here alone (grant 0)",
        ]
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
            protecting = asyncio.create_task(s.node._protect())
            while "migrate" not in s.qemu.asked:
                await asyncio.sleep(0.001)
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                ANSWERS["query-migrate"] = {"status": "failed"}
                await protecting
        assert "the secondary is lost: COLO to unix:" in s.said[0]
        assert held == [True], "before anybody was asked"

    play(scene)


@pytest.mark.parametrize("content", [{}, {"final": False}, {"final": True}, {"final": 1}])
def test_a_first_copy_that_was_refused_is_tried_again_unless_that_changes_nothing(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch, content: dict[str, Any]
) -> None:
    monkeypatch.setitem(ANSWERS, "query-migrate", {"status": "active"})

    async def scene() -> None:
        s, paused = Scene(folder), asyncio.Event()
        s.arbiter.begin()
        s.node._solo.grant = s.arbiter.take(0, "a") or s.node._solo.grant

        async def pause() -> None:
            paused.set()
            await asyncio.sleep(3600)

        monkeypatch.setattr(s.node, "_pause", pause)
        with listening(folder.path / "b"):
            serving = asyncio.create_task(s.node._serve())
            while "migrate" not in s.qemu.asked:
                await asyncio.sleep(0.001)
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                while not s.node._relayed:
                    await asyncio.sleep(0.001)
                ANSWERS["query-migrate"] = {}
                s.node._hear(Word(WordKind.REFUSED, {"why": "another VM", **content}))
                waiting = asyncio.create_task(paused.wait())
                await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        final = content.get("final") is True
        assert serving.done() == final
        lines = ["web1: UNPROTECTED: the VM runs here alone (grant 1)"]
        why = f"unix:{folder.path}/b refuses: another VM"
        if final:
            assert isinstance(serving.exception(), PeerError)
            assert str(serving.exception()) == why
        else:
            lines.insert(0, f"web1: the secondary is lost: {why}")
        assert s.said == lines
        serving.cancel()
        waiting.cancel()

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
            protecting = asyncio.create_task(s.node._protect())
            while "migrate" not in s.qemu.asked:
                await asyncio.sleep(0.001)
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(folder.path / "colo.sock"))
                while not s.said:
                    await asyncio.sleep(0.001)
            assert s.said[0] == "web1: the secondary is lost: the first copy did not move for 0 s"
            ANSWERS["query-migrate"] = {}
            await protecting
            watching.cancel()
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
        s.arbiter.take(0, "a")
        s.node._solo.grant = Grant(1, "a")
        s.node._solo._unheard = 2
        s.node._contested = contested
        s.node._peer._link = cast(Link, SimpleNamespace(say=said.append, close=lambda: None))
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(await s.node._conclude(End.DIED))
        monkeypatch.setattr(s.node, "_protect", lambda: ended)
        assert await s.node._serve() == 1
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


def test_a_protection_that_can_never_be_leaves_the_vm_and_says_why(folder: StateFolder) -> None:
    """The VM runs on: what ended is colo, and the last error is why."""

    async def scene() -> None:
        s = Scene(folder)

        async def nothing() -> None:
            pass

        async def protect() -> End:
            raise PeerError("its VM is web2")

        s.node._protect = protect  # type: ignore[method-assign]
        s.node._prepare = nothing  # type: ignore[method-assign]
        with pytest.raises(PeerError):
            await s.node.run()
        status = json.loads(folder.status.read_text())
        assert (status["state"], status["error"]) == ("UNPROTECTED", "its VM is web2")
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
        s.node._solo.grant = s.arbiter.take(0, "a") or Grant(0, "")
        refusals = [QemuRefusal(f"QEMU refuses {refuses}: Parameter 'id' expects an identifier")]

        async def refuse(*_: object) -> None:
            if refusals:
                raise refusals.pop()

        if refuses == "object-add":
            monkeypatch.setattr(s.node._gate, "install", refuse)
        else:
            monkeypatch.setattr(s.node._colo, "start", refuse)
        with listening(folder.path / "b"), pytest.raises(GuestError) as caught:
            await s.node._serve()
        assert str(caught.value) == (
            f"QEMU refuses {refuses}: Parameter 'id' expects an identifier; mend that, then start "
            "colo again"
        )
        assert s.said == ["web1: UNPROTECTED: the VM runs here alone (grant 1)"]

    play(scene)
