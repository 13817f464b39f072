"""What an operator orders: hold, failover, Ctrl-C; and a waiting QEMU that dies."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.basics import wait
from tests.e2e.harness import Scene
from tests.e2e.vm import VmFile
from tests.e2e.wire import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.parametrize("qemu", ["7.2"], indirect=True),  # decided above QEMU
]


def test_hold_until_told_to(scene: Scene) -> None:
    primary, wire, host = scene.protected(VmFile(), "--on-loss", "hold")
    host.wait_checkpoint(2)
    number = wire.stop_at(Phase.DONE)
    wire.wait_stopped()
    primary.kill()
    wire.cut()

    line = host.wait_said("holding checkpoint")
    assert f"holding checkpoint {number}: `colo failover --state-dir {host.state}`" in line
    assert host.status()["state"] == "ORPHANED"
    assert host.console.text() == ""
    done = host.run("failover")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"the VM runs here, from checkpoint {number}\n",
        "",
    )
    assert host.status()["state"] == "RUNNING"
    scene.check_goes_on(primary, host, number)
    shown = host.run("status")
    assert shown.returncode == 0
    assert f"from checkpoint {number}" in shown.stdout
    assert "lost in READY" in shown.stdout
    again = host.run("failover")
    assert (again.returncode, again.stdout) == (0, "the VM runs here already\n")


def test_failover_of_a_healthy_pair_needs_force(scene: Scene) -> None:
    primary, _, host = scene.protected()
    host.wait_checkpoint(2)

    refused = host.run("failover")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("the primary is connected and its VM runs")
    assert refused.stderr.count("\n") == 1
    host.wait_checkpoint(host.status()["checkpoint"] + 3)
    assert host.console.text() == ""

    forced = host.run("failover", "--force")
    assert forced.returncode == 0, forced.stderr
    status = host.status()
    assert status["state"] == "RUNNING"
    reason = primary.ended()
    assert reason.startswith("QEMU left COLO, reason: error"), reason
    primary.kill()
    scene.check_goes_on(primary, host, status["takeover"]["checkpoint"])


def test_waiting_qemu_is_started_again(scene: Scene) -> None:
    primary, wire, host = scene.protected()
    host.wait_checkpoint(2)
    first = host.status()["qemu"]
    assert first["starts"] == 1
    os.kill(first["pid"], signal.SIGKILL)

    wait(lambda: host.file()["qemu"]["starts"] == 2, "the waiting QEMU to be started again")
    second = host.status()["qemu"]
    assert second["pid"] != first["pid"]
    assert second["trouble"] is None
    assert second["pid"] == host.qemu_pid()
    host.wait_checkpoint(host.status()["checkpoint"] + 3)

    number = wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    primary.kill()
    wire.cut()
    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == number
    assert status["qemu"]["pid"] == second["pid"]
    scene.check_goes_on(primary, host, number)


def test_waiting_qemu_dies_together_with_the_primary(scene: Scene) -> None:
    primary, wire, host = scene.protected()
    host.wait_checkpoint(2)
    number = wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    host.signal(signal.SIGSTOP)
    os.kill(host.qemu_pid(), signal.SIGKILL)
    primary.kill()
    wire.cut()
    host.signal(signal.SIGCONT)

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == number
    assert status["qemu"]["starts"] == 2
    scene.check_goes_on(primary, host, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_end_before_a_takeover_leaves_nothing(scene: Scene, number: signal.Signals) -> None:
    host = scene.host(VmFile(guest=False))
    host.start()
    pid = host.qemu_pid()
    assert any(f"process {pid}:" in left for left in scene.leftovers())
    assert any("/dev/shm/" in left for left in scene.leftovers())
    host.signal(number)
    assert host.wait_exit() == 0
    assert scene.leftovers() == []
    assert "Traceback" not in host.text()
    assert host.status()["alive"] is False


def test_end_after_a_takeover_leaves_the_vm_running(scene: Scene) -> None:
    primary, _, host = scene.protected()
    host.wait_checkpoint(2)
    primary.kill()
    status = host.wait_state("RUNNING")

    host.signal(signal.SIGINT)
    assert host.wait_exit() == 0
    assert host.said("the VM goes on without colo")[-1].endswith(
        f"QEMU {status['qemu']['pid']}, QMP {status['qemu']['qmp']}"
    )
    assert "Traceback" not in host.text()
    host.console.wait_progress()
    host.console.verify()

    host.start(ready=False)
    assert host.wait_exit() == 2
    assert "the VM runs here since an earlier takeover" in host.text().splitlines()[-1]
    host.console.wait_progress()


def test_end_with_the_vm(scene: Scene) -> None:
    """The guest that was taken over is powered off: colo says so and ends."""
    primary, _, host = scene.protected()
    host.wait_checkpoint(2)
    primary.kill()
    pid = host.wait_state("RUNNING")["qemu"]["pid"]
    os.kill(pid, signal.SIGTERM)  # QEMU takes it as the order to end
    assert host.wait_exit() == 0
    assert host.said("the VM has ended; QEMU: ")
