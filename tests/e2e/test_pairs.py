"""Pairs of all kinds play the same scenarios; what passes is the table in docs/compatibility.md."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from typing import Final

import pytest

from colo.errors import GuestError
from colo.qemu.process import version_of
from tests.e2e.basics import ROOT, wait
from tests.e2e.harness import Scene
from tests.e2e.pairs import (
    DELAY_MS,
    OurPrimary,
    OurSecondary,
    Pair,
    Primary,
    QemuPrimary,
    Secondary,
    StockSecondary,
    on,
)
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

OLD, NEW, OURS = "7.2", "11.1", "ours"
KINDS: Final = (OLD, NEW, OURS)
OTHER: Final = {OLD: NEW, NEW: OLD}
PAIRS: Final = [(primary, secondary) for primary in KINDS for secondary in KINDS]
SCENARIOS: Final = ("goes on", "runs alone", "cut")
CHECKPOINTS: Final = 20
PAGE: Final = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- pairs: begin -->\n", "<!-- pairs: end -->"
#: Set it to have the table written instead of compared: `make pairs`.
WRITE: Final = "COLO_WRITE_PAIRS"


@dataclass
class Verdicts:
    """By pair: in which scenarios it passed, or why it cannot come about."""

    passed: dict[tuple[str, str], list[str]]
    refused: dict[tuple[str, str], str]

    def knows(self, pair: tuple[str, str]) -> bool:
        """Whether all of the pair has been played."""
        return pair in self.refused or set(self.passed.get(pair, [])) == set(SCENARIOS)


@pytest.fixture(scope="module")
def verdicts() -> Verdicts:
    return Verdicts({}, {})


@pytest.mark.parametrize(
    ("first", "second"), [pair for pair in PAIRS if OURS in pair or len(set(pair)) == 1]
)
def test_pair(
    both: Scene,
    qemus: dict[str, str],
    draw: random.Random,
    verdicts: Verdicts,
    first: str,
    second: str,
) -> None:
    passed = verdicts.passed[first, second] = []
    one = primary(both, qemus, first, second)
    pair = Pair(both, one, secondary(both, qemus, second, first))
    one.console.wait_count(3)

    check_cut(pair, draw)
    passed.append("cut")
    pair.secondary.kill()

    pair.secondary = secondary(both, qemus, second, first)
    check_runs_alone(pair)
    passed.append("runs alone")

    check_goes_on(pair, draw)
    passed.append("goes on")


def primary(scene: Scene, qemus: dict[str, str], kind: str, other: str) -> Primary:
    """The primary; behind ours is a QEMU of the version that the secondary is not."""
    if kind != OURS:
        return QemuPrimary(scene, qemus[kind])
    if other == OURS:
        return OurPrimary(scene, on(qemus[OLD]))
    return OurPrimary(scene, on(qemus[OTHER[other]]), forward_as=other.partition(".")[0])


def secondary(scene: Scene, qemus: dict[str, str], kind: str, other: str) -> Secondary:
    """The secondary; behind ours waits a QEMU of the version that the primary is not."""
    if kind == OURS:
        return OurSecondary(scene, qemus[OTHER.get(other, NEW)])
    return stock_secondary(scene, qemus, kind)


def stock_secondary(scene: Scene, qemus: dict[str, str], kind: str) -> StockSecondary:
    return StockSecondary(scene, on(qemus[kind]), return_path=kind == NEW)


def strangers(
    scene: Scene, qemus: dict[str, str], first: str, second: str
) -> tuple[QemuPrimary, StockSecondary]:
    """Two stock QEMUs of different versions, the one's guest running, the other one waiting."""
    one, other = QemuPrimary(scene, qemus[first]), stock_secondary(scene, qemus, second)
    other.start()
    one.console.wait_count(3)
    return one, other


