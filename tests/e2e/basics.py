"""What every scenario on real QEMU stands on: waits with an end, a console, QMP, colo itself."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = [
    "ACCEL",
    "LINE",
    "POLL_S",
    "ROOT",
    "SLOWNESS",
    "TAIL_LINES",
    "WAIT_S",
    "Console",
    "Moment",
    "colo",
    "counts",
    "qmp",
    "wait",
]

ROOT: Final = Path(__file__).parents[2]
#: On a machine within a machine everything takes longer.
SLOWNESS: Final = float(os.environ.get("COLO_E2E_SLOWNESS", "1"))
#: Under which accelerator guests run.
ACCEL: Final = os.environ.get("COLO_E2E_ACCEL", "tcg")
WAIT_S: Final = 60.0 * SLOWNESS
POLL_S: Final = 0.02
TAIL_LINES: Final = 12
LINE: Final = re.compile(r"colo-guest: count=(\d+) updates=(\d+) sweeps=(\d+)\r?\n")

T = TypeVar("T")


def wait(condition: Callable[[], T], what: str, seconds: float = WAIT_S) -> T:
    """Wait until ``condition`` is truthy, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(POLL_S)
    return result


@dataclass(frozen=True)
class Moment:
    """The guest's CLOCK_MONOTONIC, in seconds, between two moments of the host's."""

    earliest: float
    latest: float
    guest: float


class Console:
    """One side's serial console: all that the guest said is in ``log``; ``path`` is its socket."""

    def __init__(self, folder: Path, name: str) -> None:
        self.log = folder / f"{name}.console"
        self.path = folder / f"{name}.serial"

    @property
    def args(self) -> list[str]:
        """QEMU's arguments for it."""
        chardev = f"socket,id=console,path={self.path},server=on,wait=off,logfile={self.log}"
        return ["-chardev", chardev, "-serial", "chardev:console"]

    def text(self) -> str:
        """What the guest has said up to now."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def lines(self) -> list[tuple[int, int]]:
        """Count and sweeps of each whole line."""
        return counts(self.text())

    def last(self) -> int:
        """The last count; 0 if there is none."""
        lines = self.lines()
        return lines[-1][0] if lines else 0

    def wait_count(self, count: int) -> None:
        """Wait until the guest has counted so far."""
        wait(lambda: self.last() >= count, f"count {count} on {self.log.name}")

    def wait_progress(self, more: int = 5) -> None:
        """Wait until the guest has counted on."""
        self.wait_count(self.last() + more)

    def ask(self, order: str, answer: str) -> re.Match[str]:
        """Type an order at the console, and wait for this answer or for a complaint."""
        wanted, said = re.compile(answer), ""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT_S)
            sock.connect(str(self.path))
            sock.sendall(f"{order}\n".encode())
            while (found := wanted.search(said)) is None:
                assert "CORRUPT" not in said, said[-500:]
                data = sock.recv(4096)
                assert data, f"the console closed after {said!r}"
                said += data.decode(errors="replace")
        return found

    def clock(self) -> Moment:
        """What the guest's clock shows."""
        before = time.monotonic()
        found = self.ask("clock", r"clock monotonic=(\d+) realtime=(\d+)\r?\n")
        return Moment(before, time.monotonic(), int(found[1]) / 1e9)

    def verify(self) -> None:
        """Have the guest check all of its memory at once, and then in two whole sweeps."""
        self.ask("verify", "verified records=")
        sweeps = self.lines()[-1][1] if self.lines() else 0
        wait(
            lambda: "CORRUPT" in self.text() or self.lines()[-1][1] >= sweeps + 2,
            f"two more sweeps on {self.log.name}",
        )
        assert "CORRUPT" not in self.text(), self.text()[-500:]


def counts(text: str) -> list[tuple[int, int]]:
    """Count and sweeps of each whole line in a console's text."""
    return [(int(found[1]), int(found[3])) for found in LINE.finditer(text)]


def listens(path: Path) -> bool:
    """Whether somebody listens at a socket: one that is bound may not do so yet."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def qmp(path: Path, command: str, /, **arguments: Any) -> Any:
    """Execute one QMP command; underscores in names stand for dashes."""
    names = {key.replace("_", "-"): value for key, value in arguments.items()}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(path))
        with sock.makefile("rw") as stream:
            stream.readline()
            for name, given in (("qmp_capabilities", {}), (command, names)):
                stream.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
                while "return" not in answer and "error" not in answer:
                    answer = json.loads(stream.readline())
            assert "return" in answer, f"{command}: {answer}"
            return answer["return"]


def colo() -> str:
    """The real command line, beside the Python that runs the tests."""
    return str(Path(sys.executable).with_name("colo"))
