"""What arguments alone show that cannot be protected."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.findings import Topic
from colo.qemu.argument_obstacles import argument_obstacles, is_versioned

PC = ["-machine", "pc-i440fx-7.2"]


def topics(args: list[str], *disks: str) -> list[tuple[Topic, bool]]:
    return [(each.topic, each.refused) for each in argument_obstacles([*PC, *args], disks)]


REFUSED = [
    (["-netdev", "tap,id=n,vhost=on"], Topic.VHOST),
    (["-netdev", '{"type":"tap","id":"n","vhost":true,"vhostfd":"3"}'], Topic.VHOST),
    (["-netdev", "tap,id=n,vhostfds=3"], Topic.VHOST),
    (["-netdev", "vhost-user,id=n,chardev=c"], Topic.VHOST),
    (["-nic", "tap,vhost=on"], Topic.VHOST),
    (["-netdev", "tap,id=n,queues=2"], Topic.QUEUES),
    (["-netdev", "tap,id=n,fds=3:4"], Topic.QUEUES),
    (["-device", "vfio-pci,host=01:00.0"], Topic.DEVICE),
    (["-device", '{"driver":"usb-host","id":"u"}'], Topic.DEVICE),
    (["-device", "nvme,serial=1"], Topic.DEVICE),
    (["-device", "vhost-user-fs-pci,chardev=c,tag=t"], Topic.DEVICE),
    (["-device", "virtio-vga-gl"], Topic.DEVICE),
    (["-tpmdev", "passthrough,id=t"], Topic.DEVICE),
    (["-object", "sev-guest,id=s"], Topic.DEVICE),
    (["-device", "nvdimm,memdev=m"], Topic.MEMORY_DEVICE),
    (["-device", "virtio-mem-pci,memdev=m"], Topic.MEMORY_DEVICE),
    (["-cpu", "qemu64,+invtsc"], Topic.CPU),
    (["-cpu", "qemu64,invtsc=on"], Topic.CPU),
    (["-cpu", "qemu64,migratable=off"], Topic.CPU),
    (["-machine", "suppress-vmdesc=on"], Topic.VMDESC),
    (["-drive", "file=/a,if=virtio"], Topic.DISK_NOT_NAMED),
    (["-hda", "/a"], Topic.DISK_NOT_NAMED),
]


@pytest.mark.parametrize(("args", "topic"), REFUSED)
def test_refused(args: list[str], topic: Topic) -> None:
    assert topics(args) == [(topic, True)]


NOTED = [
    (["-machine", "q35"], Topic.MACHINE),
    (["-cpu", "host"], Topic.CPU),
    (["-tpmdev", "emulator,id=t,chardev=c"], Topic.DEVICE),
    (["-device", "vhost-vsock-pci,guest-cid=3"], Topic.DEVICE),
    (["-virtfs", "local,path=/a,mount_tag=s,security_model=none"], Topic.DEVICE),
]


@pytest.mark.parametrize(("args", "topic"), NOTED)
def test_noted(args: list[str], topic: Topic) -> None:
    assert topics(args) == [(topic, False)]


FINE = [
    ["-netdev", "tap,id=n,vhost=off,queues=1", "-device", "virtio-net-pci,netdev=n,mq=on"],
    ["-netdev", '{"type":"tap","id":"n","vhost":false}'],
    ["-cpu", "qemu64,+invtsc,tsc-frequency=2000000000"],
    ["-device", "virtio-balloon-pci", "-device", "qemu-xhci", "-device", "usb-tablet"],
    ["-drive", "file=/cd,if=ide,media=cdrom", "-drive", "file=/x,if=none,id=spare"],
    ["-drive", "if=none,id=empty", "-device", "ide-cd,drive=empty"],
    ["-netdev", "tap,queues=²"],
]


@pytest.mark.parametrize("args", FINE)
def test_what_can_be_protected_is_not_refused(args: list[str]) -> None:
    assert topics(args) == []


def test_disks_have_a_device_each_and_are_named_once() -> None:
    device = ["-device", "virtio-blk-pci,drive=d"]
    assert topics(device, "d") == []
    assert topics([*device, "-machine", "pflash1=v"], "d", "v") == []
    assert topics([], "d") == [(Topic.DISK_NOT_USED, True)]
    twice = ["-drive", "file=/a,if=none,id=d", *device]
    assert topics(twice, "d") == [(Topic.DISK_NOT_USED, True)]


@pytest.mark.parametrize(
    "name", ["pc-q35-7.2", "pc-q35-rhel9.2.0", "pc-i440fx-8.1+pve0", "microvm"]
)
def test_a_machine_with_a_version(name: str) -> None:
    assert is_versioned(name) and not is_versioned("q35") and not is_versioned("")


@pytest.mark.parametrize(
    ("kind", "example"),
    [("q35", "pc-q35-7.2"), ("pc+pve0", "pc-i440fx-7.2"), ("virt", "virt-7.2"), ("", "pc-i440fx")],
)
def test_one_without_is_told_one_of_its_kind(kind: str, example: str) -> None:
    (found,) = argument_obstacles(["-machine", kind] if kind else [], [])
    assert f"such as {example}" in found.text


@given(
    st.lists(st.sampled_from([word for args, _ in (*REFUSED, *NOTED) for word in args]) | st.text())
)
def test_any_arguments_are_looked_at(args: list[str]) -> None:
    for each in argument_obstacles(args, ["a"]):
        assert "\n" not in each.text or any("\n" in word for word in args)
