"""The disk link's words: written, and read in pieces of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from colo.disks.digests import BLOCK_SIZE, DIGEST_SIZE
from colo.disks.words import (
    PAYLOAD_MAX,
    DiskHello,
    Kind,
    OneDisk,
    Said,
    WordReader,
    answer,
    blocks_of,
    encode,
    header,
    read_answer,
    take_line,
)
from colo.errors import LimitExceeded, Misfit, PeerError, Refused


def view(data: bytes) -> memoryview:
    return memoryview(data)


WORDS = [
    Said(Kind.WRITE, 1, 4096, 5, payload=view(b"hello")),
    Said(Kind.WRITE, 0, (1 << 63) + 1, 0),
    Said(Kind.ZERO, 65535, 512, 1 << 31, 1),
    Said(Kind.COMPARE, 0, BLOCK_SIZE, 2 * BLOCK_SIZE, 7, view(bytes(range(2 * DIGEST_SIZE)))),
    Said(Kind.COMPARE, 0, BLOCK_SIZE, 1, 8, view(bytes(DIGEST_SIZE))),
    Said(Kind.IN_STEP),
    Said(Kind.CUT, number=3),
    Said(Kind.TAKEN, number=1 << 40),
    Said(Kind.DIFFER, 0, BLOCK_SIZE, 2 * BLOCK_SIZE, 7, view(b"\1\0")),
    Said(Kind.READY),
    Said(Kind.URGE),
    Said(Kind.FAILED, length=4, payload=view(b"full")),
]
STREAM = b"".join(map(encode, WORDS))


def copied(reader: WordReader, data: bytes) -> Iterator[tuple[Said, bytes]]:
    """What was said, with its payload as it was then."""
    for said in reader.feed(data):
        yield Said(said.kind, said.disk, said.offset, said.length, said.number), bytes(said.payload)


EXPECTED = [
    (Said(each.kind, each.disk, each.offset, each.length, each.number), bytes(each.payload))
    for each in WORDS
]


def test_every_kind_is_among_them() -> None:
    assert {each.kind for each in WORDS} == set(Kind)


def test_whole() -> None:
    assert list(copied(WordReader(), STREAM)) == EXPECTED


@pytest.mark.parametrize("size", [1, 2, 7, 23, 24, 25, 100])
def test_in_pieces(size: int) -> None:
    reader = WordReader()
    pieces = (STREAM[at : at + size] for at in range(0, len(STREAM), size))
    assert [each for piece in pieces for each in copied(reader, piece)] == EXPECTED


@pytest.mark.parametrize("at", range(len(STREAM)))
def test_cut_at_every_byte(at: int) -> None:
    reader = WordReader()
    first = list(copied(reader, STREAM[:at]))
    assert first + list(copied(reader, STREAM[at:])) == EXPECTED


def test_a_reader_that_is_left_in_the_middle_goes_on_behind_what_it_has_said() -> None:
    reader = WordReader()
    for said in reader.feed(STREAM):
        assert said.kind is Kind.WRITE
        break
    assert list(copied(reader, b"")) == EXPECTED[1:]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x63" + STREAM[1:], "the disk link has no word 99"),
        (b"\x00" + STREAM[1:], "the disk link has no word 0"),
        (b"\x01\x01" + STREAM[2:], "WRITE with 1 where 0 belongs"),
    ],
)
def test_what_is_no_word_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(PeerError, match=text):
        list(WordReader().feed(data))


@pytest.mark.parametrize(
    "head",
    [
        header(Kind.WRITE, length=PAYLOAD_MAX + 1),
        header(Kind.FAILED, length=(1 << 32) - 1),
    ],
)
def test_a_payload_has_a_limit_before_it_comes(head: bytes) -> None:
    with pytest.raises(LimitExceeded):
        list(WordReader().feed(head))


@pytest.mark.parametrize(
    ("offset", "length", "blocks"),
    [(0, 0, 0), (0, 1, 1), (0, BLOCK_SIZE, 1), (0, BLOCK_SIZE + 1, 2), (1, BLOCK_SIZE, 2),
     (BLOCK_SIZE - 1, 2, 2), (5 * BLOCK_SIZE, 3 * BLOCK_SIZE, 3)],
)  # fmt: skip
def test_blocks_of_a_range(offset: int, length: int, blocks: int) -> None:
    assert blocks_of(offset, length) == blocks


DISKS = OneDisk("root", 1 << 30), OneDisk("data", 512)
HELLO = DiskHello("web1", 7, "a/1/2", DISKS, {"cd0": "0123"})


def test_a_hello_is_read_as_it_was_written() -> None:
    line = HELLO.encode()
    assert line.endswith(b"\n")
    assert DiskHello.decode(line[:-1]) == HELLO
    data = bytearray(line + b"more")
    assert take_line(data) == line[:-1]
    assert data == b"more"
    assert take_line(data) is None


def without(name: str) -> bytes:
    table = json.loads(HELLO.encode())
    del table[name]
    return json.dumps(table).encode()


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"7", b"\xff", b"[" * 5000,
     *(without(name) for name in ("vm", "grant", "holder", "disks", "read_only", "version")),
     HELLO.encode().replace(b'"0123"', b"123"),
     HELLO.encode().replace(b"512", b'"512"'), HELLO.encode().replace(b"7", b"true")],
)  # fmt: skip
def test_what_is_no_hello_is_refused(line: bytes) -> None:
    with pytest.raises(PeerError, match="not a disk link's first line"):
        DiskHello.decode(line)


def test_a_first_line_has_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        take_line(bytearray(1 << 17))


OURS = (OneDisk("root", 0), OneDisk("data", 0))


@pytest.mark.parametrize(
    ("hello", "vm", "disks", "why"),
    [
        (HELLO, "web1", OURS, None),
        (HELLO, "web2", OURS, "its VM is web1, this one is web2"),
        (HELLO, "web1", OURS[::-1], "root, data, this one's data, root: they must be the same"),
        (HELLO, "web1", (), "this one's none"),
        (DiskHello("web1", 7, "a", (), {}, 1), "web1", (), "it speaks version 1"),
    ],
)
def test_whose_disks_they_are(
    hello: DiskHello, vm: str, disks: tuple[OneDisk, ...], why: str | None
) -> None:
    found = hello.refusal(vm, disks)
    assert found == why if why is None else found is not None and why in found


def test_an_answer_says_what_there_is_to_compare_with_or_why_it_is_refused() -> None:
    assert read_answer(answer(holds=(True, False))) == (True, False)
    with pytest.raises(Refused, match="later"):
        read_answer(answer("later"))
    with pytest.raises(Misfit, match="never"):
        read_answer(answer("never", final=True))
    for line in (b"", b"{}", b'{"holds": [1]}', b'{"holds": true}', b'{"refused": "x"}'):
        with pytest.raises(PeerError, match="not an answer"):
            read_answer(line)
