"""The ways in which colo takes a checkpoint and sends it, which are measured in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LINK_WAYS", "WAYS", "Way"]


@dataclass(frozen=True)
class Way:
    """``checkpoints``: what the VM file says of it, in that table, and in tables after it."""

    name: str
    checkpoints: str = ""


_AS_THEY_ARE: Final = "[wire]\ncompress = false\ncompare_mib = 0"
#: The VM stands still until host B has all, and pages are sent as they are.
_WAITS: Final = Way("colo, VM waits", f"aside_mib = 0\n{_AS_THEY_ARE}")
#: The VM stands still until all is in host A's memory.
_UNCODED: Final = Way("colo, aside, pages as they are", _AS_THEY_ARE)
#: The same, and less is sent where that pays: what colo does by default.
_DEFAULT: Final = Way("colo, as it comes")

WAYS: Final = (_WAITS, _DEFAULT)
LINK_WAYS: Final = (_WAITS, _UNCODED, _DEFAULT)
