"""Conversations: what a client sends, and what the server has to make of it.

Each expectation is taken from the protocol's document.  ``run`` plays one in pieces of any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from colo.errors import NbdError
from colo.nbd.connection import Connection, Phase
from colo.nbd.protocol import Command, ExportInfo, Extent, Request
from tests.nbd.client import (
    ABORT,
    ALLOCATION,
    CACHE,
    DF,
    DISC,
    EINVAL,
    ENOSPC,
    EOVERFLOW,
    EPERM,
    EXPORT_NAME,
    FAST_ZERO,
    FLUSH,
    FUA,
    GO,
    GREETING,
    INFO,
    LIST,
    LIST_META,
    MAPPED,
    NO_HOLE,
    PLAIN,
    READ,
    REQ_ONE,
    SET_META,
    STARTTLS,
    STATUS,
    STRUCTURED,
    STRUCTURED_GO,
    TRIM,
    WRITE,
    ZEROES,
    Answers,
    command,
    contexts,
    go,
    hello,
    option,
    string,
    write,
)

SIZE = 1 << 20
MAX = 32 << 20
BIG = 1 << 40
EXPORTS = {
    "disk": ExportInfo("disk", SIZE),
    "iso": ExportInfo("iso", SIZE, read_only=True),
    "big": ExportInfo("big", BIG),
    "zeroes": ExportInfo("zeroes", SIZE),
}
BLOCKS = f"{INFO} info block size 1 4096 {MAX}"
GO_BLOCKS = f"{GO} info block size 1 4096 {MAX}"


@dataclass(frozen=True)
class Case:
    """``sent``: what the client sends.  ``options``, ``replies``: what it gets, in words.

    ``asked``: the requests that come out.  ``broken``: a word of why the connection ends.
    """

    name: str
    sent: bytes
    options: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    replies: tuple[str, ...] = ()
    broken: str = ""
    export: bytes = b""  # the answer to an EXPORT_NAME


def ok(name: str, sent: bytes, *options: str) -> Case:
    """Options alone."""
    return Case(name, hello() + sent, options)


def plain(name: str, sent: bytes, asked: str, replies: str) -> Case:
    return Case(name, PLAIN + sent, (), lines(asked), lines(replies), export=PLAIN_EXPORT)


def structured(name: str, sent: bytes, asked: str, replies: str) -> Case:
    return Case(name, STRUCTURED_GO + sent, STRUCTURED_OPTIONS, lines(asked), lines(replies))


def mapped(name: str, sent: bytes, asked: str, replies: str) -> Case:
    options = (STRUCTURED_OPTIONS[0], *CONTEXT_SET, *STRUCTURED_OPTIONS[1:])
    return Case(name, MAPPED + sent, options, lines(asked), lines(replies))


def on(export: bytes, flags: str, size: int, name: str, sent: bytes, asked: str, said: str) -> Case:
    options = (
        f"{STRUCTURED} ack",
        f"{GO} info export {size} {flags}",
        GO_BLOCKS,
        f"{GO} ack",
    )
    sent = hello() + option(STRUCTURED) + go(export) + sent
    return Case(name, sent, options, lines(asked), lines(said))


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split(";") if line.strip())


PLAIN_EXPORT = SIZE.to_bytes(8, "big") + b"\x08\x6d"
STRUCTURED_OPTIONS = (
    f"{STRUCTURED} ack",
    f"{GO} info export {SIZE} 0x8ed",
    GO_BLOCKS,
    f"{GO} ack",
)
CONTEXT_SET = (f"{SET_META} context 1 base:allocation", f"{SET_META} ack")
X = option(STRUCTURED)
Y = f"{STRUCTURED} ack"
LONG = bytes(range(256)) * 512  # 128 KiB, longer than what is copied

HANDSHAKES = [
    ok("nothing", b""),
    ok("abort", option(ABORT), f"{ABORT} ack"),
    ok("abort with data", option(ABORT, b"x" * 100_000), f"{ABORT} ack"),
    ok("after an abort", option(ABORT) + b"anything", f"{ABORT} ack"),
    ok(
        "list", option(LIST), *(f"{LIST} server {name}" for name in EXPORTS), f"{LIST} ack"
    ),
    ok("list with data", option(LIST, b"x"), f"{LIST} invalid"),
    ok("structured with data", option(STRUCTURED, b"xy"), f"{STRUCTURED} invalid"),
    ok("structured twice", X + X, Y, Y),
    ok("tls", option(STARTTLS), f"{STARTTLS} unsupported"),
    ok("withdrawn", option(4, b"disk") + option(LIST, b"x"), "4 unsupported", f"{LIST} invalid"),
    ok("extended headers", option(11), "11 unsupported"),
    ok("unknown", option(0xFFFFFFFF, b"?" * 300_000), f"{0xFFFFFFFF} unsupported"),
    ok("unknown, then known", option(77, b"?") + X, "77 unsupported", Y),
    ok("too big", option(INFO, bytes(40_000)) + X, f"{INFO} too big", Y),
    ok("many queries", X + option(SET_META, bytes(33_000)), Y, f"{SET_META} too big"),
    ok("info", go(number=INFO), f"{INFO} info export {SIZE} 0x86d", BLOCKS, f"{INFO} ack"),
    ok(
        "info with all that there is",
        go(b"iso", 0, 1, 2, 3, 99, number=INFO),
        f"{INFO} info export {SIZE} 0xf",
        f"{INFO} info name iso",
        BLOCKS,
        f"{INFO} ack",
    ),
    ok("info of none", go(b"none", number=INFO), f"{INFO} unknown"),
    ok("no default export", go(b"", number=INFO), f"{INFO} unknown"),
    ok("no UTF-8", go(b"\xff\xfe", number=INFO), f"{INFO} unknown"),
    ok("go to none, then to one", go(b"no") + go(), f"{GO} unknown",
       f"{GO} info export {SIZE} 0x86d", GO_BLOCKS, f"{GO} ack"),
    *(
        ok(f"info that is {what}", option(INFO, data), f"{INFO} invalid")
        for what, data in {
            "empty": b"",
            "cut in the length": b"\0\0\0",
            "cut in the name": string(b"disk")[:-1],
            "cut before the count": string(b"disk") + b"\0",
            "short of a request": string(b"disk") + b"\0\1",
            "longer than its requests": string(b"disk") + b"\0\0x",
            "named too long": string(b"d" * 4097) + b"\0\0",
            "a lie": b"\xff\xff\xff\xff" + b"\0\0",
        }.items()
    ),
    ok("set without structured", contexts(SET_META, b"disk", ALLOCATION), f"{SET_META} invalid"),
    ok("list contexts without structured", contexts(LIST_META, b"disk"), f"{LIST_META} invalid"),
    ok("contexts", X + contexts(LIST_META, b"disk"), Y,
       f"{LIST_META} context 0 base:allocation", f"{LIST_META} ack"),
    ok("contexts of base", X + contexts(LIST_META, b"disk", b"base:"), Y,
       f"{LIST_META} context 0 base:allocation", f"{LIST_META} ack"),
    ok("contexts that others have",
       X + contexts(LIST_META, b"disk", b"qemu:dirty-bitmap:x", b"base:other", b"no-colon"),
       Y, f"{LIST_META} ack"),
    ok("contexts of none", X + contexts(LIST_META, b"none"), Y, f"{LIST_META} unknown"),
    ok("set", X + contexts(SET_META, b"disk", b"x:y", ALLOCATION, ALLOCATION), Y, *CONTEXT_SET),
    ok("set no wildcard", X + contexts(SET_META, b"disk", b"base:"), Y, f"{SET_META} ack"),
    ok("set nothing", X + contexts(SET_META, b"disk"), Y, f"{SET_META} ack"),
    ok("set for none", X + contexts(SET_META, b"none", ALLOCATION), Y, f"{SET_META} unknown"),
    *(
        ok(f"contexts that are {what}", X + option(SET_META, data), Y, f"{SET_META} invalid")
        for what, data in {
            "empty": b"",
            "cut before the count": string(b"disk") + b"\0\0\0",
            "short of a query": string(b"disk") + b"\0\0\0\1",
            "miscounted": string(b"disk") + b"\xff\xff\xff\xff" + string(ALLOCATION),
            "longer than they say": string(b"disk") + b"\0\0\0\0x",
            "cut in a query": string(b"disk") + b"\0\0\0\1" + string(ALLOCATION)[:-1],
        }.items()
    ),
    Case("export name", PLAIN, export=PLAIN_EXPORT),
    Case("export name, of old", hello(0) + option(EXPORT_NAME, b"disk"),
         export=PLAIN_EXPORT + bytes(124)),
    Case("unknown client flags", hello(7), broken="flags"),
    Case("no option", hello() + b"IHAVEOPX" + bytes(8), broken="begins no option"),
    Case("no export of that name", hello() + option(EXPORT_NAME, b"none"), broken="'none'"),
    Case("a name that is too long", hello() + option(EXPORT_NAME, b"", 4097), broken="4097"),
    Case("no end of options", hello() + X * 257, (Y,) * 256, broken="256 options"),
]  # fmt: skip

COMMANDS = [
    plain("read", command(READ, 4096, 512), "read 4096 512 flags 0", "7: data 512x41"),
    plain("read of zeros", command(READ, 0, 512), "read 0 512 flags 0", "7: data 512x00"),
    structured("structured read", command(READ, 4096, 512), "read 4096 512 flags 0",
               "7: data at 4096 512x41"),
    structured("structured read of zeros", command(READ, 0, 512), "read 0 512 flags 0",
               "7: hole at 0 512"),
    structured("zeros in one piece", command(READ, 0, 512, DF), "read 0 512 flags 4",
               "7: data at 0 512x00"),
    structured("the last byte", command(READ, SIZE - 1, 1), f"read {SIZE - 1} 1 flags 0",
               f"7: data at {SIZE - 1} 1x41"),
    plain("write", write(1, b"abc"), "write 1 3 flags 0 3 mixed", "7: ok"),
    structured("write, stable", write(0, b"bb", FUA), "write 0 2 flags 1 2x62", "7: none"),
    structured("a long write", write(3, LONG), f"write 3 {len(LONG)} flags 0 {len(LONG)} mixed",
               "7: none"),
    structured("a long write among others",
               write(0, b"x") + write(1, LONG, 0, 8) + write(2, b"y", 0, 9),
               f"write 0 1 flags 0 1x78; write 1 {len(LONG)} flags 0 {len(LONG)} mixed; "
               "write 2 1 flags 0 1x79",
               "7: none; 8: none; 9: none"),
    structured("flush", command(FLUSH), "flush 0 0 flags 0", "7: none"),
    structured("flush, stable", command(FLUSH, 0, 0, FUA), "flush 0 0 flags 1", "7: none"),
    structured("read, stable", command(READ, 4096, 1, FUA), "read 4096 1 flags 1",
               "7: data at 4096 1x41"),
    structured("trim", command(TRIM, 5, 6, FUA), "trim 5 6 flags 1", "7: none"),
    structured("zeroes", command(ZEROES, 5, SIZE - 5, NO_HOLE | FAST_ZERO | FUA),
               f"write_zeroes 5 {SIZE - 5} flags 19", "7: none"),
    on(b"big", "0x8ed", BIG, "zeroes of any length", command(ZEROES, 0, 0xFFFFFFFF),
       f"write_zeroes 0 {0xFFFFFFFF} flags 0", "7: none"),
    mapped("status", command(STATUS, 0, 8192), "block_status 0 8192 flags 0",
           "7: status 4096:3 4096:0"),
    mapped("one status", command(STATUS, 0, 8192, REQ_ONE), "block_status 0 8192 flags 8",
           "7: status 4096:3"),
    mapped("a short status", command(STATUS, 0, 100), "block_status 0 100 flags 0",
           "7: status 100:3"),
    structured("disc", command(DISC) + b"anything", "disc 0 0 flags 0", ""),
    structured("disc with a range", command(DISC, 1, 1), "disc 1 1 flags 0", ""),
    structured("nothing to read", command(READ), "", "7: none"),
    plain("nothing to write", command(WRITE, 0, 0), "", "7: ok"),
    structured("nothing to trim", command(TRIM, SIZE) + command(ZEROES, 1), "",
               "7: none; 7: none"),
    structured("one cookie twice", command(FLUSH) + command(FLUSH),
               "flush 0 0 flags 0; flush 0 0 flags 0", "7: none; 7: none"),
]  # fmt: skip


def error(name: str, sent: bytes, code: int) -> Case:
    """A request that is refused, and the next one is not."""
    replies = f"7: error {code} said; 9: none"
    return structured(name, sent + command(FLUSH, cookie=9), "flush 0 0 flags 0", replies)


def on_iso(name: str, sent: bytes, asked: str, said: str) -> Case:
    return on(b"iso", "0x8f", SIZE, name, sent, asked, said)


ERRORS = [
    error("read beyond the end", command(READ, SIZE, 1), EINVAL),
    error("read over the end", command(READ, SIZE - 1, 2), EINVAL),
    error("read at the end of all numbers", command(READ, (1 << 64) - 1, 1), EINVAL),
    error("write beyond the end", write(SIZE, b"x"), ENOSPC),
    error("write over the end", write(SIZE - 1, b"xx"), ENOSPC),
    error("a long write over the end", write(SIZE - 1, LONG), ENOSPC),
    error("zeroes over the end", command(ZEROES, 1, SIZE), ENOSPC),
    error("trim over the end", command(TRIM, 1, SIZE), EINVAL),
    error("cache", command(CACHE, 0, 1), EINVAL),
    error("resize", command(8, 0, 1), EINVAL),
    error("unknown command", command(0xFFFF, 0, 1), EINVAL),
    error("unknown flag", command(READ, 0, 1, 0x40), EINVAL),
    error("payload length", write(0, b"x", 0x20), EINVAL),
    error("read with NO_HOLE", command(READ, 0, 1, NO_HOLE), EINVAL),
    error("write with DF", write(0, b"abc", DF), EINVAL),
    error("trim with NO_HOLE", command(TRIM, 0, 1, NO_HOLE), EINVAL),
    error("flush with FAST_ZERO", command(FLUSH, 0, 0, FAST_ZERO), EINVAL),
    error("zeroes with REQ_ONE", command(ZEROES, 0, 1, REQ_ONE), EINVAL),
    error("flush of a range", command(FLUSH, 0, 1), EINVAL),
    error("flush at an offset", command(FLUSH, 1, 0), EINVAL),
    error("status without a context", command(STATUS, 0, 1), EINVAL),
    mapped("status over the end", command(STATUS, SIZE - 1, 2), "", f"7: error {EINVAL} said"),
    mapped("status of nothing", command(STATUS, 0, 0), "", f"7: error {EINVAL} said"),
    mapped("status with DF", command(STATUS, 0, 1, DF), "", f"7: error {EINVAL} said"),
    plain("DF without structured", command(READ, 0, 1, DF), "", f"7: error {EINVAL}"),
    plain("an error, plain", command(READ, SIZE, 1), "", f"7: error {EINVAL}"),
    on_iso("read-only, read", command(READ, 4096, 1), "read 4096 1 flags 0",
           "7: data at 4096 1x41"),
    on_iso("read-only, flush", command(FLUSH), "flush 0 0 flags 0", "7: none"),
    on_iso("read-only, write", write(0, b"x" * 9) + write(SIZE, LONG), "",
           f"7: error {EPERM} said; 7: error {EPERM} said"),
    on_iso("read-only, zeroes", command(ZEROES, 0, 1), "", f"7: error {EPERM} said"),
    on_iso("read-only, trim", command(TRIM, 0, 1), "", f"7: error {EPERM} said"),
    on(b"big", "0x8ed", BIG, "the longest read", command(READ, 0, MAX),
       f"read 0 {MAX} flags 0", f"7: hole at 0 {MAX}"),
    on(b"big", "0x8ed", BIG, "too long a read", command(READ, 0, MAX + 1),
       "", f"7: error {EOVERFLOW} said"),
    on(b"big", "0x8ed", BIG, "too long a read in one piece", command(READ, 0, MAX + 1, DF),
       "", f"7: error {EOVERFLOW} said"),
    Case("a context of another export",
         hello() + X + contexts(SET_META, b"iso", ALLOCATION) + go() + command(STATUS, 0, 1),
         (Y, *CONTEXT_SET, *STRUCTURED_OPTIONS[1:]), (), (f"7: error {EINVAL} said",)),
    Case("a context that was replaced",
         hello() + X + contexts(SET_META, b"disk", ALLOCATION) + contexts(SET_META, b"none")
         + go() + command(STATUS, 0, 1),
         (Y, *CONTEXT_SET, f"{SET_META} unknown", *STRUCTURED_OPTIONS[1:]), (),
         (f"7: error {EINVAL} said",)),
    Case("bad magic", STRUCTURED_GO + command(FLUSH) + command(FLUSH, magic=0x25609514),
         STRUCTURED_OPTIONS, ("flush 0 0 flags 0",), ("7: none",), "0x25609514 begins no request"),
    Case("a reply's magic", PLAIN + command(READ, 0, 1, magic=0x67446698),
         broken="begins no request", export=PLAIN_EXPORT),
]  # fmt: skip

CASES = HANDSHAKES + COMMANDS + ERRORS


def words(request: Request) -> str:
    text = f"{request.command.name.lower()} {request.offset} {request.length} flags {request.flags}"
    if request.command is Command.WRITE:
        data = bytes(request.data)
        assert len(data) == request.length
        kind = f"x{data[0]:02x}" if len(set(data)) == 1 else " mixed"
        text += f" {len(data)}{kind}"
    return text


def answer(connection: Connection, request: Request) -> None:
    """Answer as a disk does that has data where an offset has bit 12 set, and is else a hole."""
    match request.command:
        case Command.DISC:
            return
        case Command.READ:
            byte = b"A" if request.offset & 4096 else b"\0"
            connection.data(request, byte * request.length)
        case Command.BLOCK_STATUS:
            connection.status(request, [Extent(4096, False, True), Extent(8192)])
        case _:
            connection.done(request)


@dataclass
class Outcome:
    asked: tuple[str, ...]
    said: bytes
    broken: str


def run(sent: bytes, sizes: Iterable[int]) -> Outcome:
    """Play a conversation in pieces of these sizes."""
    connection = Connection(EXPORTS)
    asked: list[str] = []
    said = bytearray()
    at, broken = 0, ""
    try:
        for size in sizes:
            piece = memoryview(sent)[at : at + size]
            at += size
            while len(piece) and connection.phase is not Phase.ENDED:
                room = connection.receive_buffer()
                count = min(len(room), len(piece))
                room[:count] = piece[:count]
                connection.received(count)
                piece = piece[count:]
                while (request := connection.next_request()) is not None:
                    asked.append(words(request))
                    answer(connection, request)
                said += b"".join(connection.data_to_send())
            if at >= len(sent):
                break
    except NbdError as error:
        broken = str(error)
    said += b"".join(connection.data_to_send())
    assert not connection.waiting and not connection.bytes_held
    return Outcome(tuple(asked), bytes(said), broken)


def check(case: Case, outcome: Outcome) -> None:
    """Hold what came out against what the case expects."""
    answers = Answers(outcome.said)
    assert answers.take(len(GREETING)) == GREETING
    if case.export:
        assert answers.take(len(case.export)) == case.export
    else:
        assert tuple(answers.option_replies()) == case.options
    lengths = [int(text.split()[2]) for text in outcome.asked if text.startswith("read")]
    reads = {7: lengths[0]} if lengths else {}
    assert tuple(answers.replies(reads)) == case.replies
    assert outcome.asked == case.asked
    assert bool(outcome.broken) == bool(case.broken) and case.broken in outcome.broken
