"""Text of others on our user's terminal: it is read, and does nothing.

What a peer, a stream or a file says may hold control characters, or what rich takes for markup.
"""

from __future__ import annotations

from rich.markup import escape

__all__ = ["plain", "printable"]


def printable(text: str) -> str:
    """The text with all that cannot be printed as Python writes it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def plain(text: str) -> str:
    """The text for a rich console, where it stands for itself."""
    return escape(printable(text))
