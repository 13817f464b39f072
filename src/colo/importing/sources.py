"""Where a command line comes from that nobody runs: a file, standard input, libvirt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from colo.errors import LocalError, UsageError
from colo.importing.draft import Draft
from colo.importing.known import Known
from colo.importing.shell import command_words
from colo.importing.sorting import sort

__all__ = ["from_libvirt", "from_text", "read_text"]

_BYTES_MAX: Final = 1 << 20
_VIRSH_S: Final = 20.0


def read_text(file: str) -> str:
    """What is in a file, or on standard input for «-».  Raises UsageError."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_BYTES_MAX + 1)
        else:
            with Path(file).open("rb") as source:
                data = source.read(_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{_called(file)}: it is no text in UTF-8") from error


def from_text(text: str, file: str, name: str | None) -> Draft:
    """Make a draft of a command as libvirt or Proxmox print it.  Raises UsageError."""
    try:
        words = command_words(text)
    except UsageError as error:
        raise UsageError(f"{_called(file)}: {error}") from error
    return sort(words, _called(file), Known(folder=str(Path.cwd())), name)


def from_libvirt(domain: str, name: str | None) -> Draft:
    """Make a draft of what libvirt would start for a domain.  Raises UsageError, LocalError."""
    xml = _virsh(["dumpxml", "--domain", domain], "")
    text = _virsh(["domxml-to-native", "qemu-argv", "/dev/stdin"], xml)
    return from_text(text, f"libvirt's domain {domain}", name)


def _virsh(arguments: list[str], given: str) -> str:
    command = ["virsh", "--quiet", *arguments]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, encoding="utf-8", errors="replace",
            timeout=_VIRSH_S, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise UsageError(
            "there is no virsh here: run `virsh domxml-to-native qemu-argv --domain NAME` where it "
            "is, and give its output by --libvirt-argv"
        ) from None
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise LocalError(f"virsh {arguments[0]}: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise LocalError(f"virsh {arguments[0]}: {said[-1] if said else done.returncode}")
    return done.stdout


def _called(file: str) -> str:
    return "standard input" if file == "-" else file