def check_cut(pair: Pair, draw: random.Random) -> None:
    """The connection is cut within a checkpoint: the guest goes on there from the one before."""
    pair.secondary.start()
    wire = pair.join()
    wait(lambda: wire.checkpoint >= 3, "three checkpoints")
    phase = draw.choice([Phase.RAM, Phase.DEVICES])
    number = wire.stop_at(phase, draw.random(), ahead=draw.randrange(2, 6))
    wire.wait_stopped()
    print(f"cut in checkpoint {number}, {phase.value}, {wire.passed} bytes into it")
    wire.cut()
    pair.secondary.take_over()
    pair.check_took_over(number - 1)
    pair.primary.check_goes_on()


def check_runs_alone(pair: Pair) -> None:
    """The secondary is killed; the guest goes on, and is protected anew when it is back."""
    pair.secondary.start()
    pair.primary.protect(pair.secondary.socket)
    pair.primary.console.wait_progress(20)
    pair.secondary.kill()
    pair.primary.check_goes_on()


def check_goes_on(pair: Pair, draw: random.Random) -> None:
    """The primary is killed at some moment after many checkpoints."""
    pair.secondary.start()
    wire = pair.join()
    wait(lambda: wire.checkpoint >= CHECKPOINTS, f"{CHECKPOINTS} checkpoints")
    time.sleep(draw.uniform(0, 2 * DELAY_MS / 1000))
    pair.primary.kill()
    wire.cut()
    print(f"killed in checkpoint {wire.checkpoint}")
    pair.secondary.take_over()
    pair.check_took_over(wire.checkpoint, wire.checkpoint - 1)


def test_old_to_new(both: Scene, qemus: dict[str, str], verdicts: Verdicts) -> None:
    """QEMU 7.2 says ENABLE_COLO, and QEMU 11 does not know that any more."""
    one, other = strangers(both, qemus, OLD, NEW)
    with pytest.raises(GuestError, match="did not start"):
        one.protect(other.socket)
    words = "MIG_CMD 0x8 deprecated"
    assert words in other.wait_exit()
    one.console.wait_progress()
    verdicts.refused[OLD, NEW] = f"the secondary ends: «{words}»"


def test_new_to_old(both: Scene, qemus: dict[str, str], verdicts: Verdicts) -> None:
    """QEMU 11 does not say ENABLE_COLO, so for QEMU 7.2 this is a plain migration."""
    one, other = strangers(both, qemus, NEW, OLD)
    one.protect(other.socket)
    wait(lambda: other.execute("query-migrate").get("status") == "completed", "its end")
    words = "The feature 'colo' is not enabled"
    with pytest.raises(GuestError, match=words):
        other.take_over()
    one.vm.run_alone()
    one.console.wait_progress()
    verdicts.refused[NEW, OLD] = f"the secondary takes it for a plain migration: «{words}»"


def test_the_table_in_the_docs(qemus: dict[str, str], verdicts: Verdicts) -> None:
    """It is what these tests have found, on these versions."""
    missing = [pair for pair in PAIRS if not verdicts.knows(pair)]
    if missing:
        pytest.skip(f"these pairs have not run: {missing}")
    before = PAGE.read_text()
    head, _, rest = before.partition(BEGIN)
    table = render(verdicts, {kind: label(kind, qemus) for kind in KINDS})
    after = head + BEGIN + table + END + rest.partition(END)[2]
    if os.environ.get(WRITE):
        PAGE.write_text(after)
    assert PAGE.read_text() == after, "run `make pairs`"


def label(kind: str, qemus: dict[str, str]) -> str:
    """What the table calls it; the versions are those that ran."""
    if kind == OURS:
        return "colo"
    major, minor = version_of(qemus[kind])
    return f"QEMU {major}.{minor}"


def render(verdicts: Verdicts, labels: dict[str, str]) -> str:
    lines = ["| primary | secondary | " + " | ".join(SCENARIOS) + " |", "|---|---|---|---|---|"]
    for pair in PAIRS:
        names = [labels[kind] for kind in pair]
        passed = verdicts.passed.get(pair, [])
        cells = ["yes" if scenario in passed else "–" for scenario in SCENARIOS]
        if pair in verdicts.refused:
            cells[0] = f"no: {verdicts.refused[pair]}"
        lines.append("| " + " | ".join(names + cells) + " |")
    return "\n".join(lines) + "\n"
