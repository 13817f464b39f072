"""Both QEMUs, a scene that is cleared away, and a draw whose seed can be given again."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
from collections.abc import Generator, Iterator

import pytest

from colo.errors import ColoError
from colo.qemu.process import version_of
from tests.e2e.basics import ROOT
from tests.e2e.harness import Scene
from tests.e2e.package import Package, packages

QEMUS = {
    "7.2": ("qemu-system-x86_64", 7),
    "11.1": (str(ROOT / "build" / "qemu11" / "qemu-system-x86_64"), 11),
}
LOCKS = ROOT / "build" / "locks"
#: Set it to the number that a failed run has shown, to draw the same again.
SEED = "COLO_E2E_SEED"


@pytest.fixture(params=QEMUS)
def qemu(request: pytest.FixtureRequest) -> str:
    """The QEMU to run on, of each version in turn."""
    return find(request.param)


@pytest.fixture(scope="session")
def qemus() -> dict[str, str]:
    """All versions, each with its QEMU."""
    return {version: find(version) for version in QEMUS}


def find(version: str) -> str:
    """The QEMU of that version; without it the test is skipped."""
    binary, major = QEMUS[version]
    if shutil.which(binary) is None:
        pytest.skip(f"no QEMU {version}: install it, or `make qemu11`")
    try:
        found, minor = version_of(binary)
    except ColoError as error:
        pytest.skip(f"no QEMU {version}: {error}")
    if found < major or (found > major and major < 11):
        pytest.skip(f"no QEMU {version}: {binary} is {found}.{minor}")
    return binary


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of all workers share the machine; one marked `alone` has it for itself.

    Whoever waits for it keeps the others from beginning: see flock(2).
    """
    kind = fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / "next").open("w") as next_one, (LOCKS / "machine").open("w") as machine:
        fcntl.flock(next_one, fcntl.LOCK_EX)
        fcntl.flock(machine, kind)
        fcntl.flock(next_one, fcntl.LOCK_UN)
        yield


@pytest.fixture
def package(turn: None) -> Package:
    """What `make package` builds; in this test's turn, where it is not there yet."""
    return packages()


@pytest.fixture
def scene(qemu: str, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene; its logs are in the report where the test fails."""
    yield from play(Scene(qemu), request)


@pytest.fixture
def both(qemus: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene in which each VM file names its QEMU."""
    yield from play(Scene("none"), request)


def play(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Scene]:
    request.node.stash[_SCENE] = scene
    yield scene
    scene.close()


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """Draws anew in each run; the seed is printed, and stands in a failure's report."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(1 << 32))
    request.node.stash[_DRAWN] = seed
    print(f"{SEED}={seed}")
    return random.Random(seed)


_SCENE = pytest.StashKey[Scene]()
_DRAWN = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        if _DRAWN in item.stash:
            report.sections.append(("drawn", f"{SEED}={item.stash[_DRAWN]}"))
        scene = item.stash.get(_SCENE, None)
        if scene is not None and scene.folder.exists():
            report.sections.append(("logs", scene.tails()))
    return report
