"""VMs as people have them: each is started by `colo run`, protected, and taken over.

No system boots in them: what is seen is that colo and QEMU carry these devices and arguments, in
the firmware of as few machines as there can be.  Guests in whose memory every byte is looked at
are in the other files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colo.qemu.monitor import AttachedQemu
from tests.e2e.basics import WAIT_S, Console, colo, wait
from tests.e2e.harness import Host, Scene

pytestmark = pytest.mark.e2e

OVMF = Path("/usr/share/OVMF")

#: libvirt's style: a backend of its own for the memory, and room to plug more in.
LIBVIRT = """
-name guest=web1,debug-threads=on -machine q35,usb=off,dump-guest-core=off,memory-backend=pc.ram
-object {"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":134217728}
-m size=131072k,slots=2,maxmem=1048576k -overcommit mem-lock=off -smp 2,sockets=2,cores=1,threads=1
-uuid 6f0d8a4c-57a4-4f0c-9f5a-1d2f3a4b5c6d -no-user-config -nodefaults -rtc base=utc,driftfix=slew
-no-shutdown -boot strict=on -msg timestamp=on
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-device pcie-root-port,port=16,chassis=1,id=pci.1,bus=pcie.0
-device pcie-root-port,port=17,chassis=2,id=pci.2,bus=pcie.0
-device intel-iommu -device pcie-pci-bridge,id=bridge -device i6300esb,bus=bridge,addr=1
-device {"driver":"virtio-balloon-pci","bus":"pci.1"} -device virtio-gpu-pci
-device VGA -vnc unix:HERE.vnc
-device ich9-intel-hda -audiodev none,id=sound -device hda-duplex,audiodev=sound
-device qemu-xhci,id=usb -device usb-tablet,bus=usb.0
-drive file=ALL/disk,format=raw,if=none,readonly=on,id=stick
-device usb-storage,drive=stick,bus=usb.0
-object iothread,id=io1 -device virtio-scsi-pci,iothread=io1,id=scsi0
-drive file=ALL/disk,format=raw,if=none,media=cdrom,readonly=on,id=cd -device scsi-cd,drive=cd
-device virtio-serial-pci -chardev socket,id=agent,path=HERE.agent,server=on,wait=off
-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
-fsdev local,id=share,path=ALL,security_model=none -device virtio-9p-pci,fsdev=share,mount_tag=s
-nic user,model=e1000e -nic user,model=vmxnet3 -nic user,model=i82559er -nic user,model=tulip
"""

#: Proxmox's style, with the devices that pc has by itself, and a file with more of them.
PROXMOX = """
-name web1,debug-threads=on -no-shutdown -smp 2,sockets=1,cores=2,maxcpus=2 -m 0.125G
-smbios type=1,uuid=6f0d8a4c-57a4-4f0c-9f5a-1d2f3a4b5c6d -machine type=pc -boot menu=on,order=c
-nographic -vga std -vnc unix:HERE.vnc,password=on -cpu qemu64,+aes,enforce -readconfig ALL/config
-device pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e -device vmgenid
-device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2 -device usb-tablet,id=tablet,bus=uhci.0,port=1
-nic user,model=virtio-net-pci -nic user,model=e1000 -nic user,model=rtl8139
-nic user,model=pcnet -nic user,model=ne2k_pci
"""

CONFIG = '[device "rng1"]\n  driver = "virtio-rng-pci"\n  bus = "pci.0"\n'

#: 3 GiB lie on both sides of the hole below 4 GiB.
UEFI = """
-machine q35 -m 3G -nodefaults -display none
-drive if=pflash,format=raw,unit=0,readonly=on,file=ALL/code
-drive if=pflash,format=raw,unit=1,file=HERE.vars
"""


@dataclass(frozen=True)
class Machine:
    """A VM's arguments, how many cards it has, and what `colo run` is told.

    ``ALL`` stands for a folder that both hosts see, ``HERE`` for what belongs to one of them.
    """

    args: str
    cards: int = 0
    options: tuple[str, ...] = ()

    def write(self, folder: Path, name: str, binary: str) -> Path:
        """Write its VM file and all that it names."""
        (folder / "disk").write_bytes(bytes(1 << 20))
        (folder / "config").write_text(CONFIG)
        if "pflash" in self.args:
            (folder / "code").symlink_to(OVMF / "OVMF_CODE_4M.fd")
            for host in HOSTS:
                shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / f"{host}.vars")
        tables: dict[str, list[str]] = {"qemu": [], **{f"qemu.{host}": [] for host in HOSTS}}
        for option in re.split(r"\s+(?=-)", self.args.replace("ALL", str(folder)).strip()):
            if "HERE" not in option:
                tables["qemu"] += option.split()
                continue
            for host in HOSTS:
                tables[f"qemu.{host}"] += option.replace("HERE", f"{folder}/{host}").split()
        text = f'name = {json.dumps(name)}\n[failover]\narbiter = "manual"\n'
        text += f'[qemu]\nbinary = {json.dumps(binary)}\naccel = "tcg"\n'
        for table, args in tables.items():
            text += f"[{table}]\n" if table != "qemu" else ""
            text += f"args = {json.dumps(args)}\n"
        file = folder / "vm.toml"
        file.write_text(text)
        return file


HOSTS = ("primary", "secondary")
MACHINES = {
    "libvirt": Machine(LIBVIRT, cards=4),
    "proxmox": Machine(PROXMOX, cards=5),
    "uefi": Machine(UEFI, options=("--unprotected-disks",)),
}


@contextlib.contextmanager
def running(
    scene: Scene, vm_file: Path, host: Host, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A `colo run` towards ``host``; yields its process once the VM is protected."""
    state, log = scene.folder / "a", scene.folder / "a.log"
    command = [colo(), "run", str(vm_file), "--to", host.listen, "--state-dir", str(state)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=out)
    try:
        wait(lambda: "PROTECTED by" in log.read_text() or process.poll() is not None, "protection")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((state / "qemu.pid").read_text()), signal.SIGKILL)


