"""A machine whose KVM works, and what is run in it: see scripts/kvm-lab.

The tests are those that run under TCG everywhere else, with guests under KVM; the figures are the
benchmark's.  Both run in the machine, by the machine's Python, and what came of it comes home as a
file.  The machine's kernel may die, as TCG's emulation of the virtualization that it uses is not
perfect: then the same is tried again, and what had run by then counts for nothing.  So it is where
a QEMU in there has died of that, which had booted its guest, and of which colo had asked nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from colo.demo.guest_image import build as build_guest
from tests.e2e.basics import ROOT

__all__ = ["Outcome", "measure", "run"]

BOOTS: Final = 3
#: Idle, a boot and a scenario take two to four minutes; a busy machine takes a multiple of that.
BOOT_S: Final = 600
#: scripts/kvm-lab's exit codes where the machine's kernel died, or spun until the time was up: what
#: runs in it ends sooner than that.
DIED: Final = (70, 71)
#: Said by the first command of all to a QEMU that is to be protected.
DIED_BY_ITSELF: Final = "QEMU died at query-version"
#: What the tests need of this checkout, and how what they do not need of its environment begins.
PARTS: Final = ("src", "tests", "bench", "pyproject.toml")
NEEDLESS: Final = (
    "mypy",
    "ruff",
    "grafana",
    "colo-",
    "_colo",
    "pip",
    "hatch",
    "setuptools",
    "__pycache__",
)
QEMU11: Final = (
    "bin/qemu-system-x86_64",
    "lib/x86_64-linux-gnu",
    "lib/ipxe",
    "share/qemu",
    "share/seabios",
)
JOB: Final = """\
set -e
cp -a /job/tree /tmp/tree
cd /tmp/tree
if [ -e /job/qemu11 ]; then ln -s /job/qemu11 build/qemu11; fi
printf '#!/bin/sh\\nexec python3 -m colo "$@"\\n' >/usr/bin/colo
chmod 755 /usr/bin/colo
export PYTHONPATH=/tmp/tree/src:/job/site LC_ALL=C.UTF-8
export COLO_E2E_ACCEL=kvm COLO_E2E_SLOWNESS=4 COLO_E2E_CONFINED=1
"""
TESTS: Final = """\
mapfile -t tests </job/tests
python3 -m pytest --e2e=require -q -p no:cacheprovider --timeout 480 \\
    --junitxml=/out/result.xml "${tests[@]}" >/out/log 2>&1
"""


@dataclass(frozen=True)
class Outcome:
    """What came of the tests: by name, None where one has passed, else what it says."""

    results: dict[str, str | None]
    log: str


def run(folder: Path, tests: list[str]) -> Outcome:
    """Run these tests in the machine; ``folder`` is for what goes in and comes out.

    Raises AssertionError where the machine does not bring the outcome of each home.
    """
    job = folder / "job"
    _pack(job, TESTS, with_new=any("11.1" in test for test in tests))
    (job / "tests").write_text("".join(f"{test}\n" for test in tests))
    for _ in range(BOOTS):
        home, _ = _boot(job, "result.xml")
        outcome = Outcome(_read(home / "result.xml"), (home / "log").read_text(errors="replace"))
        if not any(DIED_BY_ITSELF in (why or "") for why in outcome.results.values()):
            break
    assert len(outcome.results) == len(tests), f"{sorted(outcome.results)} of {tests}"
    return outcome


def measure(folder: Path, command: str, with_new: bool) -> str:
    """Return what a command prints in the machine, which has this checkout's benchmark.

    ``with_new``: it needs the newer QEMU as well.  Raises AssertionError where it fails.
    """
    job = folder / "job"
    _pack(job, f"{command} >/out/figures 2>/out/log\n", with_new)
    home, code = _boot(job, "figures")
    assert code == 0, (home / "log").read_text(errors="replace")[-2000:]
    return (home / "figures").read_text()


def _boot(job: Path, outcome: str) -> tuple[Path, int]:
    """Have the machine do the job; return what it has brought home, and the exit code."""
    for _ in range(BOOTS):
        done = subprocess.run(
            [ROOT / "scripts" / "kvm-lab", "boot", job, str(BOOT_S)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode not in DIED:
            break
    home = job.with_suffix(".out")
    assert (home / outcome).exists(), (
        f"the machine brought nothing home ({done.returncode}): "
        + (done.stdout + done.stderr)[-2000:]
    )
    return home, done.returncode


def _pack(job: Path, script: str, with_new: bool) -> None:
    """Lay out what goes into the machine, and what it does there."""
    tree, build = job / "tree", ROOT / "build"
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            # What is compiled already, too, but for what is being written.
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("*.pyc.*"))
        else:
            shutil.copy(source, tree / part)
    guest = build_guest(build / "guest", lambda line: None).kernel.parent
    shutil.copytree(guest, tree / "build" / "guest" / guest.name)
    site = Path(sysconfig.get_path("purelib"))
    (job / "site").mkdir()
    for each in site.iterdir():
        if each.is_dir() and not each.name.startswith(NEEDLESS):
            shutil.copytree(each, job / "site" / each.name)
        elif each.suffix == ".py":
            shutil.copy(each, job / "site")
    if with_new:
        qemu = (build / "qemu11").resolve()
        for part in QEMU11:
            source, target = qemu / "root" / "usr" / part, job / "qemu11" / "root" / "usr" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            elif source.exists():  # Debian's QEMU has had its network ROMs in one place or another
                shutil.copy(source, target)
        shutil.copy(qemu / "qemu-system-x86_64", job / "qemu11")
    (job / "job.sh").write_text(JOB + script)


def _read(result: Path) -> dict[str, str | None]:
    """Each test's outcome; a skipped one has not passed."""
    found: dict[str, str | None] = {}
    for case in ElementTree.parse(result).getroot().iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        trouble = [each for each in case if each.tag in ("failure", "error", "skipped")]
        found[name] = (trouble[0].get("message") or trouble[0].tag) if trouble else None
    return found
