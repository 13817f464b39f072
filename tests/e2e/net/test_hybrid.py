"""Hybrid mode: a secondary VM runs, what both say leaves at once, and a takeover goes on with it."""

from __future__ import annotations

import random
import time

import pytest

from tests.e2e.basics import wait
from tests.e2e.net.stage import WAIT_S, Colo, Stage, Vm

pytestmark = pytest.mark.e2e

HYBRID = Vm(top='mode = "hybrid"')
CLIENTS = ("stream", "echo", "bulk")


def hybrid(primary: Colo) -> dict[str, object]:
    return dict(primary.status().get("hybrid") or {})


def wait_runs(primary: Colo) -> None:
    """Wait until a secondary VM runs."""
    wait(lambda: hybrid(primary).get("other") == "RUNS", "a secondary VM", WAIT_S)


@pytest.mark.parametrize("vm", [HYBRID])
def test_clients_go_on_with_the_secondary_vm(stage: Stage, vm: Vm, draw: random.Random) -> None:
    primary, secondary = stage.protected()
    wait_runs(primary)
    clients = [stage.client(kind) for kind in CLIENTS]
    wait_runs(primary)
    time.sleep(draw.random())
    print(hybrid(primary))
    stage.kill(primary)

    secondary.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()
