"""What stands in the way of protecting a VM, each with its entry in docs/refused.md.

A finding is one line for the user: what is so, and what to do.  Its topic is the name of the entry
that says more; the topics are all entries that there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["Finding", "Topic", "note", "summed"]

_PAGE: Final = "docs/refused.md"


class Topic(Enum):
    """An entry in docs/refused.md: its name there."""

    VM_FILE = "vm-file"
    HOSTS = "hosts"
    ADDRESS = "address"
    TLS = "tls"
    ARBITER = "arbiter"
    FENCE = "fence"
    STATE_FOLDER = "state-folder"
    STORE = "store"
    QEMU_BINARY = "qemu-binary"
    QEMU_VERSION = "qemu-version"
    QEMU_ARGUMENTS = "qemu-arguments"
    MACHINE = "machine"
    CPU = "cpu"
    KVM = "kvm"
    TCG_LIBRARY = "tcg-library"
    CLOCK_LIBRARY = "clock-library"
    MEMORY = "memory"
    MEMORY_ORDER = "memory-order"
    MEMORY_DEVICE = "memory-device"
    VHOST = "vhost"
    QUEUES = "queues"
    TAP = "tap"
    DEVICE = "device"
    MIGRATION_BLOCKED = "migration-blocked"
    DISK_NOT_NAMED = "disk-not-named"
    DISK_NOT_USED = "disk-not-used"
    DISK_FILE = "disk-file"
    DISK_FORMAT = "disk-format"
    FILES = "files"
    QMP = "qmp"
    LIBVIRT = "libvirt"
    VM_STOPPED = "vm-stopped"
    MIGRATION = "migration"
    TLS_CREDS = "tls-creds"
    VMDESC = "vmdesc"
    NO_DEVICES = "no-devices"
    TWO_FILES = "two-files"

    @property
    def place(self) -> str:
        """Where its entry is."""
        return f"{_PAGE}#{self.value}"


@dataclass(frozen=True)
class Finding:
    """One line, with what to do; ``refused``: the VM cannot be protected as long as it is so."""

    topic: Topic
    text: str
    refused: bool = True

    def __str__(self) -> str:
        return f"{self.text}: see {self.topic.place}"


def note(topic: Topic, text: str) -> Finding:
    """A finding that is good to know, and refuses nothing."""
    return Finding(topic, text, refused=False)


def summed(findings: list[Finding]) -> str:
    """Some findings as one line."""
    return "; ".join(map(str, findings))
