"""A server as people have them, Debian with PostgreSQL, is taken over back and forth.

`make server` plays it: its disk takes minutes to build and to boot, and each round copies it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from colo.demo.lab import Place
from tests.e2e.basics import ROOT, wait
from tests.e2e.net.stage import Stage, Vm
from tests.e2e.net.test_disks import DISK, check_ext4, disk_of, pair, run
from tests.e2e.net.test_node import wait_protected

pytestmark = pytest.mark.e2e

IMAGE: Final = ROOT / "build" / "server" / "disk.ext4"
WORDS: Final = "colo.ext4=/dev/vda colo.init=/lib/systemd/systemd"
BOOT_S: Final = 240.0
TAKEOVERS: Final = int(os.environ.get("COLO_SERVER_TAKEOVERS", "20"))
SERVER: Final = Vm(memory_mib=384, words=WORDS, args=DISK)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vm", [SERVER], ids=["postgresql"])
def test_no_committed_transaction_is_lost(stage: Stage, vm: Vm, draw: random.Random) -> None:
    leads, follows = pair(stage, lambda disk: run("cp", "--sparse=always", str(IMAGE), str(disk)))
    wait(lambda: answers(stage), "the database to answer", BOOT_S)
    log = stage.folder / "transactions"
    client = stage.lab.start(
        Place.CLIENT,
        *(sys.executable, str(Path(__file__).with_name("transactions.py"))),
        *(stage.address, str(log)),
        stdout=subprocess.PIPE,
    )
    stage.processes.append(client)

    def wait_told(more: int) -> None:
        goal = told(log) + more
        wait(lambda: told(log) >= goal or client.poll() is not None, f"{more} transactions", 90)
        assert client.poll() is None, client.communicate()

    for number in range(TAKEOVERS):
        if number:
            leads.start("node", "--host", leads.name)
            leads, follows = follows, leads
            wait_protected(leads)
        wait_told(10)
        time.sleep(draw.uniform(0, 1))
        stage.kill(leads)
        wait_told(3)  # the other host has taken over
    client.send_signal(signal.SIGTERM)
    verdict = json.loads(client.communicate(timeout=90)[0])
    print(verdict)
    assert verdict["ok"], verdict
    stage.kill(follows)
    check_ext4(disk_of(follows))


def told(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


def answers(stage: Stage) -> bool:
    done = subprocess.run(
        [*stage.lab.prefix(Place.CLIENT), "pg_isready", "-q", "-t", "2", "-h", stage.address],
        check=False,
    )
    return done.returncode == 0
