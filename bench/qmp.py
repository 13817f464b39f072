"""A QMP client that disturbs as little as it can.

Events carry QEMU's own timestamps, so nothing is lost by reading them late: between two commands
they wait in the socket and nobody wakes up.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError

__all__ = ["Event", "Monitor"]

_CONNECT_S: Final = 20.0
_ANSWER_S: Final = 30.0
_RETRY_S: Final = 0.02


@dataclass(frozen=True)
class Event:
    """``at``: when it happened, in seconds, by the clock of time.time()."""

    name: str
    at: float


class Monitor:
    """A connection to the QMP socket at ``path``, which may still have to appear."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock = self._connect()
        self._sock.settimeout(_ANSWER_S)
        self._lines = self._sock.makefile("rb")
        self.events: list[Event] = []
        self._read()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command; all events until then are in ``events`` when it returns."""
        names = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._execute(command, names)

    def add_object(self, kind: str, name: str, properties: Mapping[str, Any]) -> None:
        """Add an object; its properties are called as they are, with hyphens or underscores."""
        self._execute("object-add", {"qom-type": kind, "id": name, **properties})

    def _execute(self, command: str, arguments: Mapping[str, Any]) -> Any:
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        try:
            self._sock.sendall(request + b"\n")
        except OSError as error:
            raise BenchError(f"{self._path}: {command}: {error}") from error
        while "return" not in (answer := self._read()):
            if "error" in answer:
                raise BenchError(f"QEMU refuses {command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_for(self, name: str) -> Event:
        """Wait for an event of that name, or take one that was read before."""
        while True:
            for event in self.events:
                if event.name == name:
                    return event
            self._read()

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._lines.close()
        self._sock.close()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise BenchError(f"{self._path}: QEMU did not answer: {error}") from error
        if not line:
            raise BenchError(f"{self._path}: QEMU has closed the connection")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            stamp = message["timestamp"]
            self.events.append(
                Event(message["event"], stamp["seconds"] + stamp["microseconds"] / 1e6)
            )
        return message

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + _CONNECT_S
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self._path))
                return sock
            except OSError as error:
                sock.close()
                if time.monotonic() > deadline:
                    raise BenchError(f"{self._path}: {error}") from error
                time.sleep(_RETRY_S)
