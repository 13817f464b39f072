"""The guest's clock under KVM: ``python -m tests.e2e.kvm.clocks JSON`` puts its figures there.

``--only`` takes some of the kinds of VM, as in ``--only "7.2 tsc bare"``.

Each kind of VM has a boot of its own of the machine whose KVM works.  JSON is the benchmark's file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.clock import CLOCKS
from colo.qemu.process import version_of
from tests.e2e.conftest import QEMUS
from tests.e2e.kvm.lab import measure

SECONDS: Final = 10
#: As the machine finds it.
NEW: Final = "build/qemu11/qemu-system-x86_64"


def measured(version: str, clock: str, library: bool) -> list[dict[str, Any]]:
    """The rows of one kind of VM."""
    binary = NEW if version.startswith("11") else "qemu-system-x86_64"
    bare = "" if library else "--bare"
    command = f"python3 -m bench.clock {binary} kvm {clock} {bare} --seconds {SECONDS}"
    with tempfile.TemporaryDirectory(prefix="colo-kvm-") as folder:
        text = measure(Path(folder), command, with_new=binary == NEW)
    return [json.loads(line) for line in text.splitlines()]


def main() -> int:
    """Measure the kinds; a kind's rows take the place of those that were there."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kvm.clocks", description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    file = given.json
    for version, (binary, _) in QEMUS.items():
        exact = ".".join(map(str, version_of(binary)))
        for clock in CLOCKS["kvm"]:
            for library in (True, False):
                if given.only not in f"{version} {clock}{'' if library else ' bare'}":
                    continue
                rows = measured(version, clock, library)
                for row in rows:
                    print(version, row, flush=True)
                _put(file, exact, rows)
    return 0


def _put(file: Path, version: str, rows: list[dict[str, Any]]) -> None:
    figures = json.loads(file.read_text())

    def kind(row: dict[str, Any]) -> tuple[object, ...]:
        return tuple(row[key] for key in ("accelerator", "clock", "library"))

    kept = [
        row
        for row in figures["clock"]
        if not (rows and row["qemu"].startswith(version) and kind(row) == kind(rows[0]))
    ]
    name = next((row["qemu"] for row in kept if row["qemu"].startswith(version)), version)
    figures["clock"] = kept + [{"qemu": name, **row} for row in rows]
    file.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
