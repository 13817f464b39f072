"""How a VM stands on its primary host, in the words that operators see."""

from __future__ import annotations

from enum import Enum

__all__ = ["Standing"]


class Standing(Enum):
    """What ``colo status`` says of a primary."""

    STARTING = "looking at the VM"
    REFUSED = "nothing was begun, and no VM started: the last error says why"
    UNPROTECTED = "the VM runs here alone"
    COPYING = "the secondary is getting its first copy"
    PROTECTED = "the VM runs; its output is held until it is safe"
    LOST = "the secondary is gone; the VM is silent until somebody may run it"
    FENCED = "the VM runs on the other host; the copy here is stopped and silent"
    DEAD = "the VM's process is dead; the other host takes over"
    SHUTDOWN = "the guest has shut down"
    ENDED = "protection was ended; the VM goes on"
