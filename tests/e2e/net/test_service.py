"""``colo@NAME.service`` under a systemd that runs: enabled, killed, upgraded, booted, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from colo.demo.guest_image import KERNEL_WORDS, build
from colo.demo.lab import LAN_PREFIX, REPLICATION_ADDRESS, Lab, Place, needs
from tests.e2e.basics import ROOT, wait
from tests.e2e.net.box import Box, boxes
from tests.e2e.net.stage import WAIT_S, Client
from tests.e2e.package import Package

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ADDRESS: Final = "10.77.0.8"
STATE: Final = "/var/lib/colo/web1"
#: The VM is one that the service starts.
VM_FILE: Final = f"""
name = "web1"
[qemu]
accel = "tcg"
args = [
  "-machine", "pc", "-m", "128", "-nodefaults", "-display", "none", "-serial", "null",
  "-kernel", "/srv/vmlinuz", "-initrd", "/srv/initrd.gz",
  "-append", "{KERNEL_WORDS} colo.mode=serve colo.ip={ADDRESS}/{LAN_PREFIX}",
  "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no",
  "-device", "virtio-net-pci,netdev=n0",
]
[hosts]
a = "tcp:{REPLICATION_ADDRESS[Place.HOST_A]}:9000"
b = "tcp:{REPLICATION_ADDRESS[Place.HOST_B]}:9000"
[failover]
arbiter = "file:/shared/web1.grant"
"""
#: As a host's network configuration makes it at each boot.
TAP: Final = """
cat >/etc/systemd/system/tap0.service <<'END'
[Unit]
Before=colo@web1.service
[Service]
Type=oneshot
ExecStart=sh -c 'ip link delete tap0; ip tuntap add tap0 mode tap; ip link set tap0 master br0 up'
[Install]
WantedBy=multi-user.target
END
systemctl enable --now tap0
"""


@pytest.fixture
def hosts(package: Package) -> Iterator[tuple[Lab, Box, Box]]:
    """Two hosts with the package and the VM file, whose service is enabled."""
    missing = needs()
    if missing is not None:
        pytest.skip(missing)
    image = build(ROOT / "build" / "guest", lambda line: None)
    with Lab(()) as lab, boxes(lab, a=Place.HOST_A, b=Place.HOST_B) as (a, b):
        for box in (a, b):
            box.put(package.deb, "/root")
            box.put(image.kernel, "/srv/vmlinuz")
            box.put(image.initrd, "/srv/initrd.gz")
            box.run("apt-get install ./colo_*_amd64.deb")
            box.run(f"cat >/etc/colo/web1.toml <<'END'\n{VM_FILE}END\n{TAP}")
            box.run("systemctl enable --now --no-block colo@web1")
        yield lab, a, b


def state(box: Box) -> str:
    """How the VM stands there, by the service's status line, which systemd empties at a start."""
    line = box.ask("systemctl show --property=StatusText --value colo@web1")[1]
    return line.partition(":")[0]


def wait_state(box: Box, name: str) -> None:
    """Wait until the VM stands so."""
    wait(lambda: state(box) == name, f"the VM to be {name} on host {box.name}", WAIT_S)


def main_pid(box: Box) -> int:
    """The process of the service."""
    return int(box.run("systemctl show --property=MainPID --value colo@web1"))


def wait_other(box: Box, pid: int) -> None:
    """Wait until the service's process is another."""
    what = f"systemd to start colo again on host {box.name}"
    wait(lambda: main_pid(box) not in (0, pid), what, WAIT_S)


def qemu_pid(box: Box) -> int:
    """The VM's process."""
    return int(box.run(f"cat {STATE}/qemu.pid"))


def test_a_vm_lives_by_its_service(
    hosts: tuple[Lab, Box, Box], package: Package, tmp_path: Path
) -> None:
    lab, a, b = hosts
    wait_state(a, "PROTECTED")
    assert a.run("systemctl is-active colo@web1") == "active\n"
    client = Client(lab, "stream", ADDRESS, tmp_path / "client.jsonl")
    client.wait_heard(3)
    vm = qemu_pid(a)

    # An upgrade, one host after the other, as docs/packages.md says.
    newer = package.as_version("9.9", tmp_path)
    for box in (b, a):
        before = main_pid(box)
        box.put(newer, "/root")
        box.run(f"apt-get install ./{newer.name}")
        wait_other(box, before)
        wait_state(b, "KEEPING")
        wait_state(a, "PROTECTED")
        client.wait_heard()
    assert qemu_pid(a) == vm

    # It is refused to take it away while it is needed.
    code, said = a.ask("apt-get remove colo")
    assert code != 0 and "end it first: systemctl disable --now colo@web1" in said
    assert a.run("systemctl is-active colo@web1") == "active\n"

    # A host dies; as it boots its service is there by itself.
    a.pull_the_plug()
    client.wait_heard()
    lab.run(Place.HOST_A, "ip", "link", "delete", "tap0")  # as it is on a host that has booted
    a.boot()
    wait_state(b, "PROTECTED")
    client.wait_heard()

    # A colo that is killed is started again, wherever the VM is by then.
    killed = main_pid(b)
    b.run(f"kill -KILL {killed}")
    wait_other(b, killed)
    wait(lambda: {state(a), state(b)} == {"PROTECTED", "KEEPING"}, "a protection anew", WAIT_S)
    client.wait_heard()

    # Both are stopped, and the VM runs on without them.
    for box in (a, b):
        box.run("systemctl disable --now colo@web1")
        assert box.ask("systemctl is-active colo@web1")[1] == "inactive\n"
    client.wait_heard()
    client.check()
