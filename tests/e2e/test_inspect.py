"""``colo inspect`` tells of files that QEMU itself wrote what QEMU tells of its VM."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from colo.inspection.pages import page_marks
from colo.inspection.source import Inspected, load_source
from colo.migration.ram import Bytes
from colo.node.orders import fetch_checkpoint
from tests.e2e.basics import colo, wait
from tests.e2e.harness import Scene
from tests.e2e.vm import PrimaryVm, VmFile
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

PAGE = 4096
#: There the processor sees graphics memory, not the memory that the block holds.
VGA_WINDOW = slice(0xA0000 // PAGE, 0xC0000 // PAGE)
VM = VmFile(args=("-device", "virtio-rng-pci"))
REGISTERS = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI")  # in the order of env.regs


def migrate(primary: PrimaryVm, uri: str) -> None:
    """Have QEMU migrate its VM to a file."""
    primary.execute("migrate", uri=uri)

    def is_done() -> bool:
        status = primary.execute("query-migrate").get("status")
        assert status not in ("failed", "cancelled")
        return bool(status == "completed")

    wait(is_done, f"the migration to {uri}")


def memory(primary: PrimaryVm, folder: Path) -> Bytes:
    """The memory of the VM, as QEMU sees it."""
    path = folder / "memory"
    primary.execute("pmemsave", val=0, size=VM.memory_mib << 20, filename=str(path))
    pages = np.fromfile(path, np.uint8).reshape(-1, PAGE)
    path.unlink()
    return pages


def differing(one: Bytes, other: Bytes) -> NDArray[np.bool_]:
    """Which rows differ, outside the window."""
    found = (one != other).any(axis=1)
    found[VGA_WINDOW] = False
    return np.asarray(found)


def check_pages(found: Inspected, truth: Bytes) -> None:
    """All pages are those of the VM's memory."""
    assert not differing(found.memory["pc.ram"].marks, page_marks(truth)).any()
    counted = found.statistics["pc.ram"]
    zero = np.count_nonzero(~truth.view(np.uint64).any(axis=1))
    assert abs(counted.zero - int(zero)) <= VGA_WINDOW.stop - VGA_WINDOW.start
    assert counted.unique > 500
    assert counted.ratio is not None and 0.05 < counted.ratio < 0.95


def inspect(*arguments: str | Path) -> Any:
    """What the command says as JSON."""
    command = [colo(), "inspect", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def registers(primary: PrimaryVm) -> dict[str, int]:
    """The CPU's registers, as the monitor has them."""
    text = primary.execute("human-monitor-command", **{"command-line": "info registers"})
    return {name: int(value, 16) for name, value in re.findall(r"(R\w\w|CR3)=([0-9a-f]+)", text)}


def check_cpu(found: Any, truth: dict[str, int]) -> None:
    (cpu,) = [device["fields"] for device in found["devices"] if device["name"] == "cpu"]
    assert cpu["env.eip"] == truth["RIP"]
    assert cpu["env.regs"][:8] == [truth[name] for name in REGISTERS]
    assert cpu["env.cr[3]"] == truth["CR3"]


def test_files_that_qemu_wrote_and_their_difference(scene: Scene) -> None:
    primary = scene.primary(VM)
    primary.console.wait_count(3)
    primary.execute("stop")
    old, new = scene.folder / "old.mig", scene.folder / "new.mig"
    migrate(primary, f"exec:cat > {old}")
    before = memory(primary, scene.folder)
    found = inspect(old)
    assert found["bytes"] == old.stat().st_size
    assert found["machine"].startswith("pc-i440fx-")
    assert next(b["bytes"] for b in found["blocks"] if b["name"] == "pc.ram") == before.nbytes
    check_cpu(found, registers(primary))
    check_pages(load_source(old, fetch_checkpoint), before)

    primary.execute("cont")
    primary.console.wait_progress()
    primary.execute("stop")
    has_files = primary.execute("query-version")["qemu"]["major"] > 7
    migrate(primary, f"file:{new}" if has_files else f"exec:cat > {new}")
    after = memory(primary, scene.folder)
    check_cpu(inspect(new), registers(primary))
    difference = inspect(old, new)
    (ram,) = [block for block in difference["blocks"] if block["name"] == "pc.ram"]
    named = np.zeros(len(after), np.bool_)
    for first, count in ram["ranges"]:
        named[first : first + count] = True
    assert ram["changed"] == np.count_nonzero(named)
    named[VGA_WINDOW] = False
    assert np.count_nonzero(named) > 100
    assert (named == differing(before, after)).all()
    fields = {
        (device["name"], field["path"])
        for device in difference["devices"]
        for field in device["fields"]
    }
    assert ("timer", "cpu_clock_offset") in fields


def test_the_store_of_a_secondary_is_the_vm_at_its_checkpoint(scene: Scene) -> None:
    primary, wire, host = scene.protected(VM)
    host.wait_checkpoint(3)
    number = wire.stop_at(Phase.LOADED)
    wire.wait_stopped()
    wait(lambda: host.file()["checkpoint"] == number, f"checkpoint {number}")
    check_cpu(inspect(host.state), registers(primary))
    check_pages(load_source(host.state, fetch_checkpoint), memory(primary, scene.folder))
