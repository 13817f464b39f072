"""The return path: what a QEMU 11 secondary says of the first migration, before COLO begins.

Each message is a u16 type, a u16 length and that many bytes: a PONG for every ping, and at last
SHUT with a u32 that is 0 when the migration was loaded.  COLO's messages follow on the same
connection.

Source: ``migrate_send_rp_message`` and ``source_return_path_thread`` in ``migration/migration.c``.
"""

from __future__ import annotations

import struct
from typing import Final

from colo.errors import LimitExceeded
from colo.migration.format import ReturnPath

__all__ = ["ReturnPathDecoder"]

_HEAD: Final = struct.Struct(">HH")
#: The longest that QEMU defines is a bitmap's acknowledgement, with a block's name.
_LENGTH_MAX: Final = 512


class ReturnPathDecoder:
    """Parts the messages of the return path from what follows them.

    ``status``: what SHUT said, 0 for success; None until it is here.
    """

    def __init__(self) -> None:
        self._data = b""
        self.status: int | None = None

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take more bytes; return whole messages of the path, and what comes after the last.

        Raises LimitExceeded.
        """
        data, at = self._data + data, 0
        while self.status is None and len(data) - at >= _HEAD.size:
            kind, length = _HEAD.unpack_from(data, at)
            if length > _LENGTH_MAX:
                raise LimitExceeded("a message of the return path", length, _LENGTH_MAX)
            start, end = at + _HEAD.size, at + _HEAD.size + length
            if end > len(data):
                break
            if kind == ReturnPath.SHUT:
                self.status = int.from_bytes(data[start:end], "big")
            at = end
        if self.status is None:
            self._data = data[at:]
            return data[:at], b""
        return data[:at], data[at:]
