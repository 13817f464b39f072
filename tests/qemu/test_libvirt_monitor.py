"""A domain as a monitor: commands, connections handed over, events, libvirt gone and back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener

from colo.errors import GuestError, QemuRefusal
from colo.qemu import libvirt_monitor
from colo.qemu.libvirt_library import LibvirtError, NoDomain
from colo.qemu.libvirt_monitor import LibvirtQemu
from colo.qemu.running import Domain, NotRunning


class FakeLibvirt:
    """libvirt, and a domain whose QEMU is a process that sleeps."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.has_domain = True
        self.active, self.gone, self.autostart = True, False, False
        self.answers: dict[str, Any] = {"query-status": {"status": "running"}}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.given: list[int] = []
        self.domains: list[FakeDomain] = []

    @property
    def open(self) -> int:
        """How many connections are."""
        return sum(each.is_open for each in self.domains)

    def connect(self, *arguments: Any) -> FakeDomain:
        if self.gone:
            raise LibvirtError("Failed to connect socket")
        if not self.has_domain:
            raise NoDomain("Domain not found")
        self.domains.append(FakeDomain(self, *arguments))
        return self.domains[-1]

    def die(self) -> None:
        """Its daemon ends."""
        self.gone = True
        self.domains[-1].on_closed()

    def tell(self, event: str, **data: object) -> None:
        """QEMU says something."""
        self.domains[-1].on_event({"event": event, "data": data})


class FakeDomain:
    """What ``libvirt_library.Domain`` is."""

    def __init__(
        self,
        world: FakeLibvirt,
        name: str,
        names: Sequence[str],
        on_event: Callable[[dict[str, Any]], None],
        on_stopped: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        assert name == "web1"
        self.world, self.names, self.is_open = world, names, True
        self.on_event, self.on_stopped, self.on_closed = on_event, on_stopped, on_closed

    def is_active(self) -> bool:
        return self.world.active

    def is_autostarted(self) -> bool:
        return self.world.autostart

    def is_reached(self) -> bool:
        return not self.world.gone

    def command(self, text: str, files: Sequence[int] = ()) -> dict[str, Any]:
        if self.world.gone:
            raise LibvirtError("End of file while reading data")
        order = json.loads(text)
        self.world.asked.append((order["execute"], order["arguments"]))
        self.world.given += [os.dup(file) for file in files]
        if order["execute"] == "query-cpus-fast":
            return {"return": [{"thread-id": self.world.pid}]}
        answer = self.world.answers.get(order["execute"], {})
        if isinstance(answer, Exception):
            raise answer
        return answer if "error" in answer else {"return": answer}

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibvirt]:
    with subprocess.Popen(["sleep", "600"]) as process:
        world = FakeLibvirt(process.pid)
        monkeypatch.setattr(libvirt_monitor, "Domain", world.connect)
        monkeypatch.setattr(libvirt_monitor, "_AGAIN_S", 0.01)
        monkeypatch.setattr(libvirt_monitor, "_LOOK_S", 0.01)
        yield world
        process.kill()
    for file in world.given:
        with contextlib.suppress(OSError):
            os.close(file)


def play(scene: Callable[[LibvirtQemu], Awaitable[None]]) -> list[str]:
    """Have a scene with a QEMU that is attached to; return what was said."""
    said: list[str] = []

    async def run() -> None:
        qemu = LibvirtQemu("web1", said.append)
        assert await qemu.attach()
        try:
            await asyncio.wait_for(scene(qemu), 20)
        finally:
            await qemu.detach()

    asyncio.run(run())
    return said


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_commands_and_what_qemu_says_of_them(libvirt: FakeLibvirt) -> None:
    libvirt.answers["stop"] = {"error": {"class": "GenericError", "desc": "not now"}}
    libvirt.answers["cont"] = LibvirtError("cannot acquire state change lock")

    async def scene(qemu: LibvirtQemu) -> None:
        assert qemu.pid == libvirt.pid
        assert await qemu.execute("query-status") == {"status": "running"}
        await qemu.execute("yank", oob=True, some_name=1)
        with pytest.raises(QemuRefusal, match=r"^QEMU refuses stop: not now$"):
            await qemu.execute("stop")
        with pytest.raises(GuestError, match="libvirt refuses cont: cannot acquire state"):
            await qemu.execute("cont")

    assert play(scene) == []
    assert libvirt.asked[2] == ("yank", {"some-name": 1})
    assert libvirt.open == 0


