"""Faults in a row, drawn by chance, on one VM with ``colo node``; one connection lives through all.

`make soak` has many of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.net.stage import Colo, Stage, Vm
from tests.e2e.net.test_arbiters import ETCD, members, needs_etcd, start_member
from tests.e2e.net.test_node import HOSTS
from tests.e2e.net.test_partitions import node, protected_again

__all__ = ["members"]

pytestmark = pytest.mark.e2e

PERIODIC = replace(ETCD, options=HOSTS)
HYBRID = replace(PERIODIC, top='mode = "hybrid"')

Members = dict[Place, subprocess.Popen[bytes]]


class Faults:
    """What is done to the host where the VM runs, to the other one, and between them."""

    def __init__(self, stage: Stage, members: Members, draw: random.Random) -> None:
        self._stage, self._members, self._draw = stage, members, draw

    def any(self) -> Callable[[Colo, Colo], None]:
        names = sorted(name for name in vars(Faults) if name.startswith("fault_"))
        fault: Callable[[Colo, Colo], None] = getattr(self, self._draw.choice(names))
        return fault

    def fault_qemu_dies(self, leads: Colo, follows: Colo) -> None:
        self._stage.kill(leads, colo=False)

    def fault_waiting_qemu_dies(self, leads: Colo, follows: Colo) -> None:
        self._stage.kill(follows, colo=False)

    def fault_host_dies(self, leads: Colo, follows: Colo) -> None:
        self._stage.kill(leads)
        time.sleep(self._draw.uniform(0, 2))
        leads.start("node", "--host", leads.name)

    def fault_other_host_dies(self, leads: Colo, follows: Colo) -> None:
        self._stage.kill(follows)
        time.sleep(self._draw.uniform(0, 2))
        follows.start("node", "--host", follows.name)

    def fault_colo_dies(self, leads: Colo, follows: Colo) -> None:
        self._stage.kill(leads, qemu=False)
        leads.start("node", "--host", leads.name)

    def fault_colo_stands_still(self, leads: Colo, follows: Colo) -> None:
        _stand_still(leads.pid, self._draw.uniform(0.2, 3))

    def fault_qemu_stands_still(self, leads: Colo, follows: Colo) -> None:
        seconds = self._draw.choice((0.5, 3, 13, 16))  # it is given up in between
        _stand_still(leads.qemu_pid(), seconds)

    def fault_waiting_qemu_stands_still(self, leads: Colo, follows: Colo) -> None:
        """Or a secondary VM's; the host that leads dies meanwhile, or does not."""
        pids = [follows.qemu_pid(), *map(int, _children(follows.pid))]
        if self._draw.random() < 0.5:
            self._stage.kill(leads)
            leads.start("node", "--host", leads.name)
        _stand_still(self._draw.choice(pids), self._draw.choice((0.5, 3, 13)))

    def fault_hosts_are_cut_off(self, leads: Colo, follows: Colo) -> None:
        with self._stage.lab.severed(Link.REPLICATION):
            time.sleep(self._draw.uniform(0.2, 3))

    def fault_a_member_of_etcd_dies(self, leads: Colo, follows: Colo) -> None:
        place = self._draw.choice(list(self._members))
        self._members[place].kill()
        self._members[place].wait()
        self._members[place] = start_member(self._stage, place)

    def fault_it_is_moved(self, leads: Colo, follows: Colo) -> None:
        leads.run("switchover")


def _stand_still(pid: int, seconds: float) -> None:
    """A process that is ended meanwhile is none of ours any more."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def _children(pid: int) -> list[str]:
    """The ids of its processes: QEMUs."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@needs_etcd
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [PERIODIC, HYBRID], ids=["periodic", "hybrid"])
def test_one_fault_after_the_other(
    stage: Stage, members: Members, vm: Vm, request: pytest.FixtureRequest
) -> None:
    draw: random.Random = request.getfixturevalue("draw")  # the rounds are of one VM
    a, b = node(stage, "a", Place.HOST_A), node(stage, "b", Place.HOST_B)
    leads = protected_again(a, b)
    stage.wait_booted(leads)
    client = stage.client("stream")
    faults = Faults(stage, members, draw)
    for _ in range(4 + int(request.config.getoption("--rounds"))):
        fault = faults.any()
        time.sleep(draw.uniform(0, 0.5))
        print(f"{fault.__name__} on {leads.name}")
        fault(leads, b if leads is a else a)
        leads = protected_again(a, b, since=time.time())
        client.wait_heard()
    client.check()
