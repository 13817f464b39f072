"""What this host cannot do of a VM file, each with the entry that says what to do."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from colo.checking import host as module
from colo.checking.host import Part, check_arbiter, check_host, is_qcow2
from colo.config import TlsFiles, VmConfig
from colo.config.vm import Disk, Failover, QemuArgs, StoreRoom
from colo.errors import GuestError
from colo.findings import Finding, Topic
from colo.membership.grant import Record
from colo.node.state_folder import StateFolder
from colo.qemu.preload import Library
from tests.certificates import Authority

ARGS = ("-machine", "pc-i440fx-7.2", "-m", "64")
FIRST, SECOND, NODE = Part(True), Part(False), Part(True, "a")


@pytest.fixture(autouse=True)
def qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose QEMU, KVM and compiler are all right."""
    monkeypatch.setattr(module, "version_of", lambda binary: (7, 2))
    monkeypatch.setattr(module, "working_accelerator", lambda qemu: "kvm")
    monkeypatch.setattr(Library, "built", lambda library: Path("/cache/x.so"))


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    return VmConfig(
        "web1",
        qemu=QemuArgs(args=ARGS),
        store=StoreRoom(folder=tmp_path),
        failover=Failover(arbiter=f"file:{tmp_path}/grant"),
    )


def found(config: VmConfig, part: Part = FIRST, state: Path | None = None) -> list[Finding]:
    return list(check_host(config, part, state))


def topics(findings: list[Finding]) -> list[tuple[str, bool]]:
    return [(each.topic.value, each.refused) for each in findings]


def with_args(config: VmConfig, *args: str) -> VmConfig:
    return replace(config, qemu=replace(config.qemu, args=(*ARGS, *args)))


@pytest.mark.parametrize("part", [FIRST, SECOND])
def test_a_host_that_has_all_of_it(config: VmConfig, part: Part, tmp_path: Path) -> None:
    assert found(config, part, tmp_path / "state") == []
    assert not (tmp_path / "state").exists()
    assert asyncio.run(check_arbiter(config, part)) == []
    assert not (tmp_path / "grant").exists()


# -- QEMU ----------------------------------------------------------------------------------------


def raising(text: str) -> object:
    def fail(*_: object) -> None:
        raise GuestError(text)

    return fail


