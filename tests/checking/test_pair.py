"""Two hosts' VM files: what has to be the same, and is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from colo.checking.pair import differences
from colo.config import TlsFiles, VmConfig
from colo.config.vm import Checkpoints, Disk, Failover, OneHost, QemuArgs, StoreRoom
from colo.findings import Topic

A = VmConfig(
    "web1",
    qemu=QemuArgs(args=("-m", "512", "-device", "virtio-rng-pci")),
    failover=Failover(arbiter="file:/g"),
    hosts={"a": "tcp:a:1", "b": "tcp:b:1"},
    disks=(Disk("root", Path("/a"), Path("/b")),),
)
TLS = TlsFiles(Path("/ca"), Path("/crt"), Path("/key"), "web1")
OTHER = [
    (replace(A, name="web2"), "its VM is web2, this one is web1"),
    (replace(A, qemu=replace(A.qemu, args=("-m", "256", *A.qemu.args[2:]))), "only there -m 256"),
    (replace(A, qemu=replace(A.qemu, args=A.qemu.args[2:] + A.qemu.args[:2])), "another order"),
    (replace(A, failover=Failover(arbiter="manual")), "its arbiter is manual"),
    (replace(A, failover=replace(A.failover, heartbeat_limit_s=0.15, heartbeat_s=0.01)), "twice"),
    (replace(A, disks=()), "[[disks]] are none, this one's root"),
    (replace(A, hosts={"b": "tcp:b:1", "a": "tcp:a:1"}), "in the same order"),
    (replace(A, mode="auto"), "its mode is auto, this one's periodic"),
    (replace(A, tls=TLS), "only one of them has [tls]"),
]


@pytest.mark.parametrize(("other", "told"), OTHER, ids=[told for _, told in OTHER])
def test_what_differs_is_told(other: VmConfig, told: str) -> None:
    (each,) = differences(A, other)
    assert each.topic is Topic.TWO_FILES and each.refused
    assert told in each.text and each.text.startswith("the other file: ")


def test_all_of_it_at_once() -> None:
    other = replace(A, name="web2", disks=(), hosts={}, failover=Failover(arbiter="manual"))
    assert len(list(differences(A, other))) == 4


def test_what_may_differ() -> None:
    other = replace(A, store=StoreRoom(folder=Path("/x")), checkpoints=Checkpoints(aside_mib=1))
    assert list(differences(A, A)) == list(differences(A, other)) == []
    for noted in (
        replace(A, qemu=replace(A.qemu, binary="/opt/qemu")),
        replace(A, qemu=replace(A.qemu, secondary=OneHost(("-vnc", ":1")))),
        replace(A, disks=(Disk("root", Path("/x"), Path("/b")),)),
    ):
        (each,) = differences(A, noted)
        assert not each.refused and each.text.startswith("the other file has ")


def test_accelerators_and_names_of_certificates() -> None:
    kvm, tcg = (replace(A, qemu=replace(A.qemu, accel=accel)) for accel in ("kvm", "tcg"))
    (each,) = differences(kvm, tcg)
    assert "its accelerator is tcg, this one's kvm" in each.text
    assert list(differences(A, tcg)) == [], "auto may become that"
    (each,) = differences(replace(A, tls=TLS), replace(A, tls=replace(TLS, name="web2")))
    assert "its [tls] name is web2" in each.text
