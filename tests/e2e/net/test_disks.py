"""What a client was told is on the disk, it is there, whoever dies; also in a file system."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import Colo, Stage, Vm
from tests.e2e.net.test_hybrid import HYBRID, compared
from tests.e2e.net.test_node import HOSTS, wait_protected
from tests.e2e.net.test_partitions import protected_again
from tests.e2e.net.wires import slow

pytestmark = pytest.mark.e2e

MIB: Final = 1 << 20
RECORD_BYTES: Final = 4096
DISK: Final = ("-no-reboot", "-device", "virtio-blk-pci,drive=disk0")
EXT4: Final = "colo.ext4=/dev/vda colo.disk=/data/records"


def raw(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(16 * MIB)


def ext4(path: Path) -> None:
    """A file system with an empty file that is all holes."""
    content = path.with_suffix(".d")
    content.mkdir()
    with (content / "records").open("wb") as file:
        file.truncate(8 * MIB)
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    run("mkfs.ext4", "-q", "-d", str(content), str(path))


def run(*command: str, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in codes, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def check_ext4(disk: Path) -> None:
    """Nothing is wrong with a file system that nobody has any more."""
    run("e2fsck", "-p", str(disk), codes=(0, 1))  # it plays the file system's journal
    run("e2fsck", "-fn", str(disk))


def records_in(disk: Path, is_ext4: bool) -> int:
    """The number of the last record on a disk that nobody has any more."""
    if is_ext4:
        check_ext4(disk)
        run("debugfs", "-R", f"dump /records {disk}.records", str(disk))
        disk = Path(f"{disk}.records")
    content = disk.read_bytes()
    firsts = (content[at : at + 8] for at in range(0, len(content), RECORD_BYTES))
    return max(int.from_bytes(each, "little") for each in firsts)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("qemu", "vm", "make"),
    [
        ("7.2", Vm(args=DISK), raw),
        ("11.1", Vm(args=DISK, words=EXT4), ext4),
        ("7.2", Vm(args=DISK, words=EXT4, top=HYBRID), ext4),
        ("11.1", Vm(args=DISK, top=HYBRID), raw),
    ],
    ids=["raw", "ext4", "hybrid ext4", "hybrid raw"],
    indirect=["qemu"],
)
def test_what_a_client_was_told_is_on_the_disk(
    stage: Stage,
    vm: Vm,
    make: Callable[[Path], None],
    draw: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    hosts = leads, follows = pair(stage, make)
    stage.wait_booted(leads)
    client = stage.client("records")
    for number in range(2 + int(request.config.getoption("--rounds"))):
        if number:
            leads.start("node", "--host", leads.name)
            leads, follows = follows, leads
            wait_protected(leads)
        client.wait_heard(120)
        if vm.top == HYBRID:
            leads = wait_agreed(leads, follows)
            follows = hosts[0] if leads is hosts[1] else hosts[1]
        time.sleep(draw.uniform(0, 1))
        stage.kill(leads)
        client.wait_heard(5)  # the other one has taken over
        if vm.top == HYBRID:
            follows.wait_said("as the secondary VM since checkpoint")
    told = client.check()["last"]
    stage.kill(follows)
    assert records_in(disk_of(follows), make is ext4) >= told


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(args=DISK)], ids=["raw"])
def test_a_wire_that_is_slow_or_cut_loses_no_record(stage: Stage, vm: Vm) -> None:
    a, b = pair(stage, raw)
    stage.wait_booted(a)
    client = stage.client("records")
    with slow(stage, "30mbit"):
        client.wait_heard(60)
        assert a.state_name() == "PROTECTED"
    with stage.lab.severed(Link.REPLICATION):
        client.wait_heard(60)  # host A runs alone, or host B has taken over
    leads = protected_again(a, b, since=time.time())
    client.wait_heard(20)
    stage.kill(leads)
    client.wait_heard(20)
    told = client.check()["last"]
    follows = b if leads is a else a
    stage.kill(follows)
    assert records_in(disk_of(follows), False) >= told


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(args=DISK[1:])], ids=["raw"])
def test_a_guest_that_reboots_finds_what_it_wrote(stage: Stage, vm: Vm) -> None:
    a, _ = pair(stage, raw)
    stage.wait_booted(a)
    client = stage.client("records")
    client.wait_heard(20)
    told = client.check()["last"]
    boots = a.console.text().count("ready mode=serve")
    stage.order_guest("reboot")
    wait(lambda: a.console.text().count("ready mode=serve") > boots, "the guest to boot again", 90)
    client = stage.client("records")
    first = client.first()
    assert first >= told + 1, "whatever it said is there; the last one may not have been heard"
    wait_protected(a)
    stage.kill(a)
    client.wait_heard(20)  # host B has taken over
    client.check()


def wait_agreed(*hosts: Colo) -> Colo:
    """Wait until a secondary VM has said as the primary VM did; return that one's host.

    A host that stands still for too long has lost the VM, which is as it should be.
    """

    def agreed() -> Colo | None:
        found = (each for each in hosts if compared(each).get("other") == "RUNS")
        return next((each for each in found if compared(each)["alike"]), None)

    leads = wait(agreed, "a secondary VM that agrees")
    assert leads is not None
    return leads


def pair(stage: Stage, make: Callable[[Path], object]) -> tuple[Colo, Colo]:
    """Both hosts, with the VM PROTECTED on host a; ``make`` makes its disk there."""
    table = disk_table(stage, make)
    hosts = []
    for name, place in (("a", Place.HOST_A), ("b", Place.HOST_B)):
        host = stage.colo(name, place, replace(stage.vm, options=HOSTS + table))
        host.start("node", "--host", name)
        hosts.append(host)
    wait_protected(hosts[0])
    return hosts[0], hosts[1]


def disk_table(stage: Stage, make: Callable[[Path], object]) -> str:
    """What a VM file has of the disk, which ``make`` makes on host a."""
    disks = [stage.folder / f"disk0-{name}.raw" for name in "ab"]
    make(disks[0])
    return f'[[disks]]\nid = "disk0"\nprimary = "{disks[0]}"\nsecondary = "{disks[1]}"\n'


def disk_of(host: Colo) -> Path:
    """Where the disk lies on a host."""
    return host.file.with_name(f"disk0-{host.name}.raw")
