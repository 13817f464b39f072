"""NBD's words: its numbers, the client's requests, what is told of an export.

Everything is as the protocol's document has it, doc/proto.md of the reference implementation
(https://github.com/NetworkBlockDevice/nbd); comments name its sections.  All numbers are
big-endian.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "BASE_ALLOCATION",
    "BLOCK_BYTES_MIN",
    "BLOCK_BYTES_PREFERRED",
    "FLAGS_OF",
    "OPTION_MAGIC",
    "PAYLOAD_BYTES_MAX",
    "REQUEST",
    "REQUEST_MAGIC",
    "STRING_BYTES_MAX",
    "ClientFlag",
    "Command",
    "CommandFlag",
    "ErrorCode",
    "ExportInfo",
    "Extent",
    "Info",
    "Option",
    "OptionReply",
    "Request",
    "TransmissionFlag",
    "error_code",
    "transmission_flags",
]

# «Size constraints»: what this server says in NBD_INFO_BLOCK_SIZE, and keeps.
BLOCK_BYTES_MIN: Final = 1
BLOCK_BYTES_PREFERRED: Final = 4096
#: The longest READ or WRITE.
PAYLOAD_BYTES_MAX: Final = 32 << 20

#: «Conventions»: the longest string, such as the name of an export.
STRING_BYTES_MAX: Final = 4096

# «Newstyle negotiation»
OPTION_MAGIC: Final = 0x49484156454F5054  # IHAVEOPT

# «Transmission»
REQUEST_MAGIC: Final = 0x25609513

#: «Request message»: magic, flags, type, cookie, offset, length.
REQUEST: Final = struct.Struct(">IHHQQI")

#: «base:allocation metadata context»
BASE_ALLOCATION: Final = b"base:allocation"


class ClientFlag(IntFlag):
    """«Client flags»; the handshake flags of the server have the same bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class TransmissionFlag(IntFlag):
    """«Transmission flags»: what an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_FAST_ZERO = 1 << 11


class Option(IntEnum):
    """«Option types» that this server knows."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """«Option reply types»; errors have bit 31 set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Information types of NBD_OPT_INFO and NBD_OPT_GO."""

    EXPORT = 0
    NAME = 1
    BLOCK_SIZE = 3


class Command(IntEnum):
    """«Request types»."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """«Command flags»."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class ErrorCode(IntEnum):
    """«Error values»: the only ones that a reply may carry."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


#: The flags that each command may have.  FUA goes with all: «existing clients are known to set
#: this bit on other commands».  CACHE is not offered: it is refused like an unknown command.
FLAGS_OF: Final = {
    int(command): int(CommandFlag.FUA | flags)
    for command, flags in {
        Command.READ: CommandFlag.DF,
        Command.WRITE: CommandFlag(0),
        Command.FLUSH: CommandFlag(0),
        Command.TRIM: CommandFlag(0),
        Command.WRITE_ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        Command.BLOCK_STATUS: CommandFlag.REQ_ONE,
    }.items()
}

_ERRORS: Final = {
    **{int(code): code for code in ErrorCode},
    errno.EACCES: ErrorCode.EPERM,
    errno.EROFS: ErrorCode.EPERM,
    errno.EDQUOT: ErrorCode.ENOSPC,
    errno.EFBIG: ErrorCode.ENOSPC,
}


@dataclass(frozen=True)
class ExportInfo:
    """What clients are told of an export.

    ``multi_conn``: a flush over one connection covers what was written over another.
    """

    name: str
    size: int
    read_only: bool = False
    multi_conn: bool = False


@dataclass(frozen=True)
class Extent:
    """``length`` bytes of the same kind.

    ``allocated``: the storage has room for them.  ``zero``: they are known to read as zeros.
    """

    length: int
    allocated: bool = True
    zero: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A client's request that keeps to the protocol and to the export's bounds.

    ``data``: what to write; it belongs to whoever has the request.  Two requests are never equal:
    a client's ``cookie`` need not be unique.
    """

    command: Command
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes | memoryview = b""

    @property
    def fua(self) -> bool:
        """What is written has to be on stable storage before the answer."""
        return self.flags & 1 != 0

    @property
    def no_hole(self) -> bool:
        """Zeros have to take room."""
        return self.flags & 2 != 0

    @property
    def whole(self) -> bool:
        """«Don't fragment»: the answer to a READ has to be one piece of data."""
        return self.flags & 4 != 0

    @property
    def only_one(self) -> bool:
        """BLOCK_STATUS is to tell of one extent only."""
        return self.flags & 8 != 0

    @property
    def fast_zero(self) -> bool:
        """Zeros are wanted only where they cost less than to write them."""
        return self.flags & 16 != 0


def error_code(number: int) -> ErrorCode:
    """The error of NBD that says most of an errno; EIO where there is none."""
    return _ERRORS.get(number, ErrorCode.EIO)


def transmission_flags(export: ExportInfo, structured: bool) -> int:
    """«Transmission flags» of an export, for a client with structured replies or without."""
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
    if export.read_only:
        flags |= TransmissionFlag.READ_ONLY
    else:
        flags |= TransmissionFlag.SEND_TRIM
        flags |= TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    if structured:
        flags |= TransmissionFlag.SEND_DF
    if export.multi_conn:
        flags |= TransmissionFlag.CAN_MULTI_CONN
    return int(flags)
