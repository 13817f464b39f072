"""The disk link: what the hosts tell each other of the VM's disks, beside the checkpoint channel.

The primary connects, names the VM and its disks in a line of JSON, and the secondary answers with
one: which disks it has something of, or why it takes none.  From then on both send *words*: a
header of 24 bytes, big-endian, and what belongs to it::

    u8 kind · u8 zero · u16 disk · u32 length · u64 offset · u64 number

The primary says, in the order in which its VM wrote::

    WRITE     ``length`` bytes at ``offset``, which follow
    ZERO      they are zeroes; ``number`` 1: they need no room
    COMPARE   digests of that range, block by block, follow: which of them differ?
    IN_STEP   all disks are copied: what comes now belongs to epochs
    CUT       the VM stands still for checkpoint ``number``: all that it wrote has been said

and the secondary::

    TAKEN     ``number`` bytes have been taken since the link began: so much more may come
    DIFFER    an answer to COMPARE ``number``, in their order: a byte a block follows, 1 or 0
    READY     all that was copied is kept for good: checkpoints may begin
    URGE      much is held of this epoch: take a checkpoint soon
    FAILED    a text follows: this host cannot keep the disks

No I/O, no clock; a word may come in pieces of any size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any, Final

from colo.disks.digests import BLOCK_SIZE, DIGEST_SIZE
from colo.errors import LimitExceeded, Misfit, PeerError, Refused

__all__ = [
    "DISK_MAGIC",
    "PAYLOAD_MAX",
    "DiskHello",
    "Kind",
    "OneDisk",
    "Said",
    "WordReader",
    "answer",
    "blocks_of",
    "encode",
    "header",
    "read_answer",
    "take_line",
]

#: The first bytes of a disk link, where a control link has «COLO».
DISK_MAGIC: Final = b"CDSK"
VERSION: Final = 2
#: What goes with one word at most: NBD's largest write.
PAYLOAD_MAX: Final = 32 << 20

_HEADER: Final = struct.Struct(">BBHIQQ")
_LINE_MAX: Final = 64 << 10


class Kind(IntEnum):
    """What a word is."""

    WRITE = 1
    ZERO = 2
    COMPARE = 3
    IN_STEP = 4
    CUT = 5
    TAKEN = 6
    DIFFER = 7
    READY = 8
    URGE = 9
    FAILED = 10


#: What ``length`` bytes follow; of COMPARE and DIFFER one digest, one byte, for each block.
_CARRIES: Final = frozenset({Kind.WRITE, Kind.FAILED})
_BY_BLOCK: Final = {Kind.COMPARE: DIGEST_SIZE, Kind.DIFFER: 1}
_NOTHING: Final = memoryview(b"")


@dataclass(frozen=True)
class Said:
    """A word; ``payload`` is of no use any more when the next one is read."""

    kind: Kind
    disk: int = 0
    offset: int = 0
    length: int = 0
    number: int = 0
    payload: memoryview = _NOTHING


def header(kind: Kind, disk: int = 0, offset: int = 0, length: int = 0, number: int = 0) -> bytes:
    """A word without what follows it."""
    return _HEADER.pack(kind, 0, disk, length, offset, number)


def encode(said: Said) -> bytes:
    """A whole word."""
    head = header(said.kind, said.disk, said.offset, said.length, said.number)
    return b"".join((head, said.payload))


def blocks_of(offset: int, length: int) -> int:
    """How many blocks a range touches."""
    return -(-(offset + length) // BLOCK_SIZE) - offset // BLOCK_SIZE if length else 0


class WordReader:
    """Turns bytes, in pieces of any size, into words."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0  # of what has not been said yet

    def feed(self, data: bytes | memoryview) -> Iterator[Said]:
        """Take more bytes; yield each word that they complete.  Raises PeerError."""
        try:
            del self._data[: self._start]
        except BufferError:  # somebody still looks at a payload
            self._data = self._data[self._start :]
        self._start = 0
        self._data += data
        with memoryview(self._data) as view:
            while len(view) - self._start >= _HEADER.size:
                said, size = _parse(view, self._start)
                begin = self._start + _HEADER.size
                if len(view) < begin + size:
                    break
                self._start = begin + size
                payload = view[begin : begin + size]
                yield Said(said.kind, said.disk, said.offset, said.length, said.number, payload)
                payload.release()


