"""What goes with the figures: alert rules for Prometheus, and a dashboard for Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["SHARED", "shared"]

_FOLDER: Final = Path(__file__).with_name("share")
#: By what a user calls it.
SHARED: Final = {"rules": "colo.rules.yml", "dashboard": "dashboard.json"}


def shared(name: str) -> str:
    """The text of one of them."""
    return (_FOLDER / SHARED[name]).read_text()
