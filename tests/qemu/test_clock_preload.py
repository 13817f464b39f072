"""What the library in QEMU gives back, seen in a program that has QEMU's clocks and no VM."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.qemu.guest_clock import GivenBack, given_back, tell_own_stop, tell_since
from colo.qemu.preload import CLOCK_LIBRARY

SLEPT_NS = 1_000_000  # by the program, while it stands still


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    assert compiler is not None, "install gcc and libc6-dev"
    made = tmp_path_factory.mktemp("clock") / "fake-qemu"
    source = Path(__file__).with_name("fake_qemu.c")
    options = ["-rdynamic", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([compiler, *options, "-o", str(made), str(source)], check=True)
    return made


@contextlib.contextmanager
def running(program: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "LD_PRELOAD": str(CLOCK_LIBRARY.built())}
    with subprocess.Popen(
        [str(program), what],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def figures(process: subprocess.Popen[str]) -> tuple[int, int, GivenBack]:
    """Have it go on: how far the virtual clock is behind, what KVM's was given, what is said."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    behind, kvm = map(int, process.stdout.readline().split())
    given = given_back(process.pid)
    assert given is not None
    assert given.trouble is None
    return behind, kvm, given


def test_a_checkpoint_costs_the_guest_nothing(program: Path) -> None:
    with running(program, "checkpoint") as process:
        behind, kvm, given = figures(process)
    assert behind == 0
    assert kvm >= SLEPT_NS
    assert given.seconds * 1e9 >= SLEPT_NS
    assert (given.count, given.kvm_clocks) == (1, 1)


def test_what_a_user_stops_stands_still(program: Path) -> None:
    with running(program, "user") as process:
        behind, kvm, given = figures(process)
    assert behind >= SLEPT_NS
    assert kvm == 0
    assert given == GivenBack(None, 0, 0.0, 0.0, 0)


def test_a_takeover_gives_back_what_passed_since(program: Path) -> None:
    """The state was saved later than the VM stood still: KVM's clock had gone on until then."""
    with running(program, "takeover") as process:
        now = time.monotonic()
        tell_since(process.pid, now - 20, now - 10)
        behind, kvm, given = figures(process)
    assert behind <= -20e9
    assert 10e9 <= kvm < -behind
    assert given.seconds >= 20
    assert (given.count, given.kvm_clocks) == (1, 1)


def test_colos_own_stop_costs_the_guest_nothing_whoever_ends_it(program: Path) -> None:
    with running(program, "user") as process:
        tell_own_stop(process.pid)
        behind, kvm, given = figures(process)
    assert behind == 0
    assert kvm >= SLEPT_NS
    assert (given.count, given.kvm_clocks) == (1, 1)
