"""One QEMU, one name, and one colo that protects it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from colo.errors import UsageError
from colo.qemu.identity import instance, living, only_one


def test_one_colo_protects_a_qemu_and_another_one_when_that_is_gone() -> None:
    name = instance(os.getpid())
    with only_one(name):
        with pytest.raises(UsageError) as caught:
            only_one(name)
        assert f"another colo protects this QEMU ({name})" in str(caught.value)
        with only_one(f"{name}0"):
            pass
    with only_one(name):
        pass


def test_a_process_lives_until_it_has_ended_and_its_name_is_no_other_ones() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        name = instance(process.pid, "a")
        assert living(name, "a") == process.pid
        assert living(name, "b") is None
        assert living(f"{name}0", "a") is None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert living(name, "a") is None
    assert living(name, "a") is None
    assert [living(each, "a") for each in ("", "a", "a/x/1", "a/999999999/1")] == [None] * 4


def test_who_was_killed_has_let_go() -> None:
    text = "import sys; from colo.qemu.identity import only_one; kept = only_one('x/1/2'); print()"
    command = [sys.executable, "-c", f"{text}; sys.stdout.flush(); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with pytest.raises(UsageError):
            only_one("x/1/2")
        process.kill()
        process.wait()
        with only_one("x/1/2"):
            pass
