"""Other machines than the plainest one, with a guest in whose memory every byte is looked at."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.e2e.harness import Scene
from tests.e2e.vm import VmFile
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

DEVICES = """
-smp 2 -device virtio-rng-pci -device virtio-balloon-pci -device VGA
-device qemu-xhci -device usb-tablet -device usb-kbd
-netdev user,id=n0 -device virtio-net-pci,netdev=n0
"""


def test_machine_with_many_devices(scene: Scene, draw: random.Random) -> None:
    check(scene, draw, VmFile(machine="q35", args=tuple(DEVICES.split())))


def test_microvm(scene: Scene, draw: random.Random) -> None:
    """No PCI, no ACPI, and memory of another name."""
    check(scene, draw, VmFile(machine="microvm", kernel_words=f"tsc_early_khz={tsc_khz()}"))


def tsc_khz() -> int:
    """What TCG's time stamp counter counts by: Linux finds nothing in a microvm to measure it."""
    found = re.search(r"cpu MHz\s*:\s*(\d+)", Path("/proc/cpuinfo").read_text())
    return int(found[1]) * 1000 if found else 2_000_000


def check(scene: Scene, draw: random.Random, vm: VmFile) -> None:
    """The guest is protected, taken over within a checkpoint, and goes on."""
    primary, wire, host = scene.protected(vm)

    host.wait_checkpoint(5)
    number = wire.stop_at(Phase.RAM, draw.random())
    wire.wait_stopped()
    primary.kill()
    wire.cut()

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == number - 1
    scene.check_goes_on(primary, host, number - 1)
