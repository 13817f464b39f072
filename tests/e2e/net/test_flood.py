"""A guest that sends far more than checkpoints can cover: bounded memory, no stall, in order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.net.stage import Colo, Stage, Vm

pytestmark = pytest.mark.e2e

LIMIT = 256 << 10
FACTOR = 10  # so many times what the gate holds is dropped at the least, however slow the guest is
SIZE = 1400
PACKETS = 50_000  # of SIZE bytes
ASIDE_MIB = 4
#: Nothing but the time asks for a checkpoint, and what the guest sends in it fills the gate often.
TIGHT = Vm(
    options=f"[checkpoints]\nrun_min_ms = 200\naside_mib = {ASIDE_MIB}\n"
    "[wire]\ncompare_mib = 0\n"
    f"[network]\nhold_limit_mib = {LIMIT / (1 << 20)}\nhigh_water_mib = 100\n"
)
#: Twice what may be taken aside lies there at most: some of it has been sent already.
GROWTH_MAX = (16 + 2 * ASIDE_MIB) << 20


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
@pytest.mark.parametrize("vm", [TIGHT], ids=["tight"])
def test_flood(stage: Stage, vm: Vm) -> None:
    primary, secondary = stage.protected()
    before, memory = primary.checkpoint(), most_memory(primary)
    stream = stage.client("stream")
    options = ("--packets", str(PACKETS), "--lost-max", str(PACKETS))
    verdict = stage.client("flood", *options, heard=1).check()

    primary.wait_checkpoints()
    card = primary.status()["network"]["n0"]
    print(verdict, card, f"RSS {memory} then {most_memory(primary)}")
    assert card["held_max_bytes"] <= LIMIT
    assert card["dropped"] * SIZE > FACTOR * LIMIT, "this was no flood"
    assert verdict["received"] * SIZE > 2 * LIMIT, "one checkpoint has covered all there was"
    assert most_memory(primary) - memory < GROWTH_MAX
    assert primary.checkpoint() > before
    assert primary.state_name() == "PROTECTED"
    assert len(primary.said("PROTECTED by")) == 1
    stream.wait_heard()
    stage.client("echo").wait_heard()
    stage.kill(primary)
    secondary.wait_state("RUNNING")
    stream.wait_heard()
    stream.check()


def most_memory(colo: Colo) -> int:
    """The most memory that the process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{colo.pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10
