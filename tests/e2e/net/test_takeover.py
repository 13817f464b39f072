"""A host dies; its VM goes on on the other one, and each client with its one connection."""

from __future__ import annotations

import random
import time

import pytest

from tests.e2e.net.stage import Stage

pytestmark = pytest.mark.e2e

CLIENTS = ("stream", "echo", "bulk")


def test_clients_survive_their_host(stage: Stage, draw: random.Random) -> None:
    primary, secondary = stage.protected()
    clients = [stage.client(kind) for kind in CLIENTS]
    time.sleep(draw.random())
    stage.kill(primary)

    secondary.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()