ADDR = {"addr": {"type": "unix", "data": {"path": "PATH"}}, "server": False}
HANDED = {"addr": {"type": "fd", "data": {"str": "colo-0"}}, "server": False}


@pytest.mark.parametrize(
    ("command", "named", "given"),
    [
        ("migrate", {"uri": "unix:PATH"}, {"uri": "fd:colo-0"}),
        (
            "blockdev-add",
            {"driver": "nbd", "server": {"type": "unix", "path": "PATH"}},
            {"driver": "nbd", "server": {"type": "fd", "str": "colo-0"}},
        ),
        (
            "chardev-add",
            {"id": "c", "backend": {"type": "socket", "data": ADDR}},
            {"id": "c", "backend": {"type": "socket", "data": HANDED}},
        ),
    ],
)
def test_what_names_a_socket_gets_a_connection(
    command: str,
    named: dict[str, Any],
    given: dict[str, Any],
    libvirt: FakeLibvirt,
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"

    async def scene(qemu: LibvirtQemu) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen(1)
            await qemu.execute(command, **json.loads(json.dumps(named).replace("PATH", str(path))))
            ours, _ = server.accept()
            (file,) = libvirt.given
            os.write(file, b"from QEMU")
            assert ours.recv(99) == b"from QEMU"
            os.close(file)
            assert ours.recv(1) == b"", "colo has kept a copy"
            ours.close()

    play(scene)
    assert libvirt.asked[1:] == [("getfd", {"fdname": "colo-0"}), (command, given)]


def test_a_connection_that_qemu_did_not_take_is_not_left_in_it(
    libvirt: FakeLibvirt, tmp_path: Path
) -> None:
    libvirt.answers["migrate"] = {"error": {"desc": "no"}}

    async def scene(qemu: LibvirtQemu) -> None:
        with pytest.raises(GuestError, match="s: No such file"):
            await qemu.execute("migrate", uri=f"unix:{tmp_path}/s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
            server.listen(1)
            with pytest.raises(QemuRefusal):
                await qemu.execute("migrate", uri=f"unix:{tmp_path}/s")

    play(scene)
    assert [name for name, _ in libvirt.asked[1:]] == ["getfd", "migrate", "closefd"]


def test_another_file_is_not_touched(libvirt: FakeLibvirt) -> None:
    backend = {"type": "file", "data": {"out": "/dev/null"}}

    async def scene(qemu: LibvirtQemu) -> None:
        await qemu.execute("chardev-add", id="c", backend=backend)
        await qemu.execute("migrate", uri="tcp:127.0.0.1:1")

    play(scene)
    assert libvirt.asked[1:] == [
        ("chardev-add", {"id": "c", "backend": backend}), ("migrate", {"uri": "tcp:127.0.0.1:1"}),
    ]  # fmt: skip


def test_events_come_in_their_order_and_before_the_end_is_told(libvirt: FakeLibvirt) -> None:
    async def scene(qemu: LibvirtQemu) -> None:
        heard = EventListener(["SHUTDOWN", "COLO_EXIT"])
        qemu.listen(heard)
        libvirt.tell("COLO_EXIT", reason="request")
        libvirt.tell("SHUTDOWN", reason="guest-shutdown")
        libvirt.domains[-1].on_stopped()
        await qemu.heard_out(20)
        assert [each["event"] for each in heard.clear()] == ["COLO_EXIT", "SHUTDOWN"]
        qemu.unlisten(heard)

    play(scene)
    assert set(libvirt.domains[0].names) >= {"SHUTDOWN", "COLO_EXIT", "BLOCK_JOB_COMPLETED"}


def test_while_libvirt_is_away_commands_wait(libvirt: FakeLibvirt) -> None:
    async def scene(qemu: LibvirtQemu) -> None:
        libvirt.die()
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(qemu.execute("cont"))
        seen = asyncio.ensure_future(qemu.reached())
        await asyncio.sleep(0.05)
        assert not waiting.done() and not seen.done()
        libvirt.gone = False
        await waiting
        await seen

    gone, back = play(scene)
    assert gone.startswith("libvirt is gone from the domain web1: the VM goes on")
    assert back == "libvirt is back at the domain web1"
    assert libvirt.open == 0 and len(libvirt.domains) == 2


def test_libvirt_that_goes_away_within_a_command(libvirt: FakeLibvirt) -> None:
    """A question is asked again; nobody knows of anything else whether it was done."""

    async def scene(qemu: LibvirtQemu) -> None:
        libvirt.gone = True  # and its end is not told yet
        asked = asyncio.ensure_future(qemu.execute("query-status"))
        with pytest.raises(GuestError, match="libvirt went away at cont"):
            await qemu.execute("cont")
        libvirt.gone = False
        assert await asked == {"status": "running"}

    assert len(play(scene)) == 2


def test_qemu_that_dies_while_libvirt_is_away(libvirt: FakeLibvirt) -> None:
    async def scene(qemu: LibvirtQemu) -> None:
        libvirt.die()
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(qemu.execute("cont"))
        os.kill(libvirt.pid, 9)
        assert await qemu.wait() == "it ended"
        with pytest.raises(GuestError, match="QEMU died at cont"):
            await waiting
        await qemu.heard_out(0.01)

    assert len(play(scene)) == 1


@pytest.mark.parametrize(
    ("status", "reason"), [("shutdown", "guest-shutdown"), ("running", "host-signal")]
)
def test_a_shutdown_meanwhile_is_told(status: str, reason: str, libvirt: FakeLibvirt) -> None:
    async def scene(qemu: LibvirtQemu) -> None:
        heard = EventListener("SHUTDOWN")
        qemu.listen(heard)
        libvirt.die()
        libvirt.answers["query-status"] = {"status": status}
        libvirt.gone = False
        await until(lambda: ("query-status", {}) in libvirt.asked)
        await qemu.execute("query-status")
        libvirt.tell("SHUTDOWN", reason="host-signal")
        assert (await heard.get())["data"] == {"reason": reason}

    play(scene)


def test_a_domain_that_was_started_anew_meanwhile_is_not_taken_for_it(
    libvirt: FakeLibvirt,
) -> None:
    async def scene(qemu: LibvirtQemu) -> None:
        libvirt.die()
        libvirt.pid, before = os.getpid(), libvirt.pid
        libvirt.gone = False
        await until(lambda: len(libvirt.domains) > 3)
        assert libvirt.open <= 1
        os.kill(before, 9)
        await qemu.wait()

    assert len(play(scene)) == 1


def attach() -> tuple[bool, list[str]]:
    """Whether the domain runs, and what is said."""
    said: list[str] = []

    async def run() -> bool:
        try:
            qemu = await Domain("web1").attach(said.append)
        except NotRunning as error:
            assert str(error).endswith("web1 that runs: `virsh start web1` starts it")
            return False
        await qemu.detach()
        return True

    return asyncio.run(run()), said


def test_a_domain_that_does_not_run_is_none(libvirt: FakeLibvirt) -> None:
    libvirt.active = False
    assert attach() == (False, [])
    assert libvirt.open == 0


def test_a_domain_that_is_not_there_does_not_run(libvirt: FakeLibvirt) -> None:
    """A transient one is there only while it runs."""
    libvirt.has_domain = False
    assert attach() == (False, [])


def test_a_domain_whose_qemu_has_just_died_is_none(libvirt: FakeLibvirt) -> None:
    """libvirt notices that a moment later."""
    ask = FakeDomain.command

    def dead(domain: FakeDomain, text: str, files: Sequence[int] = ()) -> dict[str, Any]:
        libvirt.active = len(libvirt.asked) < 1
        ask(domain, text, files)
        raise LibvirtError("domain is not running")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeDomain, "command", dead)
        assert attach() == (False, [])
    assert len(libvirt.asked) == 2 and libvirt.open == 0


def test_a_domain_that_starts_by_itself_is_told(libvirt: FakeLibvirt) -> None:
    assert attach() == (True, [])
    libvirt.autostart = True
    found, said = attach()
    assert found and len(said) == 1 and "`virsh autostart --disable web1`" in said[0]


def test_what_cannot_be_attached_to_is_one_line(
    libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    libvirt.pid = 1 << 30
    with pytest.raises(GuestError, match="is no process of this host: run colo where it is"):
        attach()
    libvirt.pid, libvirt.gone = os.getpid(), True
    with pytest.raises(GuestError, match=r"^libvirt's domain web1: Failed to connect socket$"):
        attach()
    libvirt.gone = False
    monkeypatch.setattr(libvirt_monitor, "ATTACH_S", 0.05)
    monkeypatch.setattr(FakeDomain, "command", _refuse)
    with pytest.raises(GuestError, match="web1: libvirt refuses query-cpus-fast: it is locked"):
        attach()
    assert libvirt.open == 0


def _refuse(*_: object) -> dict[str, Any]:
    raise LibvirtError("it is locked")
