"""Two hosts, a client and the switch between them, on one machine.

    client 10.77.0.1 ──┐
                     switch          each box is a network namespace; lan and replication are
    host A  br0 ───────┤ lan         two bridges in the switch, and each line is a veth pair
     taps ──┘          │
    host B  br0 ───────┘             VMs have taps on their host's br0 and, on 10.77.0.0/24,
     taps ──┘                        any address but the client's
    host A  10.78.0.1 ─ replication ─ 10.78.0.2  host B

A namespace lives for as long as this process holds it open or something runs in it: it has no
name and no file, so that nothing is left, not even after SIGKILL, and labs do not meet.
A link is cut inside the switch: frames get lost, sockets stay open, and no host sees its own
interface go down, as where a cable breaks behind the next switch.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Final, Self

from colo.errors import LocalError

__all__ = [
    "CLIENT_ADDRESS",
    "LAN_PREFIX",
    "REPLICATION_ADDRESS",
    "Lab",
    "LabError",
    "Link",
    "Place",
    "enter",
    "needs",
    "obstacle",
]

CLIENT_ADDRESS: Final = "10.77.0.1"
LAN_PREFIX: Final = 24
_COMMAND_S: Final = 20.0
_CLEANUP_S: Final = 10.0
_TUN: Final = "/dev/net/tun"
_PROGRAMS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_IN_USER_NAMESPACE: Final = ("unshare", "--user", "--map-root-user")
_ENTERED: Final = "COLO_LAB_ENTERED"


class LabError(LocalError):
    """The lab cannot be set up here; the text says what is missing."""


class Place(Enum):
    """Where a command can run."""

    CLIENT = "client"
    HOST_A = "host A"
    HOST_B = "host B"
    SWITCH = "switch"


class Link(Enum):
    """What can be cut; the value is the switch's port and the bridge that it belongs to."""

    REPLICATION = ("repl-b", "replication")
    CLIENT = ("client", "lan")
    HOST_A = ("lan-a", "lan")
    HOST_B = ("lan-b", "lan")


#: The hosts' addresses on the replication network.
REPLICATION_ADDRESS: Final = {Place.HOST_A: "10.78.0.1", Place.HOST_B: "10.78.0.2"}
#: The switch's ports: the port and its bridge, and where the other end is, under which name.
_CABLES: Final = (
    ("client", "lan", Place.CLIENT, "eth0"),
    ("lan-a", "lan", Place.HOST_A, "lan"),
    ("lan-b", "lan", Place.HOST_B, "lan"),
    ("repl-a", "replication", Place.HOST_A, "replication"),
    ("repl-b", "replication", Place.HOST_B, "replication"),
)
_BRIDGE: Final = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"


