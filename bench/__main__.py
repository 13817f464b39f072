"""``python -m bench``: measure on this machine, and write the figures down.

It takes some 50 minutes; ``--quick`` takes nine and proves little.  What ``big``, ``floor``,
``hybrid``, ``links``, ``many`` and ``pace`` measure takes hours more, and has to be asked for by
``--only``.  Let the machine do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import (
    checkpoint,
    clock,
    disks,
    floor,
    hosts,
    hybrid,
    links,
    machine,
    many,
    memory,
    network,
    pace,
    pauses,
    receive,
    replicas,
    takeover,
    wire,
)
from bench.errors import BenchError
from bench.merge import merge
from bench.plots import draw
from bench.render import render
from bench.ways import WAYS
from colo.qemu.accelerator import Outcome, try_kvm

__all__ = ["main"]

_NAMES: Final = (
    "pauses",
    "relay",
    "takeover",
    "memory",
    "costs",
    "gaps",
    "hosts",
    "clock",
    "disks",
    "stops",
    "replicas",
    "receive",
    "wire",
    "checkpoint",
)
#: What needs neither a QEMU nor rounds, and what it is called while it is measured.
_ALONE: Final[dict[str, tuple[str, Callable[[], Any]]]] = {
    "receive": ("receive path", receive.measure),
    "wire": ("coding pages for a slow link", wire.measure),
}
_ONLY_BY_NAME: Final = ("big", "floor", "hybrid", "links", "many", "pace")
_TRANSPORTS: Final = ("unix", "tcp")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    parser.add_argument("--quick", action="store_true", help="few and short runs")
    parser.add_argument("--qemu", metavar="VERSION", default="", help="only this one, as 7.2")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="how often each pair takes turns (5)"
    )
    parser.add_argument(
        "--only", choices=(*_NAMES, *_ONLY_BY_NAME), action="append", help="measure this"
    )
    parser.add_argument(
        "--render",
        type=Path,
        nargs=2,
        metavar=("JSON", "MD"),
        help="measure nothing: write the tables of JSON into MD, between its markers, and draw its "
        "plots into the folder «figures» beside it",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs=2,
        metavar=("NEW", "JSON"),
        help="measure nothing: put the parts of NEW into JSON, with their machine and day",
    )
    options = parser.parse_args()
    if options.render:
        return _render(*options.render)
    if options.merge:
        return _merge(*options.merge)
    text = ""
    try:
        rounds = 1 if options.quick else options.rounds
        for figures in _measure(options.qemu, options.only or _NAMES, rounds):
            text = json.dumps(figures, indent=1)
            if options.json:  # after each row: a run that is cut off keeps what it has
                options.json.write_text(text + "\n")
    except BenchError as error:
        _say(f"bench: {error}")
        return 1
    if not options.json:
        print(text)
    return 0


def _render(source: Path, target: Path) -> int:
    figures = json.loads(source.read_text())
    try:
        target.write_text(render(figures, target.read_text()))
        draw(figures, target.parent / "figures")
    except BenchError as error:
        _say(f"bench: {error}")
        return 1
    return 0


def _merge(new: Path, target: Path) -> int:
    try:
        figures = merge(json.loads(new.read_text()), json.loads(target.read_text()))
    except BenchError as error:
        _say(f"bench: {error}")
        return 1
    target.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measure(prefix: str, names: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the figures as they grow, the same dictionary each time; of QEMUs of this version."""
    qemus = {name: path for name, path in machine.qemus().items() if name.startswith(prefix)}
    if not qemus and set(names) - {*_ALONE, "checkpoint", "replicas"}:
        raise BenchError("no QEMU is here: install qemu-system-x86, or `make qemu11`")
    seconds, kills = 2.0 + min(8.0, 2.0 * rounds), max(3, 2 * rounds)
    figures: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
        "machine": machine.describe(),
    }
    for name in names:
        if name in _ALONE:
            _say(_ALONE[name][0])
            figures[name] = _ALONE[name][1]()
            yield figures
            continue
        if name == "replicas":
            _say("replicas of a disk")
            figures[name] = replicas.measure(rounds, 4 if rounds > 1 else 1, _say)
            yield figures
            continue
        figures[name] = []
        if name == "checkpoint":
            _say("checkpoints of a guest in memory")
            for row in checkpoint.measure(2 * rounds, _say):
                figures[name].append(row)
                yield figures
            continue
        for version, binary in qemus.items():
            for row in _measure_qemu(name, version, binary, rounds, seconds, kills):
                figures[name].append({"qemu": version, **row})
                yield figures


