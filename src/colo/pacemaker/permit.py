"""The permit: a file on this host while Pacemaker has it promoted for a VM.

The agent's promote writes it and its demote and stop remove it; colo takes no grant without it.  It
lies where nothing outlives the host's own boot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["PERMITS", "Permit"]

PERMITS: Final = Path("/run/colo")


class Permit:
    """The permit for the VM ``vm``, in ``folder``."""

    def __init__(self, vm: str, folder: Path = PERMITS) -> None:
        self._path = folder / f"{vm}.promoted"

    @property
    def is_there(self) -> bool:
        """Whether this host is promoted."""
        return self._path.exists()

    def give(self) -> None:
        """This host is promoted from now on.  Raises OSError."""
        self._path.parent.mkdir(mode=0o755, exist_ok=True)
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def take_away(self) -> None:
        """It is not promoted any more, and takes no new grant.  Raises OSError."""
        self._path.unlink(missing_ok=True)
