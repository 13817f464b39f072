"""``colo primary`` for a QEMU that runs already: it comes, it goes, and it leaves nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.basics import qmp, wait
from tests.e2e.net.stage import WAIT_S, Colo, Stage, Vm, alive, at, left_in_qemu

pytestmark = pytest.mark.e2e

BARE = Vm(guest=False, memory_mib=32)
TWO_CARDS = Vm(nics=("virtio-net-pci", "e1000"))


def heard_of_checkpoints(colo: Colo) -> bool:
    """Whether the other host has told this colo of its checkpoints."""
    return int(colo.status()["peer"]["checkpoint"]) > 0


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [TWO_CARDS], ids=["two cards"])
def test_protection_ends_by_order_and_begins_again(stage: Stage, vm: Vm) -> None:
    by_hand = stage.qemu("q")
    own, other = by_hand.state / "qmp.sock", by_hand.state / "second.sock"
    client = stage.client("stream")
    secondary = stage.secondary()
    first = stage.protect("a", Place.HOST_A, own)
    assert set(first.wait_state("PROTECTED")["network"]) == {"n0", "n1"}
    assert len(left_in_qemu(other)) == 8  # two filters and two chardevs for each card
    first.wait_checkpoints()
    client.wait_heard()
    for colo in (first, secondary):
        wait(partial(heard_of_checkpoints, colo), f"{colo.name} to hear of checkpoints", WAIT_S)

    first.signal(signal.SIGINT)
    assert first.wait_exit() == 0
    assert first.text().splitlines()[-1].endswith("the VM goes on, unprotected")
    assert left_in_qemu(other) == []
    assert qmp(other, "query-status")["running"]
    assert switched_on(other) == set()
    secondary.wait_state("LISTENING")
    assert not secondary.said("RUNNING")
    client.wait_heard()

    second = stage.protect("a2", Place.HOST_A, own)
    second.wait_state("PROTECTED")
    second.wait_checkpoints()
    stage.kill(by_hand, colo=False)
    assert second.wait_exit() == 1
    secondary.wait_state("RUNNING")
    client.wait_heard()
    client.check()


def has_awake(colo: Colo, wanted: bool) -> bool:
    """Whether this colo keeps its host's processors awake, or does not."""
    return bool(colo.status()["awake"]) is wanted


AWAKE = Vm(options="[checkpoints]\ncpu_latency_us = 0\n")


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [AWAKE], ids=["awake"])
def test_processors_are_kept_awake_while_a_client_is_answered(stage: Stage, vm: Vm) -> None:
    primary, secondary = stage.protected()
    client = stage.client("echo")
    client.wait_heard()
    for colo in (primary, secondary):
        if Path("/dev/cpu_dma_latency").exists():
            wait(partial(has_awake, colo, True), f"{colo.name} to keep processors awake", WAIT_S)
            assert not colo.said("processors")
        else:
            colo.wait_said("processors are not kept awake: /dev/cpu_dma_latency: No such file")
    client.check()
    for colo in (primary, secondary):
        wait(partial(has_awake, colo, False), f"{colo.name} to let processors sleep", WAIT_S)


@pytest.mark.parametrize("vm", [BARE], ids=["bare"])
def test_what_an_earlier_migration_left_is_off_and_then_set_back(stage: Stage, vm: Vm) -> None:
    by_hand = stage.qemu("q")
    own, other = by_hand.state / "qmp.sock", by_hand.state / "second.sock"
    left = {"xbzrle", "postcopy-ram", "dirty-bitmaps", "pause-before-switchover", "auto-converge"}
    qmp(
        other,
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": True} for name in left],
    )
    qmp(other, "migrate-set-parameters", max_bandwidth=1 << 20)
    stage.secondary()
    primary = stage.protect("a", Place.HOST_A, own)
    primary.wait_state("PROTECTED")
    primary.wait_checkpoints()
    assert switched_on(other) - {"return-path"} == {"x-colo", "auto-converge"}

    primary.signal(signal.SIGINT)
    assert primary.wait_exit() == 0
    assert switched_on(other) == left
    assert qmp(other, "query-migrate-parameters")["max-bandwidth"] == 1 << 20


