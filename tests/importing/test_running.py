"""An import from a QEMU that runs, here one that only answers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from colo.config.vm import parse
from colo.errors import QemuRefusal
from colo.findings import Finding, Topic
from colo.importing import running as module
from colo.importing.draft import Draft, vm_file
from colo.importing.known import Known
from colo.qemu.monitor import AttachedQemu

WORDS = [
    "/usr/bin/qemu-system-x86_64", "-name", "web1", "-machine", "q35", "-m", "128",
    "-drive", "file=/srv/a.raw,format=raw,if=virtio", "-device", "virtio-rng-pci,id=gone",
    "-device", "virtio-net-pci,netdev=n0,id=net0", "-netdev", "user,id=n0",
]  # fmt: skip
DRIVE = {
    "device": "virtio0",
    "qdev": "",
    "inserted": {"node-name": "#b", "image": {"filename": "/srv/now.qcow2", "format": "qcow2"}},
}


class FakeQemu(AttachedQemu):
    """Answers what a VM answers."""

    refuses: tuple[str, ...] = ()
    detached = 0

    async def attach(self) -> None:
        self.pid = os.getpid()

    async def detach(self) -> None:
        FakeQemu.detached += 1

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        if command in self.refuses:
            raise QemuRefusal(f"QEMU refuses {command}")
        return {
            "qom-get": "pc-q35-7.2-machine",
            "query-block": [DRIVE, {"device": "cd"}],
            "qom-list": [{"name": "type"}, {"name": "net0"}, {"name": "hot0"}],
        }[command]


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> type[FakeQemu]:
    FakeQemu.refuses, FakeQemu.detached = (), 0

    async def check_qemu(*_: object, **__: object) -> list[Finding]:
        return [Finding(Topic.VHOST, "vhost is on")]

    monkeypatch.setattr(module, "AttachedQemu", FakeQemu)
    monkeypatch.setattr(module, "check_qemu", check_qemu)
    monkeypatch.setattr(module, "read_process", lambda pid: (WORDS, Known(folder="/srv")))
    return FakeQemu


def imported() -> Draft:
    return asyncio.run(module.import_running(Path("/run/q"), None, None))


def test_what_qemu_says_goes_before_what_it_was_started_with(qemu: type[FakeQemu]) -> None:
    draft = imported()
    config = parse(vm_file(draft))
    assert config.qemu.args[3] == "pc-q35-7.2"
    assert config.disks[0].primary == Path("/srv/now.qcow2")
    told = draft.told()
    assert any("the device hot0 was plugged in while the VM ran" in line for line in told)
    assert any("the device gone is not in the VM any more" in line for line in told)
    assert any(line.endswith("vhost is on: see docs/refused.md#vhost") for line in told)
    assert qemu.detached == 1


def test_what_qemu_does_not_tell_is_left_as_it_was_started(qemu: type[FakeQemu]) -> None:
    qemu.refuses = ("qom-get", "qom-list")
    assert parse(vm_file(imported())).qemu.args[3] == "q35"


def test_qemu_is_let_go_where_it_fails(qemu: type[FakeQemu]) -> None:
    qemu.refuses = ("query-block",)
    with pytest.raises(QemuRefusal):
        imported()
    assert qemu.detached == 1


def test_a_process_alone_is_said_to_tell_less(qemu: type[FakeQemu]) -> None:
    draft = module.import_process(7, "other")
    assert draft.name == "other" and "process 7" in draft.source
    assert any("without --qmp QEMU itself was not asked" in line for line in draft.told())
