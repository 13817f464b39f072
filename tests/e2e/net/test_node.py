"""``colo node`` on both hosts, and a client whose one connection outlives each of them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from colo.demo.lab import REPLICATION_ADDRESS, Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import PORT, Colo, Stage, Vm

pytestmark = pytest.mark.e2e

HOSTS = "[hosts]\n" + "".join(
    f'{name} = "tcp:{REPLICATION_ADDRESS[place]}:{PORT}"\n'
    for name, place in (("a", Place.HOST_A), ("b", Place.HOST_B))
)


def node(stage: Stage, name: str, place: Place) -> Colo:
    """A ``colo node`` on this host."""
    made = stage.colo(name, place, replace(stage.vm, options=HOSTS))
    made.start("node", "--host", name)
    return made


#: Which host does what is decided above QEMU: each mode has one.
VMS = {"periodic": ("11.1", Vm()), "hybrid": ("7.2", Vm(top='mode = "hybrid"'))}


def wait_protected(primary: Colo) -> None:
    wait(
        lambda: primary.status().get("role") == "primary" and primary.state_name() == "PROTECTED",
        f"{primary.name} to run a protected VM; it said {primary.text()}",
        90,
    )


@pytest.mark.parametrize(("qemu", "vm"), VMS.values(), ids=VMS, indirect=["qemu"])
def test_a_client_stays_connected_while_the_vm_moves_and_hosts_die(stage: Stage, vm: Vm) -> None:
    a, b = node(stage, "a", Place.HOST_A), node(stage, "b", Place.HOST_B)
    wait_protected(a)
    stage.wait_booted(a)
    client = stage.client("stream")

    moved = a.run("switchover")
    assert (moved.returncode, moved.stdout) == (0, "the VM runs on the other host\n"), moved.stderr
    client.wait_heard()
    wait_protected(b)
    client.wait_heard()

    stage.kill(b)
    client.wait_heard()  # host a has taken over
    assert a.wait_state("UNPROTECTED", "COPYING")["role"] == "primary"
    b.start("node", "--host", "b")
    wait_protected(a)
    client.wait_heard()
    client.check()

    stage.order_guest("poweroff")
    assert (a.wait_exit(), b.wait_exit()) == (0, 0)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(top='mode = "hybrid"')], ids=["hybrid"])
def test_colo_is_killed_where_secondary_vms_run_and_where_one_has_become_the_vm(
    stage: Stage, vm: Vm
) -> None:
    """What it has left behind is ended where it was a secondary VM, and kept where it is the VM."""
    a, b = node(stage, "a", Place.HOST_A), node(stage, "b", Place.HOST_B)
    wait_protected(a)
    stage.wait_booted(a)
    client = stage.client("echo")
    wait_runs_beside(a)

    stage.kill(b, qemu=False)
    b.start("node", "--host", "b")
    wait(lambda: a.state_name() != "PROTECTED", "host a to notice", 30)
    wait_protected(a)
    client.wait_heard()
    wait_runs_beside(a)

    stage.kill(a)
    b.wait_said("as the secondary VM since checkpoint")
    vm_pid = b.qemu_pid()
    client.wait_heard()
    stage.kill(b, qemu=False)
    b.start("node", "--host", "b")
    a.start("node", "--host", "a")
    wait_protected(b)
    assert b.qemu_pid() == vm_pid
    client.wait_heard()
    client.check()
    assert left_of_secondary_vms(b) == 0


def wait_runs_beside(primary: Colo) -> None:
    """Wait until a secondary VM has said something that this host's VM has said too."""

    def agrees() -> bool:
        hybrid = primary.status().get("hybrid") or {}
        return hybrid.get("other") == "RUNS" and hybrid["alike"] > 0

    wait(agrees, "a secondary VM that agrees", 90)


def left_of_secondary_vms(host: Colo) -> int:
    """How many QEMUs were started to be secondary VMs of this host, and are not the VM."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            is_its = os.fsencode(host.state / "secondary-vm-") in command
            count += is_its and process.name != str(host.qemu_pid())
    return count
