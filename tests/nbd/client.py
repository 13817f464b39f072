"""What an NBD client sends, and how it reads the answers, from the protocol's document alone.

Nothing of ``colo.nbd`` is used here, so that server and tests cannot share a mistake.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

GREETING = b"NBDMAGICIHAVEOPT\x00\x03"
ALLOCATION = b"base:allocation"

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    9,
    10,
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108

REPLIES = {
    1: "ack",
    2: "server",
    3: "info",
    4: "context",
    0x80000001: "unsupported",
    0x80000003: "invalid",
    0x80000006: "unknown",
    0x80000007: "shutdown",
    0x80000009: "too big",
}


def hello(flags: int = 3) -> bytes:
    """The client's flags: FIXED_NEWSTYLE and NO_ZEROES."""
    return struct.pack(">I", flags)


def option(number: int, data: bytes = b"", length: int | None = None) -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data) if length is None else length) + data


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def go(name: bytes = b"disk", *wanted: int, number: int = GO) -> bytes:
    return option(number, string(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted))


def contexts(number: int, name: bytes, *queries: bytes) -> bytes:
    data = string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))
    return option(number, data)


def command(
    kind: int,
    offset: int = 0,
    length: int = 0,
    flags: int = 0,
    cookie: int = 7,
    data: bytes = b"",
    magic: int = 0x25609513,
) -> bytes:
    return struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length) + data


def write(offset: int, data: bytes, flags: int = 0, cookie: int = 7) -> bytes:
    return command(WRITE, offset, len(data), flags, cookie, data)


#: Up to the transmission, with and without structured replies, with and without allocation.
PLAIN = hello() + option(EXPORT_NAME, b"disk")
STRUCTURED_GO = hello() + option(STRUCTURED) + go()
MAPPED = hello() + option(STRUCTURED) + contexts(SET_META, b"disk", ALLOCATION) + go()


@dataclass
class Answers:
    """What a server said, read piece by piece."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data), "the server's answer ends too early"
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def option_reply(self) -> str:
        """One reply to an option, in words."""
        assert self.take(8) == bytes.fromhex("0003e889045565a9")
        number, kind, length = self.unpack(">III")
        data = self.take(length)
        text = f"{number} {REPLIES[kind]}"
        if REPLIES[kind] == "server":
            assert struct.unpack(">I", data[:4])[0] == len(data) - 4
            return f"{text} {data[4:].decode()}"
        if REPLIES[kind] == "info":
            return f"{text} {info(data)}"
        if REPLIES[kind] == "context":
            return f"{text} {struct.unpack('>I', data[:4])[0]} {data[4:].decode()}"
        if kind >> 31:
            assert data.decode().isprintable() and data, "an error says why"
        else:
            assert not data
        return text

    def option_replies(self) -> list[str]:
        """All replies up to the ACK of a GO or of an ABORT, or to the end."""
        found: list[str] = []
        while self.more and found[-1:] not in ([f"{GO} ack"], [f"{ABORT} ack"]):
            found.append(self.option_reply())
        return found

    def reply(self, reads: dict[int, int]) -> str:
        """One reply to a command, in words; ``reads``: the cookies of READs and their lengths."""
        (magic,) = self.unpack(">I")
        if magic == 0x67446698:
            error, cookie = self.unpack(">IQ")
            if error:
                return f"{cookie}: error {error}"
            data = self.take(reads.get(cookie, 0))
            return f"{cookie}: data {short(data)}" if data else f"{cookie}: ok"
        assert magic == 0x668E33EF
        flags, kind, cookie, length = self.unpack(">HHQI")
        data = self.take(length)
        assert flags == 1, "one chunk is a whole reply"
        if kind == 0:
            assert not data
            return f"{cookie}: none"
        if kind == 1:
            assert length >= 9
            return f"{cookie}: data at {struct.unpack('>Q', data[:8])[0]} {short(data[8:])}"
        if kind == 2:
            return "{}: hole at {} {}".format(cookie, *struct.unpack(">QI", data))
        if kind == 5:
            values = struct.unpack(f">{length // 4}I", data)
            assert values[0] == 1 and len(values) > 2
            pairs = zip(values[1::2], values[2::2], strict=True)
            return f"{cookie}: status " + " ".join(f"{n}:{state}" for n, state in pairs)
        assert kind == 0x8001
        error, text = struct.unpack(">IH", data[:6])
        assert text == length - 6 and data[6:].decode().isprintable()
        return f"{cookie}: error {error} {'said' if text else 'unsaid'}"

    def replies(self, reads: dict[int, int] | None = None) -> list[str]:
        """All that is left."""
        found = []
        while self.more:
            found.append(self.reply(reads or {}))
        return found


def info(data: bytes) -> str:
    (kind,) = struct.unpack(">H", data[:2])
    if kind == 0:
        return "export {} {:#x}".format(*struct.unpack(">QH", data[2:]))
    if kind == 1:
        return f"name {data[2:].decode()}"
    assert kind == 3
    return "block size {} {} {}".format(*struct.unpack(">III", data[2:]))


def short(data: bytes) -> str:
    """Data in words: its length and what it is made of."""
    return f"{len(data)}x{data[0]:02x}" if len(set(data)) == 1 else f"{len(data)} mixed"
