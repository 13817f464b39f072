"""What the journal of a disk's replica says, for ``colo inspect``: nothing of it is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from colo.disks.head import HEADS_SIZE, MAGIC, PLACE_SIZE, Head, HeadState, Unreadable, newest
from colo.disks.standing import checkpoint_of
from colo.errors import ColoError

__all__ = ["journal_facts", "load_journal"]

_MEANS: Final = {
    HeadState.COPYING: "its disk is a mixture: the first copy runs, or was cut off",
    HeadState.CLEAN: "its disk is at a checkpoint",
    HeadState.JOURNAL: "its disk is at a checkpoint, once what the journal has is written into it",
    HeadState.HANDED_OVER: "its disk is, or was, a VM's own: it is at no checkpoint",
}


def load_journal(path: Path) -> Head | None:
    """The newest head of a journal; None of anything else.  Raises ColoError of a damaged one."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            both = file.read(HEADS_SIZE)
    except OSError as error:
        raise ColoError(f"{path}: {error.strerror}") from error
    if MAGIC not in (both[: len(MAGIC)], both[PLACE_SIZE : PLACE_SIZE + len(MAGIC)]):
        return None
    try:
        return newest(both)
    except Unreadable as error:
        raise ColoError(f"{path}: {error}") from error


def journal_facts(head: Head) -> dict[str, Any]:
    """What it says; ``checkpoint`` is None where the disk is at none, -1 is its first copy."""
    at_one = head.state in (HeadState.CLEAN, HeadState.JOURNAL)
    return {
        "state": head.state.name,
        "meaning": _MEANS[head.state],
        "checkpoint": checkpoint_of(head.epoch) if at_one else None,
        "replication": str(head.identity),
        "disk_bytes": head.disk_size,
        "journal_bytes": head.ring,
    }
