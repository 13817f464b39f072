"""Guests that only KVM can run: played by name, in the machine whose KVM works."""

from __future__ import annotations

import random

import pytest

from tests.e2e.harness import Scene
from tests.e2e.vm import VmFile
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("args", [("-smp", "2"), ("-cpu", "host")], ids=["two processors", "host"])
def test_it_is_taken_over(scene: Scene, draw: random.Random, args: tuple[str, ...]) -> None:
    primary, wire, host = scene.protected(VmFile(args=args))

    host.wait_checkpoint(5)
    number = wire.stop_at(Phase.RAM, draw.random())
    wire.wait_stopped()
    primary.kill()
    wire.cut()

    assert host.wait_state("RUNNING")["takeover"]["checkpoint"] == number - 1
    scene.check_goes_on(primary, host, number - 1)


def test_a_host_without_kvm_refuses_it(scene: Scene) -> None:
    """And the VM goes on where it is."""
    host, primary = scene.host(VmFile(accel="tcg")), scene.primary()
    host.start()
    primary.console.wait_count(3)
    primary.begin_to_protect(f"unix:{host.socket}")
    line = host.wait_said("no first copy")
    assert "the primary's VM runs under KVM, the waiting QEMU does not" in line
    assert host.status()["state"] == "LISTENING"
    primary.run_alone()
    primary.console.wait_progress()
