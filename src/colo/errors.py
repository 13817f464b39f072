"""Everything that can go wrong, as one tree.

    ColoError
    ├── UsageError             what the user gave: an argument, the VM file
    ├── LocalError             we, or the machine we run on
    │   ├── NoAnswer             the arbiter did not answer in time
    │   ├── LocalProtocolError   our own side asked the state machine for something illegal
    │   │   └── InvariantBroken    or for something that must never be done
    │   ├── StoreError           the checkpoint store: no room, no right, not ours
    │   ├── DiskError            a disk's replica: its file, or its journal, cannot be used
    │   │   ├── DiskFull           its journal has no room for what the guest wrote
    │   │   └── DiskDamaged        its journal has something else than was written there
    │   ├── ExportError          an exported disk cannot do what an NBD client asked for
    │   └── GuestError           a QEMU of ours: did not start, died
    │       └── QemuRefusal        it refused a command
    └── PeerError              the other side of the channel
        ├── ChannelLost          it went away, or was silent for too long
        │   └── Refused            it is there, and takes no primary in for now
        ├── Misfit               its VM is none that can be taken over here, however often it tries
        ├── UnexpectedMessage    a COLO message out of place
        ├── InvalidMessage       a value outside ``COLOMessage``
        ├── ShortRead            the channel ended inside a message or a section
        ├── LimitExceeded        a size or a count over what was agreed
        ├── StreamError          the migration stream is not what QEMU writes
        ├── NbdError             an NBD client does not keep to its protocol
        └── UnsupportedFeature   it is, but with a capability that colo does not carry

Errors carry their facts as fields and chain their cause.  Nobody logs an error and passes
it on: it is reported once, by whoever handles it.
"""

from __future__ import annotations

import os
from enum import IntEnum

__all__ = [
    "ChannelLost",
    "ColoError",
    "DiskDamaged",
    "DiskError",
    "DiskFull",
    "ExportError",
    "GuestError",
    "InvalidMessage",
    "InvariantBroken",
    "LimitExceeded",
    "LocalError",
    "LocalProtocolError",
    "Misfit",
    "NbdError",
    "NoAnswer",
    "PeerError",
    "QemuRefusal",
    "Refused",
    "ShortRead",
    "StoreError",
    "StreamError",
    "UnexpectedMessage",
    "UnsupportedFeature",
    "UsageError",
]


class ColoError(Exception):
    """The base of all errors of this package; its text is one line for the user."""


class UsageError(ColoError):
    """An argument or a file that the user gave cannot be used as it is."""


class LocalError(ColoError):
    """We erred, or the machine we run on did."""


class NoAnswer(LocalError):
    """The arbiter did not answer; ``may_be_done``: it may have done as asked."""

    def __init__(self, text: str, may_be_done: bool) -> None:
        super().__init__(text)
        self.may_be_done = may_be_done


class LocalProtocolError(LocalError):
    """Our own side asked the state machine for a step that its table does not have."""


class InvariantBroken(LocalProtocolError):
    """A step of ours would break what a machine guards: it is not taken, and the session ends."""


class StoreError(LocalError):
    """The checkpoint store cannot be made or kept."""


class DiskError(LocalError):
    """The replica of ``disk``, or its journal, fails; ``path`` is the file, where it is one's."""

    def __init__(self, disk: str, text: str, path: str = "") -> None:
        super().__init__(f"disk {disk}: {path}: {text}" if path else f"disk {disk}: {text}")
        self.disk = disk
        self.path = path


class DiskFull(DiskError):
    """The guest wrote more between two checkpoints than the journal of its disk can hold."""


class DiskDamaged(DiskError):
    """What is read from the journal of a disk is not what was written there."""


class ExportError(LocalError):
    """An exported disk cannot do what an NBD client asked for; ``errno`` is what it gets told."""

    def __init__(self, errno: int, text: str = "") -> None:
        super().__init__(text or os.strerror(errno))
        self.errno = errno


class GuestError(LocalError):
    """A QEMU that we started, or steer, failed; ``last_words`` is the end of its stderr."""

    def __init__(self, text: str, last_words: str = "") -> None:
        super().__init__(f"{text}: {last_words}" if last_words else text)
        self.last_words = last_words


class QemuRefusal(GuestError):
    """QEMU refused a command, in its own words: asked again the same way, it will again."""


class PeerError(ColoError):
    """The other side of the channel erred."""


class ChannelLost(PeerError):
    """The channel to the peer is gone: closed, reset, or silent beyond its limit."""


class Refused(ChannelLost):
    """A secondary takes no primary in for now, and says why."""


class Misfit(PeerError):
    """The primary's VM is another than this host's VM file makes; no further try changes that."""


def _number(message: IntEnum | None) -> str:
    return "none" if message is None else str(int(message))


def _name(message: IntEnum | None) -> str:
    return "nothing" if message is None else message.name.lower().replace("_", "-")


class UnexpectedMessage(PeerError):
    """A COLO message out of place.  ``expected`` is None where no message may come at all."""

    def __init__(self, message: IntEnum, expected: IntEnum | None, state: str) -> None:
        super().__init__(
            f"Unexpected COLO message {_number(message)}, expected {_number(expected)} "
            f"(got {_name(message)}, expected {_name(expected)}, in state {state})"
        )
        self.message = message
        self.expected = expected
        self.state = state


class InvalidMessage(PeerError):
    """A u32 where a COLO message belongs, with a value outside the enum."""

    def __init__(self, value: int) -> None:
        super().__init__(f"Invalid COLO message {value}: there are only 0 to 6")
        self.value = value


class ShortRead(PeerError):
    """The channel ended inside ``what``, after ``got`` bytes of it."""

    def __init__(self, what: str, got: int) -> None:
        super().__init__(f"The channel ended inside {what}, {got} bytes into it")
        self.what = what
        self.got = got


class LimitExceeded(PeerError):
    """``what`` has ``value``, over ``limit``; both in ``unit``."""

    def __init__(self, what: str, value: int, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what}: {value} {unit}, over the limit of {limit}")
        self.what = what
        self.value = value
        self.limit = limit


class StreamError(PeerError):
    """The migration stream breaks its own format at byte ``position``."""

    def __init__(self, text: str, position: int) -> None:
        super().__init__(f"Migration stream, byte {position}: {text}")
        self.position = position


class NbdError(PeerError):
    """An NBD client broke its protocol at byte ``position``: the connection ends."""

    def __init__(self, text: str, position: int) -> None:
        super().__init__(f"NBD client, byte {position}: {text}")
        self.position = position


class UnsupportedFeature(PeerError):
    """The stream uses ``feature``; ``advice`` is what to change on the primary."""

    def __init__(self, feature: str, advice: str) -> None:
        super().__init__(f"The primary uses {feature}, which colo does not carry: {advice}")
        self.feature = feature
        self.advice = advice
