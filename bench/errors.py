"""The one error of the bench."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """A measurement could not be made; the text says why."""
