"""The handshake: the client asks, option by option, and at last says which export it wants.

«Fixed newstyle negotiation» and «Option types» of doc/proto.md::

    server: greeting
    client: flags
    client: option     server: replies, the last of them ACK or an error    (any number of these)
    client: GO         server: what the export is, ACK                      transmission begins
    client: EXPORT_NAME                 server: what the export is          the same, from of old
    client: ABORT      server: ACK                                          the end

What cannot be answered with an error ends the connection.  TLS is no option here: what carries
the connection has to be secure.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from colo.errors import NbdError
from colo.migration.buffer import Parser, ReceiveBuffer, need, u32, u64
from colo.nbd.protocol import (
    BASE_ALLOCATION,
    OPTION_MAGIC,
    STRING_BYTES_MAX,
    ClientFlag,
    ExportInfo,
    Info,
    Option,
    OptionReply,
)
from colo.nbd.replies import (
    GREETING,
    pack_export,
    pack_info_block_size,
    pack_info_export,
    pack_info_name,
    pack_meta_context,
    pack_option_reply,
    pack_server,
)

__all__ = ["OPTION_BYTES_MAX", "Agreed", "Negotiation", "skip"]

#: The most data of one option that is looked at.
OPTION_BYTES_MAX: Final = 32 << 10
#: So many options make a client one that does not come to the point.
_OPTIONS_MAX: Final = 256
_CLIENT_FLAGS: Final = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
#: The query that lists all of a namespace: «The `base:` metadata namespace».
_BASE: Final = b"base:"
_NO_DATA: Final = (Option.LIST, Option.STRUCTURED_REPLY)


@dataclass(frozen=True)
class Agreed:
    """What the handshake resulted in.

    ``structured``: replies are structured.  ``allocation``: BLOCK_STATUS may be asked for.
    """

    export: ExportInfo
    structured: bool
    allocation: bool


class _Refusal(Exception):
    """An option is answered with an error."""

    def __init__(self, kind: OptionReply, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Negotiation:
    """Reads the handshake from ``buffer``, and gives what is to be sent to ``send``."""

    def __init__(
        self,
        buffer: ReceiveBuffer,
        exports: Mapping[str, ExportInfo],
        send: Callable[[bytes], None],
    ) -> None:
        self._buffer = buffer
        self._exports = exports
        self._send = send
        self._zeroes = True
        self._structured = False
        self._context_of: str | None = None  # the export whose allocation the client selected
        self._shutting_down = False

    def shut_down(self) -> None:
        """Refuse all options from now on but ABORT: the server is about to go."""
        self._shutting_down = True

    def run(self) -> Parser[Agreed | None]:
        """Come to an agreement, or to None where the client left.  Raises NbdError."""
        self._send(GREETING)
        flags = yield from u32(self._buffer)
        # «the server MUST drop the TCP connection if the client sets an unknown flag»
        if flags & ~_CLIENT_FLAGS:
            self._fail(f"unknown client flags {flags:#x}")
        self._zeroes = not flags & ClientFlag.NO_ZEROES
        for _ in range(_OPTIONS_MAX):
            magic = yield from u64(self._buffer)
            if magic != OPTION_MAGIC:
                self._fail(f"{magic:#018x} begins no option")
            option = yield from u32(self._buffer)
            length = yield from u32(self._buffer)
            if option == Option.ABORT:
                # «a server SHOULD ignore any data sent by the client»
                yield from skip(self._buffer, length)
                self._reply(option, OptionReply.ACK)
                return None
            if option == Option.EXPORT_NAME:
                return (yield from self._export_name(length))
            try:
                data = yield from self._data(option, length)
                agreed = self._answer(option, data)
            except _Refusal as refusal:
                self._reply(option, refusal.kind, str(refusal).encode())
            else:
                self._reply(option, OptionReply.ACK)
                if agreed is not None:
                    return agreed
        self._fail(f"more than {_OPTIONS_MAX} options")

    def _data(self, option: int, length: int) -> Parser[bytes]:
        """The data of an option that is going to be answered; of any other it is skipped."""
        refusal = self._refuse_unseen(option, length)
        if refusal is not None:
            yield from skip(self._buffer, length)
            raise refusal
        yield from need(self._buffer, length)
        return bytes(self._buffer.take(length))

    def _refuse_unseen(self, option: int, length: int) -> _Refusal | None:
        if self._shutting_down:
            return _Refusal(OptionReply.ERR_SHUTDOWN, "the server is about to go")
        if option not in Option.__members__.values():
            return _Refusal(OptionReply.ERR_UNSUP, "this server does not have it")
        # «the server SHOULD reject a request that includes data with NBD_REP_ERR_INVALID»
        if option in _NO_DATA and length:
            return _Refusal(OptionReply.ERR_INVALID, "it has no data")
        if length > OPTION_BYTES_MAX:
            return _Refusal(
                OptionReply.ERR_TOO_BIG, f"{length} bytes, over the limit of {OPTION_BYTES_MAX}"
            )
        return None

    def _export_name(self, length: int) -> Parser[Agreed]:
        """«If the server is unwilling to allow the export, it MUST terminate the session.»"""
        if length > STRING_BYTES_MAX:
            self._fail(f"an export's name of {length} bytes")
        yield from need(self._buffer, length)
        name = bytes(self._buffer.take(length)).decode(errors="replace")
        if self._shutting_down:
            self._fail("it came when the server was about to go")
        export = self._exports.get(name)
        if export is None:
            self._fail(f"there is no export {name!r}")
        self._send(pack_export(export, self._structured, self._zeroes))
        return self._agree(export)

    def _answer(self, option: int, data: bytes) -> Agreed | None:
        """Send all replies to an option but the last one.  Raises _Refusal."""
        if option == Option.LIST:
            for name in self._exports:
                self._reply(option, OptionReply.SERVER, pack_server(name))
        elif option == Option.STRUCTURED_REPLY:
            self._structured = True
        elif option in (Option.INFO, Option.GO):
            export = self._info(option, data)
            return self._agree(export) if option == Option.GO else None
        else:
            self._meta_context(option, data)
        return None

    def _info(self, option: int, data: bytes) -> ExportInfo:
        name, rest = _string(data, 0)
        if len(data) < rest + 2:
            raise _Refusal(OptionReply.ERR_INVALID, "it ends inside its own data")
        (count,) = struct.unpack_from(">H", data, rest)
        if len(data) != rest + 2 + 2 * count:
            raise _Refusal(OptionReply.ERR_INVALID, "the requests for information are miscounted")
        wanted = struct.unpack_from(f">{count}H", data, rest + 2)
        export = self._find(name)
        self._reply(option, OptionReply.INFO, pack_info_export(export, self._structured))
        if Info.NAME in wanted:
            self._reply(option, OptionReply.INFO, pack_info_name(export.name))
        # «The server MAY send information ... not explicitly requested»
        self._reply(option, OptionReply.INFO, pack_info_block_size())
        return export

    def _meta_context(self, option: int, data: bytes) -> None:
        """NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT."""
        setting = option == Option.SET_META_CONTEXT
        if setting:  # it «replaces all previously-set metadata contexts (including when ... fails)»
            self._context_of = None
        if not self._structured:
            raise _Refusal(OptionReply.ERR_INVALID, "structured replies come first")
        name, queries = _parse_queries(data)
        export = self._find(name)
        if setting:
            found = BASE_ALLOCATION in queries
        else:
            found = not queries or BASE_ALLOCATION in queries or _BASE in queries
        if found:
            self._reply(option, OptionReply.META_CONTEXT, pack_meta_context(setting))
        if found and setting:
            self._context_of = export.name

    def _find(self, name: bytes) -> ExportInfo:
        export = self._exports.get(name.decode(errors="replace"))
        if export is None:
            raise _Refusal(OptionReply.ERR_UNKNOWN, "there is no such export")
        return export

    def _agree(self, export: ExportInfo) -> Agreed:
        return Agreed(export, self._structured, self._context_of == export.name)

    def _reply(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        self._send(pack_option_reply(option, kind, data))

    def _fail(self, text: str) -> NoReturn:
        raise NbdError(text, self._buffer.position)


def skip(buffer: ReceiveBuffer, count: int) -> Parser[None]:
    """Throw ``count`` bytes away, however many."""
    while count:
        if not buffer.available:
            yield
        count -= len(buffer.take(min(count, buffer.available)))


def _parse_queries(data: bytes) -> tuple[bytes, set[bytes]]:
    """An export's name, and queries for metadata contexts.  Raises _Refusal."""
    name, at = _string(data, 0)
    if len(data) < at + 4:
        raise _Refusal(OptionReply.ERR_INVALID, "it ends inside its own data")
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    queries = set()
    for _ in range(count):
        query, at = _string(data, at)
        queries.add(query)
    if at != len(data):
        raise _Refusal(OptionReply.ERR_INVALID, "there is more than its queries")
    return name, queries


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """The string at ``at``, which begins with its length, and what is behind it."""
    if len(data) < at + 4:
        raise _Refusal(OptionReply.ERR_INVALID, "it ends inside its own data")
    (length,) = struct.unpack_from(">I", data, at)
    end = at + 4 + length
    if length > STRING_BYTES_MAX or end > len(data):
        raise _Refusal(OptionReply.ERR_INVALID, f"a string of {length} bytes")
    return data[at + 4 : end], end
