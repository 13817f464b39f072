"""The lab: its network, its cuts, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.demo import guest_image, lab
from colo.demo.lab import Lab, LabError, Link, Place
from tests.conftest import QEMU, ROOT

GUEST = "10.77.0.2"
WAIT_S = 60.0
#: Sends a datagram, and says whether it arrived at the other end.
EXCHANGE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[3]))
if sys.argv[1] == "answer":
    s.bind((sys.argv[2], 99))
    print("ready", flush=True)
    while True:
        data, peer = s.recvfrom(9)
        s.sendto(data, peer)
s.connect((sys.argv[2], 99))
s.send(b"x")
try:
    print(s.recv(9) == b"x")
except TimeoutError:
    print(False)
"""

needs_lab = pytest.mark.skipif(lab.needs() is not None, reason=str(lab.needs()))


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    with Lab(["tap0", "tap1"]) as made:
        yield made


def exchange(made: Lab, place: Place, address: str) -> bool:
    """Whether a datagram from there comes back from who answers at ``address``."""
    command = (sys.executable, "-c", EXCHANGE, "ask", address, "0.5")
    return made.run(place, *command).strip() == "True"


@needs_lab
def test_replication_network_is_cut_and_heals(shared: Lab) -> None:
    address = lab.REPLICATION_ADDRESS[Place.HOST_B]
    command = (sys.executable, "-c", EXCHANGE, "answer", address, "60")
    with shared.start(Place.HOST_B, *command, stdout=subprocess.PIPE) as peer:
        assert peer.stdout is not None
        peer.stdout.readline()
        assert exchange(shared, Place.HOST_A, address)
        with shared.severed(Link.HOST_A), shared.severed(Link.HOST_B):
            assert exchange(shared, Place.HOST_A, address)
        with shared.severed(Link.REPLICATION):
            assert not exchange(shared, Place.HOST_A, address)
            assert "state UP" in shared.run(Place.HOST_A, "ip", "link", "show", "replication")
        assert exchange(shared, Place.HOST_A, address)
        peer.kill()


@needs_lab
@pytest.mark.parametrize(
    ("host", "link", "other"),
    [(Place.HOST_A, Link.HOST_A, Link.HOST_B), (Place.HOST_B, Link.HOST_B, Link.HOST_A)],
)
def test_each_host_is_cut_from_the_client(
    shared: Lab, host: Place, link: Link, other: Link
) -> None:
    address = "10.77.0.50"
    shared.run(host, "ip", "addr", "add", f"{address}/24", "dev", "br0")
    command = (sys.executable, "-c", EXCHANGE, "answer", address, "60")
    with shared.start(host, *command, stdout=subprocess.PIPE) as peer:
        assert peer.stdout is not None
        peer.stdout.readline()
        assert exchange(shared, Place.CLIENT, address)
        with shared.severed(other):
            assert exchange(shared, Place.CLIENT, address)
        with shared.severed(link):
            assert not exchange(shared, Place.CLIENT, address)
        with shared.severed(Link.CLIENT):
            assert not exchange(shared, Place.CLIENT, address)
        peer.kill()
    shared.run(host, "ip", "addr", "del", f"{address}/24", "dev", "br0")
    shared.run(Place.CLIENT, "ip", "neigh", "flush", "all")


@needs_lab
@pytest.mark.parametrize("host", [Place.HOST_A, Place.HOST_B])
def test_taps_are_on_the_bridge(shared: Lab, host: Place) -> None:
    links = json.loads(shared.run(host, "ip", "-json", "link", "show", "master", "br0"))
    assert {link["ifname"] for link in links} == {"lan", "tap0", "tap1"}


@needs_lab
def test_two_labs_do_not_meet(shared: Lab) -> None:
    with Lab() as other:
        other.cut(Link.REPLICATION)
        links = shared.run(Place.SWITCH, "ip", "-o", "link", "show", "master", "replication")
        assert len(links.splitlines()) == 2


