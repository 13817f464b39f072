"""A new user's first hour: docs/two-hosts.md, line by line, on two hosts with the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.demo.guest_image import KERNEL_WORDS, build
from colo.demo.lab import LAN_PREFIX, Lab, Place, needs
from tests.e2e.basics import ROOT, wait
from tests.e2e.net.box import Box, boxes
from tests.e2e.net.page import Block, Page
from tests.e2e.net.stage import WAIT_S, Client
from tests.e2e.package import Package

pytestmark = pytest.mark.e2e

ADDRESS = "10.77.0.7"
#: The VM that the user has: QEMU, started by hand.  Under TCG it needs libraries of colo's.
VM = f"""
env LD_PRELOAD=$(colo preload --tcg) \
qemu-system-x86_64 -name web1 -machine pc -accel tcg -m 128 -nodefaults -display none \
    -serial file:/var/log/web1.console -qmp unix:/run/web1.qmp,server=on,wait=off \
    -kernel /srv/vmlinuz -initrd /srv/initrd.gz \
    -append '{KERNEL_WORDS} colo.mode=serve colo.ip={ADDRESS}/{LAN_PREFIX}' \
    -netdev tap,id=n0,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n0
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Lab, dict[str, Box]]]:
    """Hosts a and b as the page wants them: bare, with a bridge and a network between them."""
    missing = needs()
    if missing is not None:
        pytest.skip(missing)
    with Lab(()) as lab, boxes(lab, a=Place.HOST_A, b=Place.HOST_B) as (a, b):
        for number, box in enumerate((a, b), start=1):
            box.run(f"ip address add 10.0.0.{number}/24 dev replication")
        yield lab, {"a": a, "b": b}


def test_who_follows_the_page_has_a_vm_that_outlives_its_host(
    hosts: tuple[Lab, dict[str, Box]], package: Package, tmp_path: Path
) -> None:
    lab, named = hosts
    a, b = named["a"], named["b"]
    page = Page()

    def play(block: Block) -> list[str]:
        return [named[host].run(block.lines) for host in block.hosts]

    image = build(ROOT / "build" / "guest", lambda line: None)
    for box in (a, b):
        box.put(package.deb, "/root")
        box.put(image.kernel, "/srv/vmlinuz")
        box.put(image.initrd, "/srv/initrd.gz")

    play(page.take("apt install ./colo_"))
    taps = page.take("ip tuntap add")
    play(taps)
    a.start(VM.strip())
    boots = "grep -q count= /var/log/web1.console"
    wait(lambda: a.ask(boots)[0] == 0, "the VM to boot", WAIT_S)
    client = Client(lab, "stream", ADDRESS, tmp_path / "client.jsonl")
    client.wait_heard(3)

    (told,) = play(page.take("colo import --qmp"))
    assert "to do 1: " in told
    copying = page.take("scp ")
    assert copying == Block(("a",), "scp /etc/colo/web1.toml b:/etc/colo/")
    b.put(a.path("/etc/colo/web1.toml"), "/etc/colo/web1.toml")
    for told in play(page.take("colo check")):
        assert "web1: it can be protected" in told

    adopting, following = page.take("colo node"), page.take("colo node")
    assert (adopting.hosts, following.hosts) == (("a",), ("b",))
    a.start(adopting.lines)
    b.start(following.lines)
    looking = page.take("colo status")
    assert looking.hosts == ("a", "b")

    def wait_protected(box: Box) -> None:
        wait(
            lambda: "  primary  PROTECTED" in box.ask(looking.lines)[1],
            f"the VM PROTECTED on host {box.name}",
            WAIT_S,
        )

    wait_protected(a)
    client.wait_heard()
    play(page.take("colo switchover"))
    wait_protected(b)
    client.wait_heard()
    b.pull_the_plug()
    client.wait_heard()

    lab.run(Place.HOST_B, "ip", "link", "delete", "tap0")  # as it is on a host that has booted
    b.boot()
    b.run(taps.lines)
    b.start(following.lines)
    wait_protected(a)
    client.wait_heard()

    service = page.take("systemctl enable --now colo@web1")
    assert service.hosts == ("a", "b")
    assert page.is_played
    for box in (b, a):
        box.run(f"kill -INT {box.colo_pid()}")  # Ctrl-C, as the page says
        box.wait_ended()
        box.run(service.lines)
        wait_protected(a)
        client.wait_heard()
    client.check()
