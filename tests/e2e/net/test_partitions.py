"""``colo node`` and three members of etcd: networks that are cut, and a host that stands still.

Whatever is cut, a client's one connection goes on, and nothing on it is lost or doubled; once all
is mended the VM is protected again, and nobody did anything for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import Colo, Stage, Vm
from tests.e2e.net.test_arbiters import ETCD, members, needs_etcd
from tests.e2e.net.test_node import HOSTS

__all__ = ["members"]

pytestmark = [
    pytest.mark.e2e,
    needs_etcd,
    pytest.mark.parametrize("qemu", ["11.1"], indirect=True),  # decided above QEMU
    pytest.mark.parametrize("vm", [replace(ETCD, options=HOSTS)], ids=["etcd"]),
]

PORTS = ("repl-a", "repl-b")


def node(stage: Stage, name: str, place: Place) -> Colo:
    made = stage.colo(name, place)
    made.start("node", "--host", name)
    return made


@pytest.fixture
def pair(stage: Stage, members: dict[Place, subprocess.Popen[bytes]], vm: Vm) -> tuple[Colo, Colo]:
    """Both hosts, with the VM PROTECTED on host a."""
    a, b = node(stage, "a", Place.HOST_A), node(stage, "b", Place.HOST_B)
    wait(lambda: runs(a, "PROTECTED"), f"host a to run a protected VM; it said {a.text()}", 120)
    stage.wait_booted(a)
    return a, b


def runs(host: Colo, *states: str) -> bool:
    """Whether the VM runs on this host, and stands so."""
    status = host.status()
    return status.get("role") == "primary" and status.get("state") in states


def protected_again(a: Colo, b: Colo, since: float = 0.0) -> Colo:
    """Wait until the VM is PROTECTED on one of them, by a checkpoint of later than ``since``.

    Returns that one.
    """

    def is_protected(host: Colo) -> bool:
        return runs(host, "PROTECTED") and (host.status()["checkpoint_at"] or 0.0) >= since

    told = f"the VM to be protected again; a said {a.text()[-800:]}, b said {b.text()[-800:]}"
    found = wait(lambda: [host for host in (a, b) if is_protected(host)], told, 120)
    return found[0]


@contextmanager
def apart(stage: Stage) -> Iterator[None]:
    """The hosts cannot reach each other, and each of them all else."""

    def isolate(on: str) -> None:
        for port in PORTS:
            stage.lab.run(Place.SWITCH, "bridge", "link", "set", "dev", port, "isolated", on)

    isolate("on")
    try:
        yield
    finally:
        isolate("off")


@contextmanager
def cut_off(stage: Stage, *ports: str) -> Iterator[None]:
    """A host cannot be reached, nor reach anybody, but by clients."""
    for port in ports:
        stage.lab.run(Place.SWITCH, "ip", "link", "set", port, "nomaster")
    try:
        yield
    finally:
        for port in ports:
            stage.lab.run(Place.SWITCH, "ip", "link", "set", port, "master", "replication")


def test_the_hosts_are_cut_off_from_each_other_and_both_reach_etcd(
    stage: Stage, pair: tuple[Colo, Colo], vm: Vm
) -> None:
    client = stage.client("stream")
    with apart(stage):
        leads = ("UNPROTECTED", "BEGINNING", "COPYING")
        wait(lambda: any(runs(host, *leads) for host in pair), "one of them to go on")
        client.wait_heard()
        assert [runs(host, *leads) for host in pair].count(True) == 1
    protected_again(*pair)
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("reaches", ["a", "b"])
def test_etcd_is_on_the_side_of_one_host(
    stage: Stage, pair: tuple[Colo, Colo], vm: Vm, reaches: str
) -> None:
    a, b = pair
    winner, loser = (a, b) if reaches == "a" else (b, a)
    client = stage.client("stream")
    with cut_off(stage, "repl-b" if reaches == "a" else "repl-a"):
        wait(lambda: runs(winner, "UNPROTECTED"), f"host {reaches} to go on; {winner.text()}", 60)
        client.wait_heard()
        wait(
            lambda: loser.status()["state"] in ("LOST", "ORPHANED"),
            "the other one to wait for the arbiter",
        )
    assert protected_again(a, b) is winner
    client.wait_heard()
    client.check()


def test_neither_reaches_etcd(stage: Stage, pair: tuple[Colo, Colo], vm: Vm) -> None:
    """Nobody is heard until one of them reaches it again."""
    a, b = pair
    client = stage.client("stream")
    with ExitStack() as stack:
        stack.enter_context(cut_off(stage, *PORTS))
        a.wait_state("LOST")
        b.wait_state("ORPHANED")
        a.wait_said("no grant")
        heard = client.heard()
        time.sleep(2.0)  # there is nothing to wait for: nothing may happen
        assert client.heard() == heard
    protected_again(a, b)
    client.wait_heard()
    client.check()


def test_a_host_that_stood_still_sends_nothing_of_what_it_held(
    stage: Stage, pair: tuple[Colo, Colo], vm: Vm
) -> None:
    """Longer than every limit, and then it goes on."""
    a, b = pair
    client = stage.client("stream")
    ears = stage.ears(Place.HOST_A)
    qemu = a.qemu_pid()
    for pid in (a.pid, qemu):
        os.kill(pid, signal.SIGSTOP)
    wait(lambda: runs(b, "UNPROTECTED"), "host b to take over")
    client.wait_heard()
    heard = ears.heard()
    for pid in (qemu, a.pid):
        os.kill(pid, signal.SIGCONT)
    a.wait_said("FENCED")
    assert protected_again(a, b) is b
    assert ears.heard() == heard
    client.wait_heard()
    client.check()


def test_a_host_is_cut_off_from_its_clients_alone(
    stage: Stage, pair: tuple[Colo, Colo], vm: Vm
) -> None:
    """That is nobody's death: the VM stays where it is, and the client hears all of it later."""
    a, _ = pair
    client = stage.client("stream")
    with stage.lab.severed(Link.HOST_A):
        time.sleep(2.0)
        assert runs(a, "PROTECTED")
    client.wait_heard()
    client.check()
