"""The control link: what the two hosts say to each other beside the checkpoint channel.

A line of JSON each, both ways, over a connection of its own.  The primary connects and says
hello; the secondary says hello back, or why it refuses.  From then on both send heartbeats, with
their own clock's time, which the other one says back as soon as it has heard it: so each knows what
it was heard of.  And the primary says, when it is so::

    dead       the guest's process is dead: take over; ``grant`` is the last that it may have got
    shutdown   the guest has shut down: there is nothing to take over
    bye        protection ends by an operator's will: the VM goes on here
    handover   the VM is stopped behind its last checkpoint, by order: take over
    alone      the primary has the grant and runs alone: forget the VM
    saved      the devices of ``checkpoint`` were saved ``after_ns`` after its VM was stopped: said
               where the wire is so slow that the secondary could not tell

The secondary says ``refused`` instead of its hello, or where it could not take the first copy: why,
and whether that is ``final``: no further try changes it.

Whoever hears nothing for the heartbeat's limit counts the other as lost.  Bytes in, words out; no
I/O, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final

from colo.config import VmConfig
from colo.errors import LimitExceeded, PeerError
from colo.wire.frames import WIRE_VERSION

__all__ = [
    "LINK_MAGIC",
    "LINK_VERSION",
    "Hello",
    "LinkReader",
    "Word",
    "WordKind",
    "machine_digest",
]

#: The first bytes of a control link, where a migration stream has «QEVM».
LINK_MAGIC: Final = b"COLO"
LINK_VERSION: Final = 3

_LINE_MAX: Final = 16 << 10


class WordKind(Enum):
    """What one side says to the other."""

    HELLO = "hello"
    REFUSED = "refused"
    HEARTBEAT = "heartbeat"
    HEARD = "heard"
    DEAD = "dead"
    HANDOVER = "handover"
    SHUTDOWN = "shutdown"
    BYE = "bye"
    ALONE = "alone"
    SAVED = "saved"


@dataclass(frozen=True)
class Word:
    """One line of the link; ``content`` is a flat table of texts and numbers."""

    kind: WordKind
    content: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The line, with its end."""
        return json.dumps({"word": self.kind.value, **self.content}).encode() + b"\n"

    @property
    def grant(self) -> int | None:
        """The number of the grant that this word tells of; None where it tells of none."""
        return self._number("grant")

    @property
    def beat(self) -> int | None:
        """When a heartbeat was sent, in nanoseconds of its sender's clock."""
        return self._number("beat")

    @property
    def saved(self) -> tuple[int, float] | None:
        """Which checkpoint's devices were saved, and how many seconds after its VM was stopped."""
        number, after_ns = self._number("checkpoint"), self._number("after_ns")
        if number is None or after_ns is None or after_ns < 0:
            return None
        return number, after_ns / 1e9

    def _number(self, name: str) -> int | None:
        number = self.content.get(name)
        return number if type(number) is int else None


@dataclass(frozen=True)
class Hello:
    """Who speaks: versions, the VM's name, its machine's digest, the arbiter, the grant.

    ``holder``: the grant's, or "" where that is not said.  ``heartbeat_s`` and
    ``heartbeat_limit_s``: how often it beats and which silence it takes for a loss, or None where
    that is not said.  ``wire``: the version of frames that it takes on a channel, 0 for none.
    """

    version: int
    vm: str
    machine: str
    arbiter: str
    grant: int
    holder: str = ""
    heartbeat_s: float | None = None
    heartbeat_limit_s: float | None = None
    wire: int = 0

    def word(self) -> Word:
        """This hello as a word."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return Word(WordKind.HELLO, said)

    @classmethod
    def ours(cls, config: VmConfig, grant: int = 0, holder: str = "") -> Hello:
        """The hello of a colo with this VM file."""
        digest = machine_digest(config)
        ours = config.failover
        beats = ours.heartbeat_s, ours.heartbeat_limit_s
        wire = WIRE_VERSION if config.wire.is_used else 0
        return cls(LINK_VERSION, config.name, digest, ours.arbiter, grant, holder, *beats, wire)

    @classmethod
    def of(cls, word: Word) -> Hello:
        """Read a hello.  Raises PeerError where it is none."""
        try:
            known = {name: kind(word.content[name]) for name, kind in _HELLO.items()}
            return cls(
                **known,
                holder=str(word.content.get("holder", "")),
                heartbeat_s=_seconds(word, "heartbeat_s"),
                heartbeat_limit_s=_seconds(word, "heartbeat_limit_s"),
                wire=int(word.content.get("wire", 0)),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise PeerError(f"the other side's first word is {word.kind.value}, no hello") from None

    def refusal(self, ours: Hello) -> str | None:
        """Say why a primary with this hello cannot be protected by ``ours``, or None."""
        if self.version != ours.version:
            return f"it speaks version {self.version} of the link, this colo {ours.version}"
        if self.vm != ours.vm:
            return f"its VM is {self.vm}, this one is {ours.vm}"
        if self.machine != ours.machine:
            return "its VM file describes another machine: [qemu] args must be the same"
        if self.arbiter != ours.arbiter:
            return f"its arbiter is {self.arbiter}, this one's {ours.arbiter}"
        for whose, limit_s, beater, every_s in (
            ("its", self.heartbeat_limit_s, "this one's", ours.heartbeat_s),
            ("this one's", ours.heartbeat_limit_s, "its", self.heartbeat_s),
        ):
            if limit_s is not None and every_s is not None and limit_s < 2 * every_s:
                return (
                    f"{whose} heartbeat_limit_s is {limit_s}, less than twice {beater} heartbeat_s "
                    f"of {every_s}: make them the same on both hosts"
                )
        return None


_HELLO: Final[dict[str, Any]] = {
    "version": int,
    "vm": str,
    "machine": str,
    "arbiter": str,
    "grant": int,
}


def _seconds(word: Word, name: str) -> float | None:
    """A time that need not be said.  Raises ValueError where it is none."""
    value = word.content.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(name)
    return float(value)


def machine_digest(config: VmConfig) -> str:
    """A digest of what defines the machine in the VM file: the args that both hosts share."""
    return hashlib.sha256(json.dumps(config.qemu.args).encode()).hexdigest()[:16]


class LinkReader:
    """Turns bytes, in pieces of any size, into words."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Word]:
        """Take more bytes; yield each word that they complete.  Raises PeerError."""
        self._data += data
        while (end := self._data.find(b"\n")) >= 0:
            line = bytes(self._data[:end])
            del self._data[: end + 1]
            yield _parse(line)
        if len(self._data) > _LINE_MAX:
            raise LimitExceeded("a line on the control link", len(self._data), _LINE_MAX)


def _parse(line: bytes) -> Word:
    try:
        content = json.loads(line)
        return Word(WordKind(content.pop("word")), content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PeerError(f"not a word on the control link: {line[:60]!r}") from None
