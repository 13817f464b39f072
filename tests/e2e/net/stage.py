"""What the scenarios with a network are played with: two hosts, a client, and a guest between.

The hosts and the client are the boxes of a lab.  A stage has one guest with a MAC and an address
that no other stage of this run has, one short folder, and a VM file for each colo that is
started.  What a client says at its end is the judge.  Waits are polls with an end, and say what
they waited for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colo.config import load
from colo.demo.guest_image import KERNEL_WORDS, build
from colo.demo.lab import LAN_PREFIX, REPLICATION_ADDRESS, Lab, Place
from colo.qemu.process import plan
from tests.e2e.basics import ACCEL, ROOT, SLOWNESS, TAIL_LINES, Console, listens, qmp, wait

__all__ = ["OTHER", "Client", "Colo", "Ears", "Stage", "Vm", "alive", "kill"]

#: Everything here shares two busy cores with whatever else runs on them.
WAIT_S: Final = 90.0 * SLOWNESS
END_S: Final = 30.0
SILENCE_S: Final = 40.0
PORT: Final = 9000
POWER_PORT: Final = 7006
OTHER: Final = {Place.HOST_A: Place.HOST_B, Place.HOST_B: Place.HOST_A}
HERE: Final = Path(__file__).parent

_numbers = itertools.count(10)


@dataclass(frozen=True)
class Vm:
    """What goes into a stage's VM files; ``options`` is TOML behind its ``[qemu]`` tables.

    ``words``: more for the guest's kernel.  ``top``: TOML before all tables.
    """

    mode: str = "serve"
    memory_mib: int = 128
    guest: bool = True
    nics: tuple[str, ...] = ("virtio-net-pci",)
    args: tuple[str, ...] = ("-no-reboot",)
    arbiter: str = ""
    options: str = ""
    words: str = ""
    top: str = ""


class Colo:
    """A colo on one host, and its state folder."""

    def __init__(self, name: str, place: Place, stage: Stage) -> None:
        self.name = name
        self.place = place
        self.state = stage.folder / name
        self.file = stage.folder / f"{name}.toml"
        self.log = stage.folder / f"{name}.log"
        self.console = Console(stage.folder, name)
        self._stage = stage
        self._process: subprocess.Popen[Any] | None = None

    def start(self, command: str, *options: str, entry: tuple[str, ...] = ("-m", "colo")) -> None:
        """Start it; ``entry`` is what the Python that runs the tests gets first."""
        arguments = [*entry, command, str(self.file), "--state-dir", str(self.state), *options]
        with self.log.open("ab") as log:
            self._process = self._stage.lab.start(
                self.place, sys.executable, *arguments, stdout=log, stderr=log, cwd=ROOT
            )
        self._stage.processes.append(self._process)

    @property
    def pid(self) -> int:
        """The id of the colo process."""
        assert self._process is not None
        return self._process.pid

    def qemu_pid(self) -> int:
        """The id of the QEMU that runs the VM or waits for it."""
        return int((self.state / "qemu.pid").read_text())

    def signal(self, number: int) -> None:
        """Send the colo process a signal."""
        os.kill(self.pid, number)

    def wait_exit(self) -> int:
        """Wait for its end and return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end; it said: {self.text()}") from None

    def has_ended(self) -> bool:
        """Whether the colo process has ended."""
        return self._process is not None and self._process.poll() is not None

    def text(self) -> str:
        """All that it told its user."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def said(self, text: str) -> list[str]:
        """The lines of it that contain ``text``."""
        return [line for line in self.text().splitlines() if text in line]

    def wait_said(self, text: str, times: int = 1) -> str:
        """Wait until it has said so that often; return the last such line."""
        wait(
            lambda: len(self.said(text)) >= times or self.has_ended(),
            f"{self.name} to say {text!r}",
            WAIT_S,
        )
        lines = self.said(text)
        assert len(lines) >= times, f"{self.name} ended: {self.text()}"
        return lines[-1]

    def status(self) -> dict[str, Any]:
        """The status file; empty where there is none yet."""
        path = self.state / "status.json"
        content = json.loads(path.read_text()) if path.exists() else {}
        assert isinstance(content, dict)
        return content

    def state_name(self) -> str:
        """The state in the status file."""
        return str(self.status().get("state"))

    def wait_state(self, *states: str) -> dict[str, Any]:
        """Wait for one of these states; return the status."""
        found = wait(
            lambda: self.state_name() in states or self.has_ended(),
            f"{self.name} in state {' or '.join(states)}, it is {self.state_name()}",
            WAIT_S,
        )
        status = self.status()
        assert found and status["state"] in states, f"{self.name} is {status['state']}"
        return status

    def checkpoint(self) -> int:
        """The number of the last checkpoint; 0 where there is none."""
        return int(self.status().get("checkpoint") or 0)

    def wait_checkpoints(self, more: int = 5) -> None:
        """Wait until there are so many more than now."""
        goal = self.checkpoint() + more
        wait(lambda: self.checkpoint() >= goal, f"checkpoint {goal} of {self.name}", WAIT_S)

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run another colo command on this state folder."""
        return subprocess.run(
            [sys.executable, "-m", "colo", command, "--state-dir", str(self.state), *options],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def qmp(self, command: str, /, **arguments: Any) -> Any:
        """Execute a QMP command on the socket that is anyone's."""
        return qmp(self.state / "qmp.sock", command, **arguments)


class Client:
    """One of the demo's clients, at the client's box: one TCP connection for its whole life."""

    def __init__(self, lab: Lab, kind: str, address: str, log: Path, *options: str) -> None:
        self.kind = kind
        self.log = log
        self.process = lab.start(
            Place.CLIENT,
            *(sys.executable, "-m", "colo.demo.clients", kind, address),
            *("--json", "--log", str(log), "--silence", str(SILENCE_S), *options),
            stdout=subprocess.PIPE,
        )

    def heard(self) -> int:
        """How often something came."""
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait_heard(self, more: int = 20) -> None:
        """Wait until something came so many times more."""
        goal = self.heard() + more
        wait(
            lambda: self.heard() >= goal or self.ended(),
            f"the client {self.kind} to go on from {goal - more} to {goal}",
            WAIT_S,
        )
        assert self.heard() >= goal, f"the client {self.kind} has ended: {self.verdict()}"

    def first(self) -> int:
        """The number that came first."""
        number = json.loads(self.log.read_text().partition("\n")[0])["n"]
        assert isinstance(number, int)
        return number

    def verdict(self) -> dict[str, Any]:
        """End it, and have its verdict."""
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=WAIT_S)
        content = json.loads(output)
        assert isinstance(content, dict)
        content.pop("gaps", None)
        return content

    def check(self) -> dict[str, Any]:
        """End it and see that nothing was missing, doubled or wrong."""
        verdict = self.verdict()
        assert verdict["ok"], f"the client {self.kind}: {verdict}"
        return verdict


