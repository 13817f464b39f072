"""``colo run``: the VM starts with the grant and the secondary's word, or its QEMU is ended."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console

from colo.arbiters import asking
from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.arbiters.named import make_arbiter
from colo.config import VmConfig
from colo.config.vm import Failover
from colo.errors import ColoError, GuestError, LocalError, PeerError, UsageError
from colo.membership.grant import Grant
from colo.membership.words import Hello, Word, WordKind
from colo.node import first_start, right
from colo.node.first_start import Start
from colo.node.protecting import PrimaryNode
from colo.node.state_folder import StateFolder
from colo.qemu.process import Qemu
from colo.status.report import read_status, render
from colo.transport.address import Address

ANOTHER: Final = "elsewhere/7/7"
ANSWERS: Final[dict[str, Any]] = {
    "query-version": {"qemu": {"major": 11, "minor": 1}},
    "query-migrate": {},
    "query-migrate-parameters": {},
    "query-chardev": [],
    "query-block": [],
    "query-memdev": [{"id": "pc.ram", "size": 128 << 20}],
    "query-memory-devices": [],
    "query-kvm": {"enabled": False},
    "query-status": {"running": True, "status": "running"},
    "human-monitor-command": "",
    "cont": {},
}


class FakeQemu(Qemu):
    """Tells the scene when its VM starts and when it is killed; dies or refuses where told to."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        super().__init__(["qemu"], folder, {})
        self.pid = os.getpid()
        self._scene = scene

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        if command == self._scene.refused:
            raise GuestError(f"QEMU died at {command}")
        if command == "cont":
            self._scene.events.append("start")
            asyncio.get_running_loop().call_soon(self._scene.started)
        if command == "qom-list":
            return [] if arguments["path"] == "/objects" else [{"name": "device"}]
        return ANSWERS.get(command, False)

    async def kill(self) -> None:
        self._scene.events.append("kill")


