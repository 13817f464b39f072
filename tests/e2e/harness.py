"""What the scenarios are played with: a primary's VM, the secondary's host, and a scene for both.

A scene has one VM file and one short folder (a unix socket's path has at most 107 bytes).  All
that is started belongs to it: at the end it ends every process by its id and then looks whether
anything of it is left.  Waits are polls with an end, and say what they waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.config import load
from colo.qemu.command_line import Backend
from tests.e2e.basics import POLL_S, TAIL_LINES, WAIT_S, Console, colo, counts, wait
from tests.e2e.vm import USUAL, PrimaryVm, VmFile
from tests.e2e.wire import Wire

__all__ = ["Host", "Scene"]


class Host:
    """The secondary's host: a real ``colo secondary`` and what it leaves in its state folder."""

    def __init__(self, folder: Path, name: str, vm_file: Path, console: Console) -> None:
        self.state = folder / name
        self.console = console
        self.socket = folder / f"{name}.listen"
        self.listen = f"unix:{self.socket}"
        self.log = folder / f"{name}.log"
        self._vm_file = vm_file
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The blocks of the VM's main memory."""
        return load(self._vm_file).backends

    def start(self, *options: str, ready: bool = True) -> None:
        """Start it; with ``ready``, wait until a primary may come."""
        already = len(self.said("waiting for a primary"))
        command = [colo(), "secondary", str(self._vm_file), "--listen", self.listen]
        command += ["--state-dir", str(self.state), "--trace", *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        if ready:
            wait(
                lambda: self.exited() or len(self.said("waiting for a primary")) > already,
                "colo secondary to listen",
            )
            assert not self.exited(), f"colo secondary ended: {self.text()}"

    def exited(self) -> bool:
        """Whether the process has ended."""
        return self.process is not None and self.process.poll() is not None

    def wait_exit(self) -> int:
        """Wait for its end and return its exit code."""
        assert self.process is not None
        return self.process.wait(WAIT_S)

    def signal(self, number: int) -> None:
        """Send a signal to the colo process."""
        assert self.process is not None
        self.process.send_signal(number)

    def text(self) -> str:
        """All that it told its user."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def said(self, text: str) -> list[str]:
        """The lines of it that contain ``text``."""
        return [line for line in self.text().splitlines() if text in line]

    def wait_said(self, text: str) -> str:
        """Wait for such a line and return the last one."""
        return wait(lambda: self.said(text), f"colo secondary to say {text!r}")[-1]

    def status(self) -> dict[str, Any]:
        """What ``colo status --json`` says."""
        done = self.run("status", "--json")
        content = json.loads(done.stdout)
        assert isinstance(content, dict)
        return content

    def file(self) -> dict[str, Any]:
        """The status file as it is: for polls."""
        content = json.loads((self.state / "status.json").read_text())
        assert isinstance(content, dict)
        return content

    def wait_state(self, state: str) -> dict[str, Any]:
        """Wait for the state of that name and return the status."""
        wait(lambda: self.file()["state"] == state, f"the secondary in state {state}")
        return self.status()

    def wait_checkpoint(self, number: int) -> None:
        """Wait until checkpoint ``number`` is whole."""
        wait(lambda: (self.file()["checkpoint"] or 0) >= number, f"checkpoint {number}")

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run another ``colo`` command on this state folder."""
        return subprocess.run(
            [colo(), command, "--state-dir", str(self.state), *options],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def qemu_pid(self) -> int:
        """The id of the QEMU that waits, or runs the VM."""
        return int((self.state / "qemu.pid").read_text())

    def close(self) -> None:
        """End it, and the VM that it may have taken over."""
        if self.process is not None and not self.exited():
            self.process.terminate()
            self.process.send_signal(signal.SIGCONT)  # a test that failed may have stopped it
            try:
                wait(lambda: self.exited() or self.said("end colo once more"), "its end")
                self.process.terminate()
                self.process.wait(15)
            except (subprocess.TimeoutExpired, AssertionError):
                self.process.kill()
                self.process.wait(15)
                raise AssertionError("colo secondary did not end at SIGTERM") from None
            finally:
                self._kill_qemu()
        self._kill_qemu()

    def _kill_qemu(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            pid = self.qemu_pid()
            if os.fsencode(self.state) in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


@dataclass
class Scene:
    """One VM, its folder, and all that was started for it."""

    binary: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="colo-e2e-")))
    wires: list[Wire] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    primaries: list[PrimaryVm] = field(default_factory=list)
    #: By checkpoint: how much the primary's guest had said when it was stopped for it.
    said_at: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The VM's name; nobody else's."""
        return self.folder.name

    def host(self, vm: VmFile = USUAL) -> Host:
        """A host for the secondary, nothing started yet."""
        name = f"b{len(self.hosts)}"
        console = Console(self.folder, name)
        vm_file = self.folder / f"{name}.toml"
        vm.write(vm_file, self.name, self.binary, Console(self.folder, "unused"), console)
        self.hosts.append(Host(self.folder, name, vm_file, console))
        return self.hosts[-1]

    def primary(self, vm: VmFile = USUAL) -> PrimaryVm:
        """A primary that is being started; its guest boots meanwhile."""
        name = f"a{len(self.primaries)}"
        console = Console(self.folder, name)
        vm_file = self.folder / f"{name}.toml"
        vm.write(vm_file, self.name, self.binary, console, Console(self.folder, "unused"))
        self.primaries.append(PrimaryVm(load(vm_file), self.folder / name, console))
        self.primaries[-1].start()
        return self.primaries[-1]

    def wire(self, host: Host, primary: PrimaryVm) -> Wire:
        """A wire to ``host`` for ``primary``."""

        def on_stopped(number: int) -> None:
            self.said_at[number] = len(primary.console.text())

        path = self.folder / f"w{len(self.wires)}"
        self.wires.append(Wire(path, host.socket, on_stopped))
        return self.wires[-1]

    def protected(
        self, vm: VmFile = USUAL, *options: str, delay_ms: int = 100
    ) -> tuple[PrimaryVm, Wire, Host]:
        """A guest that runs on a primary, protected through a wire by a secondary."""
        host = self.host(vm)
        primary = self.primary(vm)
        host.start(*options)
        primary.console.wait_count(3)
        wire = self.wire(host, primary)
        primary.protect(f"unix:{wire.path}", delay_ms)
        host.wait_said("PROTECTED")
        return primary, wire, host

    def check_goes_on(self, primary: PrimaryVm, host: Host, checkpoint: int) -> None:
        """The guest goes on at ``host`` from just this checkpoint, and its memory is right.

        What the primary's guest had said by then and what it says now are one text, to the byte.
        """
        host.console.wait_progress(3)
        said = primary.console.text()
        assert checkpoint in self.said_at, f"only {sorted(self.said_at)} were seen on the wire"
        before, after = said[: self.said_at[checkpoint]], host.console.text()
        joined = [count for count, _ in counts(before + after)]
        wrong = [at for at, count in enumerate(joined, joined[0]) if at != count][:1]
        wrong = [at - joined[0] for at in wrong]
        lost = f"from {joined[max(0, wrong[0] - 3) : wrong[0] + 4]} on" if wrong else ""
        lost += f"; …{before[-80:]!r} then {after[:80]!r}…, all after: {after[-600:]!r}"
        assert not wrong, f"numbers are missing or twice: {lost}"
        # Only now: where a client leaves a console, QEMU may drop the character it is writing.
        host.console.verify()
        assert "CORRUPT" not in before + after
        first = counts(after)[0][0]
        assert first <= counts(said)[-1][0] + 2, f"it skips from {counts(said)[-1]} to {first}"

    def leftovers(self) -> list[str]:
        """What is still there of this scene: processes, and folders in /dev/shm."""
        processes = [f"process {pid}: {' '.join(words[:4])}" for pid, words in self._processes()]
        return [*map(str, self._in_shm()), *processes]

    def _in_shm(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"*{self.name}*"))

    def _processes(self) -> list[tuple[int, list[str]]]:
        """Processes whose command lines name our folder, less those that only wait for a reaper."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if os.fsencode(self.folder) in command and state != "Z":
                    found.append((int(entry.name), command.decode(errors="replace").split("\0")))
        return found

    def tails(self) -> str:
        """The ends of all logs."""
        parts = []
        for path in sorted((*self.folder.glob("*.console"), *self.folder.glob("*.log"))):
            parts.append((path.name, path))
        for path in sorted((*self.folder.glob("*/qemu.log"), *self.folder.glob("*/colo.log"))):
            parts.append((f"{path.parent.name}/{path.name}", path))
        text = ""
        for name, path in parts:
            lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            text += f"--- {name}\n" + "".join(f"{line[:300]}\n" for line in lines)
        for wire in self.wires:
            text += f"--- wire: checkpoint {wire.checkpoint}, error {wire.error!r}\n"
        return text

    def close(self) -> None:
        """End what was started, and see that nothing is left."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._clear)
            parts: list[Wire | Host | PrimaryVm] = [*self.primaries, *self.hosts, *self.wires]
            for part in parts:
                stack.callback(part.close)
        assert all(wire.error is None for wire in self.wires), [w.error for w in self.wires]

    def _clear(self) -> None:
        """See that nothing is left, and remove it if there is."""
        try:
            deadline = time.monotonic() + 10
            while (left := self.leftovers()) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            assert not left, f"this is left: {left}"
        finally:
            for process, _ in self._processes():
                os.kill(process, signal.SIGKILL)
            for path in self._in_shm():
                shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(self.folder)
