"""At each checkpoint the store's memory is the stopped VM's memory, page by page."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.e2e.basics import WAIT_S, colo, wait
from tests.e2e.harness import Scene
from tests.e2e.memory import Pages, differing, primary_memory, store_memory, wait_equal
from tests.e2e.vm import VmFile
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

CHECKPOINTS = 20
MANY = 800
MANY_S = 120.0


def test_memory_is_equal_at_twenty_checkpoints(scene: Scene) -> None:
    vm = VmFile()
    primary, wire, host = scene.protected(vm)
    previous: Pages | None = None
    changed_total = 0

    for turn in range(CHECKPOINTS):
        primary.console.wait_progress(2)
        wire.stop_at(Phase.LOADED)
        wire.wait_stopped()  # the primary's VM is stopped; the secondary has the checkpoint
        truth = primary_memory(primary, scene.folder, vm)
        wait_equal(truth, host, f"checkpoint {wire.checkpoint}, comparison {turn + 1}")
        if previous is not None:
            changed = len(differing(truth, previous))
            assert changed > 0, f"nothing has changed before checkpoint {wire.checkpoint}"
            changed_total += changed
        previous = truth
        wire.go_on()
    print(f"{CHECKPOINTS} comparisons, {changed_total} pages changed between them, 0 differ")
    assert changed_total > CHECKPOINTS * 100


def test_memory_is_equal_after_very_many_checkpoints(scene: Scene) -> None:
    """As fast as they can follow each other; none may stall."""
    primary, wire, host = scene.protected(VmFile(silence_s=5.0), delay_ms=5)
    wait(
        lambda: wire.checkpoint >= MANY or host.file()["state"] == "RUNNING",
        f"{MANY} checkpoints, there are {wire.checkpoint}",
        MANY_S,
    )
    assert host.file()["state"] != "RUNNING", f"checkpoint {wire.checkpoint} has stalled"
    wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    truth = primary_memory(primary, scene.folder, VmFile())
    wait_equal(truth, host, f"checkpoint {wire.checkpoint}")


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_comparison_finds_a_checkpoint_that_was_left_out(scene: Scene) -> None:
    vm = VmFile()
    primary, wire, host = scene.protected(vm)

    wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    truth = primary_memory(primary, scene.folder, vm)
    wait_equal(truth, host, f"checkpoint {wire.checkpoint}")
    stale = store_memory(host)
    wire.go_on()
    primary.console.wait_progress(2)
    wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    found = differing(primary_memory(primary, scene.folder, vm), stale)
    print(f"{len(found)} pages differ from the checkpoint before")
    assert len(found) > 100


#: As libvirt writes two NUMA nodes; the second is the first in the machine's memory.
NODES = (
    "-object", "memory-backend-memfd,id=ram-node1,share=yes,size=96M",
    "-object", '{"qom-type":"memory-backend-ram","id":"ram-node0","size":33554432}',
    "-numa", "node,nodeid=1,memdev=ram-node1", "-numa", "node,nodeid=0,memdev=ram-node0",
)  # fmt: skip


def test_memory_of_several_blocks_is_equal_and_is_taken_over(scene: Scene) -> None:
    vm = VmFile(args=NODES)
    primary, wire, host = scene.protected(vm)
    assert [each.id for each in host.backends] == ["ram-node0", "ram-node1"]
    for turn in range(3):
        primary.console.wait_progress(2)
        wire.stop_at(Phase.LOADED)
        wire.wait_stopped()
        truth = primary_memory(primary, scene.folder, vm)
        wait_equal(truth, host, f"checkpoint {wire.checkpoint}, comparison {turn + 1}")
        wire.go_on()
    command = [colo(), "inspect", "--json", str(host.state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
    sizes = {block["name"]: block["bytes"] for block in json.loads(done.stdout)["blocks"]}
    assert (sizes["ram-node0"], sizes["ram-node1"]) == (32 << 20, 96 << 20)

    number = wire.stop_at(Phase.DEVICES)
    wire.wait_stopped()
    primary.kill()
    wire.cut()
    host.wait_state("RUNNING")
    scene.check_goes_on(primary, host, number - 1)


def test_waiting_qemu_that_is_started_again_does_not_touch_memory(scene: Scene) -> None:
    vm = VmFile()
    primary, wire, host = scene.protected(vm)

    wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    truth = primary_memory(primary, scene.folder, vm)
    wait_equal(truth, host, f"checkpoint {wire.checkpoint}")
    os.kill(host.qemu_pid(), signal.SIGKILL)
    wait(lambda: host.file()["qemu"]["starts"] == 2, "the waiting QEMU to be started again")
    assert differing(truth, store_memory(host)) == []


def test_takeover_that_qemu_refuses_does_not_touch_memory(scene: Scene) -> None:
    """Its VM lacks a device that no first copy is held against: it cannot run, and that is said."""
    vm = VmFile(args=("-chardev", "null,id=more", "-device", "isa-serial,chardev=more"))
    host, primary = scene.host(), scene.primary(vm)
    host.start()
    primary.console.wait_count(3)
    wire = scene.wire(host, primary)
    primary.protect(f"unix:{wire.path}")
    host.wait_checkpoint(2)
    number = wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    truth = primary_memory(primary, scene.folder, vm)
    primary.kill()
    wire.cut()

    line = host.wait_said("NOT RUNNING")
    assert "`colo failover` tries again" in line
    assert "the takeover failed 3 times" in line
    assert all("serial" in said for said in host.said("a try to take over failed"))
    status = host.status()
    assert (status["state"], status["checkpoint"]) == ("ORPHANED", number)
    assert differing(truth, store_memory(host)) == []
    again = host.run("failover")
    assert again.returncode == 1
    assert again.stderr.startswith("the VM could not be started: ")
    assert again.stderr.count("\n") == 1
    assert differing(truth, store_memory(host)) == []
    assert host.console.text() == ""
