"""The survivor is protected again, and dies again: ten takeovers of one guest in a row."""

from __future__ import annotations

import random
import time

import pytest

from colo.demo.lab import Place
from tests.e2e.net.stage import OTHER, Stage, Vm, kill

pytestmark = pytest.mark.e2e

TAKEOVERS = 10


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [Vm(mode="table")], ids=["table"])
def test_ten_takeovers(stage: Stage, draw: random.Random, vm: Vm) -> None:
    """From host A to B to A to B …; one connection and one memory through all of it."""
    home = primary = stage.run()  # home: whose QEMU runs the VM; primary: which colo protects it
    place = Place.HOST_A
    client = stage.client("stream")
    for number in range(1, TAKEOVERS + 1):
        secondary = stage.secondary(f"s{number}", OTHER[place])
        if number > 1:
            primary = stage.protect(f"p{number}", place, home.state / "qmp.sock")
        primary.wait_state("PROTECTED")
        primary.wait_checkpoints(2)
        client.wait_heard(2)
        time.sleep(draw.random() / 2)
        kill(home.qemu_pid(), primary.pid)
        secondary.wait_state("RUNNING")
        client.wait_heard(5)
        if home is not primary:
            assert home.wait_exit() == 0  # the colo that had taken over to it
        home, place = secondary, OTHER[place]
    home.console.verify()
    client.wait_heard()
    verdict = client.check()
    print(verdict)
