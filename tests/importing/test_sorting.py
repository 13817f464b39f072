"""Real command lines of several managers, and hostile ones, sorted into VM files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colo.config import VmConfig
from colo.config.vm import parse
from colo.errors import UsageError
from colo.findings import Topic
from colo.importing.draft import Draft, Kind, vm_file
from colo.importing.known import Known, Seen
from colo.importing.shell import command_words
from colo.importing.sorting import sort
from colo.qemu.argument_obstacles import argument_obstacles
from colo.qemu.options import options

SAMPLES = {path.stem: path for path in (Path(__file__).parent / "samples").glob("*.txt")}
Q35, LUKS, BY_HAND = "libvirt-q35-ovmf", "libvirt-pc-luks", "by-hand"
SCSI, EFI = "proxmox-scsi", "proxmox-q35-efi"


def imported(sample: str, **known: Any) -> tuple[Draft, VmConfig]:
    words = command_words(SAMPLES[sample].read_text())
    draft = sort(words, "a sample", Known(**known))
    return draft, parse(vm_file(draft))


def made(*args: str, **known: Any) -> tuple[Draft, VmConfig]:
    draft = sort(["qemu-system-x86_64", "-name", "web1", *args], "a test", Known(**known))
    return draft, parse(vm_file(draft))


def told(draft: Draft, kind: Kind) -> str:
    return "\n".join(each.text for each in draft.remarks if each.kind is kind)


def has(config: VmConfig, name: str) -> list[str]:
    args = (*config.qemu.args, *config.qemu.primary.args)
    return [each.text for each in options(args) if each.name == name]


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_sample_is_a_vm_file_whose_obstacles_were_all_told(sample: str) -> None:
    draft, config = imported(sample)
    assert config.qemu.primary == config.qemu.secondary
    args = [*config.qemu.args, *config.qemu.primary.args]
    for each in argument_obstacles(args, [disk.id for disk in config.disks]):
        assert any(each.topic is remark.topic for remark in draft.remarks), each
    assert not {"-S", "-daemonize", "-pidfile", "-mon", "-qmp", "-monitor", "-add-fd"} & set(args)
    assert "masterKey" not in str(args) and "vhost=on" not in str(args) and '"fd"' not in str(args)
    devices = [each for each in options(command_words(SAMPLES[sample].read_text())[1:])]
    order = [str(each) for each in devices if each.name == "device"]
    kept = [f"-device {each}" for each in has(config, "device")]
    assert [each for each in order if each in kept] == [each for each in kept if each in order]


def test_libvirt_with_everything() -> None:
    taps, sockets = {"33": "vnet7", "37": "vnet8"}, {"35": "/run/agent.sock"}
    draft, config = imported(
        Q35, taps=taps, sockets=sockets, files={"34": "/var/log/libvirt/qemu/web1-serial0.log"}
    )
    assert (config.name, config.qemu.binary) == ("web1", "/usr/bin/qemu-system-x86_64")
    assert config.memory == 4 << 30
    first, second = has(config, "netdev")
    assert json.loads(first) == {
        "type": "tap", "id": "hostnet0", "ifname": "vnet7", "vhost": False,
        "script": "no", "downscript": "no",
    }  # fmt: skip
    assert second == "tap,vhost=off,id=hostnet1,ifname=vnet8,script=no,downscript=no"
    assert {disk.id: str(disk.primary) for disk in config.disks} == {
        "libvirt-pflash1-storage": "/var/lib/libvirt/qemu/nvram/web1_VARS.fd",
        "libvirt-3-format": "/var/lib/libvirt/images/web1.img",
        "libvirt-2-format": "/dev/vg0/data",
    }
    kept = [json.loads(each)["node-name"] for each in has(config, "blockdev")]
    assert kept == [
        "libvirt-pflash0-storage", "libvirt-pflash0-format",
        "libvirt-1-storage", "libvirt-1-format",
    ]  # fmt: skip
    assert "socket,id=charchannel0,server=on,wait=off,path=/run/agent.sock" in has(
        config, "chardev"
    )
    assert any("/libvirt/qemu/web1-serial0.log" in each for each in has(config, "chardev"))
    assert [each for each in has(config, "device") if "vfio" in each] == []
    to_do = told(draft, Kind.TO_DO)
    assert "of disk libvirt-pflash1-storage to the second host once" in to_do
    assert "take the device vfio-pci hostdev0 out of the running VM too" in to_do
    assert "disk libvirt-3-format is a qcow2" in to_do and "web1-swtpm.sock" in to_do
    assert "one queue instead of 2" in told(draft, Kind.CHANGED)
    (memory,) = [each for each in has(config, "object") if "memory-backend" in each]
    assert json.loads(memory)["mem-path"] == "/dev/hugepages"


def test_of_descriptors_that_nobody_can_see_a_name_is_to_be_put_right() -> None:
    draft, config = imported(Q35)
    assert [f"ifname=tap{n}" in told(draft, Kind.TO_DO) for n in (0, 1)] == [True, True]
    assert any("path=/run/web1-charchannel0.sock" in each for each in has(config, "chardev"))
    assert any("logfile=/var/log/web1-charserial0.log" in each for each in has(config, "chardev"))


def test_libvirt_with_disks_that_cannot_be_named() -> None:
    draft, config = imported(LUKS)
    assert config.disks == () and config.name == "db.old"
    to_do = told(draft, Kind.TO_DO)
    assert "there is no place for driver luks" in to_do and "rbd:pool/db-data" in to_do
    assert "needs the secret libvirt-2-format-encryption-secret0, which only libvirt has" in to_do
    assert "pc-dimm" not in str(config.qemu.args) and "memdimm0" not in str(config.qemu.args)
    assert config.memory == 1 << 30


def test_proxmox_with_scsi_disks_and_two_cards() -> None:
    draft, config = imported(SCSI)
    disks = {disk.id: (str(disk.primary), str(disk.secondary)) for disk in config.disks}
    assert disks == {
        "drive-scsi0": ("/dev/pve/vm-100-disk-0", "/dev/pve/vm-100-disk-0"),
        "drive-scsi1": (
            "/var/lib/vz/images/100/vm-100-disk-1.qcow2",
            "/var/lib/vz/images/100/vm-100-disk-1.raw",
        ),
    }
    assert has(config, "netdev") == [
        f"type=tap,id=net{n},ifname=tap100i{n},script=no,downscript=no,vhost=off" for n in (0, 1)
    ]
    assert has(config, "id") == [] and "-id 100" in told(draft, Kind.LEFT_OUT)
    assert len(has(config, "drive")) == 1, "the CD-ROM"


def test_proxmox_with_nodes_and_firmware() -> None:
    draft, config = imported(EFI)
    assert [disk.id for disk in config.disks] == ["drive-scsi0"]
    to_do = told(draft, Kind.TO_DO)
    assert "disk drive-efidisk0 (/dev/pve/vm-205-disk-0) cannot be one of [[disks]]" in to_do
    assert "there is no place for size" in to_do
    assert config.memory == 4 << 30
    assert "usb-host usb0" in told(draft, Kind.LEFT_OUT)


def test_a_command_by_hand_gets_a_device_for_each_drive() -> None:
    draft, config = imported(BY_HAND, machine="pc-i440fx-7.2")
    assert has(config, "device") == [
        "virtio-rng-pci", "ide-hd,bus=ide.0,unit=0,drive=ide0-hd0", "virtio-blk-pci,drive=virtio0",
    ]  # fmt: skip
    assert has(config, "machine") == ["pflash1=pflash1,type=pc-i440fx-7.2"]
    assert "copy /srv/vm/vars.fd of disk pflash1 to the second host" in told(draft, Kind.TO_DO)
    assert {disk.id for disk in config.disks} == {"ide0-hd0", "virtio0", "pflash1"}
    assert has(config, "nic")[1] == "tap,ifname=tap3,vhost=off,script=no,downscript=no"
    assert has(config, "append") == ["console=ttyS0 -x"]
    assert "/dev/hugepages" in told(draft, Kind.NOTE)


def test_a_tap_that_qemu_opened_itself_is_known_where_it_is_the_only_one() -> None:
    args = ("-netdev", "tap,id=n0", "-netdev", "tap,id=n1,ifname=t1")
    assert "ifname=t0," in has(made("-netdev", "tap,id=n0", taps={"9": "t0"})[1], "netdev")[0]
    draft, config = made(*args, taps={"9": "t0", "10": "t1"})
    assert "ifname=tap0," in has(config, "netdev")[0], "it may be either"
    assert "which tap it has is not known" in told(draft, Kind.TO_DO)


def test_a_bridges_helper_has_neither_a_tap_nor_a_script() -> None:
    helped = "tap,id=n0,br=br1,helper=/usr/lib/qemu/qemu-bridge-helper,vhost=off"
    draft, config = made("-netdev", helped, "-netdev", "bridge,id=n1,br=br2")
    assert has(config, "netdev") == [helped, "bridge,id=n1,br=br2"]
    assert "have the bridge br1" in told(draft, Kind.TO_DO) and "br2" in told(draft, Kind.TO_DO)


def test_files_that_both_hosts_need_are_named() -> None:
    args = ("-kernel", "k", "-fw_cfg", "name=opt/a,file=/f", "-smbios", "file=/s", "-cdrom", "/c")
    draft, _ = made(*args, folder="/here")
    assert "the same: /c, /here/k, /f, /s" in told(draft, Kind.TO_DO)


def test_what_is_relative_is_relative_to_the_folder_that_qemu_is_in() -> None:
    _, config = made("-drive", "file=a/../b.img,if=virtio,format=raw", folder="/srv/vm")
    assert config.disks[0].primary == Path("/srv/vm/b.img")


def test_a_disk_is_where_the_running_vm_has_it() -> None:
    seen = {"virtio0": Seen("/srv/snap.qcow2", "qcow2")}
    draft, config = made("-drive", "file=/srv/a.raw,if=virtio,format=raw", disks=seen)
    assert config.disks[0].primary == Path("/srv/snap.qcow2")
    assert "disk virtio0 is /srv/snap.qcow2 now" in told(draft, Kind.CHANGED)


@pytest.mark.parametrize(
    ("given", "name"), [("my vm!", "my-vm"), ("ä", "vm"), ("..", "vm"), ("-x", "x")]
)
def test_a_name_that_can_be_none_is_changed(given: str, name: str) -> None:
    draft = sort(["qemu", "-name", f"guest={given}"], "a test", Known())
    assert draft.name == name
    assert f"the VM is called {name}" in told(draft, Kind.CHANGED)


def test_what_is_to_do_is_numbered_and_names_its_entry() -> None:
    draft, _ = made("-device", "nvme,serial=x", "-netdev", "tap,id=n,ifname=t")
    lines = draft.told()
    assert lines[0].startswith("to do 1: have the tap t of netdev n on its bridge")
    assert any(line.startswith("to do ") and line.endswith(Topic.DEVICE.place) for line in lines)


@given(st.text(), st.text())
@example("\x7f\x00\ud7ff", "\"'\\\n")
@example("\x85\u2028\U0001f600", "a'b\"c")
def test_any_text_is_the_same_in_the_file(one: str, other: str) -> None:
    for text in (one, other):
        if any("\ud800" <= each <= "\udfff" for each in text):
            return
    draft = sort(["qemu", "-append", one, "-fw_cfg", other], "a\ntest", Known())
    config = parse(vm_file(draft))
    assert config.qemu.args[1:2] == (one,) and config.qemu.args[3] == other


WORDS = sorted({word for path in SAMPLES.values() for word in command_words(path.read_text())})


@settings(max_examples=200)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=30))
@example(["-drive", "file=/a,if=none,id=x,id=y"])
@example(["-device", '{"driver":["vfio-pci"],"id":{}}', "-netdev", '{"type":"tap","fd":[1]}'])
@example(["-netdev", '{"type":"tap","id":{"a":1},"queues":{}}', "-add-fd", "set=0"])
@example(["-blockdev", '{"driver":"file","filename":{"a":1},"node-name":"x"}', "-hda", "\n"])
@example(["-machine", '{"type":"q35","pflash1":[]}', "-pflash", "/a", "-pflash", "/b"])
def test_any_words_make_a_vm_file_or_are_told_in_one_line(words: list[str]) -> None:
    draft = sort(["qemu", *words], "a test", Known())
    text = vm_file(draft)
    try:
        config = parse(text)
    except UsageError as error:  # such as a memory that cannot be
        assert str(error)
        return
    again = sort(["qemu", *config.qemu.args], "a test", Known())
    assert parse(vm_file(again)).memory == config.memory