def _parse(view: memoryview, start: int) -> tuple[Said, int]:
    """The word whose header begins here, and how many bytes follow it.  Raises PeerError."""
    kind, zero, disk, length, offset, number = _HEADER.unpack_from(view, start)
    try:
        said = Said(Kind(kind), disk, offset, length, number)
    except ValueError:
        raise PeerError(f"the disk link has no word {kind}") from None
    if zero:
        raise PeerError(f"the disk link: {said.kind.name} with {zero} where 0 belongs")
    size = length if said.kind in _CARRIES else 0
    if (each := _BY_BLOCK.get(said.kind)) is not None:
        size = each * blocks_of(offset, length)
    if size > PAYLOAD_MAX:
        raise LimitExceeded(f"the disk link's {said.kind.name}", size, PAYLOAD_MAX)
    return said, size


@dataclass(frozen=True)
class OneDisk:
    """A disk in a hello: what the VM file calls it, and its size in bytes."""

    id: str
    size: int


@dataclass(frozen=True)
class DiskHello:
    """The primary's first line: whose disks, by which grant it has them, and which.

    ``read_only``: the digests of what the guest only reads, by the drives' names.
    """

    vm: str
    grant: int
    holder: str
    disks: tuple[OneDisk, ...]
    read_only: dict[str, str] = field(default_factory=dict)
    version: int = VERSION

    def encode(self) -> bytes:
        """The line, with its end."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> DiskHello:
        """Read one.  Raises PeerError where it is none."""
        try:
            table = json.loads(line)
            disks = tuple(
                OneDisk(_typed(each["id"], str), _typed(each["size"], int))
                for each in _typed(table["disks"], list)
            )
            return cls(
                _typed(table["vm"], str),
                _typed(table["grant"], int),
                _typed(table["holder"], str),
                disks,
                {
                    _typed(name, str): _typed(digest, str)
                    for name, digest in _typed(table["read_only"], dict).items()
                },
                _typed(table["version"], int),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            raise PeerError(f"not a disk link's first line: {line[:60]!r}") from None

    def refusal(self, vm: str, disks: tuple[OneDisk, ...]) -> str | None:
        """Why a secondary of ``vm`` with these disks cannot keep them, or None."""
        if self.version != VERSION:
            return f"it speaks version {self.version} of the disk link, this colo {VERSION}"
        if self.vm != vm:
            return f"its VM is {self.vm}, this one is {vm}"
        theirs, ours = ([each.id for each in side] for side in (self.disks, disks))
        if theirs != ours:
            return (
                f"its [[disks]] are {', '.join(theirs) or 'none'}, this one's "
                f"{', '.join(ours) or 'none'}: they must be the same, in the same order"
            )
        return None


def answer(error: str | None = None, final: bool = False, holds: tuple[bool, ...] = ()) -> bytes:
    """The secondary's line: of which disks it has something to compare with, or why none."""
    table: dict[str, Any] = {"holds": list(holds)}
    if error is not None:
        table = {"refused": error, "final": final}
    return json.dumps(table).encode() + b"\n"


def read_answer(line: bytes) -> tuple[bool, ...]:
    """Read that line.  Raises Refused, or Misfit where no further try changes it."""
    try:
        table = json.loads(line)
        if "refused" in table:
            raise (Misfit if table["final"] else Refused)(str(table["refused"]))
        return tuple(_typed(each, bool) for each in _typed(table["holds"], list))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PeerError(f"not an answer on the disk link: {line[:60]!r}") from None


def take_line(data: bytearray) -> bytes | None:
    """Take a whole line out of ``data``, or None.  Raises LimitExceeded."""
    end = data.find(b"\n")
    if end < 0:
        if len(data) > _LINE_MAX:
            raise LimitExceeded("a disk link's first line", len(data), _LINE_MAX)
        return None
    line = bytes(data[:end])
    del data[: end + 1]
    return line


def _typed(value: Any, kind: type) -> Any:
    """The value, where it is of this very type.  Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(kind)
    return value