class Ears:
    """Hears what a VM says on its tap: frames that come out of QEMU."""

    def __init__(self, log: Path, mac: str) -> None:
        self.log = log
        self.mac = mac

    def heard(self) -> int:
        """How many frames it has heard."""
        return self.log.read_text().count("\n") - 1


class Stage:
    """One guest, its clients and its colos; ``close`` ends all of it."""

    def __init__(self, lab: Lab, binary: str, vm: Vm = Vm()) -> None:
        self.lab = lab
        self.vm = vm
        self.folder = Path(tempfile.mkdtemp(prefix="colo-net-"))
        self.grant = self.folder / "grant"
        self.colos: list[Colo] = []
        self.processes: list[subprocess.Popen[Any]] = []
        self.binary = binary
        self._number = next(_numbers)
        self.address = f"10.77.0.{self._number}"
        self.mac = f"52:54:00:77:00:{self._number:02x}"

    # -- VM files -------------------------------------------------------------------------

    def args(self, vm: Vm | None = None) -> list[str]:
        """QEMU's arguments that define the machine."""
        vm = vm or self.vm
        args = ["-machine", "pc", "-cpu", "qemu64", "-m", str(vm.memory_mib), "-nodefaults"]
        args += ["-display", "none"]
        if vm.guest:
            image = build(ROOT / "build" / "guest", lambda line: None)
            words = f"{KERNEL_WORDS} colo.mode={vm.mode} colo.ip={self.address}/{LAN_PREFIX}"
            words = f"{words} {vm.words}".rstrip()
            args += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
            args += ["-append", words]
        for index, nic in enumerate(vm.nics):
            tap = f"tap,id=n{index},ifname=tap{index},script=no,downscript=no"
            mac = self.mac.replace("77:00", f"77:{index:02x}")
            args += ["-netdev", tap, "-device", f"{nic},netdev=n{index},mac={mac}"]
        return [*args, *vm.args]

    def colo(self, name: str, place: Place, vm: Vm | None = None, vm_name: str = "") -> Colo:
        """A colo that is not started yet, and its VM file."""
        made = Colo(name, place, self)
        vm = vm or self.vm
        made.file.write_text(
            f"name = {json.dumps(vm_name or self.folder.name)}\n{vm.top}\n"
            f'[qemu]\nbinary = {json.dumps(self.binary)}\naccel = "{ACCEL}"\n'
            f"args = {json.dumps(self.args(vm))}\n"
            f"[qemu.primary]\nargs = {json.dumps(made.console.args)}\n"
            f"[qemu.secondary]\nargs = {json.dumps(made.console.args)}\n"
            f"[failover]\narbiter = {json.dumps(vm.arbiter or f'file:{self.grant}')}\n"
            f"{vm.options}\n"
        )
        self.colos.append(made)
        return made

    # -- who plays ------------------------------------------------------------------------

    def secondary(self, name: str = "b", place: Place = Place.HOST_B, *options: str) -> Colo:
        """A ``colo secondary`` that listens."""
        made = self.colo(name, place)
        made.start("secondary", "--listen", at(place), *options)
        made.wait_said("waiting for a primary")
        return made

    def run(self, name: str = "a", *options: str, **how: Any) -> Colo:
        """A ``colo run`` on host A whose guest has booted."""
        made = self.colo(name, Place.HOST_A)
        made.start("run", "--to", at(Place.HOST_B), *options, **how)
        self.wait_booted(made)
        return made

    def protect(self, name: str, place: Place, qmp: Path, *options: str, to: str = "") -> Colo:
        """A ``colo primary`` for a QEMU that runs at ``place``."""
        made = self.colo(name, place)
        to = to or at(OTHER[place])
        made.start("primary", "--qmp", f"unix:{qmp}", "--to", to, *options)
        return made

    def protected(self, *options: str, **how: Any) -> tuple[Colo, Colo]:
        """A primary with ``colo run`` on host A, and its secondary on host B."""
        primary = self.run("a", *options, **how)
        secondary = self.secondary()
        primary.wait_state("PROTECTED")
        return primary, secondary

    def qemu(self, name: str, *options: str, ready: bool = True, without: str = "") -> Colo:
        """A QEMU on host A that somebody started by hand; not a colo, but with its folder.

        ``without``: a library that colo would give it, by its name.
        """
        made = self.colo(name, Place.HOST_A)
        made.state.mkdir()
        launch = plan(load(made.file))
        sockets = [made.state / "qmp.sock", made.state / "second.sock"]
        monitors = [f"unix:{path},server=on,wait=off" for path in sockets]
        command = [*launch.primary(), *options, "-qmp", monitors[0], "-qmp", monitors[1]]
        libraries = launch.environment["LD_PRELOAD"].split(":")
        given = [path for path in libraries if not without or without not in path]
        environment = {**launch.environment, "LD_PRELOAD": ":".join(given)}
        with (made.state / "qemu.log").open("ab") as log:
            process = self.lab.start(made.place, *command, stdout=log, stderr=log, env=environment)
        self.processes.append(process)
        (made.state / "qemu.pid").write_text(f"{process.pid}\n")
        wait(lambda: listens(sockets[1]) or process.poll() is not None, "QEMU to start")
        assert process.poll() is None, (made.state / "qemu.log").read_text()
        if ready and self.vm.guest:
            self.wait_booted(made)
        return made

    def stock_secondary(self, name: str) -> Colo:
        """A stock QEMU on host B that waits for a primary; no network hears its VM."""
        made = self.colo(name, Place.HOST_B)
        made.state.mkdir()
        path = made.state / "qmp.sock"
        launch = plan(load(made.file))
        tap = f"s{self._number}-{name}"
        self.lab.run(made.place, "ip", "tuntap", "add", "dev", tap, "mode", "tap")
        self.lab.run(made.place, "ip", "link", "set", tap, "up")
        command = [word.replace("ifname=tap0", f"ifname={tap}") for word in launch.primary()]
        command += ["-incoming", "defer", "-qmp", f"unix:{path},server=on,wait=off"]
        with (made.state / "qemu.log").open("ab") as log:
            process = self.lab.start(
                made.place, *command, stdout=log, stderr=log, env=launch.environment
            )
        self.processes.append(process)
        (made.state / "qemu.pid").write_text(f"{process.pid}\n")
        wait(lambda: listens(path) or process.poll() is not None, "QEMU to start")
        assert process.poll() is None, (made.state / "qemu.log").read_text()
        names = ["x-colo", *(["return-path"] if launch.version >= (11, 0) else [])]
        capabilities = [{"capability": each, "state": True} for each in names]
        made.qmp("migrate-set-capabilities", capabilities=capabilities)
        made.qmp("migrate-incoming", uri=at(made.place))
        return made

    def wait_booted(self, on: Colo) -> None:
        """Wait until the guest counts on a console: its services are there then."""
        wait(
            lambda: "count=" in on.console.text() or on.has_ended(),
            f"the guest to boot; {on.name} said: {on.text()}",
            WAIT_S,
        )
        assert not on.has_ended(), on.text()

    def client(self, kind: str, *options: str, heard: int = 3) -> Client:
        """A client of the guest that has heard it."""
        number = sum(1 for _ in self.folder.glob("client*.jsonl"))
        log = self.folder / f"client{number}-{kind}.jsonl"
        client = Client(self.lab, kind, self.address, log, *options)
        self.processes.append(client.process)
        client.wait_heard(heard)
        return client

    def ears(self, place: Place, tap: str = "tap0") -> Ears:
        """Ears at a VM's tap."""
        log = self.folder / f"ears-{place.name}-{len(self.processes)}"
        with log.open("wb") as output:
            command = (sys.executable, str(HERE / "ears.py"), tap, self.mac)
            self.processes.append(self.lab.start(place, *command, stdout=output))
        wait(lambda: log.read_text().startswith("listening\n"), "the ears to listen")
        return Ears(log, self.mac)

    def order_guest(self, order: str) -> None:
        """Have the guest power off or reboot, from inside."""
        script = (
            f"import socket; s = socket.create_connection(('{self.address}', {POWER_PORT}), 30); "
            f"s.sendall(b'{order}\\n'); s.settimeout(5); "
            "exec('try: s.recv(1)\\nexcept OSError: pass')"
        )
        self.lab.run(Place.CLIENT, sys.executable, "-c", script, seconds=WAIT_S)

    def kill(self, host: Colo, qemu: bool = True, colo: bool = True) -> None:
        """SIGKILL to colo and QEMU of a host; colo first: it is quick to say that QEMU is dead."""
        kill(*([host.pid] if colo else []), *([host.qemu_pid()] if qemu else []))

    # -- the end --------------------------------------------------------------------------

    def tails(self) -> str:
        """The ends of all logs."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.console")]
        paths += self.folder.glob("*/*.log")
        text = f"folder {self.folder}, guest {self.address}\n"
        for path in sorted(paths):
            lines = path.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            text += f"--- {path.relative_to(self.folder)}\n"
            text += "".join(f"{line[:300]}\n" for line in lines)
        return text

    def close(self) -> None:
        """Kill all that runs in the lab: it is ours alone; then remove what it left."""
        try:
            self.lab.kill_inhabitants()
            for process in self.processes:
                process.kill()
                process.wait(END_S)
                if process.stdout is not None:
                    process.stdout.close()
        finally:
            for store in Path("/dev/shm").glob(f"*{self.folder.name}*"):
                shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree(self.folder)


@contextlib.contextmanager
def opened(stage: Stage) -> Iterator[Stage]:
    """``with``: a stage, closed at the end."""
    try:
        yield stage
    finally:
        stage.close()


def kill(*pids: int) -> None:
    """SIGKILL to all of these, as close together as it gets."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def at(place: Place) -> str:
    """Where a secondary on this host listens."""
    return f"tcp:{REPLICATION_ADDRESS[place]}:{PORT}"


def alive(pid: int) -> bool:
    """Whether a process runs: not a zombie, which only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left_in_qemu(path: Path) -> list[str]:
    """What there is of colo's in a QEMU."""
    names = [str(each["name"]) for each in qmp(path, "qom-list", path="/objects")]
    names += [str(each["label"]) for each in qmp(path, "query-chardev")]
    return [name for name in names if name.startswith("colo-")]
