"""What an NBD server says, as bytes.

Each function names the reply; the layouts are those of doc/proto.md (see ``protocol``).  A
structured reply is always one chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from colo.nbd.protocol import (
    BASE_ALLOCATION,
    BLOCK_BYTES_MIN,
    BLOCK_BYTES_PREFERRED,
    OPTION_MAGIC,
    PAYLOAD_BYTES_MAX,
    STRING_BYTES_MAX,
    ClientFlag,
    ExportInfo,
    Extent,
    Info,
    OptionReply,
    transmission_flags,
)

__all__ = [
    "GREETING",
    "pack_block_status",
    "pack_chunk_done",
    "pack_chunk_error",
    "pack_data_header",
    "pack_export",
    "pack_hole",
    "pack_info_block_size",
    "pack_info_export",
    "pack_info_name",
    "pack_meta_context",
    "pack_option_reply",
    "pack_server",
    "pack_simple",
]

_OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
_SIMPLE_REPLY_MAGIC: Final = 0x67446698
_STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF
_RESERVED: Final = bytes(124)

_OPTION_REPLY: Final = struct.Struct(">QIII")
_SIMPLE: Final = struct.Struct(">IIQ")
_CHUNK: Final = struct.Struct(">IHHQI")
_DATA_CHUNK: Final = struct.Struct(">IHHQIQ")
_HOLE_CHUNK: Final = struct.Struct(">IHHQIQI")
_ERROR_CHUNK: Final = struct.Struct(">IHHQIIH")
_STATUS_CHUNK: Final = struct.Struct(">IHHQII")

# «base:allocation metadata context»
_ALLOCATION_ID: Final = 1
_STATE_HOLE: Final = 1
_STATE_ZERO: Final = 2
#: A server «SHOULD NOT send more than 2^20 status descriptors»; the client asks for the rest.
_EXTENTS_MAX: Final = 1 << 16


class _Chunk(IntEnum):
    """«Structured reply types»."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


_DONE: Final = 1  # «Structured reply flags»

#: «Newstyle negotiation»: what a server says first.
GREETING: Final = (
    b"NBDMAGIC"
    + OPTION_MAGIC.to_bytes(8, "big")
    + (ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES).to_bytes(2, "big")
)


def pack_export(export: ExportInfo, structured: bool, zeroes: bool) -> bytes:
    """The answer to NBD_OPT_EXPORT_NAME."""
    head = struct.pack(">QH", export.size, transmission_flags(export, structured))
    return head + _RESERVED if zeroes else head


def pack_option_reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    """«Fixed newstyle negotiation»: a reply to any other option."""
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def pack_server(name: str) -> bytes:
    """Data of NBD_REP_SERVER."""
    data = name.encode()
    return struct.pack(">I", len(data)) + data


def pack_info_export(export: ExportInfo, structured: bool) -> bytes:
    """Data of NBD_REP_INFO: NBD_INFO_EXPORT."""
    return struct.pack(">HQH", Info.EXPORT, export.size, transmission_flags(export, structured))


def pack_info_name(name: str) -> bytes:
    """Data of NBD_REP_INFO: NBD_INFO_NAME."""
    return struct.pack(">H", Info.NAME) + name.encode()


def pack_info_block_size() -> bytes:
    """Data of NBD_REP_INFO: NBD_INFO_BLOCK_SIZE."""
    return struct.pack(
        ">HIII", Info.BLOCK_SIZE, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX
    )


def pack_meta_context(selected: bool) -> bytes:
    """Data of NBD_REP_META_CONTEXT: base:allocation, the only one there is.

    Where it is only listed its id «is reserved and SHOULD be set to zero».
    """
    return struct.pack(">I", _ALLOCATION_ID if selected else 0) + BASE_ALLOCATION


def pack_simple(cookie: int, error: int = 0) -> bytes:
    """«Simple reply message», without the data of a READ."""
    return _SIMPLE.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def pack_chunk_done(cookie: int) -> bytes:
    """A structured reply of success, NBD_REPLY_TYPE_NONE."""
    return _CHUNK.pack(_STRUCTURED_REPLY_MAGIC, _DONE, _Chunk.NONE, cookie, 0)


def pack_data_header(cookie: int, offset: int, length: int) -> bytes:
    """NBD_REPLY_TYPE_OFFSET_DATA up to the data, as the only chunk of a reply."""
    return _DATA_CHUNK.pack(
        _STRUCTURED_REPLY_MAGIC, _DONE, _Chunk.OFFSET_DATA, cookie, 8 + length, offset
    )


def pack_hole(cookie: int, offset: int, length: int) -> bytes:
    """NBD_REPLY_TYPE_OFFSET_HOLE, as the only chunk of a reply."""
    return _HOLE_CHUNK.pack(
        _STRUCTURED_REPLY_MAGIC, _DONE, _Chunk.OFFSET_HOLE, cookie, 12, offset, length
    )


def pack_block_status(
    cookie: int, extents: Iterable[Extent], length: int, only_one: bool
) -> bytes | None:
    """NBD_REPLY_TYPE_BLOCK_STATUS; None where there is no extent to tell of.

    Neighbours of one kind become one; what reaches beyond ``length`` is cut off.
    """
    lengths: list[int] = []
    states: list[int] = []
    for extent in extents:
        part = min(extent.length, length)
        if part <= 0:
            continue
        state = (0 if extent.allocated else _STATE_HOLE) | (_STATE_ZERO if extent.zero else 0)
        if states and states[-1] == state:
            lengths[-1] += part
        elif (only_one and states) or len(states) == _EXTENTS_MAX:
            break
        else:
            lengths.append(part)
            states.append(state)
        length -= part
    if not states:
        return None
    descriptors = [value for pair in zip(lengths, states, strict=True) for value in pair]
    head = _STATUS_CHUNK.pack(
        _STRUCTURED_REPLY_MAGIC,
        _DONE,
        _Chunk.BLOCK_STATUS,
        cookie,
        4 + 4 * len(descriptors),
        _ALLOCATION_ID,
    )
    return head + struct.pack(f">{len(descriptors)}I", *descriptors)


def pack_chunk_error(cookie: int, error: int, text: str) -> bytes:
    """NBD_REPLY_TYPE_ERROR, with what a human can read."""
    message = text.replace("\0", "").encode(errors="replace")[:STRING_BYTES_MAX]
    message = message.decode(errors="ignore").encode()  # it may have been cut in a character
    length = 6 + len(message)
    head = _ERROR_CHUNK.pack(
        _STRUCTURED_REPLY_MAGIC, _DONE, _Chunk.ERROR, cookie, length, error, len(message)
    )
    return head + message