def _measure_qemu(
    name: str, version: str, binary: str, rounds: int, seconds: float, kills: int
) -> Iterator[dict[str, Any]]:
    if name == "memory":
        for by in memory.PRIMARIES:
            _say(f"memory, QEMU {version}, host A: {by}")
            yield memory.measure(binary, by, 2 * seconds)
    elif name == "costs":
        _say(f"costs for a client, QEMU {version}")
        yield network.measure_costs(binary, rounds, 60 * rounds, 16 * rounds, _say)
    elif name == "gaps":
        _say(f"a client's view of a takeover, QEMU {version}")
        yield network.measure_gaps(binary, kills, _say)
    elif name == "disks":
        _say(f"a guest that writes to its disk, QEMU {version}")
        yield disks.measure(binary, disks.WRITER, rounds, _say)
        if disks.SERVER_DISK.exists():
            _say(f"a database, QEMU {version}")
            yield disks.measure(binary, disks.SERVER, rounds, _say)
        else:
            _say("no database: `make server` builds its disk")
    elif name == "stops":
        _say(f"what a disk adds to a checkpoint, and to a takeover, QEMU {version}")
        yield {
            "idle": disks.measure_idle(binary, rounds, _say),
            "takeover": disks.measure_takeovers(binary, disks.IDLE, rounds, _say),
            "busy takeover": disks.measure_takeovers(binary, disks.WRITER, rounds, _say),
        }
    elif name == "hosts":
        for kind in hosts.KINDS:
            _say(f"two hosts, QEMU {version}, {kind}")
            yield hosts.measure(binary, kind, kills, _say)
    elif name == "clock":
        works = try_kvm(binary, ("-cpu", "qemu64")) is Outcome.WORKS
        for accel in ("tcg", "kvm") if works else ("tcg",):
            _say(f"the guest's clock, QEMU {version}, {accel}")
            yield from clock.measure(binary, accel, min(20.0, 5.0 * rounds), _say)
    elif name == "floor":
        for each in floor.CASES:
            _say(f"stopped time, QEMU {version}, {each.mode}, {each.pages} pages")
            major = int(version.partition(".")[0])
            yield floor.measure(binary, major, each, rounds, seconds, _say)
    elif name == "hybrid":
        _say(f"hybrid mode, QEMU {version}")
        yield hybrid.measure(binary, rounds, _say)
    elif name == "links":
        _say(f"links, QEMU {version}")
        yield from links.measure(binary, rounds, 60, 8, seconds, _say)
    elif name == "big":
        _say(f"big VMs, QEMU {version}")
        for size in many.BIG_MIB:
            for way in WAYS:
                yield many.measure_big(binary, size, way, rounds, _say)
    elif name == "many":
        _say(f"many VMs, QEMU {version}")
        for count in many.COUNTS:
            for way in WAYS:
                yield many.measure_many(binary, count, way, 10.0 + min(20.0, 10.0 * rounds), _say)
    elif name == "pace":
        _say(f"when a checkpoint is taken, QEMU {version}")
        yield from pace.measure(binary, rounds, 2.5 * seconds, _say)
    elif name == "relay":
        _say(f"relay, QEMU {version}, tcp, idle")
        case = pauses.CASES[0]
        yield pauses.measure(binary, "tcp", case, rounds, seconds, _say, rival="relay")
    elif name == "takeover":
        for size in takeover.SIZES_MIB:
            for mode in takeover.MODES:
                _say(f"takeover, QEMU {version}, {size} MiB, {mode}")
                yield takeover.measure(binary, size, mode, kills, _say)
    else:
        for case in pauses.CASES:
            for transport in _TRANSPORTS:
                _say(f"pauses, QEMU {version}, {transport}, {case.mode}")
                yield pauses.measure(binary, transport, case, rounds, seconds, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
