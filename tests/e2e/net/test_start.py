"""``colo run`` where the VM may run elsewhere: it is refused before its first instruction."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from colo.demo.lab import Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import Colo, Stage, Vm, alive, at

pytestmark = pytest.mark.e2e

BARE = Vm(guest=False, memory_mib=32)
MANUAL = Vm(arbiter="manual")


def run_again(primary: Colo, *options: str) -> str:
    """``colo run`` with the same state folder, as after a reboot: refused; return its one line."""
    said = len(primary.text())
    primary.start("run", "--to", at(Place.HOST_B), *options)
    code = primary.wait_exit()
    lines = primary.text()[said:].splitlines()
    assert (code, len(lines)) == (2, 1), (code, lines)
    return lines[0]


def has_qemu(primary: Colo) -> bool:
    """Whether a QEMU of this state folder is there."""
    return (primary.state / "qemu.pid").exists() and alive(primary.qemu_pid())


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(), MANUAL], ids=["file", "manual"])
def test_vm_that_was_taken_over(stage: Stage, vm: Vm) -> None:
    """Host A dies, and comes back: its VM runs on host B, or waits there for an order."""
    primary, secondary = stage.protected(*(["--claim"] if vm is MANUAL else []))
    client = stage.client("stream")
    stage.kill(primary)
    ears = stage.ears(Place.HOST_A)
    if vm is MANUAL:
        secondary.wait_said("holding checkpoint")
        assert "waits for a decision" in run_again(primary)
        assert secondary.run("failover").returncode == 0
    secondary.wait_state("RUNNING")

    line = run_again(primary)
    assert ("refuses: the VM runs here" if vm is MANUAL else "say --claim") in line
    if vm is not MANUAL:  # whoever claims it is wrong: that VM is not dead
        assert "refuses: the VM runs here" in run_again(primary, "--claim")
    stage.lab.run(Place.CLIENT, "ip", "neigh", "flush", "all")
    stage.client("echo").check()  # and who has this address is asked of all
    client.wait_heard(100)
    assert not has_qemu(primary)
    assert ears.heard() == 0, "the VM on host A is heard"
    assert secondary.state_name() == "RUNNING"
    client.check()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(guest=False, memory_mib=32, arbiter="manual")], ids=["manual"])
def test_nobody_can_be_asked(stage: Stage, vm: Vm) -> None:
    """The manual arbiter knows nothing, and the secondary is not there: an operator decides."""
    primary = stage.colo("a", Place.HOST_A)
    line = run_again(primary)
    assert "is out of reach" in line
    assert "say --claim" in line
    assert not has_qemu(primary)

    primary.start("run", "--to", at(Place.HOST_B), "--claim")
    primary.wait_said("UNPROTECTED")
    assert primary.qmp("query-status")["running"]
    stage.secondary()
    primary.wait_state("PROTECTED")


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [BARE], ids=["bare"])
def test_vm_that_still_runs_here(stage: Stage, vm: Vm) -> None:
    """Ctrl-C has left it running: it is neither started twice nor cut off from its QMP."""
    primary = stage.colo("a", Place.HOST_A)
    primary.start("run", "--to", at(Place.HOST_B))
    primary.wait_said("UNPROTECTED")
    primary.signal(signal.SIGINT)
    assert primary.wait_exit() == 0
    assert "the VM goes on" in primary.text()
    pid = primary.qemu_pid()

    line = run_again(primary, "--claim")
    assert f"pid {pid}, running" in line
    assert f"--qmp unix:{primary.state / 'qmp.sock'}" in line
    assert primary.qemu_pid() == pid
    assert primary.qmp("query-status")["running"]


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [BARE], ids=["bare"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_before_the_vm_starts(stage: Stage, vm: Vm, number: signal.Signals) -> None:
    """The secondary has not answered yet: the VM stands still, and its QEMU ends with colo."""
    primary = stage.colo("a", Place.HOST_A)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(stage.folder / "silent"))
        silent.listen()
        primary.start("run", "--to", f"unix:{stage.folder / 'silent'}")
        with silent.accept()[0]:
            assert primary.qmp("query-status")["status"] == "prelaunch"
            assert primary.run("status").returncode == 0
            primary.signal(number)
            code = primary.wait_exit()
    assert len(primary.text().splitlines()) == (0 if number is signal.SIGKILL else 1)
    if number is signal.SIGKILL:  # its QEMU is left behind, mute; the next colo ends it
        assert primary.qmp("query-status")["status"] == "prelaunch"
        left = primary.qemu_pid()
        primary.start("run", "--to", at(Place.HOST_B), "--claim")
        primary.wait_said("UNPROTECTED")
        assert not alive(left)
        return
    assert code == 0
    assert "nothing is left behind" in primary.text()
    assert not has_qemu(primary)
    assert json.loads(stage.grant.read_text())["holder"] == ""


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [BARE], ids=["bare"])
def test_secondary_that_does_not_answer(stage: Stage, vm: Vm) -> None:
    """The grant is there: the VM does not wait for ever for a secondary that only listens."""
    primary = stage.colo("a", Place.HOST_A)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(stage.folder / "silent"))
        silent.listen()
        primary.start("run", "--to", f"unix:{stage.folder / 'silent'}")
        primary.wait_said("UNPROTECTED")
        assert primary.qmp("query-status")["running"]
    wait(lambda: primary.state_name() == "UNPROTECTED", "the state UNPROTECTED")
