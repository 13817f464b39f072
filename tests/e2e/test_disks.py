"""Disks: what the guest writes belongs to the checkpoint, and goes where its VM goes.

The guest verifies each place of its disk before it writes there, and all of it when it is asked to:
it halts where its disk is not of the very point in time that its memory is of.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.inspection.source import load_source
from colo.node.orders import fetch_checkpoint
from tests.e2e.basics import ACCEL, Console, listens, qmp, wait
from tests.e2e.nodes import NodeHost, Nodes
from tests.e2e.vm import KERNEL

pytestmark = pytest.mark.e2e

WRITES = f"{KERNEL} colo.disk=/dev/vda"
DISK = ("-device", "virtio-blk-pci,drive=disk0")
MIB = 1 << 20

Play = Callable[..., Nodes]


@pytest.fixture
def play(qemu: str) -> Iterator[Play]:
    """Make two hosts whose VM has disks: one of 16 MiB, that it writes, if it is not said."""
    folder = Path(tempfile.mkdtemp(prefix="colo-d-"))
    made: list[Nodes] = []

    def make(words: str = WRITES, args: tuple[str, ...] = DISK, **disks: Path) -> Nodes:
        if not disks:
            disks = {"disk0": folder / "disk0-a.raw"}
            with disks["disk0"].open("wb") as file:
                file.truncate(16 * MIB)
        made.append(Nodes(folder, qemu, words, args, disks))
        return made[0]

    try:
        yield make
    finally:
        for nodes in made:
            print(nodes.tails())
            nodes.close()
        shutil.rmtree(folder)
        for store in Path("/dev/shm").glob(f"*{folder.name}*"):
            shutil.rmtree(store, ignore_errors=True)


def protected(nodes: Nodes) -> Nodes:
    nodes.a.start()
    nodes.b.start()
    nodes.wait_protected(nodes.a)
    nodes.a.console.wait_progress()
    return nodes


def wait_leads(host: NodeHost) -> None:
    states = "UNPROTECTED", "BEGINNING", "COPYING", "PROTECTED"
    wait(lambda: host.is_in("primary", *states), f"host {host.name} to run the VM")
    host.console.wait_progress()


def qemu_img(*words: str) -> None:
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def disk_of(host: NodeHost) -> dict[str, Any]:
    """The first disk, in a host's status; empty where it has none."""
    disks = host.status().get("disks") or [{}]
    assert isinstance(disks[0], dict)
    return disks[0]


def test_whoever_dies_the_disk_goes_with_the_vm(play: Play, draw: random.Random) -> None:
    nodes = protected(play())
    lives, dies = nodes.b, nodes.a
    for _ in range(3):
        time.sleep(draw.uniform(0, 1.5))
        dies.die()
        wait_leads(lives)
        dies.start()
        nodes.wait_protected(lives)
        assert "the disks are being copied, as far as they differ" in lives.text()
        lives.console.verify()
        lives, dies = dies, lives


