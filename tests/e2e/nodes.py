"""Two hosts with a ``colo node`` each, on one machine: what the daemon's scenarios stand on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colo.demo.guest_image import build
from tests.e2e.basics import ACCEL, ROOT, WAIT_S, Console, colo, wait
from tests.e2e.vm import KERNEL

__all__ = ["NodeHost", "Nodes", "free_ports", "playing"]


class NodeHost:
    """One host: its state folder, its console, and the ``colo node`` that runs there or not."""

    def __init__(self, folder: Path, name: str, vm_file: Path) -> None:
        self.name = name
        self.state = folder / name
        self.console = Console(folder, name)
        self.log = folder / f"{name}.log"
        self._vm_file = vm_file
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, **environment: str) -> None:
        """Start its daemon, with this in its environment."""
        command = [colo(), "node", str(self._vm_file), "--host", self.name]
        command += ["--state-dir", str(self.state), "--trace", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def text(self) -> str:
        """All that it told its user."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lives(self) -> bool:
        """Whether the daemon runs."""
        return self.process is not None and self.process.poll() is None

    def status(self) -> dict[str, Any]:
        """The status file as it is; empty where there is none yet."""
        try:
            content = json.loads((self.state / "status.json").read_text())
        except FileNotFoundError:
            return {}
        assert isinstance(content, dict)
        return content

    def is_in(self, role: str, *states: str) -> bool:
        """Whether its daemon plays that role and is in one of these states."""
        status = self.status()
        mine = self.process is not None and status.get("pid") == self.process.pid
        return mine and status.get("role") == role and status["state"] in states

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run another ``colo`` command on this state folder."""
        return subprocess.run(
            [colo(), *command, "--state-dir", str(self.state)],
            capture_output=True,
            text=True,
            timeout=2 * WAIT_S,
            check=False,
        )

    def qemu_pid(self) -> int | None:
        """The QEMU of this state folder that is there, or None."""
        try:
            pid = int((self.state / "qemu.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.state) in command else None

    def belongings(self) -> tuple[frozenset[str], int, int]:
        """What there is of this host: its files, in shared memory too, and what its colo has open.

        A file that is being written comes and goes; the console is the test's own.
        """
        assert self.process is not None
        files = {each.name for each in self.state.iterdir() if not each.name.startswith(".status-")}
        shm = sum(self._vm_file.parent.name in name for name in os.listdir("/dev/shm"))
        opened = []
        for _ in range(5):
            opened.append(len(os.listdir(f"/proc/{self.process.pid}/fd")))
            time.sleep(0.01)
        return frozenset(files), shm, min(opened)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the daemon and return its exit code; its VM, if it runs there, goes on."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def die(self) -> None:
        """The host dies: its daemon and its QEMU at once."""
        assert self.process is not None
        pid = self.qemu_pid()
        self.process.kill()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(WAIT_S)
        wait(lambda: self.qemu_pid() is None, f"the death of host {self.name}'s QEMU")

    def close(self) -> None:
        """End all that it has started."""
        if self.lives():
            assert self.process is not None
            self.process.kill()
            self.process.wait(WAIT_S)
        pid = self.qemu_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait(lambda: self.qemu_pid() is None, f"the end of host {self.name}'s QEMU")


class Nodes:
    """Both hosts, their VM file and their arbiter's file, in ``folder``.

    ``words``: what the guest does.  ``args``: more of QEMU's.  ``disks``: the ids of the VM's
    disks, and where each lies on host A; on host B it is to be made.
    """

    def __init__(
        self,
        folder: Path,
        binary: str,
        words: str = KERNEL,
        args: Sequence[str] = (),
        disks: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder = folder
        self.grant = folder / "grant"
        vm_file = folder / "vm.toml"
        self.a, self.b = (NodeHost(folder, name, vm_file) for name in ("a", "b"))
        image = build(ROOT / "build" / "guest", lambda line: None)
        machine = [
            "-machine",
            "pc",
            "-cpu",
            "qemu64",
            "-m",
            "128",
            "-display",
            "none",
            "-nodefaults",
        ]
        machine += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", words]
        tables = "".join(
            f'[[disks]]\nid = "{name}"\nprimary = {json.dumps(str(path))}\n'
            f"secondary = {json.dumps(str(self.replica(name)))}\n"
            for name, path in (disks or {}).items()
        )
        ports = free_ports(2)
        vm_file.write_text(
            f"name = {json.dumps(folder.name)}\n"
            f'[qemu]\nbinary = {json.dumps(binary)}\naccel = "{ACCEL}"\n'
            f"args = {json.dumps([*machine, *args])}\n"
            f"[qemu.primary]\nargs = {json.dumps(self.a.console.args)}\n"
            f"[qemu.secondary]\nargs = {json.dumps(self.b.console.args)}\n"
            f'[hosts]\na = "tcp:127.0.0.1:{ports[0]}"\nb = "tcp:127.0.0.1:{ports[1]}"\n'
            f'[failover]\narbiter = "file:{self.grant}"\nheartbeat_limit_s = 5.0\n'
            f"{tables}"
        )

    def replica(self, name: str) -> Path:
        """Where a disk lies on host B."""
        return self.folder / f"{name}-b.raw"

    def other(self, host: NodeHost) -> NodeHost:
        """The other one."""
        return self.b if host is self.a else self.a

    def wait_protected(self, primary: NodeHost) -> None:
        """Wait until the VM runs on that host and the other one has a checkpoint of it."""
        wait(
            lambda: primary.is_in("primary", "PROTECTED"),
            f"the VM PROTECTED on host {primary.name}",
        )

    def tails(self) -> str:
        """The ends of both hosts' logs, for a failure's report."""
        return "\n".join(
            f"-- host {host.name}\n" + "\n".join(host.text().splitlines()[-12:])
            for host in (self.a, self.b)
        )

    def close(self) -> None:
        """End all of it."""
        for host in (self.a, self.b):
            host.close()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens now."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@contextlib.contextmanager
def playing(qemu: str, **how: Any) -> Iterator[Nodes]:
    """Two hosts of a VM in a folder of their own, of which nothing is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="colo-n-"))
    nodes = Nodes(folder, qemu, **how)
    try:
        yield nodes
    finally:
        print(nodes.tails())
        nodes.close()
        shutil.rmtree(folder)
        for store in Path("/dev/shm").glob(f"*{folder.name}*"):
            shutil.rmtree(store, ignore_errors=True)
