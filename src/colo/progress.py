"""What long work shows on stderr while a person looks: how much is done, and how fast it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

__all__ = ["shown"]


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
