"""``colo node`` on two hosts: how long it takes to notice, to take over, and to be protected again.

The three are read from host B's log, what the client misses from the client.  Host A's colo begins
anew at once where it was killed, as a service manager has it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from bench.network import Kind, Scene, scene_of
from bench.stats import summarise
from bench.vm import wait_until
from colo.demo.lab import Place

__all__ = ["KINDS", "measure"]

_CUT_OFF: Final = "host cut off"
#: A host is cut off from the other one and from the arbiter, which is an etcd in the network.
KINDS: Final = (
    *("QEMU killed", "host killed", "host silent", "switchover"),
    *([_CUT_OFF] if shutil.which("etcd") else []),
)
_ETCD: Final = "10.78.0.3"
_START_S: Final = 90.0
_AGAIN_S: Final = 60.0
_LINES: Final = 900
_LINE: Final = re.compile(r"^(\S+ \S+) colo bench: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class _Times:
    """Milliseconds."""

    noticed: float
    taken_over: float
    protected_again: float
    gap: float


def measure(binary: str, kind: str, runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Have it happen ``runs`` times, each on a VM of its own and at another moment."""
    times = []
    for number in range(runs):
        times.append(_one_run(binary, kind, number / runs))
        say(f"  {times[-1]}")
    return {
        "kind": kind,
        **{
            name: asdict(summarise([asdict(each)[name] for each in times], 1))
            for name in ("noticed", "taken_over", "protected_again", "gap")
        },
    }


def _one_run(binary: str, kind: str, offset: float) -> _Times:
    vm = Kind(arbiter=f"etcd:http://{_ETCD}:2379") if kind == _CUT_OFF else Kind()
    with scene_of(binary, vm) as scene, contextlib.ExitStack() as stack:
        if vm.arbiter:
            stack.enter_context(_etcd(scene))
        a = stack.enter_context(_node(scene, "a"))
        stack.enter_context(_node(scene, "b"))
        _protected(scene, "a", _START_S)
        console = scene.folder / "primary.console"
        wait_until("the guest", lambda: "ready" in console.read_text() or None, _START_S)
        client = scene.start_client("stream", "--count", str(_LINES), "--gap-ms", "60000")
        time.sleep(2 + offset)
        began = time.time()
        _happen(scene, kind, a, stack)
        log = scene.folder / "b" / "colo.log"
        again = wait_until("protection", lambda: _found(log, "PROTECTED by"), _AGAIN_S)
        lost, runs = _found(log, "the primary is lost"), _found(log, "RUNNING HERE")
        assert lost is not None and runs is not None
        gap = float(scene.verdict(client)["gap_ms_max"])
        noticed, taken, safe = lost - began, runs - lost, again - runs
        return _Times(noticed * 1e3, taken * 1e3, safe * 1e3, gap)


def _happen(scene: Scene, kind: str, a: subprocess.Popen[Any], stack: contextlib.ExitStack) -> None:
    qemu = int((scene.folder / "a" / "qemu.pid").read_text())
    match kind:
        case "QEMU killed":
            os.kill(qemu, signal.SIGKILL)
        case "host killed":
            for pid in (a.pid, qemu):  # colo would say that QEMU is dead
                os.kill(pid, signal.SIGKILL)
            a.wait()
            stack.enter_context(_node(scene, "a"))
        case "host silent":
            for pid in (qemu, a.pid):
                os.kill(pid, signal.SIGSTOP)
            log = scene.folder / "b" / "colo.log"
            wait_until("the takeover", lambda: _found(log, "RUNNING HERE"), _AGAIN_S)
            for pid in (qemu, a.pid):
                os.kill(pid, signal.SIGCONT)
        case "switchover":
            scene.order("a", "switchover")
        case _ if kind == _CUT_OFF:
            scene.lab.run(Place.SWITCH, "ip", "link", "set", "repl-a", "nomaster")
            log = scene.folder / "b" / "colo.log"
            wait_until("the takeover", lambda: _found(log, "RUNNING HERE"), _AGAIN_S)
            scene.lab.run(Place.SWITCH, "ip", "link", "set", "repl-a", "master", "replication")
        case _:
            raise AssertionError(kind)


@contextlib.contextmanager
def _etcd(scene: Scene) -> Iterator[None]:
    """One member, at the switch between the hosts."""
    for command in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{_ETCD}/24", "dev", "replication"),
    ):
        scene.lab.run(Place.SWITCH, "ip", *command)
    client, peer = f"http://{_ETCD}:2379", f"http://{_ETCD}:2380"
    with (scene.folder / "etcd.log").open("wb") as log:
        process = scene.lab.start(
            *(Place.SWITCH, "etcd", "--name", "one", "--data-dir", str(scene.folder / "etcd")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"one={peer}"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _node(scene: Scene, host: str) -> Iterator[subprocess.Popen[Any]]:
    """A ``colo node``, and the end of whatever QEMU it leaves."""
    with scene.node(host) as process:
        yield process
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((scene.folder / host / "qemu.pid").read_text()), signal.SIGKILL)


def _protected(scene: Scene, host: str, seconds: float) -> None:
    def is_so() -> bool | None:
        with contextlib.suppress(OSError, ValueError):
            return scene.status(host)["state"] == "PROTECTED" or None
        return None

    wait_until(f"protection on host {host}", is_so, seconds)


def _found(log: Path, text: str) -> float | None:
    """When this was first said, in seconds since the epoch."""
    with contextlib.suppress(OSError):
        for at, line in _LINE.findall(log.read_text(errors="replace")):
            if text in line:
                return datetime.strptime(at, "%Y-%m-%d %H:%M:%S.%f").timestamp()
    return None
