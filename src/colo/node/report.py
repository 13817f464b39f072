"""What ``colo status`` shows."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from colo.errors import ColoError
from colo.node.figures import PHASES
from colo.store.image import mib

__all__ = ["is_alive", "read_status", "render"]


def read_status(state_dir: Path) -> dict[str, Any]:
    """Read ``status.json``.  Raises ColoError where there is none."""
    path = state_dir / "status.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ColoError(f"{state_dir} is no state folder of colo: no status.json") from None
    except (OSError, ValueError) as error:
        raise ColoError(f"{path}: {error}") from error
    assert isinstance(content, dict)
    return content


def is_alive(content: dict[str, Any]) -> bool:
    """Whether the colo that wrote this status still runs."""
    try:
        os.kill(content["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(content["alive"]) if "alive" in content else True


def render(content: dict[str, Any], console: Console | None = None) -> None:
    """Print a status for people."""
    console = console or Console(highlight=False)
    console.print(
        f"[bold]{content['vm']}[/bold]  {content['role']}  [bold]{content['state']}[/bold]: "
        f"{content['meaning']}"
    )
    if not is_alive(content):
        ago = _ago(content["written_at"])
        console.print(f"  [red]colo does not run[/red]: this is what it wrote {ago} ago")
    for name, text in _facts(content):
        console.print(f"  {name:<12} {text}")
    if content["pages"] is not None:
        console.print(_table(content))


def _facts(content: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if content["checkpoint"] is not None:
        age = _ago(content["checkpoint_at"])
        facts.append(("checkpoint", f"{content['checkpoint']}, {age} old"))
        facts.append(
            (
                "received",
                f"{content['pages_total']:,} pages, {mib(content['bytes_total'])} in checkpoints",
            )
        )
    if "primary" in content:
        facts.append(("primary", content["primary"]))
    facts.append(
        (
            "memory",
            f"guest {mib(content['guest_bytes'])}, store {mib(content['store_bytes'])} "
            f"in {content['store']}",
        )
    )
    qemu = content["qemu"]
    if qemu is not None:
        facts.append(("QEMU", f"{qemu['trouble'] or qemu['pid']}, QMP {qemu['qmp']}"))
    takeover = content.get("takeover")
    if takeover is not None:
        facts.append(
            (
                "takeover",
                f"from checkpoint {takeover['checkpoint']}, started in "
                f"{takeover['total_ms']:.0f} ms; the primary was lost in {content['lost_in']}",
            )
        )
    if content["error"]:
        facts.append(("last error", content["error"]))
    return facts


def _table(content: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("  last 1024 checkpoints")
    for column in ("median", "p99", "max"):
        table.add_column(column, justify="right")
    table.add_column("")
    rows = [(f"{name}, ms", content["phases_ms"][name], "{:.2f}", PHASES[name]) for name in PHASES]
    rows.append(("pages", content["pages"], "{:,.0f}", ""))
    rows.append(("bytes", content["bytes"], "{:,.0f}", "on the wire"))
    for name, summary, form, meaning in rows:
        values = [form.format(summary[k]) if summary else "–" for k in ("median", "p99", "max")]
        table.add_row(f"  {name}", *values, f"[dim]{meaning}[/dim]")
    return table


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
