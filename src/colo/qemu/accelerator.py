"""Which accelerator really works.

A ``/dev/kvm`` that opens is no proof: on some hosts, nested ones above all, KVM makes a VM and
then spins for ever in its first instructions, refuses a model-specific register of ``-cpu host``,
or runs every instruction a thousand times too slowly.  So a VM is made whose firmware counts
down from a hundred million and then ends QEMU with a known exit code.  Hardware does that in a
tenth of a second, TCG in less than one; KVM gets five, of the processor's time: a host may be busy.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from typing import Final

__all__ = ["Outcome", "probe", "try_kvm"]

_FIRMWARE_SIZE: Final = 64 << 10
_RESET_VECTOR: Final = _FIRMWARE_SIZE - 16
_PROGRAM_START: Final = _FIRMWARE_SIZE - 256
_COUNT: Final = 100_000_000
_EXIT_PORT: Final = 0xF4
_EXIT_VALUE: Final = 0x10
#: isa-debug-exit ends QEMU with (value << 1) | 1.
_EXIT_CODE: Final = (_EXIT_VALUE << 1) | 1
#: jmp to the program, from the end of the instruction
_JUMP: Final = b"\xe9" + (_PROGRAM_START - _RESET_VECTOR - 3).to_bytes(2, "little", signed=True)
_PROGRAM: Final = b"".join(
    (
        b"\x66\xb9" + _COUNT.to_bytes(4, "little"),  # mov ecx, count
        b"\x66\x49\x75\xfc",  # dec ecx; jnz back to it
        bytes([0xB0, _EXIT_VALUE, 0xE6, _EXIT_PORT]),  # mov al, value; out port, al
        b"\xf4\xeb\xfd",  # hlt; jmp back to it
    )
)
_PROCESSOR_S: Final = 5
#: For one that waits instead, or has to wait for others.
_PROBE_S: Final = 60.0


class Outcome(Enum):
    """What came of a try; the text says what is the matter."""

    WORKS = "it works"
    CLOSED = "there is no /dev/kvm that may be opened"
    REFUSED = "QEMU does not start a VM with it"
    SPINS = (
        f"a VM does not get through a program of a tenth of a second in {_PROCESSOR_S} s of a "
        "processor's time, though it may be called running"
    )


def try_kvm(binary: str, args: Sequence[str]) -> Outcome:
    """Try KVM with the ``-cpu`` of ``args``; takes up to 5 seconds, longer on a busy host."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Outcome.CLOSED
    return probe(binary, "kvm", args)


def probe(binary: str, accelerator: str, args: Sequence[str]) -> Outcome:
    """Whether the firmware counts down in time under this accelerator."""
    cpu = [
        part
        for option, value in itertools.pairwise(args)
        if option == "-cpu"
        for part in (option, value)
    ]
    with tempfile.NamedTemporaryFile(prefix="colo-probe-") as firmware:
        image = bytearray(_FIRMWARE_SIZE)
        image[_RESET_VECTOR : _RESET_VECTOR + len(_JUMP)] = _JUMP
        image[_PROGRAM_START : _PROGRAM_START + len(_PROGRAM)] = _PROGRAM
        firmware.write(image)
        firmware.flush()
        command = [binary, "-accel", accelerator, *cpu, "-machine", "pc", "-m", "16", "-nodefaults"]
        command += ["-display", "none", "-bios", firmware.name]
        command += ["-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"]
        return _run(command)


def _run(command: Sequence[str]) -> Outcome:
    """See how it ends, or end it."""
    null = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
    except OSError:
        return Outcome.REFUSED
    with process:
        with suppress(ProcessLookupError):  # it has ended
            limit = (_PROCESSOR_S, _PROCESSOR_S + 1)
            resource.prlimit(process.pid, resource.RLIMIT_CPU, limit)
        try:
            code = process.wait(_PROBE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return Outcome.SPINS
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return Outcome.SPINS
    return Outcome.WORKS if code == _EXIT_CODE else Outcome.REFUSED
