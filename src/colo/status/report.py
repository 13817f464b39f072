"""What ``colo status`` shows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from colo.errors import ColoError
from colo.membership.states import FINAL
from colo.status.figures import PHASES
from colo.store.image import mib
from colo.terminal import console, plain

__all__ = ["FRESH_S", "disks", "is_alive", "read_status", "render"]

#: A colo that runs writes its status several times a second.
FRESH_S: Final = 5.0
#: The states in which a colo ends: they are so afterwards too.
_LAST: Final = tuple(state.name for state in FINAL)
_COLOURS: Final = {
    "PROTECTED": "green",
    "KEEPING": "green",
    "RUNNING": "green",
    "UNPROTECTED": "yellow",
    "WAITING": "yellow",
    "CUT_OFF": "yellow",
    "REFUSED": "red",
    "LOST": "red",
    "ORPHANED": "red",
    "FENCED": "red",
}


def read_status(state_dir: Path) -> dict[str, Any]:
    """Read ``status.json``, and say in ``alive`` whether the colo that wrote it still runs.

    Raises ColoError where there is none, or something else.
    """
    path = state_dir / "status.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ColoError(f"{state_dir} is no state folder of colo: no status.json") from None
    except (OSError, ValueError) as error:
        raise ColoError(f"{path}: {error}") from error
    if not isinstance(content, dict) or "pid" not in content:
        raise ColoError(f"{path}: it is no status that a colo has written")
    return {**content, "alive": _runs(state_dir, content["pid"])}


def is_alive(content: dict[str, Any]) -> bool:
    """Whether the colo that wrote this status still runs."""
    return bool(content["alive"])


def _runs(state_dir: Path, pid: int) -> bool:
    """Whether a colo runs with this state folder: it holds the lock; ``pid`` would be its id.

    The process is looked for first, as a colo that starts just now must not find the lock taken.
    """
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    try:
        lock = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ColoError(f"{state_dir / 'lock'}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def render(content: dict[str, Any], out: Console | None = None) -> None:
    """Print a status for people."""
    out = out or console()
    state, ago = content["state"], _ago(content["written_at"])
    who = f"[bold]{plain(content['vm'])}[/bold]  {content['role']}"
    if is_alive(content):
        colour = _COLOURS.get(state, "bold")
        out.print(f"{who}  [{colour}]{plain(state)}[/]: {plain(content['meaning'])}")
        if time.time() - content["written_at"] > FRESH_S:
            out.print(f"  [red]it wrote this {ago} ago[/red]: is there room in its state folder?")
    else:
        was = f"{state}: {content['meaning']}" if state in _LAST else state
        out.print(f"{who}  [red]colo does not run[/red]; what it wrote {ago} ago:")
        out.print(f"  [dim]was          {plain(was)}[/dim]")
    for name, text in _facts(content):
        out.print(f"  {name:<12} {plain(str(text))}")
    if content["checkpoint"]:
        for line in _checkpoints(content):
            out.print(line)


def _facts(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of each fact that this status has."""
    if content["checkpoint"] is not None:
        yield "checkpoint", f"{content['checkpoint']}, {_ago(content['checkpoint_at'])} old"
    if content.get("pages_total"):
        total = mib(content["bytes_total"])
        yield "received", f"{content['pages_total']:,} pages, {total} in checkpoints"
    if content["state"] == "COPYING" and content.get("bytes_total"):
        yield "first copy", f"{mib(content['bytes_total'])} sent"
    for role in ("primary", "secondary"):
        if role in content:
            yield role, f"{content[role]}{_peer(content.get('peer'))}"
    if "store" in content:
        guest, store = mib(content["guest_bytes"]), mib(content["store_bytes"])
        yield "memory", f"guest {guest}, store {store} in {content['store']}"
    if content.get("forward"):
        yield "handed on", _forward(content["forward"])
    for name, text in disks(content):
        yield "disk", f"{name}: {text}"
    if content.get("aside") and content["aside"]["lag_s"] is not None:
        yield "aside", _aside(content["aside"])
    if content.get("wire"):
        yield "wire", _wire(content["wire"])
    if content.get("hybrid"):
        yield "both VMs", _compared(content["hybrid"])
    if content.get("secondary_vm"):
        yield "secondary VM", _secondary_vm(content["secondary_vm"])
    for netdev, gate in content.get("network", {}).items():
        yield "network", f"{netdev}: {_gate(gate)}"
    if content["qemu"] is not None:
        qemu = content["qemu"]
        where = f", QMP {qemu['qmp']}" if "qmp" in qemu else ""
        yield "QEMU", f"{qemu.get('trouble') or qemu['pid']}{where}"
    grant = "" if content["grant"] is None else f", grant {content['grant']}"
    yield "arbiter", f"{content['arbiter']}{grant}"
    if content.get("clock"):
        yield "clock", _clock(content["clock"])
    if content.get("waits_for"):
        yield "waits", content["waits_for"]
    if "takeover" in content:
        takeover = content["takeover"]
        yield (
            "takeover",
            f"from checkpoint {takeover['checkpoint']}, started in "
            f"{takeover['total_ms']:.0f} ms; the primary was lost in {content['lost_in']}",
        )
    if content["error"]:
        yield "last error", content["error"]


def _peer(peer: dict[str, Any] | None) -> str:
    """What the other host said of itself with its last heartbeat."""
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in (peer or {}).items())
    return f": it says {said}" if said else ""