def needs() -> str | None:
    """Return why no lab can be set up by this process, or None if one can be."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"a lab needs the program {program}: run 'apt-get install {package}'"
    if not os.path.exists(_TUN):
        return f"a lab needs {_TUN}: run 'modprobe tun' as root"
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"a lab needs {_TUN}, which this user must not open: run it as root"
    if not _works(["unshare", "--net", "true"]):
        return "a lab needs network namespaces, and this user must not make them: run it as root"
    return None


def obstacle() -> str | None:
    """Say why no lab can be set up here, in a user namespace neither; None if it can."""
    missing = needs()
    if missing is None:
        return None
    may_help = shutil.which("unshare") is not None and os.access(_TUN, os.R_OK | os.W_OK)
    if not may_help or _ENTERED in os.environ:
        return missing
    if not _works([*_IN_USER_NAMESPACE, "unshare", "--net", "true"]):
        return f"{missing} (nor does this system let it have a user namespace)"
    return None


def enter() -> None:
    """Make sure that a lab can be set up, by starting this very command again if need be.

    An ordinary user becomes root in a user namespace: the process is replaced, and runs from
    its beginning with the same id.  Call it before anything is begun.  Raises LabError where
    that is not allowed.
    """
    if needs() is None:
        return
    command = [*_IN_USER_NAMESPACE, "--", sys.executable, *sys.orig_argv[1:]]
    if (why := obstacle()) is not None:
        raise LabError(why)
    os.environ[_ENTERED] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)


class Lab:
    """A lab, from ``with`` to its end.  All that runs in it then is killed.

    ``taps`` are the names of the taps that each host gets.  Raises LabError.
    """

    def __init__(self, taps: Sequence[str] = ("tap0",)) -> None:
        self._taps = taps
        self._namespaces: dict[Place, int] = {}
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        missing = needs()
        if missing is not None:
            raise LabError(missing)
        try:
            for place in Place:
                self._namespaces[place] = _new_namespace()
            self._wire()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs in the lab and let go of it; once is enough, twice does no harm."""
        try:
            for process in self._started:  # one may not have moved in yet
                process.kill()
            self.kill_inhabitants()
            for process in self._started:
                process.wait(_CLEANUP_S)
            self._started.clear()
        finally:
            for namespace in self._namespaces.values():
                os.close(namespace)
            self._namespaces.clear()

    def prefix(self, place: Place) -> list[str]:
        """The beginning of a command line that runs the rest of it at ``place``.

        It replaces itself by that command: the process id, signals and exit code are its.
        """
        return ["nsenter", f"--net={self._path(place)}", "--"]

    def run(
        self, place: Place, *command: str, stdin: str | None = None, seconds: float = _COMMAND_S
    ) -> str:
        """Run a command at ``place`` and return its output.  Raises LabError where it fails."""
        try:
            done = subprocess.run(
                [*self.prefix(place), *command],
                input=stdin or "",
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(f"{place.value}: {error}") from error
        if done.returncode != 0:
            words = " / ".join(done.stderr.strip().splitlines()) or "it gave no reason"
            raise LabError(f"{place.value}: {' '.join(command)} failed: {words}")
        return done.stdout

    def start(self, place: Place, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command at ``place``; ``options`` are those of subprocess.Popen."""
        process = subprocess.Popen([*self.prefix(place), *command], **options)
        self._started.append(process)
        return process

    def add_tap(self, host: Place, name: str) -> None:
        """Add a tap to a host's bridge.

        Whether its frames have a virtio-net header is for QEMU to choose when it opens the tap
        (``vnet_hdr=on`` is its default), not for us.
        """
        self._ip(
            host,
            f"tuntap add dev {name} mode tap",
            f"link set {name} master br0",
            f"link set {name} up",
        )

    def cut(self, link: Link) -> None:
        """Lose all frames on ``link``, in both directions, until it is healed."""
        self._ip(Place.SWITCH, f"link set {link.value[0]} nomaster")

    def heal(self, link: Link) -> None:
        """Undo `cut`."""
        port, bridge = link.value
        self._ip(Place.SWITCH, f"link set {port} master {bridge}")

    @contextlib.contextmanager
    def severed(self, link: Link) -> Iterator[None]:
        """``with``: cut ``link``, and heal it at the end."""
        self.cut(link)
        try:
            yield
        finally:
            self.heal(link)

    def inhabitants(self) -> list[int]:
        """The ids of the processes that run in the lab."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
        return [pid for pid in pids if pid != os.getpid() and self._is_inhabitant(pid)]

    def _is_inhabitant(self, pid: int) -> bool:
        try:
            theirs = os.stat(f"/proc/{pid}/ns/net")
        except OSError:  # it has ended, or is not ours to look at
            return False
        ours = (os.fstat(namespace) for namespace in self._namespaces.values())
        return any(os.path.samestat(theirs, namespace) for namespace in ours)

    def _wire(self) -> None:
        for place in Place:
            switches = "/proc/sys/net/ipv6/conf/*/disable_ipv6"
            self.run(place, "sh", "-c", f"for f in {switches}; do echo 1 > $f; done 2>&-; true")
            self._ip(place, "link set lo up")
        for bridge in ("lan", "replication"):
            self._ip(Place.SWITCH, f"link add {bridge} {_BRIDGE}", f"link set {bridge} up")
        for port, bridge, place, name in _CABLES:
            self._ip(
                Place.SWITCH,
                f"link add {port} type veth peer name {name} netns {self._path(place)}",
                f"link set {port} master {bridge}",
                f"link set {port} up",
            )
            self._ip(place, f"link set {name} up")
        self._ip(Place.CLIENT, f"addr add {CLIENT_ADDRESS}/{LAN_PREFIX} dev eth0")
        for host, address in REPLICATION_ADDRESS.items():
            self._ip(host, f"link add br0 {_BRIDGE}", "link set lan master br0", "link set br0 up")
            self._ip(host, f"addr add {address}/{LAN_PREFIX} dev replication")
            for tap in self._taps:
                self.add_tap(host, tap)

    def _ip(self, place: Place, *commands: str) -> None:
        self.run(place, "ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def _path(self, place: Place) -> str:
        return f"/proc/{os.getpid()}/fd/{self._namespaces[place]}"

    def kill_inhabitants(self) -> None:
        """Kill all that runs in the lab, and what that has just begun; wait for its end.

        `LabError` where something does not end.
        """
        deadline = time.monotonic() + _CLEANUP_S
        while pids := self.inhabitants():  # again, for those that were being born
            for pid in pids:
                self._kill(pid)
            if time.monotonic() > deadline:
                raise LabError(f"these processes in the lab do not end: {pids}")

    def _kill(self, pid: int) -> None:
        """Kill an inhabitant and wait a little for its end."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                if self._is_inhabitant(pid):  # still, and not another one with its id
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], 1.0)
            finally:
                os.close(descriptor)


def _new_namespace() -> int:
    """Return a descriptor of a new network namespace."""
    command = ["unshare", "--net", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"\n")
            process.stdin.flush()
        if process.stdout.read(1) != b"\n":
            raise LabError("cannot make a network namespace")
        return os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)


def _works(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
