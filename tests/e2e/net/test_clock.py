"""The guest's clock: the time that its VM stands still is given back, also by a takeover.

Host B's colo is stopped for a while, again and again, and an operator lets a takeover wait: what is
lost, where it is, is then far more than a busy machine's own delays.  Each client sees to it that
no clock of the guest goes back.
"""

from __future__ import annotations

import signal
import time
from typing import Final

import pytest

from colo.demo.lab import Place
from colo.qemu.guest_clock import given_back
from colo.qemu.preload import CLOCK_LIBRARY
from tests.e2e.basics import wait
from tests.e2e.net.stage import Client, Colo, Stage, Vm

pytestmark = pytest.mark.e2e

STOPS: Final = 4
STOP_S: Final = 1.5
#: Of what the VM stood still, so much may be missing, or be all that is not.
PART: Final = 0.3
#: The hosts have patience with one another; checkpoints come often, and each waits for host B.
VM: Final = Vm(
    options="heartbeat_limit_s = 60.0\nsilence_s = 60.0\n"
    "[checkpoints]\nage_max_ms = 50\naside_mib = 0\n"
)

#: None follows by itself.
RARELY: Final = Vm(
    options="heartbeat_limit_s = 60.0\nsilence_s = 60.0\n[checkpoints]\nage_max_ms = 600000\n"
)

patient = pytest.mark.parametrize("vm", [VM], ids=["patient"])


def stood_still(primary: Colo) -> float:
    return float((primary.status().get("clock") or {}).get("stood_still_s", 0.0))


def stand_still(primary: Colo, secondary: Colo) -> float:
    """Have the VM stand still for long, some times, as host B does nothing; say how long."""
    first = stood_still(primary)
    for _ in range(STOPS):
        before = stood_still(primary)
        secondary.signal(signal.SIGSTOP)
        time.sleep(STOP_S)
        secondary.signal(signal.SIGCONT)
        wait_until_it_stood_still(primary, before + STOP_S / 2)
        primary.wait_checkpoints(5)
    return stood_still(primary) - first


def wait_until_it_stood_still(primary: Colo, seconds: float) -> None:
    wait(lambda: stood_still(primary) > seconds, f"the VM to have stood still for {seconds:.1f} s")


def asks(stage: Stage) -> Client:
    """A client that asks for the guest's time, again and again."""
    return stage.client("clock", "--count", "1000000", heard=20)


def lost_s(client: Client) -> float:
    """How far the guest's clock fell behind; it never went back."""
    client.wait_heard()
    return float(client.check()["lost_ms"]) / 1e3


@patient
def test_what_a_vm_stands_still_is_given_back(stage: Stage, vm: Vm) -> None:
    primary, secondary = stage.protected()
    client = asks(stage)
    stood = stand_still(primary, secondary)
    assert abs(lost_s(client)) < PART * stood

    clock = primary.status()["clock"]
    assert clock["trouble"] is None
    assert clock["lost_s"] == 0
    assert clock["given_back_s"] > 0.9 * clock["stood_still_s"]
    assert "all given back" in primary.run("status").stdout
    assert not primary.said("the guest's clock")


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # the library is what counts
@patient
def test_without_the_library_it_is_lost_and_that_is_said(stage: Stage, vm: Vm) -> None:
    qemu = stage.qemu("q", without=CLOCK_LIBRARY.name)
    secondary = stage.secondary()
    primary = stage.protect("a", qemu.place, qemu.state / "qmp.sock")
    primary.wait_state("PROTECTED")
    primary.wait_said("the guest's clock loses the time that checkpoints take")
    assert len(primary.said("the guest's clock loses the time that checkpoints take")) == 1
    client = asks(stage)
    stood = stand_still(primary, secondary)
    assert lost_s(client) > (1 - PART) * stood

    clock = primary.status()["clock"]
    assert clock["given_back_s"] == 0
    assert clock["lost_s"] == clock["stood_still_s"]
    assert "without colo's library" in primary.run("status").stdout


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@patient
def test_a_takeover_gives_back_what_it_waited(stage: Stage, vm: Vm) -> None:
    primary = stage.run("a")
    secondary = stage.secondary("b", Place.HOST_B, "--on-loss", "hold")
    primary.wait_state("PROTECTED")
    client = asks(stage)
    stage.kill(primary)
    secondary.wait_state("ORPHANED")
    time.sleep(STOPS * STOP_S)
    assert secondary.run("failover").returncode == 0
    assert abs(lost_s(client)) < PART * STOPS * STOP_S

    clock = secondary.status()["clock"]
    assert clock["trouble"] is None
    assert clock["seconds"] > STOPS * STOP_S


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [RARELY], ids=["rarely"])
def test_a_stop_that_somebody_makes_and_ends_is_none_of_ours(stage: Stage, vm: Vm) -> None:
    primary, _ = stage.protected()

    def stays_stopped() -> bool:
        """No checkpoint had it go on: one that was under way would."""
        primary.qmp("stop")
        time.sleep(STOP_S)
        return bool(primary.qmp("query-status")["status"] == "paused")

    wait(stays_stopped, "the VM to stay stopped")
    before = given_s(primary)
    primary.qmp("cont")
    assert given_s(primary) - before < PART * STOP_S


def given_s(primary: Colo) -> float:
    given = given_back(primary.qemu_pid())
    assert given is not None
    assert given.trouble is None
    return given.seconds
