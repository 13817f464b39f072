"""``colo node`` on both hosts, and a client whose one connection outlives each of them."""

from __future__ import annotations

from dataclasses import replace

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


def wait_protected(primary: Colo) -> None:
    wait(
        lambda: primary.status().get("role") == "primary" and primary.state_name() == "PROTECTED",
        f"{primary.name} to run a protected VM; it said {primary.text()}",
        90,
    )


@pytest.mark.parametrize("vm", [Vm(), Vm(top='mode = "hybrid"')], ids=["periodic", "hybrid"])
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
