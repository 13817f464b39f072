"""The ways in which colo takes a checkpoint, which are measured in turns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from colo.config.vm import Checkpoints

__all__ = ["WAYS", "Way"]


@dataclass(frozen=True)
class Way:
    """``checkpoints``: what the VM file says of it, in the table of that name."""

    name: str
    checkpoints: str = ""


_WAITS: Final = Way("colo, VM waits", "aside_mib = 0")
_ASIDE: Final = Way("colo, aside")
_HAS_ASIDE: Final = "aside_mib" in {field.name for field in fields(Checkpoints)}
#: Until host B has all of it, or only until it is in host A's memory.  The latter is the default;
#: a colo that does not know it is measured as it is.
WAYS: Final = (_WAITS, _ASIDE) if _HAS_ASIDE else (Way(_WAITS.name),)
