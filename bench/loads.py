"""Loads on the guest of a scene, and what a client says of each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.errors import BenchError
from bench.network import GUEST, Scene
from bench.vm import ROOT
from colo.demo.lab import Place

__all__ = ["BULK", "ECHO", "IDLE", "LOADS", "RATES", "REQUESTS", "Samples", "logged", "play"]

#: Samples by what they are.
Samples = dict[str, list[float]]

IDLE: Final = "idle"
ECHO: Final = "echo every 20 ms"
BULK: Final = "bulk out"
_CONNECTIONS: Final = "connections"
#: A client of the demo's and its options; of nothing, the guest is left alone.
LOADS: Final[dict[str, tuple[str, ...]]] = {
    IDLE: (),
    ECHO: ("echo", "--pause-ms", "20"),
    "echo without pause": ("echo",),
    "a new connection each": (_CONNECTIONS,),
    BULK: ("bulk",),
    "upload": ("sink",),
    "lines": ("stream",),
}
REQUESTS: Final = tuple(LOADS)[1:4]
RATES: Final = tuple(LOADS)[4:6]
_END_S: Final = 60.0
_SHOWN: Final = 200


def play(scene: Scene, load: str, seconds: float) -> Samples:
    """Have a client do that for so long.  Raises BenchError where it lost anything."""
    if load == IDLE:
        time.sleep(seconds)
        return {}
    kind, *words = LOADS[load]
    if kind == _CONNECTIONS:
        return {"round_trip_ms": _connect(scene, seconds)}
    log = scene.folder / "load.jsonl"
    if kind == "echo":
        words += ["--log", str(log)]
    verdict = scene.verdict(scene.start_client(kind, *words, "--seconds", str(seconds)))
    if kind == "echo":
        return {"round_trip_ms": [each["rtt_ms"] for each in logged(log)]}
    if kind == "stream":
        rate = verdict["lines"] / verdict["seconds"]
        return {"lines_per_s": [rate], "silence_ms": [verdict["gap_ms_max"]]}
    return {"mib_per_s": [verdict["mib_per_s"]]}


def logged(log: Path) -> list[dict[str, Any]]:
    """What a client has written down."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def _connect(scene: Scene, seconds: float) -> list[float]:
    command = [sys.executable, "-m", "bench.connections", GUEST, str(seconds)]
    pipe = subprocess.PIPE
    process = scene.lab.start(Place.CLIENT, *command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
    output, error = process.communicate(timeout=_END_S)
    if process.returncode:
        raise BenchError(f"the client failed: {error[-_SHOWN:]}")
    return [float(each) for each in json.loads(output)]
