"""How a story is told: lines with their time, what a client saw beside what happened, figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from colo.errors import ColoError
from colo.terminal import console

__all__ = ["DemoError", "Event", "begin", "side_by_side"]

#: When, what the client saw, what happened; one of the two is empty.
Event = tuple[float, str, str]


class DemoError(ColoError):
    """The story did not come true."""


def begin(title: str, scene: str) -> tuple[Console, Callable[[str, str], None]]:
    """Print the title; return the console, and what prints a line of who did what."""
    out = console()
    out.print(f"\n[bold]{title}[/bold]\n{scene}\n")
    began = time.monotonic()

    def say(who: str, text: str) -> None:
        seconds = time.monotonic() - began
        out.print(f"[dim]{seconds:5.1f} s[/dim]  [bold]{who:<7}[/bold] {text}")

    return out, say


def side_by_side(events: Iterable[Event], kill: float) -> Iterator[str]:
    """The client's view beside what happens, around the kill."""
    ordered = sorted(events)
    at_kill = next(i for i, event in enumerate(ordered) if event[0] == kill)
    yield f"  [dim]{'time':>9}   {'what the client sees':<22} what happens[/dim]"
    for at, seen, happens in ordered[max(0, at_kill - 4) : at_kill + 7]:
        yield f"  {(at - kill) * 1e3:+6.0f} ms   {seen:<22} {happens}"
