"""A QEMU process of ours: its command line, its start, its QMP, its last words.

The process is a session of its own: Ctrl-C on colo's terminal does not reach it, and a VM that
was taken over outlives the colo that did it.  Its QMP socket serves one client at a time, so it
gets two: ``qmp.sock`` for whoever wants it, and one that is colo's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from qemu.qmp import QMPError

from colo.config import VmConfig
from colo.config.vm import QemuArgs
from colo.errors import GuestError
from colo.qemu.accelerator import Outcome, try_kvm
from colo.qemu.command_line import (
    largest_first,
    named_accelerators,
    with_files,
    with_open_taps,
)
from colo.qemu.monitor import QmpMonitor
from colo.qemu.options import escape
from colo.qemu.preload import CLOCK_LIBRARY, TCG_LIBRARY, needs_preload

__all__ = [
    "NOT_LARGEST_FIRST",
    "LaunchPlan",
    "Qemu",
    "plan",
    "version_of",
    "working_accelerator",
]

#: What is told where ``largest_first`` names one.
NOT_LARGEST_FIRST: Final = (
    "under TCG QEMU would end at its first checkpoint, as its first memory backend is not the "
    "largest: have the -object of {} before the others, in [qemu] args and where QEMU is started"
)

_log = logging.getLogger("colo.qemu")

_NONE_OPEN: Final[Mapping[str, int]] = MappingProxyType({})
_START_S: Final = 20.0
_LAST_WORDS: Final = 600  # bytes


def version_of(binary: str) -> tuple[int, int]:
    """Return QEMU's major and minor version.  Raises GuestError with what is wrong."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_START_S, check=False
        )
    except FileNotFoundError:
        raise GuestError(f"there is no {binary}: install QEMU, or set [qemu] binary") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{binary} does not run: {error}") from error
    words = done.stdout.split()
    try:
        major, minor = words[words.index("version") + 1].split(".")[:2]
        return int(major), int(minor)
    except (ValueError, IndexError):
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise GuestError(f"{binary} is no QEMU", said) from None


@dataclass(frozen=True)
class LaunchPlan:
    """What a VM file comes to on this machine: the same for each start of its QEMU."""

    config: VmConfig
    version: tuple[int, int]
    accelerator: str
    accelerator_args: tuple[str, ...]
    environment: dict[str, str]

    def waiting(
        self,
        images: Mapping[str, Path],
        is_shared: bool = True,
        taps: Mapping[str, int] = _NONE_OPEN,
    ) -> list[str]:
        """The command line of a QEMU that waits for a VM.

        ``images``: the files that are its memory, by the names of their blocks; where it is not
        ``is_shared``, they do not get what it writes.  ``taps``: those that are open already.
        """
        paths = [disk.secondary for disk in self.config.disks]
        command = self._machine(self.config.qemu.secondary.args, paths)
        files = {name: str(path) for name, path in images.items()}
        command = with_open_taps(command, taps)
        return [*with_files(command, files, is_shared), "-incoming", "defer"]

    def primary(self) -> list[str]:
        """The command line of a QEMU that runs the VM."""
        paths = [disk.primary for disk in self.config.disks]
        return self._machine(self.config.qemu.primary.args, paths)

    def unstarted(self) -> list[str]:
        """The same, but the VM stands before its first instruction until ``cont``."""
        return [*self.primary(), "-S"]

    def _machine(self, role_args: Sequence[str], paths: Sequence[Path]) -> list[str]:
        qemu = self.config.qemu
        disks = zip(self.config.disks, paths, strict=True)
        nodes = [word for disk, at in disks for word in ("-blockdev", _blockdev(disk.id, at))]
        return [qemu.binary, *qemu.args, *role_args, *nodes, *self.accelerator_args]


def _blockdev(name: str, path: Path) -> str:
    return json.dumps(disk_node(name, path))


def disk_node(name: str, path: Path) -> dict[str, Any]:
    """The block node for the disk at ``path``; what is in it does not say its format."""
    is_device = path.is_block_device()
    return {
        "node-name": name,
        "driver": "qcow2" if path.suffix == ".qcow2" else "raw",
        "discard": "unmap",
        "detect-zeroes": "unmap",
        "file": {"driver": "host_device" if is_device else "file", "filename": str(path)},
    }


def plan(config: VmConfig, say: Callable[[str], None] = _log.warning) -> LaunchPlan:
    """Work out how to start this VM's QEMU here: version, accelerator, libraries.

    ``say`` is told of what it has to do without.

    Takes 5 seconds and more where KVM is there and does not work.  Raises GuestError; also where
    KVM is wanted and does not work, as QEMU would call such a VM running.
    """
    version = version_of(config.qemu.binary)
    named = named_accelerators(config.qemu.args)
    accelerator = working_accelerator(config.qemu)
    first = largest_first(config.qemu.args) if accelerator == "tcg" else None
    if first is not None:
        raise GuestError(NOT_LARGEST_FIRST.format(first))
    libraries = []
    if needs_preload(version[0], accelerator, len(config.backends)):
        libraries.append(str(TCG_LIBRARY.built()))
    try:
        libraries.append(str(CLOCK_LIBRARY.built()))
    except GuestError as error:
        say(f"{config.name}: the guest's clock loses the time that checkpoints take: {error}")
    environment = dict(os.environ)
    libraries += filter(None, [environment.get("LD_PRELOAD")])
    if libraries:
        environment["LD_PRELOAD"] = ":".join(libraries)
    args = () if named else ("-accel", accelerator)
    return LaunchPlan(config, version, accelerator, args, environment)


