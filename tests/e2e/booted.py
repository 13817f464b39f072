"""Guests that have booted, each kind once: a QEMU of the same machine goes on from there.

Most scenarios begin with a guest that runs, and to boot one keeps a core busy for three seconds or
more.  So the first that wants a kind of guest boots it, stops it and keeps it as a migration
file; whoever comes later loads that.  What a kind is: the QEMU, its version and its arguments.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from colo.qemu.process import LaunchPlan
from tests.e2e.basics import ROOT, SLOWNESS, qmp, wait

__all__ = ["booted"]

FOLDER: Final = ROOT / "build" / "booted"
#: The guest counts on its console once its services are there.
READY: Final = b"count="
#: Under TCG a kernel now and then hangs while it boots, which is not what is played.
BOOTS: Final = 3
BOOT_S: Final = 40.0 * SLOWNESS


def booted(launch: LaunchPlan) -> Path:
    """The migration file of this VM's guest, booted; made now where nobody has made it yet."""
    kind = [launch.config.qemu.binary, launch.version, launch.accelerator, launch.config.qemu.args]
    digest = hashlib.sha256(json.dumps(kind).encode()).hexdigest()[:16]
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{digest}.mig"
    with (FOLDER / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in reversed(range(BOOTS)):
            if file.exists():
                break
            try:
                _boot(launch, file)
            except AssertionError:
                if not left:
                    raise
    return file


def _boot(launch: LaunchPlan, file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="colo-boot-") as name:
        folder = Path(name)
        console, monitor = folder / "console", folder / "qmp"
        config = launch.config
        command = [config.qemu.binary, *config.qemu.args, *launch.accelerator_args]
        command += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
        command += ["-qmp", f"unix:{monitor},server=on,wait=off"]
        process = subprocess.Popen(command, env=launch.environment, stdin=subprocess.DEVNULL)
        try:
            wait(
                lambda: _has(console, READY) or process.poll() is not None,
                "a guest to boot",
                BOOT_S,
            )
            assert process.poll() is None, f"QEMU ended with {process.returncode}: {command}"
            _save(monitor, file)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _save(monitor: Path, file: Path) -> None:
    """Stop the VM, as a running one is not copied exactly under TCG, and write it to the file."""
    partial = file.with_suffix(".part")
    qmp(monitor, "stop")
    qmp(monitor, "migrate-set-parameters", max_bandwidth=1 << 40)
    qmp(monitor, "migrate", uri=f"exec:cat > '{partial}'")
    wait(lambda: _status(monitor) in ("completed", "failed"), "a guest to be written to a file")
    assert _status(monitor) == "completed"
    os.replace(partial, file)


def _status(monitor: Path) -> Any:
    return qmp(monitor, "query-migrate").get("status")


def _has(path: Path, text: bytes) -> bool:
    return path.exists() and text in path.read_bytes()
