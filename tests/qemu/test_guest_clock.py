"""What colo's library shares: found in the process that has it, read, and told since when."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from colo.qemu.guest_clock import GivenBack, given_back, tell_own_stop, tell_since
from colo.qemu.preload import CLOCK_LIBRARY

FIELDS = struct.Struct("=9q")
MAGIC = int.from_bytes(b"COLOCLK1", "little")


@pytest.fixture
def shared() -> Iterator[Callable[..., int]]:
    """Shared memory of this process, as the library makes it."""
    files = []

    def make(*fields: int) -> int:
        files.append(os.memfd_create("colo-guest-clock"))
        os.write(files[-1], FIELDS.pack(*fields))
        return files[-1]

    yield make
    for file in files:
        os.close(file)


def test_a_process_without_the_library() -> None:
    assert given_back(os.getpid()) is None
    tell_since(os.getpid(), 1.0, 2.0)


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert given_back(process.pid) is None


def test_what_was_given_back(shared: Callable[..., int]) -> None:
    shared(MAGIC, 0, 7, 2_500_000_000, 250_000_000, 6, 0, 0, 0)
    assert given_back(os.getpid()) == GivenBack(None, 7, 2.5, 0.25, 6)


@pytest.mark.parametrize("trouble", [1, 2, 3, 4, 99])
def test_each_trouble_is_said(shared: Callable[..., int], trouble: int) -> None:
    shared(MAGIC, trouble, 0, 0, 0, 0, 0, 0, 0)
    given = given_back(os.getpid())
    assert given is not None
    assert given.trouble


@pytest.mark.parametrize("fields", [(MAGIC + 1, 0, 0, 0, 0, 0, 0, 0, 0)])
def test_what_is_not_the_library_s_is_not_taken_for_it(
    shared: Callable[..., int], fields: tuple[int, ...]
) -> None:
    os.ftruncate(shared(MAGIC, 0, 0, 0, 0, 0, 0, 0, 0), 8)
    shared(*fields)
    assert given_back(os.getpid()) is None


def test_since_when_the_vm_stood_still(shared: Callable[..., int]) -> None:
    file = shared(MAGIC, 0, 0, 0, 0, 0, 0, 0, 0)
    tell_since(os.getpid(), 12.5, 13.0)
    assert FIELDS.unpack(os.pread(file, FIELDS.size, 0))[-3:] == (12_500_000_000, 13_000_000_000, 0)


def test_whose_stop_it_is(shared: Callable[..., int]) -> None:
    file = shared(MAGIC, 0, 0, 0, 0, 0, 0, 0, 0)
    tell_own_stop(os.getpid())
    assert FIELDS.unpack(os.pread(file, FIELDS.size, 0))[-3:] == (0, 0, 1)


def test_a_program_that_is_no_qemu_runs_with_the_library_and_says_why_not() -> None:
    script = "import sys; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_PRELOAD": str(CLOCK_LIBRARY.built())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"there\n"
        given = given_back(process.pid)
        process.stdin.close()
    assert given == GivenBack("this QEMU does not export what colo's library needs", 0, 0.0, 0.0, 0)