def _forward(forward: dict[str, Any]) -> str:
    held = forward["checkpoint"]
    there = "no whole checkpoint is there" if held is None else f"checkpoint {held} is there"
    trouble = f"; not now: {forward['error']}" if forward["error"] else ""
    return f"to {forward['to']}: {there}, {mib(forward['bytes'])} sent{trouble}"


def _clock(clock: dict[str, Any]) -> str:
    if "since" not in clock:  # of a VM that was taken over, or is waited for
        trouble = f"not kept: {clock['trouble']}" if clock["trouble"] else "kept"
        return f"{trouble}; {clock['seconds']:.1f} s given back"
    stood, span = clock["stood_still_s"], max(time.time() - clock["since"], 1e-9)
    share = f"{clock['stopped_share']:.0%} of the last minute"
    if clock["stopped_share"] > clock["stopped_share_max"]:
        share += f", more than stopped_share_max = {clock['stopped_share_max']}"
    if not clock["trouble"]:
        return (
            f"the VM stood still {stood:.1f} s in {_ago(clock['since'])} ({share}), all given back"
        )
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(clock["since"]))
    return (
        f"lost {clock['lost_s']:.1f} s ({clock['lost_s'] / span:.2%}) since {since} ({share}): "
        f"{clock['trouble']}: see «The guest's clock» in docs/operating.md"
    )


def disks(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each disk that a status tells of."""
    return [(disk["id"], _disk(disk)) for disk in content.get("disks", ())]


def _disk(disk: dict[str, Any]) -> str:
    """A disk on the primary, which is mirrored, or on the secondary, which keeps a replica."""
    size = mib(disk["size"])
    if "condition" in disk:
        lag = disk["merge_lag"]
        behind = f", {lag} checkpoints are being written into it" if lag else ""
        return (
            f"{size}, {disk['meaning']}; {mib(disk['epoch_bytes'])} since the last checkpoint, "
            f"{mib(disk['held_bytes'])} held{behind}"
        )
    how = ", as far as digests differ" if disk["by_digest"] else ""
    if disk["in_step"]:
        return f"{size}, in step{how}; {mib(disk['written_bytes'])} written since it began"
    left = f", {_ago(time.time() - disk['left_s'])} left" if disk["left_s"] is not None else ""
    return f"{size}, {disk['share']:.0%} copied{how}{left}"


def _aside(aside: dict[str, Any]) -> str:
    """What lies on the primary's host, as the secondary has not got it yet."""
    lag = f"the secondary is {aside['lag_s'] * 1e3:,.0f} ms behind"
    if not aside["room_bytes"]:
        return f"nothing is held here while the VM runs; {lag}"
    return (
        f"{mib(aside['held_bytes'])} of {mib(aside['room_bytes'])} held here for the secondary "
        f"(memory {mib(aside['memory_bytes'])}); {lag}"
    )


def _compared(hybrid: dict[str, Any]) -> str:
    """Hybrid mode on host A: the secondary VM, and what both have said."""
    trouble = f" ({hybrid['trouble']})" if hybrid["trouble"] and hybrid["other"] == "NONE" else ""
    rests = f", and is not wanted for {hybrid['rests_s']:.0f} s" if hybrid["rests_s"] >= 1 else ""
    differed = ", ".join(f"{name} {count}" for name, count in sorted(hybrid["differed"].items()))
    return (
        f"the secondary VM: {hybrid['meaning']}{rests}{trouble}; {hybrid['alike']:,} of "
        f"{hybrid['compared']:,} packets left as both said them; differed: {differed or 'nothing'}"
    )


def _secondary_vm(vm: dict[str, Any]) -> str:
    """Hybrid mode on host B."""
    if vm["runs"]:
        return f"runs, from checkpoint {vm['from_checkpoint']}; {vm['begun']:,} have begun"
    return vm["trouble"] or f"none runs just now; {vm['begun']:,} have begun"


def _wire(wire: dict[str, Any]) -> str:
    """How much less than QEMU's stream goes to the secondary."""
    rate = "as fast as QEMU" if wire["rate"] is None else f"{wire['rate'] / 1e6:,.0f} MB/s"
    now = "" if wire["is_coded"] else ", and nothing is coded now"
    return (
        f"{rate}{now}; {mib(wire['stream_bytes'])} went as {mib(wire['wire_bytes'])}, "
        f"with {wire['work_s']:.1f} s of work"
    )


def _gate(gate: dict[str, Any]) -> str:
    held = gate["held_ms"]
    times = (
        f"; held {held['median']:.1f} ms (p99 {held['p99']:.1f}, max {held['max']:.1f})"
        if held
        else ""
    )
    dropped = f", {gate['dropped']:,} dropped" if gate["dropped"] else ""
    return (
        f"gate {gate['gate']}, {gate['frames']:,} packets, {mib(gate['bytes'])}{dropped}, "
        f"{gate['held_bytes']:,} bytes held now (max {gate['held_max_bytes']:,}){times}"
    )


def _checkpoints(content: dict[str, Any]) -> Iterator[str]:
    """The figures of the last checkpoints, a line each."""
    yield f"  [dim]{'checkpoints':<14}{'median':>12}{'p99':>12}{'max':>12}[/dim]"
    rows = [
        (f"{name}, ms", figures, "{:.2f}", PHASES[name])
        for name, figures in content["phases_ms"].items()
    ]
    rows += [(name, content[name], "{:,.0f}", "") for name in ("pages", "bytes") if name in content]
    for name, figures, form, meaning in rows:
        values = [form.format(figures[k]) if figures else "–" for k in ("median", "p99", "max")]
        numbers = "".join(f"{value:>12}" for value in values)
        yield f"  {name:<14}{numbers}   [dim]{meaning}[/dim]"


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
