"""The guest's frames are right on a real wire too, before a takeover and after it.

The lab's cables are veth pairs, which take frames whose checksum is still to be filled in.  With
that offload off, what is wrong stays wrong, and the client's kernel would drop it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from colo.demo.lab import Lab, Place
from tests.e2e.basics import ROOT
from tests.e2e.net.stage import END_S, Stage

pytestmark = pytest.mark.e2e

VIEW = str(ROOT / "tests" / "e2e" / "net" / "wire_view.py")
DEVICES = (
    (Place.CLIENT, "eth0"),
    (Place.HOST_A, "lan"),
    (Place.HOST_B, "lan"),
    (Place.HOST_A, "tap0"),
    (Place.HOST_B, "tap0"),
    (Place.SWITCH, "client"),
    (Place.SWITCH, "lan-a"),
    (Place.SWITCH, "lan-b"),
)


@contextmanager
def offload(lab: Lab, on: bool) -> Iterator[None]:
    """Set every device's TX checksumming, and have it on again afterwards."""
    for place, device in DEVICES:
        lab.run(place, sys.executable, VIEW, device, "on" if on else "off")
    try:
        yield
    finally:
        for place, device in DEVICES:
            lab.run(place, sys.executable, VIEW, device, "on")


def frames_of_a_takeover(stage: Stage) -> tuple[int, int]:
    """Have a client stay connected over a takeover; return how many frames were right and wrong."""
    primary, secondary = stage.protected()
    view = stage.lab.start(
        Place.CLIENT, sys.executable, VIEW, "eth0", stage.mac, stdout=subprocess.PIPE, text=True
    )
    stage.processes.append(view)
    assert view.stdout is not None and view.stdout.readline() == "watching\n"
    clients = [stage.client("stream"), stage.client("bulk")]
    stage.kill(primary)
    secondary.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
        client.check()
    view.send_signal(signal.SIGTERM)
    right, wrong = view.communicate(timeout=END_S)[0].split()
    return int(right), int(wrong)


def test_no_frame_is_wrong_where_nobody_fills_checksums_in(stage: Stage) -> None:
    with offload(stage.lab, on=False):
        right, wrong = frames_of_a_takeover(stage)
    assert wrong == 0
    assert right > 20


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # of the lab, not of QEMU
def test_with_the_offload_on_the_same_look_finds_wrong_ones(stage: Stage) -> None:
    """So the test above would notice."""
    with offload(stage.lab, on=True):
        assert frames_of_a_takeover(stage)[1] > 0
