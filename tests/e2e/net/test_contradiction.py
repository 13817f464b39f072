"""No contradiction: a packet that leaves before its checkpoint is acknowledged is noticed.

The clients are the judges of all other scenarios.  Here the gate is broken on purpose, and they
have to find it out.
"""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.e2e.basics import wait
from tests.e2e.net.stage import HERE, WAIT_S, Stage, Vm

pytestmark = pytest.mark.e2e

#: A checkpoint comes by its age, or its cost, where nothing is held that asks for one: here, never.
NEVER_MS = 3_600_000
SEEN = 20
RARE = Vm(options=f"[checkpoints]\nage_max_ms = {NEVER_MS}\nstop_goal_ms = {NEVER_MS}\n")
ENTRIES = {"whole": ("-m", "colo"), "broken": (str(HERE / "broken_gate.py"), "leaky")}


@pytest.mark.parametrize("vm", [RARE], ids=["rare checkpoints"])
@pytest.mark.parametrize("gate", ENTRIES)
def test_broken_gate_is_noticed(stage: Stage, draw: random.Random, vm: Vm, gate: str) -> None:
    """The host dies when the clients have seen what only a whole gate has had covered."""
    primary, secondary = stage.protected(entry=ENTRIES[gate])
    clients = [stage.client(kind, "--silence", "8") for kind in ("stream", "echo")]
    number = primary.checkpoint()
    if gate == "broken":
        primary.signal(signal.SIGUSR1)  # one now
    wait(lambda: primary.checkpoint() > number, "a checkpoint with the connections in it")
    number = primary.checkpoint()
    for client in clients:
        client.wait_heard(SEEN)
    time.sleep(draw.random() / 2)
    stage.kill(primary)

    taken = secondary.wait_state("RUNNING")["takeover"]["checkpoint"]
    if gate == "whole":
        assert taken > number
        for client in clients:
            client.wait_heard()
            client.check()
        return
    assert taken == number
    for client in clients:
        wait(client.ended, f"the client {client.kind} to notice", WAIT_S)
    verdicts = [client.verdict() for client in clients]
    print(verdicts)
    assert not any(verdict["ok"] for verdict in verdicts), verdicts


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("gate", ["whole", "early", "aside", "local"])
def test_gate_that_opens_a_moment_early_is_noticed(stage: Stage, gate: str) -> None:
    """The host dies between CHECKPOINT_REPLY and VMSTATE_RECEIVED, where a broken one differs."""
    primary, secondary = stage.protected(entry=(str(HERE / "broken_gate.py"), gate))
    client = stage.client("echo", "--size", "1400", "--pause-ms", "60", "--silence", "8")
    client.wait_heard()
    primary.signal(signal.SIGUSR1)

    secondary.wait_state("RUNNING")
    assert primary.has_ended()
    if gate in ("whole", "aside"):
        client.wait_heard()
        client.check()
        return
    wait(client.ended, "the client to notice", WAIT_S)
    verdict = client.verdict()
    print(verdict)
    assert not verdict["ok"], verdict
