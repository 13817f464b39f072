"""Which checkpoint of a VM is meant, over all its sessions and hosts.

A session numbers its checkpoints from 0, and the next session begins at 0 again.  The grant under
which the primary runs the VM grows with every change of who does.  Both together are ordered: of
two checkpoints of a VM the one of the later grant is newer, and within a grant the one of the
higher number.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Epoch"]


@dataclass(frozen=True, order=True)
class Epoch:
    """Checkpoint ``number`` of the session under grant ``grant``; written as ``grant.number``."""

    grant: int
    number: int

    def __str__(self) -> str:
        return f"{self.grant}.{self.number}"
