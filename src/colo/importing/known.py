"""What is known of a VM besides its command line; of one that does not run, nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Known", "Seen"]


@dataclass(frozen=True)
class Seen:
    """A disk as the running VM has it: its file and that one's format, "" where not known."""

    path: str
    format: str = ""


@dataclass(frozen=True)
class Known:
    """``folder``: what paths are relative to.  The others are by the descriptor's number.

    ``taps``: interfaces; ``sockets``: where unix sockets listen; ``files``: what was opened.
    ``disks`` is by each name of a disk; ``machine``: its name with its version, or "".
    """

    folder: str = "/"
    taps: Mapping[str, str] = field(default_factory=dict)
    sockets: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    disks: Mapping[str, Seen] = field(default_factory=dict)
    machine: str = ""
