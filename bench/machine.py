"""The machine, as far as it matters for the figures; never its name."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.vm import ROOT
from colo import __version__

__all__ = ["busy_share", "describe", "full_version", "qemus"]

_CANDIDATES: Final = ("qemu-system-x86_64", str(ROOT / "build/qemu11/qemu-system-x86_64"))


def full_version(binary: str) -> str | None:
    """QEMU's version, or None where there is no such QEMU."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"version ([\d.]+)", done.stdout)
    return found[1] if found else None


def qemus() -> dict[str, str]:
    """The QEMUs to measure: version → binary."""
    found = {full_version(binary): binary for binary in _CANDIDATES}
    return {version: binary for version, binary in found.items() if version}


def describe() -> dict[str, Any]:
    """What the figures were measured on."""
    text = Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*: (.*)", text)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in text,
        "memory_gib": round(memory / (1 << 30)),
        "kernel": re.match(r"[\d.]+", platform.release())[0],  # type: ignore[index]
        "python": platform.python_version(),
        "numpy": np.__version__,
        "colo": __version__,
        "qemu": list(qemus()),
        "accelerator": "TCG",
    }


def busy_share(seconds: float = 2.0) -> float:
    """Of the processors' time, the share that is neither idle nor waiting for a disk."""

    def ticks() -> list[int]:
        return [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]

    before = ticks()
    time.sleep(seconds)
    took = [after - was for after, was in zip(ticks(), before, strict=True)]
    return round(1 - (took[3] + took[4]) / sum(took), 3)
