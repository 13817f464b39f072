"""The probe of an accelerator, against a QEMU that is a script."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.qemu import accelerator
from colo.qemu.accelerator import Outcome, probe, try_kvm


@pytest.fixture
def fake(tmp_path: Path) -> Callable[[str], str]:
    """Make a QEMU of a script; it writes down its arguments and keeps the firmware."""

    def make(end: str) -> str:
        path = tmp_path / "qemu"
        path.write_text(
            "#!/bin/sh\n"
            f'printf "%s\\n" "$@" > {tmp_path}/args\n'
            'while [ "$1" != -bios ]; do shift; done\n'
            f'cat "$2" > {tmp_path}/firmware\n'
            f"{end}\n"
        )
        path.chmod(0o700)
        return str(path)

    return make


def test_a_countdown_that_ends_is_proof(fake: Callable[[str], str], tmp_path: Path) -> None:
    args = ["-m", "512", "-cpu", "host,pmu=off", "-smp", "2"]
    assert probe(fake("exit 33"), "kvm", args) is Outcome.WORKS
    given = (tmp_path / "args").read_text().splitlines()
    assert given[: given.index("-bios")] == [
        "-accel", "kvm", "-cpu", "host,pmu=off", "-machine", "pc", "-m", "16",
        "-nodefaults", "-display", "none",
    ]  # fmt: skip
    assert given[given.index("-bios") + 2 :] == ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    assert not Path(given[given.index("-bios") + 1]).exists(), "the firmware is removed"


def test_the_firmware_counts_down_and_leaves(fake: Callable[[str], str], tmp_path: Path) -> None:
    assert probe(fake("exit 33"), "tcg", []) is Outcome.WORKS
    firmware = (tmp_path / "firmware").read_bytes()
    assert len(firmware) == 64 << 10
    # the processor begins 16 bytes before the end: a jump to the program, 256 bytes before it
    assert firmware[-16:] == b"\xe9" + (-256 + 16 - 3).to_bytes(2, "little", signed=True) + bytes(
        13
    )
    assert firmware[-256:-16].rstrip(b"\0") == (
        b"\x66\xb9\x00\xe1\xf5\x05"  # mov ecx, 100000000
        b"\x66\x49\x75\xfc"  # dec ecx; jnz
        b"\xb0\x10\xe6\xf4"  # out 0xf4, 0x10: the exit code is 0x10 << 1 | 1
        b"\xf4\xeb\xfd"  # hlt, for ever
    )


@pytest.mark.parametrize("end", ["exit 0", "exit 1", "kill -6 $$", "echo no such cpu >&2; exit 1"])
def test_any_other_end_is_none(end: str, fake: Callable[[str], str]) -> None:
    assert probe(fake(end), "kvm", []) is Outcome.REFUSED


def test_a_vm_that_spins_for_ever_is_ended(
    fake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has used up its share, whatever the clock says."""
    monkeypatch.setattr(accelerator, "_PROCESSOR_S", 0)
    assert probe(fake("while :; do :; done"), "kvm", []) is Outcome.SPINS


def test_a_vm_that_waits_for_ever_is_ended(
    fake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator, "_PROBE_S", 0.05)
    assert probe(fake("sleep 60"), "kvm", []) is Outcome.SPINS


def test_a_vm_on_a_busy_host_has_its_time(
    fake: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not what passes here that counts, but what it had of a processor."""
    monkeypatch.setattr(accelerator, "_PROCESSOR_S", 1)
    assert probe(fake("sleep 1.2; exit 33"), "kvm", []) is Outcome.WORKS


def test_a_binary_that_is_not_there_proves_nothing(tmp_path: Path) -> None:
    assert probe(str(tmp_path / "none"), "kvm", []) is Outcome.REFUSED


@pytest.mark.parametrize("may", [True, False])
def test_kvm_is_tried_only_where_it_may_be_opened(
    may: bool, fake: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def access(path: str, mode: int) -> bool:
        asked.append((path, mode))
        return may

    monkeypatch.setattr(os, "access", access)
    expected = Outcome.WORKS if may else Outcome.CLOSED
    assert try_kvm(fake("exit 33"), ["-cpu", "host"]) is expected
    assert asked == [("/dev/kvm", os.R_OK | os.W_OK)]
    assert (tmp_path / "args").exists() is may
