"""Whatever dies or falls silent: one VM goes on, one is heard, and the clients see nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import WAIT_S, Client, Colo, Stage, Vm, alive

pytestmark = pytest.mark.e2e

KINDS = ("stream", "echo")
READY = "colo-guest: ready"


def clients(stage: Stage) -> list[Client]:
    return [stage.client(kind) for kind in KINDS]


def check(clients: list[Client]) -> None:
    """The clients hear more, and have no complaint."""
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()


def go_on(colo: Colo) -> None:
    """Wait until the guest has written a line to its console, and so has run for a while."""
    said = len(colo.console.text())
    wait(lambda: len(colo.console.text()) > said, f"the VM of {colo.name} to go on", WAIT_S)


def test_guest_process_dies(stage: Stage, draw: random.Random) -> None:
    primary, secondary = stage.protected()
    watching = clients(stage)
    time.sleep(draw.random())
    stage.kill(primary, colo=False)

    assert primary.wait_exit() == 1
    assert primary.said("QEMU is dead")
    secondary.wait_state("RUNNING")
    check(watching)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(options="silence_s = 4.0")], ids=["soon"])
def test_guest_process_hangs(stage: Stage, vm: Vm, draw: random.Random) -> None:
    """It would not run alone either; and once it is back it is not heard."""
    primary, secondary = stage.protected()
    watching = clients(stage)
    ears = stage.ears(Place.HOST_A)
    wait(lambda: ears.heard() > 20, "the guest to be heard at all")
    time.sleep(draw.random())
    os.kill(primary.qemu_pid(), signal.SIGSTOP)

    primary.wait_said("the secondary is lost: ")  # either host may notice first
    secondary.wait_state("RUNNING")
    os.kill(primary.qemu_pid(), signal.SIGCONT)  # at once: what colo asks of it now, it does
    assert primary.wait_exit() == 1
    assert primary.said("QEMU does not answer: the other host takes over")
    primary.qmp("x-colo-lost-heartbeat")
    go_on(primary)
    heard = ears.heard()  # with what its last checkpoint had let go
    go_on(primary)
    for client in watching:
        client.wait_heard(100)
    assert ears.heard() == heard, "the VM on host A is heard"
    check(watching)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_colo_dies_and_its_vm_is_mute(stage: Stage, draw: random.Random) -> None:
    """Its guest lives, sends its stream and answers: nothing of that may come out."""
    primary, secondary = stage.protected()
    watching = clients(stage)
    ears = stage.ears(Place.HOST_A)
    wait(lambda: ears.heard() > 20, "the guest to be heard at all")
    time.sleep(draw.random())
    stage.kill(primary, qemu=False)
    wait(primary.has_ended, "colo to be dead")

    secondary.wait_state("RUNNING")
    for client in watching:
        client.wait_heard(100)
    assert alive(primary.qemu_pid())
    primary.qmp("x-colo-lost-heartbeat")  # it may be stopped within a checkpoint
    go_on(primary)
    heard = ears.heard()  # a stopped VM keeps what was let go by the last checkpoint until it runs
    go_on(primary)
    late = ears.log.read_text().splitlines()[1 + heard :]
    assert not late, f"the VM on host A is heard: {len(late)} frames, {late[:5]}"
    check(watching)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_hosts_come_and_go(stage: Stage, draw: random.Random) -> None:
    """Host B dies, another comes; its waiting QEMU dies; then host A dies.  One connection."""
    primary, secondary = stage.protected()
    watching = clients(stage)
    time.sleep(draw.random())
    stage.kill(secondary)

    primary.wait_said("UNPROTECTED: the VM runs here alone")
    wait(lambda: primary.state_name() == "UNPROTECTED", "the state UNPROTECTED")
    for client in watching:
        client.wait_heard()

    second = stage.secondary("b2")
    primary.wait_said("PROTECTED by", 2)
    primary.wait_checkpoints()

    waiting = second.qemu_pid()
    time.sleep(draw.random())
    stage.kill(second, colo=False)
    wait(lambda: second.qemu_pid() != waiting, "another QEMU to wait")
    wait(lambda: second.status()["qemu"]["trouble"] is None, "it to be ready")
    primary.wait_checkpoints()
    assert len(primary.said("PROTECTED by")) == 2

    time.sleep(draw.random())
    stage.kill(primary)
    second.wait_state("RUNNING")
    check(watching)


@contextlib.contextmanager
def arbiter_hangs(stage: Stage) -> Iterator[None]:
    """As on a dead mount: whoever asks for the grant waits."""
    with stage.grant.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_host_dies_with_the_arbiter_and_an_operator_forces_it(stage: Stage) -> None:
    primary, secondary = stage.protected()
    watching = clients(stage)
    with arbiter_hangs(stage):
        stage.kill(primary)
        secondary.wait_said("no grant yet")
        refused = secondary.run("failover")
        assert refused.returncode == 1
        assert "--force does without it" in refused.stderr
        forced = secondary.run("failover", "--force")
        assert forced.returncode == 0, forced.stderr
        secondary.wait_state("RUNNING")
        check(watching)
        secondary.signal(signal.SIGTERM)
        assert secondary.wait_exit() == 0
    assert secondary.said("the VM goes on without colo")


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_host_dies_with_the_arbiter_and_an_operator_gives_the_vm_up(stage: Stage) -> None:
    primary, secondary = stage.protected()
    store = (secondary.state / "store").resolve()
    with arbiter_hangs(stage):
        stage.kill(primary)
        secondary.wait_said("no grant yet")
        secondary.signal(signal.SIGINT)
        secondary.wait_said("not ended: checkpoint")
        kept = stage.folder / "kept.mig"
        assert secondary.run("export", str(kept)).returncode == 0
        assert kept.stat().st_size > 1 << 20
        assert store.exists()
        secondary.signal(signal.SIGINT)
        assert secondary.wait_exit() == 0
    assert not store.exists()
    assert not secondary.said("Traceback")


@pytest.mark.parametrize("frozen", [None, "a", "b"], ids=["nobody frozen", "a frozen", "b frozen"])
def test_link_falls_silent(stage: Stage, draw: random.Random, frozen: str | None) -> None:
    """Exactly one side goes on.  The one whose colo is frozen meanwhile is too late to."""
    primary, secondary = stage.protected()
    watching = clients(stage)
    ears = stage.ears(Place.HOST_A)
    time.sleep(draw.random())
    victim = {"a": primary, "b": secondary}.get(frozen or "")
    if victim is not None:
        victim.signal(signal.SIGSTOP)
    with stage.lab.severed(Link.REPLICATION):
        winner = wait(lambda: goes_on(primary, secondary), "one side to go on", WAIT_S)
        if victim is not None:
            assert winner is not victim
            victim.signal(signal.SIGCONT)
        for client in watching:
            client.wait_heard()
        if winner is secondary:
            assert primary.wait_exit() == 1
            assert primary.said("FENCED")
            assert primary.status()["state"] == "FENCED"
            assert not primary.qmp("query-status")["running"]
            heard = ears.heard()
        else:
            secondary.wait_state("LISTENING")
    if winner is primary:
        primary.wait_said("PROTECTED by", 2)
        primary.wait_checkpoints()
        stage.kill(primary)
        secondary.wait_state("RUNNING")
        check(watching)
    else:
        check(watching)
        assert ears.heard() == heard, "the VM that is fenced is heard"
    number = json.loads(stage.grant.read_text())["number"]
    assert number == (3 if winner is secondary else 4)


def goes_on(primary: Colo, secondary: Colo) -> Colo | None:
    """The side that has said that its VM goes on."""
    if primary.said("the VM runs here alone"):
        assert not secondary.said("RUNNING HERE")
        return primary
    return secondary if secondary.said("RUNNING HERE") else None


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_guest_process_dies_while_nobody_has_decided(stage: Stage) -> None:
    """Both hosts wait for the arbiter.  The one whose VM is dead does not ask it any more."""
    primary, secondary = stage.protected()
    watching = clients(stage)
    kept = stage.grant.read_text()
    stage.grant.unlink()
    stage.grant.mkdir()
    with stage.lab.severed(Link.REPLICATION):
        primary.wait_said("no grant")
        secondary.wait_said("no grant yet")
        stage.kill(primary, colo=False)
        assert primary.wait_exit() == 1
        assert primary.status()["state"] == "DEAD"
        stage.grant.rmdir()
        stage.grant.write_text(kept)
        secondary.wait_state("RUNNING")
        check(watching)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_guest_shuts_down(stage: Stage) -> None:
    primary, secondary = stage.protected()
    stage.order_guest("poweroff")

    assert primary.wait_exit() == 0
    assert primary.said("nothing to take over")
    secondary.wait_state("LISTENING")
    assert not secondary.said("RUNNING")
    assert json.loads(stage.grant.read_text())["holder"] == ""

    again = stage.run("a2")  # and the next VM can be protected
    again.wait_state("PROTECTED")


@pytest.mark.parametrize("vm", [Vm(args=("-no-shutdown",))], ids=["rebooting"])
def test_guest_reboots(stage: Stage, vm: Vm) -> None:
    primary, secondary = stage.protected()
    assert primary.console.text().count(READY) == 1
    stage.order_guest("reboot")

    wait(lambda: primary.console.text().count(READY) == 2, "the guest to boot again", WAIT_S)
    primary.wait_checkpoints()
    assert primary.state_name() == "PROTECTED"
    assert len(primary.said("PROTECTED by")) == 1
    watching = clients(stage)
    stage.kill(primary)
    secondary.wait_state("RUNNING")
    check(watching)
