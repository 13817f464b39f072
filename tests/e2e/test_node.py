"""``colo node`` on both hosts: the VM lives on, whoever dies, comes back or is told to go."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.basics import wait
from tests.e2e.nodes import NodeHost, Nodes, playing

pytestmark = pytest.mark.e2e


@pytest.fixture
def nodes(qemu: str) -> Iterator[Nodes]:
    with playing(qemu) as nodes:
        yield nodes


def goes_on(host: NodeHost, after: int) -> None:
    """The guest counts on here from a checkpoint that is not older than ``after``."""
    host.console.wait_count(after + 5)


def wait_leads(host: NodeHost) -> None:
    """Wait until that host runs the VM, protected or not yet."""
    wait(
        lambda: host.is_in("primary", "UNPROTECTED", "COPYING", "PROTECTED"),
        f"host {host.name} to run the VM",
    )


def test_the_vm_lives_on_whoever_dies_comes_back_or_is_told_to_go(nodes: Nodes) -> None:
    a, b = nodes.a, nodes.b
    b.start()  # in any order: it is the first host's turn
    a.start()
    nodes.wait_protected(a)
    a.console.wait_progress()

    a.die()
    wait_leads(b)
    b.console.wait_progress()
    a.start()  # it comes back, and follows by itself
    nodes.wait_protected(b)
    b.console.verify()

    counted = b.console.last()
    done = b.run("switchover")
    assert (done.returncode, done.stdout) == (0, "the VM runs on the other host\n"), done.stderr
    nodes.wait_protected(a)
    goes_on(a, counted)
    a.console.verify()

    pid = a.qemu_pid()
    assert a.end() == 0
    assert a.qemu_pid() == pid
    a.start()  # it adopts its QEMU
    nodes.wait_protected(a)
    assert a.qemu_pid() == pid
    a.console.wait_progress()

    done = a.run("stop", "--grace", "1")
    assert done.returncode == 0, done.stderr
    assert a.process is not None and b.process is not None
    assert (a.process.wait(30), b.process.wait(30)) == (0, 0)
    assert (a.qemu_pid(), b.qemu_pid()) == (None, None)
    left = [name for name in os.listdir("/dev/shm") if nodes.folder.name in name]
    assert left == []


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_colo_is_killed_on_either_host_and_the_vm_lives_on(nodes: Nodes) -> None:
    a, b = nodes.a, nodes.b
    a.start()
    b.start()
    nodes.wait_protected(a)
    b.end(signal.SIGKILL)
    wait(lambda: a.is_in("primary", "UNPROTECTED"), "host a to run alone")
    a.console.wait_progress()
    b.start()  # what its predecessor left is ended
    nodes.wait_protected(a)

    a.console.wait_progress()
    a.end(signal.SIGKILL)  # its VM is mute from then on
    wait_leads(b)
    b.console.wait_progress()
    stale = a.qemu_pid()
    assert stale is not None
    a.start()
    nodes.wait_protected(b)
    assert "a stale copy of the VM is ended here" in a.text()
    assert a.qemu_pid() not in (None, stale)
    b.console.verify()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_host_that_is_gone_for_good_is_done_without_by_an_operator(nodes: Nodes) -> None:
    a, b = nodes.a, nodes.b
    a.start()
    a.console.wait_progress()
    a.die()
    b.start()
    wait(lambda: b.is_in("secondary", "LISTENING"), "host b to follow")
    done = b.run("failover")
    assert done.returncode == 0, done.stderr
    b.console.wait_progress()
    a.start()
    nodes.wait_protected(b)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_vm_that_nobody_else_has_is_waited_for_where_its_qemu_hangs(nodes: Nodes) -> None:
    """Its colo is restarted meanwhile, by an upgrade say; the host was only slow."""
    a = nodes.a
    a.start()
    a.console.wait_progress()
    pid, counted = a.qemu_pid(), a.console.last()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    a.end(signal.SIGKILL)
    a.start()
    wait(lambda: "its QEMU does not answer" in a.text(), "host a to notice")
    os.kill(pid, signal.SIGCONT)
    wait_leads(a)
    assert a.qemu_pid() == pid
    goes_on(a, counted)
    nodes.b.start()
    nodes.wait_protected(a)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_what_an_operator_forces_without_an_arbiter_outlives_the_colo_that_was_told(
    nodes: Nodes,
) -> None:
    a, b = nodes.a, nodes.b
    a.start()
    b.start()
    nodes.wait_protected(a)
    away = nodes.grant.with_name("away")
    nodes.grant.rename(away)
    a.die()
    wait(lambda: b.is_in("secondary", "ORPHANED"), "host B to miss host A")
    done = b.run("failover", "--force")
    assert done.returncode == 0, done.stderr
    wait_leads(b)
    pid = b.qemu_pid()
    b.end(signal.SIGKILL)

    b.start()
    wait(lambda: b.is_in("node", "WAITING"), "host B to miss the arbiter")
    away.rename(nodes.grant)
    wait_leads(b)
    assert b.qemu_pid() == pid
    b.console.wait_progress()
    wait(lambda: "b/" in nodes.grant.read_text(), "the arbiter to hear of it")
    a.start()
    nodes.wait_protected(b)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_a_vm_that_died_with_its_host_is_started_anew_where_the_other_one_has_nothing_of_it(
    nodes: Nodes,
) -> None:
    a, b = nodes.a, nodes.b
    a.start()
    a.console.wait_progress()
    a.die()
    a.start()
    wait(lambda: a.is_in("node", "WAITING"), "host a to ask the other one")
    assert "if that host is gone for good, `colo failover` starts the VM here anew" in a.text()
    b.start()
    nodes.wait_protected(a)
    assert "host b has nothing of it: starting it anew" in a.text()


def is_left(what: list[object], *hosts: NodeHost) -> bool:
    """Whether just that is there of these hosts."""
    return [host.belongings() for host in hosts] == what


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_round_after_round_leaves_nothing_behind(
    nodes: Nodes, request: pytest.FixtureRequest
) -> None:
    """Each host dies in turn and comes back; what is there afterwards is there after the first."""
    rounds = 3 + int(request.config.getoption("--rounds"))
    primary = nodes.a
    primary.start()
    nodes.b.start()
    nodes.wait_protected(primary)
    first: list[object] = []
    for _ in range(rounds):
        primary.console.wait_progress()
        secondary = nodes.other(primary)
        primary.die()
        wait_leads(secondary)
        primary.start()
        nodes.wait_protected(secondary)
        first = first or [secondary.belongings(), primary.belongings()]
        # What is written just now comes and goes; what was left behind would stay.
        wait(partial(is_left, first, secondary, primary), f"no more to be there than {first}")
        primary = secondary
    primary.console.verify()


class Manager:
    """A service manager, as far as a service hears of it: the socket that it listens at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.all: list[str] = []

    def heard(self) -> list[str]:
        """What has come since the last time."""
        said = []
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(self._sock.recv(4096).decode())
        return said

    def wait(self, text: str) -> None:
        """Wait until it has heard this, ever."""

        def has_come() -> bool:
            self.all.extend(self.heard())
            return any(text in line for line in self.all)

        wait(has_come, f"{text} to be said; it heard {self.all}")

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_service_manager_is_told_how_the_vm_stands_and_that_colo_lives(nodes: Nodes) -> None:
    with contextlib.closing(Manager(nodes.folder / "notify")) as manager:
        told = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "600000"}
        nodes.b.start(**told)
        manager.wait("STATUS=WAITING")
        manager.wait("WATCHDOG=1")
        assert "READY=1" not in manager.all, "nothing is kept alive yet"
        nodes.a.start()
        manager.wait("READY=1")
        manager.wait("STATUS=KEEPING: the last whole checkpoint is kept")
        nodes.wait_protected(nodes.a)

        assert nodes.b.process is not None
        nodes.b.process.send_signal(signal.SIGSTOP)
        manager.heard()
        nodes.a.console.wait_progress()
        assert "WATCHDOG=1" not in manager.heard(), "a colo that hangs does not feed it"
        nodes.b.process.send_signal(signal.SIGCONT)
        goes_on = time.time()
        wait(lambda: "WATCHDOG=1" in manager.heard(), "colo to live again")
        # Until it keeps the VM again it may be asking for it, and is not ended by one word.
        wait(lambda: (nodes.b.status().get("checkpoint_at") or 0.0) > goes_on, "a checkpoint")
        assert nodes.b.end() == 0
        manager.wait("STOPPING=1")