def waiting(scene: Scene, machine: Machine) -> tuple[Path, Host]:
    """The machine's VM file, and a `colo secondary` that waits for it."""
    vm_file = machine.write(scene.folder, scene.name, scene.binary)
    host = Host(scene.folder, "b", vm_file, Console(scene.folder, "b"))
    scene.hosts.append(host)
    host.start()
    return vm_file, host


@pytest.mark.parametrize(
    ("qemu", "name"),
    [("7.2", "libvirt"), ("11.1", "libvirt"), ("7.2", "proxmox"), ("11.1", "uefi")],
    indirect=["qemu"],
)
def test_a_machine_is_protected_and_taken_over(scene: Scene, name: str) -> None:
    machine = MACHINES[name]
    vm_file, host = waiting(scene, machine)

    with running(scene, vm_file, host, *machine.options) as process:
        host.wait_checkpoint(3)
        status = json.loads((scene.folder / "a" / "status.json").read_text())
        assert len(status["network"]) == machine.cards
        if "usb" in machine.args:
            said = asyncio.run(said_by(scene.folder / "a" / "qmp.sock", "device_add usb-mouse"))
            assert "migrat" in said, "it was plugged in"
        os.kill(status["qemu"]["pid"], signal.SIGKILL)
        assert process.wait(WAIT_S) == 1
    host.wait_said("holding checkpoint")
    done = host.run("failover")
    assert done.returncode == 0, done.stderr
    assert host.status()["state"] == "RUNNING"


REFUSED = [
    ("-cpu host", "CPU model 'host' requires KVM"),
    (
        "-drive file=ALL/disk,format=raw",
        "is written and nobody replicates it: name it in [[disks]]",
    ),
    ("-daemonize", "[qemu] args: remove -daemonize: colo watches the process that it started"),
    (
        "-object memory-backend-ram,id=s,size=1M -device ivshmem-plain,memdev=s",
        "take out the device ivshmem-plain",
    ),
    (
        "-object memory-backend-ram,id=s,size=64M -m 64,slots=1,maxmem=1G -device pc-dimm,memdev=s",
        "take out the device pc-dimm",
    ),
    ("-m 64MB", "-m 64MB: not a size that QEMU"),
]


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize(("args", "told"), REFUSED)
def test_what_cannot_be_protected_is_told_in_one_line(scene: Scene, args: str, told: str) -> None:
    machine = Machine(f"-machine pc -display none -nodefaults {args}")
    vm_file = machine.write(scene.folder, scene.name, scene.binary)
    command = [colo(), "run", str(vm_file), "--to", f"unix:{scene.folder}/nobody"]
    command += ["--state-dir", str(scene.folder / "a")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode in (1, 2)
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


#: Where the firmware of pc puts the register by which a system switches its power off, and how.
POWER_OFF = "o/h 0x604 0x2000"


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_guest_that_shuts_down_and_whose_qemu_stays_is_not_taken_over(scene: Scene) -> None:
    vm_file, host = waiting(scene, Machine("-machine pc -m 64 -display none -no-shutdown"))
    with running(scene, vm_file, host) as process:
        host.wait_checkpoint(3)
        asyncio.run(said_by(scene.folder / "a" / "qmp.sock", POWER_OFF))
        assert process.wait(WAIT_S) == 0
    assert "nothing to take over" in (scene.folder / "a.log").read_text()
    host.wait_state("LISTENING")
    assert not host.said("holding")


async def said_by(path: Path, command: str) -> str:
    """Give QEMU's monitor an order; return what it prints."""
    qemu = AttachedQemu(path)
    await qemu.attach()
    said = str(await qemu.execute("human-monitor-command", command_line=command))
    await qemu.detach()
    return said
