"""QEMU's own replication of a disk: quorum on the primary, the replication driver on both.

As in QEMU's docs/block-replication.txt: the VM has to be started on a quorum, the secondary keeps
the checkpoint's disk in two overlays, and both are emptied at each checkpoint.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.vm import Process, protect, qemu, set_capabilities
from colo.qemu.process import LaunchPlan

__all__ = ["QuorumVm"]

_REPLICATION: Final = "if=none,id=childs0,driver=replication"
_QUORUM: Final = "if=none,id=disk0,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0"


class QuorumVm:
    """The VM of ``launch``, whose disk is ``a``.raw in ``folder``, with its console ``console``."""

    def __init__(self, launch: LaunchPlan, folder: Path, console: Path) -> None:
        self._launch, self._folder, self._console = launch, folder, console

    @contextmanager
    def running(self) -> Iterator[Process]:
        """Have it run, unprotected; ``protected`` comes within this."""
        child = f"driver=raw,discard=unmap,file.driver=file,file.filename={self._folder}/a.raw"
        options = ",".join(f"children.0.{each}" for each in child.split(","))
        drive = f"{_QUORUM.removesuffix(',children.0')},{options}"
        command = [*self._launch.primary(), "-drive", drive, "-serial", f"file:{self._console}"]
        with qemu("quorum", command, self._folder, self._launch.environment) as (
            self._process,
            self._monitor,
        ):
            yield self._process

    @contextmanager
    def protected(self, interval_ms: int) -> Iterator[None]:
        """Have a stock secondary keep its memory and its disk."""
        folder = self._folder
        size = (folder / "a.raw").stat().st_size
        disks = [str(folder / f"{name}.raw") for name in ("a", "parent")]
        subprocess.run(["cp", "--sparse=always", *disks], check=True)
        overlays = {name: folder / f"{name}.qcow2" for name in ("active", "hidden")}
        for path in overlays.values():
            create = ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)]
            subprocess.run(create, check=True)
        hidden = f"driver=qcow2,file.driver=file,file.filename={overlays['hidden']},backing=parent0"
        active = f"driver=qcow2,file.driver=file,file.filename={overlays['active']}"
        options = [f"file.{each}" for each in active.split(",")]
        options += [f"file.backing.{each}" for each in hidden.split(",")]
        children = ",".join(options)
        command = [
            *self._launch.primary(),
            *("-drive", f"if=none,id=parent0,driver=raw,file.filename={folder}/parent.raw"),
            *(
                "-drive",
                f"if=none,id=childs0,driver=replication,mode=secondary,top-id=disk0,{children}",
            ),
            *("-drive", f"{_QUORUM}=childs0"),
            *("-serial", "null", "-incoming", "defer"),
        ]
        with qemu("quorum-secondary", command, folder, self._launch.environment) as (_, monitor):
            set_capabilities(monitor)
            monitor.execute("migrate-incoming", uri=f"unix:{folder}/quorum.sock")
            address = {"type": "unix", "data": {"path": f"{folder}/quorum.nbd"}}
            monitor.execute("nbd-server-start", addr=address)
            monitor.execute("nbd-server-add", device="parent0", writable=True)
            self._monitor.execute(
                "human-monitor-command",
                command_line="drive_add -n buddy driver=replication,mode=primary,file.driver=nbd,"
                f"file.server.type=unix,file.server.path={folder}/quorum.nbd,"
                "file.export=parent0,node-name=replication0",
            )
            self._monitor.execute("x-blockdev-change", parent="disk0", node="replication0")
            protect(self._process, self._monitor, f"unix:{folder}/quorum.sock", interval_ms)
            yield