class Scene:
    """A VM to be started between a QEMU, an arbiter and a secondary that gives ``answer``."""

    def __init__(self, folder: Path, answer: Word | None, arbiter: str = "") -> None:
        self.folder = folder
        self.answer = answer
        self.file = Arbiter(FileRegister(folder / "grant"))
        failover = Failover(arbiter=arbiter or f"file:{folder / 'grant'}")
        self.config = VmConfig("web1", failover=failover)
        self.events: list[str] = []
        self.refused = ""
        self.on_hello: Callable[[], object] = lambda: None
        self.started: Callable[[], object] = lambda: None
        self._writers: list[asyncio.StreamWriter] = []

    def run(self, **options: bool) -> int:
        """Run it until the VM has started, or it does not."""
        return asyncio.run(self._run(options))

    @property
    def ends(self) -> list[str]:
        """What has happened, where a second kill is as good as one."""
        return list(dict.fromkeys(self.events))

    @property
    def status(self) -> tuple[str, str | None]:
        """State and error, as ``colo status`` shows them."""
        content = read_status(self.folder / "state")
        render(content, Console(file=io.StringIO()))
        return content["state"], content["error"]

    async def _run(self, options: dict[str, Any]) -> int:
        state = StateFolder(self.folder / "state")
        address = Address(path=str(self.folder / "b"))
        arbiter = make_arbiter(self.config)
        qemu = FakeQemu(self, state.path)
        server = None
        if self.answer is not None:
            server = await asyncio.start_unix_server(self._greet, address.path)
        try:
            node = PrimaryNode(
                self.config,
                qemu,
                address,
                state,
                arbiter,
                self.events.append,
                start=Start(qemu),
                **options,
            )
            self.started, self._stop = node.stop, node.stop
            return await node.run()
        finally:
            state.close()
            if server is not None:
                server.close()
            for writer in self._writers:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        line = await reader.readline()
        if b'"hello"' in line:
            self.events.append("hello")
            self.on_hello()
            assert self.answer is not None
            writer.write(self.answer.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._stop()


def refusal(why: str, final: bool = False) -> Word:
    return Word(WordKind.REFUSED, {"why": why, "final": final})


HELLO: Final = Hello.ours(VmConfig(name="web1")).word()
HERE: Final = refusal("the VM runs here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose path is short enough for a socket."""
    assert len(str(tmp_path)) < 90
    return tmp_path


def holder(scene: Scene) -> Grant:
    return scene.file.current().grant


def test_the_vm_starts_after_the_grant_and_the_secondarys_hello(folder: Path) -> None:
    scene = Scene(folder, HELLO)
    granted = []
    scene.on_hello = lambda: granted.append(holder(scene))
    assert scene.run() == 0
    assert scene.events.index("hello") < scene.events.index("start")
    assert granted[0].number == 1
    assert granted[0].holder
    assert "kill" not in scene.events


def test_whose_grant_it_is_not_is_not_heard(folder: Path) -> None:
    scene = Scene(folder, HELLO)
    scene.file.begin()
    scene.file.order(ANOTHER)
    with pytest.raises(UsageError, match=f"belongs to {ANOTHER}") as caught:
        scene.run()
    assert scene.status == ("REFUSED", str(caught.value))
    assert scene.ends == ["kill"]
    assert holder(scene) == Grant(1, ANOTHER)


@pytest.mark.parametrize("arbiter", ["", "manual"], ids=["file", "manual"])
def test_a_secondary_that_refuses_for_now_ends_it(folder: Path, arbiter: str) -> None:
    scene = Scene(folder, HERE, arbiter)
    with pytest.raises(UsageError, match="refuses: the VM runs here") as caught:
        scene.run()
    assert scene.status == ("REFUSED", str(caught.value))
    assert scene.ends[-1] == "kill"
    assert "start" not in scene.events
    if not arbiter:
        assert holder(scene) == Grant(1, "")


def test_a_grant_taken_from_another_is_not_given_away(folder: Path) -> None:
    """It was claimed wrongly: that VM lives.  The next start must not find the grant free."""
    scene = Scene(folder, HERE)
    scene.file.begin()
    scene.file.order(ANOTHER)
    with pytest.raises(UsageError, match="refuses: the VM runs here") as caught:
        scene.run(claim=True)
    assert caught.value.__notes__ == ["grant 2, which --claim took, stays here"]
    assert "start" not in scene.events
    assert holder(scene).number == 2
    assert holder(scene).holder not in ("", ANOTHER)


def test_a_secondary_of_another_vm_ends_it(folder: Path) -> None:
    scene = Scene(folder, refusal("its VM is web2", final=True))
    with pytest.raises(PeerError, match="its VM is web2"):
        scene.run()
    assert "start" not in scene.events
    assert scene.ends[-1] == "kill"
    assert holder(scene) == Grant(1, "")


def test_who_has_the_grant_needs_no_secondary(folder: Path) -> None:
    scene = Scene(folder, None)
    assert scene.run() == 0
    assert "start" in scene.events
    assert "kill" not in scene.events


def test_without_an_arbiter_and_a_secondary_an_operator_decides(folder: Path) -> None:
    scene = Scene(folder, None, "manual")
    with pytest.raises(UsageError, match=r"out of reach, so nobody can say .* say --claim"):
        scene.run()
    assert scene.ends[-1] == "kill"
    assert "start" not in scene.events
    assert scene.run(claim=True) == 0
    assert "start" in scene.events


def test_a_secondary_that_is_silent_is_out_of_reach(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_start, "_ASK_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "b"))
        silent.listen()
        with pytest.raises(UsageError, match="no answer"):
            Scene(folder, None, "manual").run()


def test_a_stock_qemu_is_not_asked(folder: Path) -> None:
    scene = Scene(folder, HERE, "manual")
    scene.refused = "query-migrate-capabilities"  # as far as the first try to protect it
    scene.started = lambda: None
    assert scene.run(stock=True) == 0
    assert "start" in scene.events
    assert "hello" not in scene.events


def test_ctrl_c_before_the_start_ends_its_qemu(folder: Path) -> None:
    scene = Scene(folder, HELLO)
    scene.on_hello = scene.interrupt
    assert scene.run() == 0
    assert scene.status == ("GONE", None)
    assert "start" not in scene.events
    assert scene.ends[-2:] == ["kill", "web1: ended at its very beginning: nothing is left behind"]
    assert holder(scene) == Grant(1, "")


def test_a_grant_that_an_operator_has_taken_meanwhile_starts_nothing(folder: Path) -> None:
    """The other host has nothing against it; then its operator has it run there."""
    scene = Scene(folder, HELLO)
    scene.on_hello = lambda: scene.file.take(1, ANOTHER)
    with pytest.raises(UsageError, match="another host has got the right meanwhile"):
        scene.run()
    assert scene.ends[-1] == "kill"
    assert "start" not in scene.events
    assert holder(scene) == Grant(2, ANOTHER)


def test_who_stands_still_while_the_arbiter_answers_starts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right, "_FRESH_S", -1.0)
    scene = Scene(folder, HELLO)
    with pytest.raises(LocalError, match="this host stood still while the arbiter answered"):
        scene.run()
    assert scene.ends[-1] == "kill"
    assert "start" not in scene.events
    assert holder(scene) == Grant(2, "")


@pytest.mark.parametrize("answer", [HELLO, None], ids=["agrees", "silent"])
def test_an_operators_word_needs_no_second_one(folder: Path, answer: Word | None) -> None:
    """Without an arbiter that decides nothing is confirmed."""
    scene = Scene(folder, answer, "manual")
    assert scene.run(claim=True) == 0
    assert "start" in scene.events


@pytest.mark.parametrize(
    ("refused", "error"), [("query-block", GuestError), ("cont", GuestError)], ids=lambda each: each
)
def test_a_qemu_that_fails_is_ended(folder: Path, refused: str, error: type[ColoError]) -> None:
    scene = Scene(folder, HELLO)
    scene.refused = refused
    with pytest.raises(error, match=f"died at {refused}"):
        scene.run()
    assert scene.status == ("REFUSED", f"QEMU died at {refused}")
    assert scene.ends[-1] == "kill"
    assert holder(scene).holder == ""


def test_an_arbiter_out_of_reach_ends_it(folder: Path) -> None:
    scene = Scene(folder, HELLO, f"file:{folder}/nowhere/grant")
    with pytest.raises(LocalError, match="No such file"):
        scene.run()
    assert scene.ends == ["kill"]


def test_an_arbiter_that_hangs_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started, and nothing is granted once the mount is back."""
    monkeypatch.setattr(asking, "_ANSWER_S", 0.05)
    monkeypatch.setattr(asking, "_calls", [])
    scene = Scene(folder, HELLO)
    scene.file.begin()
    with (folder / "grant").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match=r"did not answer in .* dead network mount hangs"):
            scene.run()
    assert scene.ends == ["kill"]
    for thread in asking._calls:
        thread.join(5)
    assert holder(scene) == Grant(0, "")


def test_a_grant_that_was_claimed_unheard_is_given_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "_ANSWER_S", 0.1)
    fsync = os.fsync

    def slow(file: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        time.sleep(0.15)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    scene = Scene(folder, HELLO)
    with pytest.raises(LocalError, match="did not answer"):
        scene.run()
    assert scene.ends == ["kill"]
    assert holder(scene) == Grant(1, "")