def test_the_replica_is_the_disk_byte_for_byte(play: Play) -> None:
    """Of each bus and format, once the guest writes no more."""
    folder = Path(tempfile.mkdtemp(prefix="colo-d-"))
    drives = {
        "disk0": ("raw", "virtio-blk-pci,drive=disk0,iothread=io0"),
        "scsi0": ("qcow2", "scsi-hd,drive=scsi0"),
        "ide0": ("raw", "ide-hd,drive=ide0"),
        "usb0": ("qcow2", "usb-storage,drive=usb0,bus=usb.0"),
    }
    args = [
        "-object",
        "iothread,id=io0",
        "-device",
        "virtio-scsi-pci",
        "-device",
        "qemu-xhci,id=usb",
    ]
    paths: dict[str, Path] = {}
    try:
        for seed, (name, (form, device)) in enumerate(drives.items()):
            paths[name] = folder / f"{name}.{form}"
            content = folder / "content"
            content.write_bytes(random.Random(seed).randbytes(3 * MIB) if seed else bytes(3 * MIB))
            os.truncate(content, (8 + seed) * MIB)
            qemu_img("convert", "-f", "raw", "-O", form, str(content), str(paths[name]))
            args += ["-device", device]
        nodes = protected(play(f"{WRITES} colo.disk-records=300", tuple(args), **paths))
        wait(lambda: disk_of(nodes.a)["written_bytes"] >= 300 * 4096, "300 records")
        nodes.a.console.wait_progress(200)
        number = nodes.b.status()["checkpoint"]
        wait(lambda: nodes.b.status()["checkpoint"] >= number + 2, "two checkpoints")
        wait(lambda: not any(each["merge_lag"] for each in nodes.b.status()["disks"]), "its merge")
        for name, path in paths.items():
            form = drives[name][0]
            replica = str(nodes.replica(name))
            qemu_img("compare", "-U", "-f", form, "-F", "raw", str(path), replica)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_host_b_dies_under_load_and_comes_back(play: Play, draw: random.Random) -> None:
    nodes = protected(play())
    for _ in range(2):
        time.sleep(draw.uniform(0, 1))
        nodes.b.die()
        nodes.a.console.wait_progress()
        nodes.b.start()
        wait(lambda: nodes.a.is_in("primary", "UNPROTECTED", "BEGINNING"), "host A to miss host B")
        nodes.wait_protected(nodes.a)
    nodes.a.die()
    wait_leads(nodes.b)
    nodes.b.console.verify()


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_colo_is_killed_and_finds_its_disks_again(play: Play) -> None:
    """Host B's: it is copied to again.  Host A's: its QEMU, left alone, is a stale copy by then."""
    nodes = protected(play())
    nodes.b.end(signal.SIGKILL)
    nodes.a.console.wait_progress()
    nodes.b.start()
    wait(lambda: nodes.a.text().count("PROTECTED by") == 2, "the second copy")
    nodes.a.end(signal.SIGKILL)
    wait_leads(nodes.b)
    nodes.a.start()
    nodes.wait_protected(nodes.b)
    done = nodes.b.run("switchover")
    assert done.returncode == 0, done.stderr
    wait_leads(nodes.a)
    nodes.a.console.verify()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_full_disk_on_host_b_ends_the_protection_and_no_more(play: Play, tmp_path: Path) -> None:
    """And once there is room it goes on."""
    nodes = play()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "tmpfs", small], check=True)
    try:
        nodes.replica("disk0").symlink_to(small / "replica")
        nodes.a.start()
        nodes.b.start()
        said = wait(lambda: "No space left on device" in nodes.a.text(), "the disk to be full")
        assert said
        nodes.a.console.wait_progress()
        subprocess.run(["mount", "-o", "remount,size=40M", small], check=True)
        nodes.wait_protected(nodes.a)
        nodes.a.console.verify()
    finally:
        nodes.close()
        subprocess.run(["umount", "--lazy", small], check=True)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_a_backup_job_of_qemus_is_refused_by_qemu_and_changes_nothing(play: Play) -> None:
    """A drive has one job at a time: a backup is taken in the guest."""
    nodes = protected(play())
    monitor = nodes.a.state / "qmp.sock"
    qmp(monitor, "blockdev-add", **{"driver": "null-co", "node-name": "mine", "size": 16 * MIB})
    for device in ("disk0", "colo-disk-0-top"):
        with pytest.raises(AssertionError, match="in use by block job: mirror"):
            qmp(monitor, "blockdev-backup", device=device, target="mine", sync="full")
    snapshot = {"snapshot_file": str(nodes.folder / "snapshot"), "format": "qcow2"}
    snapshot |= {"snapshot_node_name": "mine2", "node_name": "disk0"}
    with pytest.raises(AssertionError, match="in use by block job: mirror"):
        qmp(monitor, "blockdev-snapshot-sync", **snapshot)
    nodes.a.console.wait_progress()
    assert nodes.a.is_in("primary", "PROTECTED")


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_after_a_shutdown_the_host_with_the_last_writes_starts_it(play: Play) -> None:
    """The guest looks through its disk when it starts, and goes on behind the last record there."""
    nodes = protected(play())
    done = nodes.a.run("stop", "--grace", "1")
    assert done.returncode == 0, done.stderr
    wait(lambda: not nodes.a.lives() and not nodes.b.lives(), "both hosts to end")
    nodes.b.start()
    wait(lambda: nodes.b.is_in("secondary", "LISTENING"), "host B to follow")
    nodes.a.start()
    nodes.wait_protected(nodes.a)
    nodes.a.console.wait_progress()
    found = re.findall(r"verified disk=(\d+)", nodes.a.console.text())
    assert int(found[-1]) > 0
    nodes.a.console.verify()


def test_a_stock_qemu_goes_on_from_an_exported_checkpoint_and_its_disk(
    play: Play, qemu: str
) -> None:
    """They are of one moment, though the guest writes on while they are exported."""
    nodes = protected(play())
    wait(lambda: disk_of(nodes.a)["written_bytes"] > 0, "the guest to write")
    file = nodes.folder / "vm.mig"
    done = nodes.b.run("export", str(file))
    assert done.returncode == 0, done.stderr
    disk = nodes.folder / "vm.mig.disk0.raw"
    assert disk.stat().st_size == 16 * MIB
    with stock(nodes, qemu, file, disk) as console:
        console.wait_progress()
        console.verify()
    assert nodes.a.is_in("primary", "PROTECTED")
    assert not list(nodes.b.state.glob("*.aside-*"))
    assert "pc.ram" in load_source(nodes.b.state, fetch_checkpoint).memory


@contextlib.contextmanager
def stock(nodes: Nodes, qemu: str, file: Path, disk: Path) -> Iterator[Console]:
    """A QEMU without colo that goes on from these files."""
    console, monitor = Console(nodes.folder, "c"), nodes.folder / "c.qmp"
    blockdev = f"driver=raw,node-name=disk0,file.driver=file,file.filename={disk}"
    args = tomllib.loads((nodes.folder / "vm.toml").read_text())["qemu"]["args"]
    command = [qemu, *args, *console.args, "-accel", ACCEL, "-blockdev", blockdev]
    command += ["-qmp", f"unix:{monitor},server=on,wait=off", "-incoming", f"exec:cat {file}"]
    process = subprocess.Popen(command)
    try:
        wait(lambda: listens(monitor), "a stock QEMU to start")
        wait(lambda: qmp(monitor, "query-status")["status"] != "inmigrate", "it to load the file")
        if not qmp(monitor, "query-status")["running"]:
            qmp(monitor, "cont")
        yield console
    finally:
        process.kill()
        process.wait()
