"""Anything at all from a client: answers, or a clean protocol error; bounded memory and steps."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo.errors import NbdError
from colo.nbd.connection import Connection
from colo.nbd.protocol import Command, ErrorCode, Extent, Request
from tests.nbd.cases import CASES, EXPORTS, SIZE, Outcome, run
from tests.nbd.client import (
    ABORT,
    GO,
    GREETING,
    LIST,
    MAPPED,
    PLAIN,
    STRUCTURED,
    STRUCTURED_GO,
    Answers,
    command,
    hello,
    option,
    write,
)

VALID = [case.sent for case in CASES if len(case.sent) < 3000]
SIZES = tuple(export.size.to_bytes(8, "big") for export in EXPORTS.values())
STARTS = [b"", hello(), PLAIN, STRUCTURED_GO, MAPPED]
NUMBERS = [0, 1, 7, 12, 0xFF, 0xFFFF, 0x80000001, 0xFFFFFFFF, SIZE, SIZE - 1, 1 << 25, 1 << 63]


def well_formed(outcome: Outcome) -> None:
    """What the server said can be read to its end, whatever it was said to."""
    answers = Answers(outcome.said)
    assert answers.take(len(GREETING)) == GREETING
    options: list[str] = []
    while answers.more and options[-1:] not in ([f"{GO} ack"], [f"{ABORT} ack"]):
        if answers.data[answers.at :].startswith(SIZES):
            return  # the answer to an EXPORT_NAME: it cannot be told what follows
        options.append(answers.option_reply())
    if f"{STRUCTURED} ack" in options:
        answers.replies()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(STARTS), st.binary(max_size=300), st.integers(1, 400))
def test_random_bytes(start: bytes, sent: bytes, size: int) -> None:
    well_formed(run(start + sent, itertools.repeat(size)))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_conversation_that_was_changed(data: st.DataObject) -> None:
    sent = data.draw(st.sampled_from(VALID))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sent)))
        cut = data.draw(st.integers(0, 16))
        inserted = data.draw(
            st.binary(max_size=16)
            | st.builds(
                int.to_bytes, st.sampled_from(NUMBERS), st.sampled_from([8]), st.just("big")
            )
            | st.sampled_from(VALID)
        )
        sent = sent[:at] + inserted + sent[at + cut :]
    size = data.draw(st.integers(1, 500))
    outcome = run(sent, itertools.repeat(size))
    well_formed(outcome)
    assert outcome == run(sent, [len(sent) + 1]), "how it is cut makes no difference"


FIELDS = st.sampled_from(NUMBERS) | st.integers(0, (1 << 64) - 1)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([PLAIN, STRUCTURED_GO, MAPPED]),
    st.lists(st.tuples(st.integers(0, 9), FIELDS, FIELDS, st.integers(0, 63) | FIELDS), max_size=8),
)
def test_requests_with_any_numbers(start: bytes, requests: list[tuple[int, int, int, int]]) -> None:
    sent = start
    for kind, offset, number, flags in requests:
        length = number & 0xFFFFFFFF
        data = bytes(length) if kind == 1 and length < 5000 else b""
        sent += command(kind, offset, length, flags & 0xFFFF, data=data)
    outcome = run(sent, [len(sent)])
    well_formed(outcome)
    for text in outcome.asked:
        name, first, count = text.split()[:3]
        assert name == "disc" or int(first) + int(count) <= SIZE


def finish(connection: Connection, request: Request, fails: bool) -> None:
    if fails:
        connection.fail(request, ErrorCode.EIO, "drawn")
    elif request.command is Command.READ:
        connection.data(request, bytes([request.cookie % 3]) * request.length)
    elif request.command is Command.BLOCK_STATUS:
        connection.status(request, [Extent(request.length)])
    else:
        connection.done(request)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_answers_in_any_order(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from([0, 1, 3, 4, 6, 7]), min_size=1, max_size=12))
    connection = Connection(EXPORTS)
    connection.receive_data(MAPPED)
    connection.data_to_send()
    sent = b""
    for cookie, kind in enumerate(kinds):
        offset, length = (0, 0) if kind == 3 else (cookie, 10 + cookie)
        sent += command(kind, offset, length, 0, cookie, bytes(length) if kind == 1 else b"")
    waiting = connection.receive_data(sent)
    assert [request.cookie for request in waiting] == list(range(len(kinds)))
    expected = []
    while waiting:
        request = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        fails = data.draw(st.booleans())
        finish(connection, request, fails)
        expected.append((request.cookie, fails))
        assert connection.waiting == len(waiting)
    said = Answers(b"".join(connection.data_to_send())).replies()
    found = [(int(text.split(":")[0]), "error" in text) for text in said]
    assert found == expected


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(hello() + option(LIST) * 4000, id="options"),
        pytest.param(hello() + option(99, b"", 0xFFFFFFFF) + bytes(1 << 20), id="long option"),
        pytest.param(STRUCTURED_GO + command(5) * 40_000, id="refused"),
        pytest.param(STRUCTURED_GO + command(3) * 40_000, id="flushes"),
        pytest.param(STRUCTURED_GO + command(1, 0, 0xFFFFFFFF) + bytes(1 << 20), id="long write"),
        pytest.param(hello() + bytes(1 << 20), id="zeros"),
    ],
)
def test_memory_is_bounded_whatever_comes(sent: bytes) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        connection = Connection(EXPORTS)
        try:
            for at in range(0, len(sent), 32 << 10):
                for request in connection.receive_data(sent[at : at + (32 << 10)]):
                    finish(connection, request, False)
                connection.data_to_send()
        except NbdError:
            pass
        assert tracemalloc.get_traced_memory()[1] - before < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("seed", range(8))
def test_a_long_conversation_cut_at_random(seed: int) -> None:
    rng = random.Random(seed)
    sent, asked = STRUCTURED_GO, []
    for _ in range(60):
        length = rng.choice([1, 4096, 32 << 10, (32 << 10) + 1, 100_000])
        offset = rng.randrange(SIZE - length)
        value = rng.randrange(256)
        sent += write(offset, bytes([value]) * length)
        asked.append(f"write {offset} {length} flags 0 {length}x{value:02x}")
    sizes = (rng.choice([1, 27, 28, 29, 5000, 40_000, 200_000]) for _ in itertools.count())
    assert run(sent, sizes).asked == tuple(asked)