def switched_on(path: Path) -> set[str]:
    """The migration capabilities that are on."""
    found = qmp(path, "query-migrate-capabilities")
    return {each["capability"] for each in found if each["state"]}


@pytest.mark.parametrize(
    ("other", "reason", "arbiter"),
    [
        (replace(BARE, args=("-machine", "q35")), "the primary's machine is pc-q35-", ""),
        (replace(BARE, args=("-machine", "q35")), "the primary's machine is pc-q35-", "manual"),
    ],
    ids=["another machine", "another machine, no operator"],
)
def test_first_copy_is_refused(stage: Stage, other: Vm, reason: str, arbiter: str) -> None:
    """The QEMU is not the one of the VM file.  QEMU 7.2 is in COLO before it hears of that."""
    stage.vm = other
    by_hand = stage.qemu("q")
    second = by_hand.state / "second.sock"
    stage.vm = replace(BARE, arbiter=arbiter)
    secondary = stage.secondary()
    primary = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock")
    assert primary.wait_exit() == 1
    assert [reason in line for line in primary.said(" refuses: ")] == [True]
    assert reason in secondary.said("no first copy")[0]
    assert primary.status()["state"] == "ENDED"
    assert qmp(second, "query-status")["running"]
    assert (left_in_qemu(second), switched_on(second)) == ([], set())
    assert not primary.said("PROTECTED by")
    assert secondary.state_name() == "LISTENING"


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_another_size_of_memory_is_refused_before_anything_is_sent(stage: Stage) -> None:
    stage.vm = replace(BARE, memory_mib=48)
    by_hand = stage.qemu("q")
    second = by_hand.state / "second.sock"
    stage.vm = BARE
    secondary = stage.secondary()
    primary = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock")
    assert primary.wait_exit() == 1
    (line,) = primary.text().splitlines()
    assert "no backend pc.ram of 33554432 bytes (its backends: pc.ram of 50331648)" in line
    assert qmp(second, "query-status")["running"]
    assert (left_in_qemu(second), switched_on(second)) == ([], set())
    assert secondary.state_name() == "LISTENING"
    assert not secondary.said("connected")


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_colo_is_killed_and_comes_back(stage: Stage) -> None:
    """The secondary is out of reach meanwhile, and is not told: the VM is claimed here."""
    by_hand = stage.qemu("q")
    secondary = stage.secondary("b", Place.HOST_B, "--on-loss", "hold")
    client = stage.client("stream")
    first = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock")
    first.wait_state("PROTECTED")
    first.wait_checkpoints()
    first.signal(signal.SIGKILL)
    secondary.wait_said("holding checkpoint")
    assert len(left_in_qemu(by_hand.state / "second.sock")) == 4

    second = stage.protect("a2", Place.HOST_A, by_hand.state / "qmp.sock")
    second.wait_state("PROTECTED")
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(arbiter="manual")], ids=["manual"])
def test_manual_arbiter(stage: Stage, vm: Vm) -> None:
    """Without an operator's word the VM is silent, and with it nobody has noticed."""
    primary, secondary = stage.protected("--claim")  # with no secondary yet nobody can be asked
    client = stage.client("stream")
    ears = stage.ears(Place.HOST_A)
    stage.kill(secondary)
    primary.wait_state("LOST")
    heard = client.heard()
    said = ears.heard()
    wait(lambda: "`colo failover`" in primary.text(), "colo to say what to do", WAIT_S)
    with pytest.raises(AssertionError, match="waited"):
        wait(lambda: client.heard() > heard + 1 or ears.heard() > said + 1, "a word", 2)

    done = primary.run("failover")
    assert (done.returncode, done.stderr) == (0, "")
    primary.wait_state("UNPROTECTED")
    client.wait_heard()
    assert primary.run("failover").returncode == 1
    again = stage.secondary("b2")
    primary.wait_state("PROTECTED")
    primary.wait_checkpoints()
    stage.kill(primary)
    again.wait_said("holding checkpoint")
    assert again.run("failover").returncode == 0
    again.wait_state("RUNNING")
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_orders_while_the_arbiter_is_out_of_reach(stage: Stage) -> None:
    primary, secondary = stage.protected()
    client = stage.client("stream")
    kept = stage.grant.read_text()
    stage.grant.unlink()
    stage.grant.mkdir()
    stage.kill(secondary)
    primary.wait_said("the VM stays silent until the arbiter answers")

    done = primary.run("failover")
    assert done.returncode == 1 and "--force does without it" in done.stderr
    assert primary.state_name() == "LOST"
    done = primary.run("failover", "--force")
    assert (done.returncode, done.stdout) == (0, "the VM runs here alone\n")
    client.wait_heard()

    stage.grant.rmdir()
    stage.grant.write_text(kept)
    again = stage.secondary("b2")
    primary.wait_said("PROTECTED by", 2)
    primary.wait_checkpoints()
    stage.kill(primary)
    again.wait_state("RUNNING")
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_ctrl_c_while_nobody_has_decided(stage: Stage) -> None:
    """The first one says what is missing, the second leaves the VM silent, the next colo begins."""
    stage.vm = Vm(arbiter="manual")
    by_hand = stage.qemu("q")
    secondary = stage.secondary()
    client = stage.client("stream")
    first = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock")
    first.wait_state("PROTECTED")
    stage.kill(secondary)
    first.wait_said("the VM stays silent until `colo failover`")
    first.signal(signal.SIGINT)
    first.wait_said("Ctrl-C once more ends colo")
    assert not first.has_ended()
    first.signal(signal.SIGINT)
    assert first.wait_exit() == 1
    assert alive(by_hand.qemu_pid())

    stage.secondary("b2")
    stage.protect("a2", Place.HOST_A, by_hand.state / "qmp.sock").wait_state("PROTECTED")
    client.wait_heard()
    client.check()


