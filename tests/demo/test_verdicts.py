"""What the clients' judges find, and what they let pass."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.demo.verdicts import (
    BulkJudge,
    ClockJudge,
    EchoJudge,
    FloodJudge,
    RecordsJudge,
    SinkJudge,
    StreamJudge,
    generate,
    quantiles,
)

U64 = (1 << 64) - 1


def splitmix64(seed: int) -> Iterator[int]:
    """The generator as its authors wrote it."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & U64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & U64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & U64
        yield z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, 1234567, U64])
def test_generate_is_splitmix64(seed: int) -> None:
    words = splitmix64(seed)
    expected = b"".join(next(words).to_bytes(8, "little") for _ in range(20))
    assert generate(seed, 0, 20) == expected
    assert generate(seed, 7, 3) == expected[56:80]


def test_splitmix64_has_its_published_values() -> None:
    words = splitmix64(1234567)
    assert [next(words) for _ in range(2)] == [6457827717110365317, 3203168211198807973]


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    while data:
        size = draw.randint(1, 9)
        yield data[:size]
        data = data[size:]


# Stream


@given(st.integers())
def test_stream_in_any_pieces(seed: int) -> None:
    judge = StreamJudge()
    numbers = [
        number
        for piece in pieces(b"".join(b"%d\n" % n for n in range(120)), seed)
        for number in judge.feed(piece, 0.0)
    ]
    assert numbers == list(range(120))
    assert judge.error is None
    assert judge.figures()["lines"] == 120


@pytest.mark.parametrize(
    ("data", "offence"),
    [
        (b"0\n1\n3\n", "after 1 came '3'"),
        (b"0\n1\n1\n", "after 1 came '1'"),
        (b"0\n1\n01\n", "after 1 came '01'"),
        (b"0\n\n", "after 0 came ''"),
        (b"5\n", "after -1 came '5'"),
        (b"0\n\xff\n", "after 0 came '\\\\xff'"),
        (b"0\n" + b"1" * 30, f"after 0 came '{'1' * 30}'"),
    ],
)
def test_stream_offence_is_the_first_one(data: bytes, offence: str) -> None:
    judge = StreamJudge()
    judge.feed(data, 0.0)
    judge.feed(b"more\n", 0.0)
    assert judge.offence == judge.error == offence


def test_stream_of_nothing_is_an_error_and_no_offence() -> None:
    judge = StreamJudge()
    judge.feed(b"0", 0.0)
    assert judge.offence is None
    assert judge.error == "not one line came"


def test_gaps_are_recorded_over_the_limit_and_the_longest_always() -> None:
    judge = StreamJudge(gap_s=0.2)
    for n, at in enumerate([10.0, 10.1, 10.6, 10.7]):
        judge.feed(b"%d\n" % n, at)
    figures = judge.figures()
    assert figures["gap_ms_max"] == pytest.approx(500)
    assert figures["gaps"] == [{"position": 2, "since": 10.1, "ms": pytest.approx(500)}]


# Echo


@pytest.mark.parametrize("size", [1, 8, 1001])
def test_echo_measures_until_the_last_byte(size: int) -> None:
    judge = EchoJudge(size)
    for n in range(3):
        request = judge.request(n * 1.0)
        assert len(request) == size
        for i in range(size):
            whole = judge.feed(request[i : i + 1], n + 0.25)
            assert whole == (i == size - 1)
    assert judge.error is None
    assert judge.figures()["rtt_ms"] == {"median": 250, "p99": 250, "max": 250}


def test_echo_requests_differ() -> None:
    judge = EchoJudge(16)
    requests = set()
    for _ in range(10):
        requests.add(request := judge.request(0.0))
        judge.feed(request, 0.0)
    assert len(requests) == 10


@pytest.mark.parametrize("answer", [b"other", b""])
def test_echo_other_bytes_are_an_offence(answer: bytes) -> None:
    judge = EchoJudge(2)
    request = judge.request(0.0)
    judge.feed(answer or request + b"x", 0.1)
    assert judge.offence is not None
    assert judge.offence.startswith("request 0 was answered with ")


def test_echo_without_an_answer() -> None:
    judge = EchoJudge(2)
    judge.request(0.0)
    assert judge.error == "not one answer came"
    assert judge.figures()["rtt_ms"] is None


# Bulk


@given(st.integers(0, U64), st.integers())
def test_bulk_in_any_pieces(seed: int, cut: int) -> None:
    judge = BulkJudge(seed)
    for piece in pieces(generate(seed, 0, 40)[:-3], cut):
        judge.feed(piece, 0.0)
    assert judge.error is None
    assert judge.bytes == 317


@given(st.integers(0, 319), st.integers(1, 255), st.integers())
def test_bulk_wrong_byte_is_found_and_named(position: int, flip: int, cut: int) -> None:
    data = bytearray(generate(9, 0, 40))
    data[position] ^= flip
    judge = BulkJudge(9)
    for piece in pieces(bytes(data), cut):
        judge.feed(piece, 0.0)
    assert judge.error == f"byte {position} is wrong"


