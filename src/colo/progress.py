"""What long work shows on stderr while a person looks: how much is done, and how fast it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = ["bar", "shown"]


def shown(pieces: Iterable[bytes], what: str, console: Console | None = None) -> Iterator[bytes]:
    """Yield the pieces, and show how many bytes they were; nothing where stderr is no terminal.

    ``what``: what is done with them, in a word or two.  The line goes when they have ended.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from pieces
        return
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        for piece in pieces:
            yield piece
            progress.advance(task, len(piece))


@contextmanager
def bar(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar while something is done, and give what moves it: how many bytes are done.

    ``total``: how many there are in all.  Nothing is shown where stderr is no terminal.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    speed = TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, *speed, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