def namespaces() -> list[str]:
    """The network namespaces that this process holds open."""
    descriptors = Path("/proc/self/fd").iterdir()
    links = [os.readlink(path) for path in descriptors if path.is_symlink()]
    return sorted(link for link in links if link.startswith("net:["))


@needs_lab
def test_error_in_a_lab_ends_all_that_ran_in_it() -> None:
    before = namespaces()
    with pytest.raises(RuntimeError), Lab() as made:
        shell = made.start(Place.HOST_A, "sh", "-c", "trap '' TERM; sleep 100 & wait")
        raise RuntimeError
    assert shell.wait(WAIT_S) == -signal.SIGKILL
    assert made.inhabitants() == []
    assert namespaces() == before


@needs_lab
def test_those_that_were_being_born_are_killed_too() -> None:
    with Lab() as made:
        for _ in range(20):  # one look often finds them all
            made.start(Place.HOST_A, "sh", "-c", "for i in $(seq 50); do sleep 100 & done; wait")
            while len(made.inhabitants()) < 3:
                pass
            made.kill_inhabitants()
            assert made.inhabitants() == []


@needs_lab
def test_failed_command_is_one_line() -> None:
    with Lab() as made, pytest.raises(LabError) as caught:
        made.add_tap(Place.HOST_A, "x" * 16)
    assert "host A: ip -batch - failed: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_machine_without_iproute_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert lab.needs() == "a lab needs the program ip: run 'apt-get install iproute2'"
    with pytest.raises(LabError, match="the program ip"):
        lab.enter()
    with pytest.raises(LabError, match="the program ip"), Lab():
        pass


@needs_lab
def test_enter_does_nothing_where_nothing_is_needed() -> None:
    lab.enter()


# A real guest


def boot(made: Lab, binary: str, console: Path) -> subprocess.Popen[bytes]:
    image = guest_image.build(ROOT / "build" / "guest", lambda line: None)
    command = [binary, "-machine", "pc", "-cpu", "qemu64", "-m", "128", "-accel", "tcg"]
    command += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{console}"]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append"]
    command += [f"{guest_image.KERNEL_WORDS} colo.mode=serve colo.ip={GUEST}/24 colo.line-ms=5"]
    command += ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
    command += ["-device", "virtio-net-pci,netdev=n0"]
    return made.start(Place.HOST_A, *command, stdin=subprocess.DEVNULL)


def await_ready(console: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not console.exists() or "ready mode=serve" not in console.read_text(errors="replace"):
        assert time.monotonic() < deadline, "the guest did not boot"
        time.sleep(0.05)


def ask(made: Lab, *arguments: str) -> dict[str, Any]:
    command = [*made.prefix(Place.CLIENT), sys.executable, "-m", "colo.demo.clients"]
    done = subprocess.run(
        [*command, *arguments, "--json"], stdout=subprocess.PIPE, timeout=WAIT_S, check=False
    )
    verdict = json.loads(done.stdout)
    assert isinstance(verdict, dict)
    return verdict


@pytest.mark.e2e
@needs_lab
def test_every_client_is_content_with_a_guest(tmp_path: Path) -> None:
    binary = shutil.which(QEMU) or str(ROOT / "build" / "qemu11" / QEMU)
    with Lab() as made:
        vm = boot(made, binary, tmp_path / "console")
        await_ready(tmp_path / "console")
        for arguments in (
            ("stream", "--count", "100"),
            ("echo", "--count", "100"),
            ("echo", "--count", "10", "--size", "100000"),
            ("bulk", "--mib", "20"),
            ("sink", "--mib", "20"),
            ("flood", "--packets", "2000"),
        ):
            assert ask(made, arguments[0], GUEST, *arguments[1:])["error"] is None
        with made.severed(Link.HOST_A):
            cut = ask(made, "stream", GUEST, "--silence", "1")
        assert "cannot connect" in cut["error"]
        send = f"import socket; socket.create_connection(({GUEST!r}, 7006)).send(b'poweroff\\n')"
        made.run(Place.CLIENT, sys.executable, "-c", send)
        assert vm.wait(WAIT_S) == 0
    assert "poweroff asked for" in (tmp_path / "console").read_text()
