"""What stands in the way of protecting a VM: one line each, with what to do."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from colo.config import VmConfig
from colo.config.vm import Disk, QemuArgs
from colo.errors import GuestError
from colo.qemu import obstacles as module
from colo.qemu.accelerator import Outcome
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
    "query-memdev": [{"id": "pc.ram", "size": 128 << 20}],
    "query-memory-devices": [],
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


def found(
    answers: dict[str, Any], *netdevs: str, started: bool = True, args: tuple[str, ...] = ()
) -> list[str]:
    config = VmConfig("web1", qemu=QemuArgs(args=args))
    qemu = FakeQemu(answers)
    return [
        each.text for each in asyncio.run(obstacles(qemu, config, list(netdevs), False, started))
    ]


def status(name: str) -> dict[str, Any]:
    return {"query-status": {"running": name == "running", "status": name}}


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "built", lambda library: Path(LIBRARY))
    monkeypatch.setattr(module, "try_kvm", lambda binary, args: Outcome.WORKS)


@pytest.mark.parametrize("name", ["virtio0", "#block1", "data"])
def test_a_written_disk_is_one_that_is_named(name: str) -> None:
    drive = {
        "device": "virtio0",
        "qdev": "/machine/peripheral/data/virtio-backend",
        "inserted": {"node-name": "#block1", "ro": False},
    }
    answers = CLEAN | {"query-block": [drive]}
    disk = Disk(name, Path("/a"), Path("/b"))
    for disks, lines in (((disk,), 0), ((), 1)):
        config = VmConfig("web1", disks=disks)
        found = asyncio.run(obstacles(FakeQemu(answers), config, [], False))
        assert len(found) == lines
        assert not lines or "name it in [[disks]]" in str(found[0])
        assert not lines or str(found[0]).endswith(": see docs/refused.md#disk-not-named")


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
    monkeypatch.setattr(module, "_VHOST_DEVICE", str(device))
    assert found({}, "n0") == []
    with device.open():
        (line,) = found({}, "n0")
        assert "vhost is on" in line and "vhost=off" in line
        assert found({}) == [], "no card, no packet"


NUMA = (
    "-object", "memory-backend-ram,id=a,size=64M", "-object", "memory-backend-ram,id=b,size=32M",
    "-numa", "node,memdev=a", "-numa", "node,memdev=b",
)  # fmt: skip


def test_memory_may_be_several_backends_and_others_may_be_there() -> None:
    sizes = [{"id": "a", "size": 64 << 20}, {"id": "b", "size": 32 << 20}, {"size": 1}]
    under_kvm = {"query-kvm": {"enabled": True}}
    assert found({"query-memdev": sizes, **under_kvm}, args=NUMA) == []
    (line,) = found({"query-memdev": sizes}, args=NUMA)
    assert f"LD_PRELOAD={LIBRARY}" in line, "under TCG whatever the version"
    first, second = found(under_kvm, args=NUMA)
    assert first.startswith(
        "the VM's memory has no backend a of 67108864 bytes (its backends: pc.ram of 134217728)"
    )
    assert "no backend b of 33554432 bytes" in second and "-numa in [qemu] args" in second


@pytest.mark.parametrize(
    "backends", [[], [{"id": "m0", "size": 128 << 20}], [{"id": "pc.ram", "size": 64 << 20}]]
)
def test_memory_is_to_be_what_the_vm_file_says(backends: list[dict[str, Any]]) -> None:
    (line,) = found({"query-memdev": backends})
    assert "no backend pc.ram of 134217728 bytes" in line


@pytest.mark.parametrize("kind", ["dimm", "nvdimm", "virtio-mem", "virtio-pmem"])
def test_plugged_memory_is_not_protected(kind: str) -> None:
    device = {"type": kind, "data": {"memdev": "/objects/m1", "size": 1 << 20}}
    args = ("-m", "128,slots=2,maxmem=1G")
    (line,) = found({"query-memory-devices": [device]}, args=args)
    assert line == f"the memory device /objects/m1 ({kind}) is plugged in: take it out"
    assert found({}, args=args) == [], "room for some is no obstacle"


def test_under_tcg_the_largest_backend_comes_first() -> None:
    args = (*NUMA[2:4], *NUMA[:2], *NUMA[4:])
    sizes = [{"id": "a", "size": 64 << 20}, {"id": "b", "size": 32 << 20}]
    assert "have the -object of a before" in found({"query-memdev": sizes}, args=args)[-1]
    assert found({"query-memdev": sizes, "query-kvm": {"enabled": True}}, args=args) == []


@pytest.mark.parametrize("outcome", Outcome)
def test_a_kvm_that_gets_no_vm_on_is_said(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, object]] = []

    def try_kvm(binary: str, args: object) -> Outcome:
        tried.append((binary, args))
        return outcome

    monkeypatch.setattr(module, "try_kvm", try_kvm)
    args = ("-cpu", "host")
    lines = found({"query-kvm": {"enabled": True}}, args=args)
    assert tried == [("qemu-system-x86_64", args)]
    if outcome is Outcome.SPINS:
        assert len(lines) == 1 and lines[0].startswith("it runs under KVM, which does not work on")
    else:
        assert lines == [], "that is not known"
    assert found({}, args=args) == [] and len(tried) == 1, "under TCG nothing is tried"
