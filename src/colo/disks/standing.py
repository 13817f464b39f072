"""What a replica is, at which checkpoint, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import UUID

__all__ = ["COPY", "At", "Condition", "Limits", "Stale", "checkpoint_of", "epoch_of"]

#: Of a replica: the commit of its copy, from which the checkpoints go on.
COPY: Final = 0


class Condition(Enum):
    """What a replica is."""

    COPYING = "its first copy runs"
    WHOLE = "the disk at the last whole checkpoint can be read"
    STALE = "the base is at no checkpoint, and has to be copied"
    FAILED = "its I/O failed, what is committed may be read"
    HANDED_OVER = "the base belongs to a VM"


@dataclass(frozen=True)
class At:
    """What is committed is checkpoint ``epoch`` of the replication ``identity``."""

    identity: UUID
    epoch: int


@dataclass(frozen=True)
class Stale:
    """There is no checkpoint, and why; ``is_vms``: a VM has run on it since the last one."""

    reason: str
    is_vms: bool = False


@dataclass(frozen=True)
class Limits:
    """``memory_bytes``: what is held in memory before writes go to the journal.

    ``extents``: how many ranges are held at most.  ``wanted`` and ``full``: the parts of that, and
    of the journal, that, taken, make a checkpoint wanted, and writes unwelcome.
    """

    memory_bytes: int = 64 << 20
    extents: int = 1 << 20
    wanted: float = 0.5
    full: float = 0.875


def epoch_of(checkpoint: int) -> int:
    """The replicas' number of a checkpoint: their copy comes before the first one."""
    return COPY + 1 + checkpoint


def checkpoint_of(epoch: int) -> int:
    """The checkpoint of a replica's epoch; -1 of its copy."""
    return epoch - 1 - COPY
