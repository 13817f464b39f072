"""How a VM's QEMU is started: which accelerator, and which command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from colo.config import VmConfig
from colo.config.vm import Disk, OneHost, QemuArgs
from colo.errors import GuestError
from colo.qemu import process
from colo.qemu.accelerator import Outcome
from colo.qemu.preload import TCG_LIBRARY, Library
from colo.qemu.process import plan

TCG, CLOCK = "/cache/tcg-preload-0123.so", "/cache/clock-preload-0123.so"
BOTH = ("-accel", "kvm", "-accel", "tcg")


@pytest.fixture(autouse=True)
def old_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "version_of", lambda binary: (7, 2))
    monkeypatch.setattr(Library, "built", lambda self: Path(f"/cache/{self.name}-0123.so"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)


def kvm(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    monkeypatch.setattr(process, "try_kvm", lambda binary, args: outcome)


def vm(*args: str, accel: str = "auto") -> VmConfig:
    return VmConfig("web1", qemu=QemuArgs(args=args, accel=accel))


CHOSEN = [
    ((), "auto", Outcome.WORKS, "kvm"),
    ((), "auto", Outcome.CLOSED, "tcg"),
    ((), "auto", Outcome.SPINS, "tcg"),
    ((), "auto", Outcome.REFUSED, "tcg"),
    ((), "kvm", Outcome.WORKS, "kvm"),
    ((), "tcg", Outcome.WORKS, "tcg"),
    (("-accel", "kvm"), "tcg", Outcome.WORKS, "kvm"),
    (("-accel", "tcg"), "kvm", Outcome.SPINS, "tcg"),
    (BOTH, "auto", Outcome.WORKS, "kvm"),
    (BOTH, "auto", Outcome.CLOSED, "tcg"),
    (("-machine", "pc,accel=kvm:tcg"), "auto", Outcome.CLOSED, "tcg"),
]


@pytest.mark.parametrize(("args", "accel", "outcome", "chosen"), CHOSEN)
def test_the_accelerator_is_the_one_that_qemu_will_use(
    args: tuple[str, ...],
    accel: str,
    outcome: Outcome,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kvm(monkeypatch, outcome)
    launch = plan(vm(*args, accel=accel))
    assert launch.accelerator == chosen
    assert launch.accelerator_args == (() if args else ("-accel", chosen))
    assert launch.environment["LD_PRELOAD"] == (f"{TCG}:{CLOCK}" if chosen == "tcg" else CLOCK)
    assert launch.environment.keys() - {"LD_PRELOAD"} == os.environ.keys()


@pytest.mark.parametrize("outcome", [Outcome.CLOSED, Outcome.SPINS, Outcome.REFUSED])
@pytest.mark.parametrize(
    ("args", "accel", "where"),
    [
        (("-accel", "kvm"), "auto", "[qemu] args"),
        (("-enable-kvm", "-cpu", "host"), "tcg", "[qemu] args"),
        ((), "kvm", "[qemu] accel"),
    ],
)
def test_a_kvm_that_is_wanted_and_does_not_work_is_refused_in_one_line(
    outcome: Outcome,
    args: tuple[str, ...],
    accel: str,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kvm(monkeypatch, outcome)
    with pytest.raises(GuestError) as caught:
        plan(vm(*args, accel=accel))
    assert str(caught.value).startswith(f"KVM is wanted ({where}) and does not work on this host: ")
    assert outcome.value in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("outcome", [Outcome.SPINS, Outcome.REFUSED])
def test_qemu_itself_would_not_take_the_next_one(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm(monkeypatch, outcome)
    with pytest.raises(GuestError, match="KVM is wanted"):
        plan(vm(*BOTH))


def test_who_waits_has_the_images_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = VmConfig(
        "web1",
        qemu=QemuArgs(
            binary="/opt/qemu",
            args=("-m", "64", "-machine", "q35"),
            accel="tcg",
            primary=OneHost(("-netdev", "tap,id=n0,ifname=tap0")),
            secondary=OneHost(("-netdev", "tap,id=n0,ifname=tap1")),
        ),
    )
    launch = plan(config)
    assert launch.waiting({"pc.ram": Path("/dev/shm/vm,1/pc.ram")}) == [
        "/opt/qemu", "-m", "64", "-machine", "q35", "-netdev", "tap,id=n0,ifname=tap1",
        "-accel", "tcg", "-object",
        "memory-backend-file,id=pc.ram,share=on,size=67108864,mem-path=/dev/shm/vm,,1/pc.ram",
        "-machine", "memory-backend=pc.ram", "-incoming", "defer",
    ]  # fmt: skip
    assert launch.unstarted() == [
        "/opt/qemu", "-m", "64", "-machine", "q35", "-netdev", "tap,id=n0,ifname=tap0",
        "-accel", "tcg", "-S",
    ]  # fmt: skip


def test_each_host_has_the_disks_that_lie_there(tmp_path: Path) -> None:
    there = tmp_path / "b.raw"
    disk = Disk("root", tmp_path / "a,1.qcow2", there)
    launch = plan(VmConfig("web1", qemu=QemuArgs(accel="tcg"), disks=(disk,)))
    common = {"node-name": "root", "discard": "unmap", "detect-zeroes": "unmap"}
    for command, form, path in (
        (launch.primary(), "qcow2", tmp_path / "a,1.qcow2"),
        (launch.waiting({"pc.ram": tmp_path}), "raw", there),
    ):
        node = json.loads(command[command.index("-blockdev") + 1])
        file = {"driver": "file", "filename": str(path)}
        assert node == {**common, "driver": form, "file": file}


def test_under_tcg_the_largest_backend_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kvm(monkeypatch, Outcome.WORKS)
    objects = [("-object", f"memory-backend-ram,id=m{n},size={n}M") for n in (1, 2)]
    nodes = [("-numa", f"node,memdev=m{n}") for n in (1, 2)]
    args = [word for pair in (*objects, *nodes) for word in pair]
    assert plan(vm(*args)).accelerator == "kvm"
    with pytest.raises(GuestError, match="have the -object of m2 before the others"):
        plan(vm(*args, accel="tcg"))


def test_what_the_user_preloads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert plan(vm(accel="tcg")).environment["LD_PRELOAD"] == (
        f"{TCG}:{CLOCK}:/usr/lib/libjemalloc.so.2"
    )


def test_a_vm_starts_without_what_keeps_its_clock_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def built(library: Library) -> Path:
        if library is TCG_LIBRARY:
            return Path(TCG)
        raise GuestError("there is no C compiler: install gcc")

    monkeypatch.setattr(Library, "built", built)
    said: list[str] = []
    assert plan(vm(accel="tcg"), said.append).environment["LD_PRELOAD"] == TCG
    assert said == [
        "web1: the guest's clock loses the time that checkpoints take: there is no C compiler: "
        "install gcc"
    ]