def test_no_qemu(config: VmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version_of", raising("there is no qemu"))
    assert topics(found(config)) == [("qemu-binary", True)]


def test_a_qemu_that_never_enters_colo(config: VmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version_of", lambda binary: (10, 1))
    (each,) = found(config)
    assert each.topic is Topic.QEMU_VERSION and "--allow-broken-qemu" in each.text


def test_kvm_that_does_not_work(config: VmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "working_accelerator", raising("KVM is wanted"))
    assert topics(found(config)) == [("kvm", True)]


def test_tcg_is_slow_and_needs_a_library(config: VmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "working_accelerator", lambda qemu: "tcg")
    assert topics(found(config)) == [("kvm", False)]
    monkeypatch.setattr(Library, "built", raising("there is no C compiler"))
    assert topics(found(config)) == [
        ("kvm", False), ("tcg-library", True), ("clock-library", False),
    ]  # fmt: skip


def test_under_tcg_the_largest_memory_is_first(
    config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "working_accelerator", lambda qemu: "tcg")
    small, large = ("memory-backend-ram,id=s,size=1M", "memory-backend-ram,id=l,size=2M")
    memory = (
        "-object",
        small,
        "-object",
        large,
        "-numa",
        "node,memdev=s",
        "-numa",
        "node,memdev=l",
    )
    assert ("memory-order", True) in topics(found(with_args(config, *memory)))


def test_arguments_of_this_host_are_looked_at(config: VmConfig) -> None:
    bad = replace(
        config.qemu, secondary=replace(config.qemu.secondary, args=("-nic", "tap,vhost=on"))
    )
    assert found(replace(config, qemu=bad)) == []
    assert topics(found(replace(config, qemu=bad), SECOND)) == [("vhost", True)]


@pytest.mark.parametrize(
    "args", [("-kernel", "/none"), ("-cdrom", "/none"), ("-drive", "file=/none,if=none,id=x")]
)
def test_files_that_are_not_there(config: VmConfig, args: tuple[str, ...]) -> None:
    assert topics(found(with_args(config, *args))) == [("files", True)]


def test_taps_and_bridges(
    config: VmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_NETWORK", tmp_path / "net")
    (tmp_path / "net" / "tap0").mkdir(parents=True)
    (tmp_path / "net" / "tap0" / "tun_flags").touch()
    (tmp_path / "net" / "eth0").mkdir()
    for netdev, expected in {
        "tap,id=n,ifname=tap0,script=no": [],
        "tap,id=n,ifname=tap1,script=no": [("tap", False)],
        "tap,id=n,ifname=tap1": [],
        "tap,id=n,ifname=eth0,script=no": [("tap", True)],
        "tap,id=n,ifname=a-name-too-long-for-one": [("tap", True)],
        "bridge,id=n,br=br0": [("tap", True)],
        "tap,id=n,br=br0,helper=/h": [("tap", True)],
        "tap,id=n,br=eth0,helper=/h": [],
        "user,id=n": [],
    }.items():
        assert topics(found(with_args(config, "-netdev", netdev))) == expected, netdev


def test_a_secondary_vm_shares_a_tap_that_has_a_name(config: VmConfig) -> None:
    queues = replace(with_args(config, "-netdev", "tap,id=n"), mode="hybrid")
    assert topics(found(queues, SECOND)) == [("tap", True)]
    assert found(queues, FIRST) == []


# -- disks ---------------------------------------------------------------------------------------


def with_disk(config: VmConfig, at: Path, other: Path | None = None) -> VmConfig:
    disk = Disk("d", at, other or at)
    return replace(with_args(config, "-device", "virtio-blk-pci,drive=d"), disks=(disk,))


def test_a_disk_is_there_on_the_first_host_and_may_be_made_on_the_second(
    config: VmConfig, tmp_path: Path
) -> None:
    here = with_disk(config, tmp_path / "d.raw")
    assert topics(found(here)) == [("disk-file", True)]
    assert found(here, SECOND) == []
    away = with_disk(config, tmp_path / "none" / "d.raw")
    assert topics(found(away, SECOND)) == [("disk-file", True)]
    (tmp_path / "d.raw").write_bytes(bytes(512))
    assert found(here) == found(here, SECOND) == []
    assert topics(found(with_disk(config, tmp_path))) == [("disk-file", True)]
    through_a_file = with_disk(config, tmp_path / "d.raw" / "x")
    assert topics(found(through_a_file)) == [("disk-file", True)]


def test_firmwares_memory_is_there_on_both_hosts(config: VmConfig, tmp_path: Path) -> None:
    disk = Disk("vars", tmp_path / "a", tmp_path / "b")
    flash = replace(with_args(config, "-machine", "pflash1=vars"), disks=(disk,))
    (each,) = found(flash, SECOND)
    assert each.topic is Topic.DISK_FILE and "copy that file here once" in each.text
    (tmp_path / "b").write_bytes(bytes(512))
    assert found(flash, SECOND) == []


def test_a_disk_is_what_its_name_says(config: VmConfig, tmp_path: Path) -> None:
    image, raw, named = (tmp_path / name for name in ("i.qcow2", "r.raw", "n.qcow2"))
    image.write_bytes(b"QFI\xfb" + bytes(508))
    raw.write_bytes(image.read_bytes())
    named.write_bytes(bytes(512))
    assert (is_qcow2(image), is_qcow2(named), is_qcow2(tmp_path)) == (True, False, None)
    assert found(with_disk(config, image)) == []
    assert topics(found(with_disk(config, image), SECOND)) == [("disk-format", True)]
    assert topics(found(with_disk(config, image), NODE))[0] == ("disk-format", False)
    assert topics(found(with_disk(config, raw))) == [("disk-format", True)]
    assert topics(found(with_disk(config, named))) == [("disk-format", True)]


def test_a_disk_that_may_not_be_written(
    config: VmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.raw").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert topics(found(with_disk(config, tmp_path / "d.raw"))) == [("disk-file", True)]


# -- the host ------------------------------------------------------------------------------------


def with_hosts(config: VmConfig, ours: str) -> VmConfig:
    return replace(config, hosts={"a": ours, "b": "unix:/run/b"})


def test_our_own_address_is_this_hosts_and_free(config: VmConfig, tmp_path: Path) -> None:
    assert found(with_hosts(config, f"unix:{tmp_path}/a"), NODE) == []
    assert topics(found(with_hosts(config, "unix:/none/a"), NODE)) == [("address", True)]
    assert topics(found(with_hosts(config, "nonsense"), NODE)) == [("address", True)]
    free = with_hosts(config, "tcp:127.0.0.1:0")
    assert topics(found(free, NODE)) == [("tls", False)], "it is not encrypted"
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = with_hosts(config, f"tcp:127.0.0.1:{server.getsockname()[1]}")
        assert ("address", True) in topics(found(taken, NODE))
        assert ("address", True) not in topics(found(taken, FIRST)), "single steps"


def test_tls_is_tried_with_itself(config: VmConfig, tmp_path: Path) -> None:
    ours = Authority.make(tmp_path / "ca").issue("a")
    assert found(replace(config, tls=ours)) == []
    stranger = Authority.make(tmp_path / "other").issue("a")
    mixed = TlsFiles(stranger.ca, ours.certificate, ours.key)
    missing = TlsFiles(tmp_path / "no", ours.certificate, ours.key)
    named = replace(ours, name="nobody.example")
    for files in (mixed, missing, named):
        (each,) = found(replace(config, tls=files))
        assert each.topic is Topic.TLS and "[tls]" in each.text


def test_the_fence_is_a_program(config: VmConfig, tmp_path: Path) -> None:
    fence = tmp_path / "off"
    there = replace(config, failover=replace(config.failover, fence=f"exec:{fence}"))
    assert topics(found(there)) == [("fence", True)]
    fence.touch(0o755)
    assert found(there) == []


def test_the_store_has_its_folder_and_room(
    config: VmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = replace(config, store=StoreRoom(folder=tmp_path / "none"))
    assert topics(found(none, SECOND)) == [("store", True)]
    assert found(none, FIRST) == [], "only who follows has one"
    huge = with_args(config, "-m", "900T")
    assert topics(found(huge, SECOND)) == [("store", True)]
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4 kB\nMemAvailable:       1024 kB\n")
    monkeypatch.setattr(module, "_MEMINFO", meminfo)
    monkeypatch.setattr(module, "require_room", lambda *_: None)
    shm = replace(config, store=StoreRoom())
    assert topics(found(shm, SECOND)) == [("store", False)]
    meminfo.unlink()
    assert found(shm, SECOND) == []


def test_the_state_folder_can_be_had_and_has_room(config: VmConfig, tmp_path: Path) -> None:
    assert topics(found(config, FIRST, tmp_path / ("x" * 120))) == [("state-folder", True)]
    folder = StateFolder(tmp_path / "state")
    assert topics(found(config, FIRST, tmp_path / "state")) == [("state-folder", True)]
    folder.close()
    assert found(config, FIRST, tmp_path / "state") == []
    (tmp_path / "d.raw").touch()
    disk = with_disk(config, tmp_path / "d.raw")
    full = replace(disk, store=replace(disk.store, disk_journal_mib=1 << 30))
    assert topics(found(full, SECOND, tmp_path / "new")) == [("state-folder", True)]


# -- the arbiter ---------------------------------------------------------------------------------


def asked(config: VmConfig, arbiter: str, part: Part = FIRST) -> list[Finding]:
    failover = replace(config.failover, arbiter=arbiter)
    return asyncio.run(check_arbiter(replace(config, failover=failover), part))


def test_an_arbiter_can_be_asked_and_can_be_one(config: VmConfig, tmp_path: Path) -> None:
    assert asked(config, "manual") == []
    for text, part in (
        ("none", FIRST), ("manual", NODE), (f"file:{tmp_path}/none/grant", FIRST),
        ("exec:/none", FIRST), ("etcd:http://127.0.0.1:1", FIRST),
    ):  # fmt: skip
        assert topics(asked(config, text, part)) == [("arbiter", True)], text
    grant = tmp_path / "grant"
    grant.write_text("nonsense")
    assert topics(asked(config, f"file:{grant}")) == [("arbiter", True)]
    grant.write_text(Record(3, "a/1/1").encode())
    (each,) = asked(config, f"file:{grant}")
    assert not each.refused and "grant 3 is a/1/1's" in each.text


def test_nothing_is_found_twice(config: VmConfig, tmp_path: Path) -> None:
    everything = with_disk(with_hosts(config, "nonsense"), tmp_path / "none")
    assert max(Counter(found(everything, NODE, tmp_path / ("x" * 200))).values()) == 1