def working_accelerator(qemu: QemuArgs) -> str:
    """The accelerator that QEMU will take, of those named, or that colo takes.

    Takes 5 seconds and more where KVM is there and does not work.  Raises GuestError where one is
    wanted that does not work.
    """
    named = named_accelerators(qemu.args)
    wanted = named or {"auto": ("kvm", "tcg")}.get(qemu.accel, (qemu.accel,))
    if wanted[0] != "kvm":
        return wanted[0]
    outcome = try_kvm(qemu.binary, qemu.args)
    if outcome is Outcome.WORKS:
        return "kvm"
    # QEMU itself takes the next one named only where KVM cannot be opened.
    if wanted[1:] and (outcome is Outcome.CLOSED or not named):
        return wanted[1]
    raise GuestError(
        f"KVM is wanted ({'[qemu] args' if named else '[qemu] accel'}) and does not work on this "
        f"host: {outcome.value}: mend that, or use another host, or have TCG on both "
        "hosts (-accel tcg)"
    )


class Qemu(QmpMonitor):
    """A QEMU that colo starts, and its QMP connection.

    ``folder`` gets ``qmp.sock``, ``colo-qmp.sock``, ``qemu.pid`` and ``qemu.log``.  ``files``: open
    ones that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        files: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._files = files
        self._pid_file = folder / "qemu.pid"
        self._log = folder / "qemu.log"
        self._log_start = 0
        self._own_socket = folder / "colo-qmp.sock"
        self._environment = environment
        self.qmp_socket = folder / "qmp.sock"
        self.command = [*command, *self._monitors()]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the process and connect to its QMP.  Raises GuestError with its last words.

        Whatever happens meanwhile, an order to end too: no process is left then.
        """
        for socket in (self.qmp_socket, self._own_socket):
            socket.unlink(missing_ok=True)
        self._process = self._launch()
        self._watch(self._process.pid)
        try:
            self._write_pid()
            async with asyncio.timeout(_START_S):
                await self._connect()
            for socket in (self.qmp_socket, self._own_socket):
                socket.chmod(0o600)  # QEMU keeps the umask that its user gave it for its own files
        except TimeoutError:
            await self.kill()
            raise GuestError(
                f"QEMU did not open its QMP socket within {_START_S:.0f} s", self.last_words()
            ) from None
        except BaseException:
            await self.kill()
            raise

    def _launch(self) -> subprocess.Popen[bytes]:
        try:
            with open(self._log, "ab", opener=_private) as log:
                self._log_start = log.tell()
                return subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                    pass_fds=tuple(self._files),
                )
        except OSError as error:
            raise GuestError(
                f"cannot start {self.command[0]}, with its log {self._log}: {error.strerror}"
            ) from error

    def _write_pid(self) -> None:
        try:
            self._pid_file.unlink(missing_ok=True)  # one that is there may be open to others
            with open(self._pid_file, "w", opener=_private) as file:
                file.write(f"{self.pid}\n")
        except OSError as error:
            raise GuestError(f"{self._pid_file}: {error.strerror}") from error

    def _clear(self) -> None:
        """Remove what belongs to the process that has ended, and not to the next one."""
        with contextlib.suppress(OSError):
            pid = self._pid_file.read_text().strip() if self._pid_file.exists() else ""
            if pid in ("", str(self.pid)):  # "": it could not be written
                for path in (self.qmp_socket, self._own_socket, self._pid_file):
                    path.unlink(missing_ok=True)

    async def wait(self) -> str:
        """Wait for the process to end; say how it did."""
        await super().wait()
        assert self._process is not None
        return _how_it_ended(self._process.returncode)

    async def kill(self) -> None:
        """End the process and wait for that; at once and without asking it.

        Its files go too, but for its log.
        """
        if self._process is not None and not self.exited:
            self._process.send_signal(signal.SIGKILL)
            await super().wait()
        if self._process is not None:
            self._clear()
        await self.detach()

    def move_to(self, folder: Path) -> None:
        """Have its sockets, its log and its pid in another folder.  Raises OSError."""
        for name in ("_own_socket", "qmp_socket", "_log", "_pid_file"):
            path: Path = getattr(self, name)
            path.replace(folder / path.name)
            setattr(self, name, folder / path.name)

    def last_words(self) -> str:
        """The end of what the process wrote, as one line; empty where it wrote nothing."""
        try:
            written = self._log.read_bytes()[self._log_start :]
        except OSError:
            return ""
        tail = written[-_LAST_WORDS:].decode(errors="replace").splitlines()
        return " / ".join(line.strip() for line in tail[-3:] if line.strip())

    async def _connect(self) -> None:
        while not self.exited:
            with contextlib.suppress(QMPError, OSError):
                await self.qmp.connect(str(self._own_socket))
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 0.02)
        await self.detach()
        raise GuestError(f"QEMU did not start: {await self.wait()}", self.last_words())

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()

    def _monitors(self) -> list[str]:
        return [
            part
            for socket in (self.qmp_socket, self._own_socket)
            for part in ("-qmp", f"unix:{escape(socket)},server=on,wait=off")
        ]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"it ended with code {code}"
    return f"it was killed by {signal.Signals(-code).name}"
