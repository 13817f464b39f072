"""Over a slow link: the VM does not wait for it, and host B has exactly its memory."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.basics import wait
from tests.e2e.memory import differing
from tests.e2e.net.stage import HERE, WAIT_S, Client, Colo, Stage, Vm
from tests.e2e.net.wires import slow

pytestmark = pytest.mark.e2e

COMPARED = 4
#: Three quarters of this guest's memory are busy: some 4 MiB of pages that differ a little.
WORDS = "colo.pages=1024 colo.every=200"
OFTEN = "[checkpoints]\nage_max_ms = 100\n"
BUSY = Vm(words=WORDS, options=OFTEN)
#: Its memory is read while colo does nothing else, for as long as a busy machine takes for that.
READ = Vm(words=WORDS, options=f"heartbeat_limit_s = 30\n{OFTEN}")
#: It writes far more than the link carries, and little of that may be held.
FLOOD = Vm(
    words="colo.pages=12288 colo.every=1",
    options="[checkpoints]\nage_max_ms = 100\naside_mib = 8\n",
)


@pytest.mark.parametrize("vm", [READ], ids=["busy"])
@pytest.mark.parametrize("rate", ["200mbit", "1gbit"])
def test_host_b_has_its_memory_page_by_page(stage: Stage, vm: Vm, rate: str) -> None:
    """While the VM runs on: what was stopped for the checkpoint is what host B gets."""
    truth = stage.folder / "truth"
    primary, secondary = stage.protected(entry=(str(HERE / "remembers.py"), str(truth)))
    with slow(stage, rate):
        primary.wait_checkpoints(10)
        for _ in range(COMPARED):
            compare(stage, primary, secondary)
    status = primary.status()
    ways = status["wire"]["by_way"]
    print(rate, status["wire"], status["phases_ms"])
    coded = sum(ways[way]["stream_bytes"] for way in ways if way != "plain")
    assert coded > 4 << 20, "it was coded, and exact"
    phases = status["phases_ms"]
    assert phases["stopped"]["median"] < phases["covered"]["median"]


def compare(stage: Stage, primary: Colo, secondary: Colo) -> None:
    """Have a checkpoint remembered, and held against what host B has of it."""
    primary.signal(signal.SIGUSR1)
    (path,) = wait(lambda: list(stage.folder.glob("truth-*[0-9]")), "a checkpoint", WAIT_S)
    number = int(path.name.rpartition("-")[2])
    wait(lambda: secondary.checkpoint() == number, f"checkpoint {number} on host B", WAIT_S)
    pages = np.fromfile(path, np.uint8).reshape(-1, 4096)
    wait(lambda: not differing(pages, stored(secondary)), "equal memory", 20)
    path.unlink()
    primary.signal(signal.SIGUSR2)
    primary.wait_checkpoints(3)


def see_that_they_go_on(secondary: Colo, clients: list[Client]) -> None:
    """Host B has taken over, and the clients miss nothing."""
    secondary.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
        client.check()


def stored(secondary: Colo) -> np.ndarray:
    """What host B's store has of the VM's memory."""
    store = Path(secondary.status()["store"])
    return np.fromfile(store / "pc.ram", np.uint8).reshape(-1, 4096)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [FLOOD], ids=["flood"])
def test_a_guest_that_writes_more_than_the_link_carries_is_slowed_and_not_lost(
    stage: Stage, draw: random.Random, vm: Vm
) -> None:
    primary, secondary = stage.protected()
    clients = [stage.client(kind) for kind in ("stream", "echo")]
    with slow(stage, "200mbit"):
        held = []
        until = time.monotonic() + 10
        while time.monotonic() < until:
            held.append(primary.status()["aside"]["held_bytes"])
            time.sleep(0.05)
        status = primary.status()
        print(max(held), status["aside"], status["phases_ms"])
        assert status["state"] == "PROTECTED"
        assert len(primary.said("PROTECTED by")) == 1
        room = status["aside"]["room_bytes"]
        assert room == 8 << 20 and max(held) <= room + (2 << 20)
        for client in clients:
            client.wait_heard(5)  # each answer waits for a checkpoint of a second or more
        time.sleep(draw.random())
        stage.kill(primary)
    see_that_they_go_on(secondary, clients)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [BUSY], ids=["busy"])
def test_host_a_dies_while_a_checkpoint_is_on_its_way(
    stage: Stage, draw: random.Random, vm: Vm
) -> None:
    """Most of the time one is: its VM has run on by then, and is undone unheard."""
    primary, secondary = stage.protected()
    clients = [stage.client(kind) for kind in ("stream", "echo", "bulk")]
    with slow(stage, "100mbit"):
        for client in clients:
            client.wait_heard()
        time.sleep(draw.random())
        stage.kill(primary)
    see_that_they_go_on(secondary, clients)
