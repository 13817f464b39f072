"""``ocf:colo:vm`` in a cluster by corosync and Pacemaker, with fencing, and a client."""

from __future__ import annotations

import os
import shutil

import pytest

from colo.demo.lab import REPLICATION_ADDRESS, Link
from tests.e2e.net.pacemaker import NODES, PROGRAMS, Cluster
from tests.e2e.net.stage import PORT, Stage, Vm
from tests.e2e.net.test_disks import DISK, disk_of, disk_table, raw, records_in
from tests.e2e.net.wires import three_members

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

HOSTS = "[hosts]\n" + "".join(
    f'{name} = "tcp:{REPLICATION_ADDRESS[place]}:{PORT}"\n' for name, place in NODES.items()
)
VM = ("crm_resource", "--resource", "vm-clone")
needs_pacemaker = pytest.mark.skipif(
    any(shutil.which(each, path="/usr/sbin:/usr/bin:/sbin") is None for each in PROGRAMS)
    or os.geteuid() != 0,
    reason="no corosync, no pacemaker and its commands, or not root",
)


@needs_pacemaker
@pytest.mark.parametrize("vm", [Vm(arbiter="pacemaker")], ids=["pacemaker"])
@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_vm_is_moved_and_outlives_each_host(stage: Stage, vm: Vm) -> None:
    cluster = Cluster(stage, HOSTS)
    a, b = cluster.colos["a"], cluster.colos["b"]
    cluster.up("a")
    cluster.up("b")
    a.wait_state("PROTECTED")
    cluster.wait_promoted("a")
    stage.wait_booted(a)
    client = stage.client("stream")

    cluster.cut_power("b")  # nothing but the copy is there
    a.wait_state("UNPROTECTED")
    client.wait_heard()
    assert cluster.promoted("a") == ["a"]
    cluster.up("b")
    a.wait_state("PROTECTED")

    cluster.run("a", *VM, "--move", "--promoted", "--node", "b")
    cluster.wait_promoted("b")
    client.wait_heard()
    cluster.run("a", *VM, "--clear")
    b.wait_state("PROTECTED")
    client.wait_heard()

    with stage.lab.severed(Link.REPLICATION):  # the VM's host has to be silent until it is fenced
        cluster.wait_promoted("a")
        client.wait_heard()
    assert not cluster.is_up("b")
    client.check()


@needs_pacemaker
@pytest.mark.parametrize("vm", [Vm(arbiter="pacemaker", args=DISK)], ids=["disk"])
@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_of_three_nodes_the_one_that_is_cut_off_gives_its_vm_up(stage: Stage, vm: Vm) -> None:
    cluster = Cluster(stage, HOSTS + disk_table(stage, raw), of_three=True)
    a, b = cluster.colos["a"], cluster.colos["b"]
    with three_members(stage):
        for name in "abc":
            cluster.up(name)
        a.wait_state("PROTECTED")
        cluster.wait_promoted("a")
        stage.wait_booted(a)
        client = stage.client("records")
        client.wait_heard()

        cluster.cut_power("a")
        cluster.wait_promoted("b")
        client.wait_heard()
        cluster.wait_settled("b")
        cluster.up("a")
        b.wait_state("PROTECTED")

        cluster.cut_power("c")  # two of three are enough
        cluster.wait_off("c", asked="b")
        client.wait_heard(20)
        assert cluster.promoted("b") == ["b"]
        assert b.state_name() == "PROTECTED"
        cluster.wait_settled("b")
        cluster.up("c")
        cluster.wait_member("c", asked="a")
        client.wait_heard(20)

        with stage.lab.severed(Link.REPLICATION):
            cluster.wait_promoted("a")
            client.wait_heard()
        assert not cluster.is_up("b")
        told = client.check()["last"]
        cluster.cut_power("a")
        assert records_in(disk_of(a), False) >= told
