"""Under KVM: the very scenarios that run under TCG elsewhere, in a machine whose KVM works.

A short part of them always runs; ``make kvm`` has all, and writes the table in
docs/compatibility.md.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.basics import ROOT
from tests.e2e.kvm.lab import run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.alone,
    pytest.mark.timeout(1800),
]

#: AppArmor has rules for the QEMU of the distribution alone.
CONFINED: Final = "a domain of libvirt's, confined by AppArmor"
#: What is shown, and by which tests; «V» stands for QEMU's version.
SCENARIOS: Final[dict[str, tuple[str, ...]]] = {
    "killed within a checkpoint, it goes on": (
        "tests/e2e/test_kill.py::test_primary_killed_in_a_checkpoint[V-RAM]",
    ),
    "the guest's clock goes on": (
        "tests/e2e/test_clock.py::test_time_that_checkpoints_take_is_given_back[V]",
    ),
    "killed at every other step": (
        "tests/e2e/test_kill.py::test_primary_killed_in_a_checkpoint[V-REQUEST]",
        "tests/e2e/test_kill.py::test_primary_killed_in_a_checkpoint[V-DEVICES]",
    ),
    "memory is equal page by page at twenty checkpoints": (
        "tests/e2e/test_memory.py::test_memory_is_equal_at_twenty_checkpoints[V]",
    ),
    "the clock over a takeover": (
        "tests/e2e/test_clock.py::test_after_a_takeover_the_clock_has_gone_on_and_not_back[V]",
    ),
    "a client's connection; hosts come and go": (
        "tests/e2e/net/test_deaths.py::test_hosts_come_and_go[V]",
    ),
    "taken over, protected again, by `colo node`": (
        "tests/e2e/test_node.py::test_the_vm_lives_on_whoever_dies_comes_back_or_is_told_to_go[V]",
    ),
    "the disk goes with the VM, three times": (
        "tests/e2e/test_disks.py::test_whoever_dies_the_disk_goes_with_the_vm[V]",
    ),
    "two processors; `-cpu host`": (
        "tests/e2e/kvm/in_the_machine.py::test_it_is_taken_over[V-two processors]",
        "tests/e2e/kvm/in_the_machine.py::test_it_is_taken_over[V-host]",
    ),
    "a host without KVM refuses it": (
        "tests/e2e/kvm/in_the_machine.py::test_a_host_without_kvm_refuses_it[V]",
    ),
    CONFINED: (
        "tests/e2e/net/test_libvirt.py::test_a_domain_is_protected_and_taken_over[V]",
        "tests/e2e/net/test_libvirt.py::test_a_loss_while_libvirt_is_away_waits_for_it[V]",
    ),
    "the guest reboots": ("tests/e2e/net/test_deaths.py::test_guest_reboots[V-rebooting]",),
    "the guest shuts down": ("tests/e2e/net/test_deaths.py::test_guest_shuts_down[V]",),
}
#: One boot each: the scenarios, and the version.
SHORT: Final = (tuple(SCENARIOS)[:2], "7.2")
LONG: Final = [
    SHORT,
    (SHORT[0], "11.1"),
    *(
        ((name,), version)
        for name in tuple(SCENARIOS)[2:]
        for version in (("7.2",) if name == CONFINED else ("7.2", "11.1"))
    ),
]
ALL: Final = os.environ.get("COLO_KVM") == "all"
BEGIN, END = "<!-- kvm: begin -->\n", "<!-- kvm: end -->"
shown: dict[str, dict[str, str]] = defaultdict(dict)


@pytest.mark.parametrize(
    ("names", "version"),
    LONG if ALL else [SHORT],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_under_kvm(names: tuple[str, ...], version: str, tmp_path: Path) -> None:
    tests = {
        name: [test.replace("[V", f"[{version}") for test in SCENARIOS[name]] for name in names
    }
    outcome = run(tmp_path, [test for each in tests.values() for test in each])
    for name, those in tests.items():
        passed = all(outcome.results.get(test, "it is missing") is None for test in those)
        shown[name][version] = "yes" if passed else "no"
    assert {test: why for test, why in outcome.results.items() if why} == {}, outcome.log[-4000:]


def test_the_table_says_what_was_seen() -> None:
    """What was played stands in the table as it went; `make kvm` writes what it has played."""
    path = ROOT / "docs" / "compatibility.md"
    head, _, rest = path.read_text().partition(BEGIN)
    table, _, tail = rest.partition(END)
    stood = dict(filter(None, map(_row, table.splitlines())))
    seen = {name: {**stood.get(name, {}), **shown[name]} for name in SCENARIOS}
    if not ALL:
        assert seen == stood, "run `make kvm`"
        return
    rows = ["| under KVM | QEMU 7.2 | QEMU 11.1 |", "|---|---|---|"]
    for name, versions in seen.items():
        rows.append(f"| {name} | {versions.get('7.2', '–')} | {versions.get('11.1', '–')} |")
    path.write_text(head + BEGIN + "".join(f"{row}\n" for row in rows) + END + tail)


def _row(line: str) -> tuple[str, dict[str, str]] | None:
    """A scenario and what the table says of it, by version; None of another line."""
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    return (cells[0], {"7.2": cells[1], "11.1": cells[2]}) if cells[0] in SCENARIOS else None
