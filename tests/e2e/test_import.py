"""A VM that runs is imported by its QMP socket; what comes of that protects it, and takes over."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from colo.config import load
from tests.e2e.basics import Console, colo
from tests.e2e.harness import Host, Scene
from tests.e2e.vm import PrimaryVm, VmFile

pytestmark = pytest.mark.e2e

CARDS = """
-netdev user,id=n0 -device virtio-net-pci,netdev=n0 -netdev user,id=n1 -device e1000,netdev=n1
-object rng-random,id=r,filename=/dev/urandom -device virtio-rng-pci,rng=r
-device virtio-balloon-pci,id=balloon -device virtio-serial-pci
-chardev null,id=agent -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
-msg timestamp=on -no-shutdown
"""
#: With a disk of each kind, and firmware that keeps what it is told.
DISKS = """
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
-drive if=pflash,format=raw,unit=1,file=HERE/vars
-drive file=HERE/root.raw,format=raw,if=virtio
-object iothread,id=io -device virtio-scsi-pci,iothread=io,id=scsi
-blockdev driver=qcow2,node-name=data,file.driver=file,file.filename=HERE/data.qcow2
-device {"driver":"scsi-hd","drive":"data","bus":"scsi.0"}
-drive file=HERE/cd,format=raw,if=none,id=cd,media=cdrom,readonly=on
-device ide-cd,drive=cd,bus=ide.0
"""


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a colo command to its end."""
    command = [colo(), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def imported(scene: Scene, primary: PrimaryVm, changes: dict[str, str]) -> Path:
    """The VM file of the running VM, less what this one machine cannot have twice."""
    file = scene.folder / "imported.toml"
    done = run("import", "--qmp", f"unix:{primary.qmp_socket}", "-o", file)
    assert done.returncode == 0, done.stderr
    head, tail = file.read_text().split("[qemu.secondary]")
    for old, new in changes.items():
        tail = tail.replace(old, new)
    arbiter = f'failover.arbiter = "file:{scene.folder}/grant"'
    file.write_text(f"{arbiter}\n{head}[qemu.secondary]{tail}")
    return file


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)
def test_what_is_imported_protects_the_vm_and_takes_it_over(scene: Scene) -> None:
    primary = scene.primary(VmFile(args=tuple(CARDS.split())))
    primary.console.wait_count(3)
    console = Console(scene.folder, "b0")
    changes = {str(primary.console.path): str(console.path)}
    changes[str(primary.console.log)] = str(console.log)
    file = imported(scene, primary, changes)

    done = run("check", file, "--qmp", f"unix:{primary.qmp_socket}")
    assert done.returncode == 0, done.stdout
    config = load(file)
    assert [each for each in config.qemu.args if each in ("-S", "-incoming", "-qmp", "-msg")] == []
    assert any(each.startswith("pc-i440fx-7.2") for each in config.qemu.args)

    host = Host(scene.folder, "b0", file, console)
    scene.hosts.append(host)
    host.start()
    wire = scene.wire(host, primary)
    primary.protect(f"unix:{wire.path}")
    host.wait_said("PROTECTED")
    host.wait_checkpoint(3)
    primary.kill()
    number = host.wait_state("RUNNING")["takeover"]["checkpoint"]
    scene.check_goes_on(primary, host, number)


@pytest.fixture
def firmware(scene: Scene) -> PrimaryVm:
    """A VM with firmware of its own, a disk of each kind and a CD-ROM."""
    here = scene.folder
    (here / "vars").write_bytes(Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes())
    (here / "root.raw").write_bytes(random.Random(7).randbytes(1 << 20))
    (here / "cd").write_bytes(bytes(1 << 20))
    make = ["qemu-img", "create", "-q", "-f", "qcow2", str(here / "data.qcow2"), "1M"]
    subprocess.run(make, check=True, timeout=60)
    args = tuple(DISKS.replace("HERE", str(here)).split())
    return scene.primary(VmFile(machine="q35", guest=False, args=args))


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)
def test_disks_and_firmware_are_those_of_the_running_vm(scene: Scene, firmware: PrimaryVm) -> None:
    here, primary = scene.folder, firmware
    file = imported(scene, primary, {})

    config = load(file)
    assert {disk.id: disk.primary.name for disk in config.disks} == {
        "pflash1": "vars", "virtio0": "root.raw", "data": "data.qcow2",
    }  # fmt: skip
    assert {disk.secondary.name for disk in config.disks} == {"vars", "root.raw", "data.raw"}
    done = run("check", file, "--qmp", f"unix:{primary.qmp_socket}", "--json")
    told = json.loads(done.stdout)
    assert (told["fits"], done.returncode) == (True, 0), told

    named = file.read_text()
    file.write_text(named[: named.index("[[disks]]")])
    done = run("check", file, "--qmp", f"unix:{primary.qmp_socket}")
    assert done.returncode == 1
    assert done.stdout.count("docs/refused.md#disk-not-named") == 3, done.stdout

    # What colo would start from the file is a QEMU that starts, with the same disks.
    file.write_text(named)
    primary.kill()
    done = run("check", file, "--start")
    assert done.returncode == 0, done.stdout
    file.write_text(
        named.replace("virtio-balloon-pci", "no-such-device").replace("ide-cd", "ide-dc")
    )
    done = run("check", file, "--start")
    assert done.returncode == 1 and "docs/refused.md#qemu-arguments" in done.stdout
    file.write_text(named)
    again = PrimaryVm(load(file), here / "again", primary.console)
    scene.primaries.append(again)
    again.start()
    assert again.is_running()
    drives = [each["inserted"] for each in again.execute("query-block") if "inserted" in each]
    assert {each["node-name"] for each in drives} >= {"pflash1", "virtio0", "data"}


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)
def test_the_vm_is_protected_with_its_disks_and_taken_over(
    scene: Scene, firmware: PrimaryVm
) -> None:
    here, console = scene.folder, Console(scene.folder, "b0")
    changes = {str(firmware.console.path): str(console.path)}
    changes[str(firmware.console.log)] = str(console.log)
    changes[f'secondary = "{here}/'] = f'secondary = "{here}/b-'  # this machine is both hosts
    file = imported(scene, firmware, changes)
    done = run("check", file, "--role", "secondary", "--state-dir", here / "b0")
    assert done.returncode == 1 and "docs/refused.md#disk-file" in done.stdout
    (here / "b-vars").write_bytes((here / "vars").read_bytes())
    done = run("check", file, "--role", "secondary", "--state-dir", here / "b0")
    assert done.returncode == 0, done.stdout

    host = Host(here, "b0", file, console)
    scene.hosts.append(host)
    host.start()
    command = [colo(), "primary", str(file), "--qmp", f"unix:{firmware.qmp_socket}"]
    command += ["--to", host.listen, "--state-dir", str(here / "p")]
    with (here / "p.log").open("wb") as log:
        protecting = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        host.wait_said("PROTECTED")
        host.wait_checkpoint(3)
        firmware.kill()
        host.wait_state("RUNNING")
        assert protecting.wait(60) == 1
    finally:
        protecting.kill()
        protecting.wait(60)
    assert (here / "b-root.raw").read_bytes() == (here / "root.raw").read_bytes()
