"""What a QEMU has in the way: asked, and let go of."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from colo.checking import running as module
from colo.checking.running import check_qemu, check_running, check_started, machine_of
from colo.config import VmConfig
from colo.config.vm import Disk, QemuArgs
from colo.errors import GuestError, QemuRefusal
from colo.findings import Finding, Topic
from colo.qemu.monitor import Monitor
from colo.qemu.process import LaunchPlan
from colo.qemu.running import Running, Socket

CONFIG = VmConfig("web1", qemu=QemuArgs(args=("-machine", "pc-q35-7.2")))
ANSWERS: dict[str, Any] = {
    "query-version": {"qemu": {"major": 7, "minor": 2}},
    "query-migrate": {},
    "human-monitor-command": "",
    "query-block": [],
    "qom-get": "pc-q35-7.2-machine",
}


class FakeQemu(Monitor):
    """Answers what a VM answers."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.pid = os.getpid()
        self.asked: list[str] = []
        self._answers = ANSWERS | answers

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        self.asked.append(command)
        answer = self._answers[command]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def no_obstacles(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Nothing stands in the way but what is asked here; whether the VM had to run."""
    started = []

    async def obstacles(*args: object) -> list[Finding]:
        started.append(bool(args[-1]))
        return []

    monkeypatch.setattr(module, "obstacles", obstacles)
    return started


def found(config: VmConfig = CONFIG, **answers: Any) -> list[Finding]:
    qemu = FakeQemu({key.replace("_", "-"): value for key, value in answers.items()})
    return asyncio.run(check_qemu(config, qemu, allow_disks=False))


def test_a_vm_that_can_be_protected() -> None:
    assert found() == []


def test_versions_machines_and_disks() -> None:
    (each,) = found(query_version={"qemu": {"major": 10, "minor": 0}})
    assert each.topic is Topic.QEMU_VERSION
    (each,) = found(qom_get="pc-q35-8.0-machine")
    assert each.topic is Topic.MACHINE and "it is a pc-q35-8.0" in each.text
    assert found(qom_get=QemuRefusal("no")) == []
    config = VmConfig("web1", disks=(Disk("d", Path("/a"), Path("/b")),))
    (each,) = found(config)
    assert each.topic is Topic.DISK_NOT_USED and "no drives of that name" in each.text


def test_a_vm_in_colo_is_left_alone(no_obstacles: list[bool]) -> None:
    (each,) = found(query_migrate={"status": "colo"})
    assert each.topic is Topic.MIGRATION and not each.refused and no_obstacles == []


def test_the_machines_name() -> None:
    assert asyncio.run(machine_of(FakeQemu({}))) == "pc-q35-7.2"
    assert asyncio.run(machine_of(FakeQemu({"qom-get": "odd"}))) is None


def test_no_qemu_behind_the_socket(tmp_path: Path) -> None:
    (each,) = asyncio.run(check_running(CONFIG, Socket(tmp_path / "q"), False))
    assert each.topic is Topic.QMP and "there is no QMP socket" in each.text


class FakeAttached(FakeQemu):
    """One that is attached to."""

    detached = 0

    async def detach(self) -> None:
        FakeAttached.detached += 1


class FakeDomain:
    """A domain with something to be told; its QEMU dies when it is asked for its version."""

    topic = Topic.LIBVIRT

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    async def attach(self, say: Callable[[str], None]) -> Monitor:
        say("libvirt would start it")
        return FakeAttached(self.answers)


def test_a_qemu_that_dies_is_told_and_let_go() -> None:
    dies = FakeDomain({"query-version": GuestError("QEMU died at query-version")})
    died, told = asyncio.run(check_running(CONFIG, cast(Running, dies), False))
    assert (died.topic, died.refused, FakeAttached.detached) == (Topic.LIBVIRT, True, 1)
    assert (told.topic, told.refused, told.text) == (Topic.LIBVIRT, False, "libvirt would start it")


class FakeStarted(FakeQemu):
    """One that is started; it is to be ended, whatever was found."""

    error: GuestError | None = None
    killed = 0

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        super().__init__({})
        assert command[-1] == "-S" and folder.is_dir()

    async def start(self) -> None:
        if self.error is not None:
            raise self.error

    async def kill(self) -> None:
        FakeStarted.killed += 1


def test_a_qemu_that_is_started_for_it_is_ended(
    monkeypatch: pytest.MonkeyPatch, no_obstacles: list[bool]
) -> None:
    launch = LaunchPlan(CONFIG, (7, 2), "tcg", (), {})
    monkeypatch.setattr(module, "plan", lambda config, say: launch)
    monkeypatch.setattr(module, "Qemu", FakeStarted)
    assert asyncio.run(check_started(CONFIG, False)) == []
    assert (FakeStarted.killed, no_obstacles) == (1, [False]), "its VM need not run"
    monkeypatch.setattr(FakeStarted, "error", GuestError("QEMU did not start", "no such device"))
    (each,) = asyncio.run(check_started(CONFIG, False))
    assert each.topic is Topic.QEMU_ARGUMENTS and "no such device" in each.text

    def fails(*_: object) -> None:
        raise GuestError("no KVM")

    monkeypatch.setattr(module, "plan", fails)
    assert asyncio.run(check_started(CONFIG, False)) == [], "the host's part has said so"
