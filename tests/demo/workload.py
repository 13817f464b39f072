"""The guest's workload on this host, with a pseudo-terminal in the place of the serial port."""

from __future__ import annotations

import os
import random
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUTPUT_SECONDS_MAX = 60.0


class Console:
    """The test's end of the workload's console."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._unread = b""
        self.process = process

    def send(self, data: bytes) -> None:
        os.write(self._descriptor, data)

    def line(self) -> str:
        deadline = time.monotonic() + OUTPUT_SECONDS_MAX
        while b"\n" not in self._unread:
            readable, _, _ = select.select(
                [self._descriptor], [], [], max(0, deadline - time.monotonic())
            )
            assert readable, f"no output, so far {self._unread!r}"
            self._unread += os.read(self._descriptor, 4096)
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def line_with(self, text: str) -> str:
        while text not in (line := self.line()):
            pass
        return line


@contextmanager
def running(workload: Path, *options: str) -> Iterator[Console]:
    ours, theirs = os.openpty()
    try:
        command = [str(workload), f"--console={os.ttyname(theirs)}", *options]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                yield Console(ours, process)
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


@contextmanager
def serving(workload: Path, *options: str) -> Iterator[tuple[Console, int]]:
    """Run the workload's services; yield its console and its first port."""
    for _ in range(20):
        port = random.SystemRandom().randrange(20_000, 30_000)
        with running(workload, "--mode=serve", f"--port={port}", *options) as console:
            if (line := console.line()).startswith("colo-guest: cannot listen"):
                continue
            assert line == f"colo-guest: ready mode=serve port={port}"
            yield console, port
            return
    raise AssertionError("no free ports")
