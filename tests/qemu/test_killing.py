"""A process that is killed is gone, or that is said."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from colo.errors import GuestError
from colo.qemu import killing
from colo.qemu.killing import kill


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_it_is_gone_and_so_it_is_the_second_time(process: subprocess.Popen[bytes]) -> None:
    before = descriptors()
    kill(process.pid)
    assert process.wait(0) == -signal.SIGKILL
    kill(process.pid)
    assert descriptors() == before


def test_one_that_stays_is_said(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    monkeypatch.setattr(killing, "_DYING_S", 0.05)
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda file, number: None)
    with pytest.raises(GuestError, match=rf"^QEMU {process.pid} does not end, though it was kil"):
        kill(process.pid)
    assert descriptors() == before
