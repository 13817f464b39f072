"""The words between two hosts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.config import VmConfig
from colo.config.vm import Failover, OneHost, QemuArgs, Wire
from colo.errors import LimitExceeded, PeerError
from colo.membership.words import Hello, LinkReader, Word, WordKind, machine_digest

CONFIG = VmConfig("web1", qemu=QemuArgs(args=("-m", "512")), failover=Failover(arbiter="manual"))
WORDS = [
    Hello.ours(CONFIG, 7).word(),
    Word(WordKind.HEARTBEAT, {"checkpoint": 12}),
    Word(WordKind.REFUSED, {"why": "no", "final": True}),
    *(Word(kind) for kind in (WordKind.DEAD, WordKind.SHUTDOWN, WordKind.BYE, WordKind.ALONE)),
]


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.data())
def test_words_in_any_pieces_come_out_as_they_were_said(
    words: list[Word], data: st.DataObject
) -> None:
    stream, reader, at = b"".join(w.encode() for w in words), LinkReader(), 0
    heard: list[Word] = []
    while at < len(stream):
        size = data.draw(st.integers(1, 40))
        heard += reader.feed(stream[at : at + size])
        at += size
    assert heard == words


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1",
        b"[]",
        b"{}",
        b'{"word": "sing"}',
        b'{"word": []}',
        b"\xff\xfe",
        b"3",
        b'"hello"',
        b"[" * 16_000,
        b'{"a":' * 3_000,
    ],
)
def test_what_is_no_word_is_the_peers_error(line: bytes) -> None:
    with pytest.raises(PeerError, match="not a word"):
        list(LinkReader().feed(line + b"\n"))


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="control link"):
        list(LinkReader().feed(b"x" * 20_000))


def test_a_hello_survives_the_wire() -> None:
    hello = Hello.ours(CONFIG, 7, "a/1/1")
    assert Hello.of(hello.word()) == hello
    without = hello.word()
    del without.content["holder"]
    assert Hello.of(without) == Hello.ours(CONFIG, 7)
    del without.content["heartbeat_s"], without.content["heartbeat_limit_s"]
    older = Hello.of(without)
    assert (older.heartbeat_s, older.heartbeat_limit_s) == (None, None)
    assert older.refusal(hello) is hello.refusal(older) is None
    assert "heartbeat_s" not in older.word().content
    assert hello.machine == machine_digest(CONFIG)


@pytest.mark.parametrize(
    "word",
    [
        Word(WordKind.HEARTBEAT),
        Word(WordKind.HELLO, {"vm": "x"}),
        Word(WordKind.HELLO, {**Hello.ours(CONFIG).word().content, "version": float("inf")}),
        Word(WordKind.HELLO, {**Hello.ours(CONFIG).word().content, "grant": float("nan")}),
        *(
            Word(WordKind.HELLO, {**Hello.ours(CONFIG).word().content, name: value})
            for name in ("heartbeat_s", "heartbeat_limit_s")
            for value in ("1", True, [1], 0, -1.5, float("inf"), float("nan"), 10**4000)
        ),
    ],
)
def test_a_first_word_that_is_no_hello_is_refused(word: Word) -> None:
    with pytest.raises(PeerError, match="no hello"):
        Hello.of(word)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 1}, "it speaks version 1 of the link, this colo 3"),
        ({"vm": "web2"}, "its VM is web2, this one is web1"),
        ({"machine": "0"}, "describes another machine"),
        ({"arbiter": "none"}, "its arbiter is none, this one's manual"),
        (
            {"heartbeat_s": 0.5, "heartbeat_limit_s": 1.0},
            "this one's heartbeat_limit_s is 0.8, less than twice its heartbeat_s of 0.5: make",
        ),
        (
            {"heartbeat_s": 0.01, "heartbeat_limit_s": 0.1},
            "its heartbeat_limit_s is 0.1, less than twice this one's heartbeat_s of 0.1: make",
        ),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_with_the_reason(
    change: dict[str, object], text: str
) -> None:
    ours = Hello.ours(CONFIG)
    theirs = dataclasses.replace(ours, **change)  # type: ignore[arg-type]
    assert text in (theirs.refusal(ours) or "")
    assert ours.refusal(ours) is None


def test_the_digest_covers_what_both_hosts_share_and_not_what_differs() -> None:
    there = dataclasses.replace(CONFIG.qemu, secondary=OneHost(("-netdev", "x")), binary="/opt/q")
    other_host = dataclasses.replace(CONFIG, qemu=there)
    other_machine = dataclasses.replace(CONFIG, qemu=QemuArgs(args=("-m", "1G")))
    assert machine_digest(other_host) == machine_digest(CONFIG)
    assert machine_digest(other_machine) != machine_digest(CONFIG)


@pytest.mark.parametrize(
    ("content", "saved"),
    [
        ({"checkpoint": 7, "after_ns": 1_500_000}, (7, 0.0015)),
        ({"checkpoint": 7}, None),
        ({"checkpoint": 7, "after_ns": -1}, None),
        ({"checkpoint": "7", "after_ns": 1}, None),
    ],
)
def test_when_devices_were_saved(content: dict[str, Any], saved: tuple[int, float] | None) -> None:
    assert Word(WordKind.SAVED, content).saved == saved


@pytest.mark.parametrize("compress", [True, False])
def test_a_hello_says_whether_frames_are_taken(compress: bool) -> None:
    config = dataclasses.replace(CONFIG, wire=Wire(compress=compress, compare_mib=0))
    hello = Hello.ours(config)
    assert hello.wire == int(compress)
    assert Hello.of(hello.word()) == hello
    older = {name: value for name, value in hello.word().content.items() if name != "wire"}
    assert Hello.of(Word(WordKind.HELLO, older)).wire == 0
