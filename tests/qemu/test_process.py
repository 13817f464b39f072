"""How a VM's QEMU is started: which accelerator, and which command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from colo.config import VmConfig
from colo.config.vm import OneHost, QemuArgs
from colo.errors import GuestError
from colo.qemu import process
from colo.qemu.accelerator import Outcome
from colo.qemu.process import plan

LIBRARY = "/cache/tcg-preload-0123.so"
CLOCK = "/cache/clock-preload-0123.so"
BOTH = ("-accel", "kvm", "-accel", "tcg")


@pytest.fixture(autouse=True)
def old_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "version_of", lambda binary: (7, 2))
    monkeypatch.setattr(process, "tcg_preload", lambda: Path(LIBRARY))
    monkeypatch.setattr(process, "clock_preload", lambda: Path(CLOCK))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
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
    expected = f"{CLOCK}:{LIBRARY}" if chosen == "tcg" else CLOCK
    assert launch.environment["LD_PRELOAD"] == expected
    assert launch.warnings == ()
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


def test_under_tcg_the_largest_backend_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    kvm(monkeypatch, Outcome.WORKS)
    objects = [("-object", f"memory-backend-ram,id=m{n},size={n}M") for n in (1, 2)]
    nodes = [("-numa", f"node,memdev=m{n}") for n in (1, 2)]
    args = [word for pair in (*objects, *nodes) for word in pair]
    assert plan(vm(*args)).accelerator == "kvm"
    with pytest.raises(GuestError, match="have the -object of m2 before the others"):
        plan(vm(*args, accel="tcg"))