def test_bulk_of_nothing() -> None:
    assert BulkJudge(1).error == "not one byte came"


# Sink


def test_sink_answer() -> None:
    judge = SinkJudge()
    assert judge.error == "the sink did not answer"
    judge.sent(generate(1, 0, 5))
    judge.sent(generate(1, 5, 3))
    at_once = SinkJudge()
    at_once.sent(generate(1, 0, 8))
    judge.answered(b"64 1\n")
    assert judge.offence is not None
    answer = judge.offence.split("instead of ")[1].strip("'").encode() + b"\n"
    at_once.answered(answer)
    assert at_once.error is None


def test_sink_sum_knows_the_order() -> None:
    sums = []
    for order in [(0, 1), (1, 0)]:
        judge = SinkJudge()
        for word in order:
            judge.sent(generate(1, word, 1))
        judge.answered(b"")
        sums.append(judge.offence)
    assert sums[0] != sums[1]


# Flood


@pytest.mark.parametrize(
    ("numbers", "lost_max", "error"),
    [
        ([0, 1, 2, 3], 0, None),
        ([0, 1, 3], 1, None),
        ([0, 1, 3], 0, "1 of 4 datagrams are lost"),
        ([], 0, "4 of 4 datagrams are lost"),
        ([0, 1, 1, 2, 3], 4, "1 datagrams came twice, 0 out of order"),
        ([0, 2, 1, 3], 4, "0 datagrams came twice, 1 out of order"),
        ([0, 4], 4, "a datagram has the number 4"),
    ],
)
def test_flood(numbers: list[int], lost_max: int, error: str | None) -> None:
    judge = FloodJudge(4, lost_max)
    for number in numbers:
        judge.feed(number)
    assert judge.error == error


def test_quantiles_of_nothing() -> None:
    assert quantiles([]) is None


# Clock


def told(judge: ClockJudge, asked_ms: int, clock_ms: float, real_ms: float | None = None) -> None:
    judge.asked(asked_ms * 1_000_000)
    real_ms = clock_ms if real_ms is None else real_ms
    judge.feed(b"%d %d\n" % (int(clock_ms * 1e6), int(real_ms * 1e6)))


def test_a_clock_that_falls_behind_is_told_by_its_fastest_answers() -> None:
    judge = ClockJudge()
    for number in range(200):
        delay = 40 if number % 7 else 1
        told(judge, 100 * number, 5000 + 90 * number + delay)
    figures = judge.figures()
    assert judge.error is None
    assert figures["answers"] == 200
    assert figures["lost_ms"] == pytest.approx(figures["span_s"] * 100, rel=0.01)


def test_a_clock_that_keeps_time_has_lost_nothing() -> None:
    judge = ClockJudge()
    for number in range(40):
        told(judge, 100 * number, 5000 + 100 * number + number % 3)
    assert judge.figures()["lost_ms"] == 0


@pytest.mark.parametrize(("clock_ms", "real_ms"), [(4999.0, 5001.0), (5001.0, 4999.0)])
def test_a_clock_that_goes_back_is_an_offence(clock_ms: float, real_ms: float) -> None:
    judge = ClockJudge()
    told(judge, 0, 5000)
    told(judge, 1, clock_ms, real_ms)
    assert judge.offence is not None
    assert "went back" in judge.offence


@pytest.mark.parametrize("line", [b"", b"1\n", b"1 2 3\n", b"a b\n"])
def test_what_is_no_time_is_an_offence(line: bytes) -> None:
    judge = ClockJudge()
    judge.feed(line)
    assert judge.offence is not None
    assert "no time is" in judge.offence


def test_a_clock_that_nobody_told() -> None:
    assert ClockJudge().error == "not one answer came"


def test_records_follow_each_other_and_a_look_at_them_finds_the_last() -> None:
    judge = RecordsJudge()
    for for_more, line in ((True, b"7\n"), (True, b"8\n"), (False, b"8\n"), (True, b"9\n")):
        judge.asked(for_more)
        judge.feed(line, 0.0)
    assert (judge.error, judge.last, judge.answers) == (None, 9, 4)


@pytest.mark.parametrize(
    ("for_more", "line"),
    [(True, b"7\n"), (True, b"9\n"), (False, b"8\n"), (False, b"6\n"), (True, b"x\n")],
)
def test_a_record_that_is_lost_or_comes_again_is_an_offence(for_more: bool, line: bytes) -> None:
    judge = RecordsJudge()
    judge.feed(b"7\n", 0.0)
    judge.asked(for_more)
    judge.feed(line, 0.0)
    assert judge.error is not None and judge.last == 7
    assert RecordsJudge().error == "not one answer came"
