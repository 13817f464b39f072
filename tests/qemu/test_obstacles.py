"""What stands in the way of protecting a VM: one line each, with what to do."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from colo.errors import GuestError
from colo.qemu import obstacles as module
from colo.qemu.command_line import RAM_BLOCK
from colo.qemu.monitor import Monitor
from colo.qemu.obstacles import obstacles
from colo.qemu.preload import Library

LIBRARY = "/cache/tcg-preload-0123.so"
CLEAN: dict[str, Any] = {
    "query-migrate": {},
    "query-migrate-parameters": {},
    "query-migrate-capabilities": [{"capability": "x-colo", "state": False}],
    "query-status": {"running": True, "status": "running"},
    "query-version": {"qemu": {"major": 11, "minor": 1}},
    "query-kvm": {"enabled": False, "present": True},
    "qom-get": False,
    "qom-list": [{"name": "device[0]"}],
    "query-block": [],
    "query-memdev": [{"id": RAM_BLOCK}],
}
OLD = {"query-version": {"qemu": {"major": 7, "minor": 2}}}


class FakeQemu(Monitor):
    """Answers what a VM answers; its process is this one."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.pid = os.getpid()
        self._answers = CLEAN | answers

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        return self._answers[command]


def found(answers: dict[str, Any], *netdevs: str, started: bool = True) -> list[str]:
    return asyncio.run(obstacles(FakeQemu(answers), list(netdevs), False, started))


def status(name: str) -> dict[str, Any]:
    return {"query-status": {"running": name == "running", "status": name}}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "built", lambda library: Path(LIBRARY))


def test_nothing_stands_in_the_way() -> None:
    assert found({}, "n0", "n1") == []


def test_what_blocks_a_migration_is_said_in_qemus_words() -> None:
    reasons = ["'peer mode' in device 'ivshmem'", "non-migratable device: vfio-pci"]
    lines = found({"query-migrate": {"blocked-reasons": reasons}})
    assert len(lines) == 2
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))


@pytest.mark.parametrize("state", ["paused", "prelaunch", "io-error", "guest-panicked"])
def test_a_vm_that_somebody_has_stopped_is_not_started_by_protecting_it(state: str) -> None:
    (line,) = found(status(state))
    assert f"the VM does not run ({state})" in line and "`cont`" in line


def test_a_vm_that_stands_still_for_us_is_none_that_somebody_has_stopped() -> None:
    assert found(status("prelaunch"), started=False) == []
    left = {"query-migrate-capabilities": [{"capability": "x-colo", "state": True}]}
    assert found({**status("paused"), **left}) == [], "by a colo that was killed in its first copy"


def test_a_netdev_of_several_queues_cannot_be_filtered() -> None:
    (line,) = found({}, "n0", "n1", "n1", "n1")
    assert "netdev n1 has several queues" in line


def test_an_old_qemu_under_tcg_needs_the_preload(tmp_path: Path) -> None:
    (line,) = found(OLD)
    assert f"LD_PRELOAD={LIBRARY}" in line and "`colo run`" in line
    assert found({**OLD, "query-kvm": {"enabled": True, "present": True}}) == []
    library = tmp_path / "tcg-preload-0123.so"
    library.write_bytes(bytes(mmap.PAGESIZE))
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        assert found(OLD) == []


def test_without_a_compiler_the_preload_is_named_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(library: Library) -> Path:
        raise GuestError("there is no C compiler")

    monkeypatch.setattr(Library, "built", fail)
    (line,) = found(OLD)
    assert "LD_PRELOAD=the library that the manual names" in line


def test_vhost_leads_packets_past_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "vhost-net"
    device.touch()
    monkeypatch.setattr(module, "_VHOST", str(device))
    assert found({}, "n0") == []
    with device.open():
        (line,) = found({}, "n0")
        assert "vhost is on" in line and "vhost=off" in line
        assert found({}) == [], "no card, no packet"


@pytest.mark.parametrize("backends", [[], [{"id": "m0"}, {"id": "m1"}]])
def test_memory_that_is_not_one_backend_cannot_be_mapped(backends: list[dict[str, str]]) -> None:
    (line,) = found({"query-memdev": backends})
    assert f"not one backend named {RAM_BLOCK}" in line