def test_stock_qemu_as_the_secondary(stage: Stage) -> None:
    primary = stage.run("a", "--stock")
    stock = stage.stock_secondary("b")
    primary.wait_state("PROTECTED")
    client = stage.client("stream")
    primary.wait_checkpoints(20)
    client.wait_heard()

    stage.kill(stock, colo=False)
    primary.wait_said("the VM runs here alone")
    client.wait_heard()
    assert primary.qmp("query-status")["running"]
    assert alive(primary.qemu_pid())
    stage.stock_secondary("b2")
    primary.wait_said("PROTECTED by", 2)
    primary.wait_checkpoints()
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("vm", [replace(BARE, options="silence_s = 4.0")], ids=["bare"])
def test_stock_secondary_hangs_within_the_first_copy(stage: Stage, vm: Vm) -> None:
    stock = stage.stock_secondary("b")
    os.kill(stock.qemu_pid(), signal.SIGSTOP)
    by_hand = stage.qemu("q")
    primary = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock", "--stock")
    primary.wait_state("COPYING")
    line = primary.wait_said("the secondary is lost: ")  # two limits of the same length race
    assert "for 4" in line, line
    primary.wait_said("the VM runs here alone")
    primary.signal(signal.SIGINT)
    assert primary.wait_exit() == 0
    assert qmp(by_hand.state / "second.sock", "query-status")["running"]
    os.kill(stock.qemu_pid(), signal.SIGCONT)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_secondary_out_of_reach(stage: Stage) -> None:
    """Nothing happens to the VM, however long; and once it is in reach it is found."""
    by_hand = stage.qemu("q")
    client = stage.client("stream")
    with stage.lab.severed(Link.REPLICATION):
        primary = stage.protect("a", Place.HOST_A, by_hand.state / "qmp.sock")
        primary.wait_said("is out of reach")
        assert left_in_qemu(by_hand.state / "second.sock") == []
        client.wait_heard()
    stage.secondary()
    primary.wait_state("PROTECTED")
    primary.wait_checkpoints()
    client.wait_heard()
    client.check()

    primary.signal(signal.SIGTERM)
    assert primary.wait_exit() == 0
    wrong = stage.protect("a2", Place.HOST_A, by_hand.state / "qmp.sock", to=at(Place.HOST_A))
    wrong.wait_said("is out of reach")
    wrong.signal(signal.SIGINT)
    assert wrong.wait_exit() == 0
    assert left_in_qemu(by_hand.state / "second.sock") == []
