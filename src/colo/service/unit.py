"""The systemd unit with which a host runs ``colo node``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["unit"]

_TEMPLATE: Final = Path(__file__).with_name("colo@.service")
_PLACE: Final = "ExecStart=COLO "


def unit(colo: Path) -> str:
    """The text of ``colo@.service`` that starts this ``colo``.  Source: systemd.service(5)."""
    return _TEMPLATE.read_text().replace(_PLACE, f"ExecStart={colo} ")
