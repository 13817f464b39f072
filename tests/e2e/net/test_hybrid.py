"""Hybrid mode: a secondary VM runs, what both say leaves at once, a takeover goes on with it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Any

import pytest

from colo.demo.lab import Place
from colo.packets.hybrid_words import HYBRID_MAGIC
from tests.e2e.basics import wait
from tests.e2e.net.stage import HERE, WAIT_S, Client, Colo, Stage, Vm, left_in_qemu

pytestmark = pytest.mark.e2e

HYBRID = 'mode = "hybrid"'
#: A secondary VM that lags is waited for, however long, and an idle VM is not checkpointed.
PATIENT = (
    "[hybrid]\npatience_ms = 60000\nage_max_ms = 600000\n[checkpoints]\nstop_goal_ms = 600000\n"
)
USUAL = Vm(top=HYBRID)
#: An Ethernet frame's type, in hex.
REVERSE_ARP = "8035"
ENTRIES = {"whole": ("-m", "colo"), "broken": (str(HERE / "broken_gate.py"), "unruly")}
TWO_CARDS = Vm(top=HYBRID, nics=("virtio-net-pci", "e1000"))
VMS = {
    "usual 7.2": ("7.2", USUAL),
    "usual 11.1": ("11.1", USUAL),
    "two cards": ("7.2", TWO_CARDS),
    "a card of another kind": ("11.1", Vm(top=HYBRID, nics=("vmxnet3",))),
    "two processors": ("7.2", Vm(top=HYBRID, args=("-no-reboot", "-smp", "2"))),
}


def compared(primary: Colo) -> dict[str, Any]:
    """What host A says of the comparing."""
    return dict(primary.status().get("hybrid") or {})


def wait_agrees(primary: Colo, times: int = 1) -> None:
    """Wait until a secondary VM runs, and so many packets more have left as both said them."""
    goal = int(compared(primary).get("alike", 0)) + times

    def agrees() -> bool:
        now = compared(primary)
        return now.get("other") == "RUNS" and int(now["alike"]) >= goal

    wait(agrees, f"a secondary VM that agrees; {compared(primary)}", WAIT_S)


def take_over(stage: Stage, primary: Colo, secondary: Colo) -> dict[str, Any]:
    """Host A dies; return what the takeover was."""
    stage.kill(primary)
    status = secondary.wait_state("RUNNING")
    assert status["takeover"]["total_ms"] > 0
    return dict(status["secondary_vm"])


def go_on(*clients: Client) -> None:
    """See that each has lost nothing and got nothing twice."""
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()


@pytest.mark.parametrize(("qemu", "vm"), VMS.values(), ids=VMS, indirect=["qemu"])
def test_a_takeover_goes_on_with_the_secondary_vm(
    stage: Stage, vm: Vm, draw: random.Random
) -> None:
    primary, secondary = stage.protected()
    echo = stage.client("echo")
    wait_agrees(primary, 20)
    time.sleep(draw.random())
    take_over(stage, primary, secondary)
    go_on(echo)
    assert secondary.run("status").returncode == 0


@pytest.mark.parametrize("vm", [USUAL], ids=["hybrid"])
@pytest.mark.parametrize("kind", ["stream", "bulk", "sink", "clock"])
def test_nothing_is_missing_after_a_takeover(
    stage: Stage, vm: Vm, kind: str, draw: random.Random
) -> None:
    """Bytes out, bytes in, and answers that two VMs never give alike."""
    options = {"clock": ["--count", "100000"], "sink": ["--mib", "24"]}.get(kind, [])
    primary, secondary = stage.protected()
    client = stage.client(kind, *options)
    time.sleep(0.3 + 2 * draw.random())
    take_over(stage, primary, secondary)
    if kind == "sink":
        wait(client.ended, "the upload to end", WAIT_S)
        client.check()
    else:
        go_on(client)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [USUAL], ids=["hybrid"])
def test_the_network_learns_where_the_vm_is(stage: Stage, vm: Vm) -> None:
    """It ran there already, and may have nothing to say: so QEMU announces it."""
    primary, secondary = stage.protected()
    wait(lambda: compared(primary).get("other") == "RUNS", "a secondary VM", WAIT_S)
    ears = stage.ears(Place.HOST_B)
    take_over(stage, primary, secondary)

    def announced() -> bool:
        frames = [line.split()[1] for line in ears.log.read_text().splitlines()[1:]]
        return any(frame[24:28] == REVERSE_ARP for frame in frames)

    wait(announced, "the VM to be announced on host B", WAIT_S)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [USUAL], ids=["hybrid"])
def test_connections_of_any_age_survive(stage: Stage, vm: Vm, draw: random.Random) -> None:
    primary, secondary = stage.protected()
    clients = [stage.client("echo", heard=1) for _ in range(4)]
    time.sleep(draw.random() / 4)
    clients.append(stage.client("echo", heard=1))
    take_over(stage, primary, secondary)
    go_on(*clients)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [USUAL], ids=["hybrid"])
def test_datagrams_come_in_their_order(stage: Stage, vm: Vm) -> None:
    primary, _ = stage.protected()
    echo = stage.client("echo")
    wait_agrees(primary, 5)
    flood = stage.client("flood", "--packets", "2000", "--lost-max", "1000", heard=1)
    wait(flood.ended, "the flood to end", WAIT_S)
    assert flood.check()["received"] >= 1000
    echo.check()


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(top=HYBRID, options=PATIENT)], ids=["patient"])
def test_both_vms_answer_pings_alike_and_they_go_on(stage: Stage, vm: Vm) -> None:
    """In their order, whichever host answers."""
    primary, secondary = stage.protected()
    log = stage.folder / "pings"
    with log.open("wb") as output:
        command = (sys.executable, str(HERE / "pings.py"), stage.address)
        stage.processes.append(stage.lab.start(Place.CLIENT, *command, stdout=output))

    def answered() -> list[int]:
        return [int(line) for line in log.read_text().split("\n")[:-1]]

    def wait_answered(more: int) -> None:
        goal = len(answered()) + more
        wait(lambda: len(answered()) >= goal, f"{goal} answers to pings", WAIT_S)

    wait_agrees(primary, 10)
    wait_answered(50)
    wait_agrees(primary)
    assert "icmp" not in compared(primary)["differed"]
    take_over(stage, primary, secondary)
    wait_answered(50)
    found = answered()
    backwards = [at for at in range(1, len(found)) if found[at] <= found[at - 1]]
    assert len(backwards) <= 1, "what may not have been heard is said again, once and in its order"
    assert len(set(found)) >= found[-1] - 3, "what was on its way at the takeover may be missing"


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(top=HYBRID, options=PATIENT)], ids=["patient"])
def test_a_secondary_vm_that_dies_is_replaced(stage: Stage, vm: Vm) -> None:
    """What it has said is covered by a checkpoint at once, and a takeover loses nothing."""
    primary, secondary = stage.protected()
    echo = stage.client("echo")
    wait_agrees(primary, 5)
    number = primary.checkpoint()
    for folder in secondary.state.glob("secondary-vm-*"):
        if (pid := folder / "qemu.pid").exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
    wait(lambda: primary.checkpoint() > number, "a checkpoint in its place", WAIT_S)
    assert primary.state_name() == "PROTECTED"
    wait_agrees(primary, 5)
    take_over(stage, primary, secondary)
    go_on(echo)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(top=HYBRID, options=PATIENT)], ids=["patient"])
@pytest.mark.parametrize("rule", ENTRIES)
def test_a_rule_that_lets_all_out_is_noticed(stage: Stage, vm: Vm, rule: str) -> None:
    """The clients are the judges: here the secondary VM gets nothing, and all leaves."""
    primary, secondary = stage.protected(entry=ENTRIES[rule])
    clients = [stage.client("echo", "--silence", "8")]
    wait_agrees(primary, 3)
    if rule == "broken":
        primary.signal(signal.SIGUSR1)
    for client in clients:
        client.wait_heard(50)
    stage.kill(primary)
    secondary.wait_state("RUNNING")
    if rule == "whole":
        go_on(*clients)
        return
    for client in clients:
        wait(client.ended, f"the client {client.kind} to notice", WAIT_S)
    assert not any(client.verdict()["ok"] for client in clients)


def iptables(stage: Stage, *words: str) -> None:
    stage.lab.run(Place.HOST_A, "iptables", *words)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(top=HYBRID, options=PATIENT)], ids=["patient"])
def test_a_way_to_the_secondary_vm_that_is_silent_is_noticed(stage: Stage, vm: Vm) -> None:
    """Its packets are dropped and nobody says so; the checkpoints' way stays."""
    magic = ("-p", "tcp", "-m", "string", "--algo", "bm", "--string", HYBRID_MAGIC.decode())
    mark = ("OUTPUT", *magic, "-j", "CONNMARK", "--set-mark", "7")
    iptables(stage, "-t", "mangle", "-A", *mark)
    primary, secondary = stage.protected()
    echo = stage.client("echo")
    wait_agrees(primary, 5)
    iptables(stage, "-t", "mangle", "-D", *mark)  # the next one is let through
    iptables(stage, "-A", "OUTPUT", "-m", "connmark", "--mark", "7", "-j", "DROP")
    primary.wait_said("the secondary VM is out of reach: the hybrid link broke")
    echo.wait_heard(20)
    wait_agrees(primary, 5)  # by another connection
    assert primary.state_name() == "PROTECTED"
    take_over(stage, primary, secondary)
    go_on(echo)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [USUAL], ids=["hybrid"])
def test_an_end_leaves_nothing_behind(stage: Stage, vm: Vm) -> None:
    primary, secondary = stage.protected()
    echo = stage.client("echo")
    wait_agrees(primary, 5)
    secondary.signal(signal.SIGTERM)
    assert secondary.wait_exit() == 0
    primary.wait_said("UNPROTECTED: the VM runs here alone")
    echo.wait_heard()
    wait(lambda: not left_in_qemu(primary.state / "qmp.sock"), "an empty QEMU", WAIT_S)
    assert not list(secondary.state.glob("secondary-vm-*"))
    echo.check()
