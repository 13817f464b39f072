"""Text of others on our user's terminal: it is read, and does nothing.

What a peer, a stream or a file says may hold control characters, or what rich takes for markup
or, as it does «:b:», for the name of a picture.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

__all__ = ["console", "plain", "printable"]


def console(**options: Any) -> Console:
    """A console that prints long lines whole, and pictures nowhere; for ``options`` see rich."""
    return Console(highlight=False, soft_wrap=True, emoji=False, **options)


def printable(text: str) -> str:
    """The text with all that cannot be printed as Python writes it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def plain(text: str) -> str:
    """The text for such a console, where it stands for itself."""
    return escape(printable(text))
