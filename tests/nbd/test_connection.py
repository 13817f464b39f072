"""The server's side of a connection, in memory: every conversation, cut in every way."""

from __future__ import annotations

import itertools

import pytest

from colo.errors import LocalProtocolError, NbdError
from colo.nbd.connection import Connection, Phase
from colo.nbd.protocol import ErrorCode, Extent, Request
from tests.nbd.cases import CASES, EXPORTS, MAX, SIZE, Case, answer, check, run, words
from tests.nbd.client import (
    DF,
    EINVAL,
    ENOTSUP,
    ESHUTDOWN,
    FAST_ZERO,
    FLUSH,
    GREETING,
    LIST,
    MAPPED,
    PLAIN,
    READ,
    STATUS,
    STRUCTURED_GO,
    ZEROES,
    Answers,
    command,
    go,
    hello,
    option,
    write,
)

SHORT = [case for case in CASES if len(case.sent) < 3000]
IDS = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_conversation(case: Case) -> None:
    check(case, run(case.sent, [len(case.sent)]))


@pytest.mark.parametrize("size", [1, 3, 29])
@pytest.mark.parametrize("case", SHORT, ids=[case.name for case in SHORT])
def test_a_conversation_in_pieces(case: Case, size: int) -> None:
    check(case, run(case.sent, itertools.repeat(size)))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_conversation_in_long_pieces(case: Case) -> None:
    check(case, run(case.sent, itertools.chain([30, 100], itertools.repeat(32_749))))


SMALL = [case for case in SHORT if len(case.sent) < 160]


@pytest.mark.parametrize("case", SMALL, ids=[case.name for case in SMALL])
def test_a_conversation_in_two_pieces_wherever_it_is_cut(case: Case) -> None:
    for cut in range(1, len(case.sent)):
        check(case, run(case.sent, [cut, len(case.sent)]))


JOINED = [case for case in SHORT if case.sent.startswith(STRUCTURED_GO) and not case.broken]


@pytest.mark.parametrize("pair", list(itertools.pairwise(JOINED)), ids=lambda p: p[0].name)
def test_one_conversation_after_another(pair: tuple[Case, Case]) -> None:
    first, second = pair
    if any(text.startswith("disc") for text in first.asked):
        return
    sent = first.sent + second.sent.removeprefix(STRUCTURED_GO)
    both = Case("", sent, first.options, first.asked + second.asked, first.replies + second.replies)
    check(both, run(sent, [len(sent)]))
    check(both, run(sent, itertools.repeat(1)))


def begun(start: bytes = STRUCTURED_GO) -> Connection:
    connection = Connection(EXPORTS)
    assert connection.receive_data(start) == []
    connection.data_to_send()
    return connection


def said(connection: Connection, reads: dict[int, int] | None = None) -> list[str]:
    return Answers(b"".join(connection.data_to_send())).replies(reads)


def test_the_server_speaks_first() -> None:
    connection = Connection(EXPORTS)
    assert connection.bytes_to_send == connection.bytes_held == len(GREETING)
    assert connection.data_to_send() == [GREETING]
    assert connection.data_to_send() == [] and connection.bytes_to_send == 0


def test_requests_before_a_broken_one_are_not_lost() -> None:
    connection = begun()
    requests = connection.receive_data(command(FLUSH) + bytes(28))
    assert [words(request) for request in requests] == ["flush 0 0 flags 0"]
    with pytest.raises(NbdError):
        connection.receive_data(b"")


def test_the_phases_of_a_connection() -> None:
    connection = Connection(EXPORTS)
    phases = [(connection.phase, connection.export)]
    connection.receive_data(STRUCTURED_GO)
    phases.append((connection.phase, connection.export))
    (request,) = connection.receive_data(command(2))
    phases.append((connection.phase, connection.export))
    disk = EXPORTS["disk"]
    assert phases == [(Phase.HANDSHAKE, None), (Phase.TRANSMISSION, disk), (Phase.ENDED, disk)]
    assert connection.waiting == 0
    with pytest.raises(LocalProtocolError):
        connection.done(request)


def test_an_abort_ends_it() -> None:
    connection = Connection(EXPORTS)
    connection.receive_data(hello() + option(2))
    assert connection.phase is Phase.ENDED and connection.export is None


def test_answers_come_in_any_order() -> None:
    connection = begun()
    a, b, c = connection.receive_data(
        command(READ, 0, 5, 0, 1) + write(0, b"xyz", 0, 2) + command(FLUSH, cookie=3)
    )
    assert connection.waiting == 3 and connection.bytes_held == 8
    connection.done(c)
    connection.fail(b, ErrorCode.EIO, "broken")
    assert connection.waiting == 1
    connection.data(a, b"hello")
    assert said(connection) == ["3: none", "2: error 5 said", "1: data at 0 5 mixed"]
    assert connection.waiting == 0 and connection.bytes_held == 0


def test_what_is_read_is_not_copied() -> None:
    connection = begun()
    (request,) = connection.receive_data(command(READ, 0, 5))
    data = memoryview(b"hello")
    connection.data(request, data)
    assert connection.data_to_send()[1] is data


def test_a_long_write_is_received_where_it_stays() -> None:
    connection = begun()
    connection.receive_data(command(1, 0, 100_000))
    room = connection.receive_buffer()
    assert len(room) == 100_000
    room[:60_000] = b"a" * 60_000
    connection.received(60_000)
    assert connection.next_request() is None
    rest = connection.receive_buffer()
    assert len(rest) == 40_000
    rest[:] = b"b" * 40_000
    connection.received(40_000)
    connection.receive_buffer()[:28] = command(FLUSH)  # more has come before it is looked at
    connection.received(28)
    request = connection.next_request()
    assert request is not None and isinstance(request.data, memoryview)
    assert bytes(request.data) == b"a" * 60_000 + b"b" * 40_000
    room[0] = 99
    assert request.data[0] == 99, "it is the very same memory"
    following = connection.next_request()
    assert following is not None and words(following) == "flush 0 0 flags 0"


def test_what_is_written_stays_as_it_was() -> None:
    connection = begun()
    (first,) = connection.receive_data(write(0, b"first"))
    for _ in range(100):
        connection.receive_data(write(0, b"later" * 1000))
    assert bytes(first.data) == b"first"


def test_requests_come_only_as_they_are_taken() -> None:
    connection = begun()
    sent = 0
    while len(room := connection.receive_buffer()):
        many = command(FLUSH, cookie=sent) * 5000
        count = min(len(room), len(many))
        room[:count] = many[:count]
        connection.received(count)
        sent += count
    assert sent == 128 << 10, "then it has no room"
    taken = 0
    while connection.next_request() is not None:
        taken += 1
    assert taken == connection.waiting == sent // 28
    assert len(connection.receive_buffer()) >= 64 << 10


def test_the_longest_short_write_fits_whatever_was_before() -> None:
    data = b"z" * (32 << 10)
    sent = (write(0, b"1" * 1000) + write(0, data)) * 9
    for size in (1009, 4096, 60_000, 131_072):
        assert len(run(STRUCTURED_GO + sent, itertools.repeat(size)).asked) == 18


@pytest.mark.parametrize("start", [PLAIN, STRUCTURED_GO])
def test_an_answer_that_does_not_fit_is_our_own_mistake(start: bytes) -> None:
    connection = begun(start)
    read, flush = connection.receive_data(command(READ, 0, 5) + command(FLUSH))
    with pytest.raises(LocalProtocolError, match="4 bytes answer no READ of 5"):
        connection.data(read, b"four")
    with pytest.raises(LocalProtocolError, match="0 bytes answer no FLUSH"):
        connection.data(flush, b"")
    with pytest.raises(LocalProtocolError, match="extents answer no READ"):
        connection.status(read, [Extent(5)])
    connection.done(flush)
    with pytest.raises(LocalProtocolError, match="waits for no answer"):
        connection.done(flush)
    other = Request(read.command, read.flags, read.cookie, read.offset, read.length)
    with pytest.raises(LocalProtocolError):
        connection.data(other, b"12345")
    connection.data(read, b"12345")
    assert len(connection.data_to_send()) == 3


def test_a_status_without_extents_is_our_own_mistake() -> None:
    connection = begun(MAPPED)
    (request,) = connection.receive_data(command(STATUS, 0, 9))
    with pytest.raises(LocalProtocolError):
        connection.status(request, [])
    connection.status(request, [Extent(9)])
    assert said(connection) == ["7: status 9:0"]


def test_notsup_is_for_fast_zeroes_only() -> None:
    connection = begun()
    requests = connection.receive_data(
        command(ZEROES, 0, 1, FAST_ZERO) + command(ZEROES, 0, 1, 0, 8)
    )
    for request in requests:
        connection.fail(request, ErrorCode.ENOTSUP)
    assert said(connection) == [f"7: error {ENOTSUP} unsaid", f"8: error {EINVAL} unsaid"]


@pytest.mark.parametrize("place", [0, 1, 511, 2048, 4094, 4095])
def test_a_hole_has_nothing_but_zeros(place: int) -> None:
    connection = begun()
    data = bytearray(4096)
    for value, expected in ((1, "data at 0 4096 mixed"), (0, "hole at 0 4096")):
        data[place] = value
        (request,) = connection.receive_data(command(READ, 0, 4096))
        connection.data(request, memoryview(data))
        assert said(connection) == [f"7: {expected}"]
    (request,) = connection.receive_data(command(READ, 0, 4096, DF))
    connection.data(request, bytes(4096))
    assert said(connection) == ["7: data at 0 4096x00"]


def test_shutting_down_refuses_what_waits_and_what_comes() -> None:
    connection = begun()
    requests = connection.receive_data(command(READ, 0, 1, cookie=1) + write(0, b"x", 0, 2))
    connection.shut_down()
    assert connection.waiting == 0
    assert connection.receive_data(write(0, b"y" * 50_000, 0, 3) + command(FLUSH, cookie=4)) == []
    assert connection.receive_data(command(READ, SIZE, 1, cookie=5)) == []
    assert said(connection) == [f"{n}: error {ESHUTDOWN} said" for n in (1, 2, 3, 4, 5)]
    with pytest.raises(LocalProtocolError):
        connection.done(requests[0])
    connection.receive_data(command(2))
    assert connection.phase is Phase.ENDED


def test_shutting_down_refuses_a_write_that_is_half_there() -> None:
    connection = begun()
    connection.receive_data(write(0, b"y" * 50_000)[:30_000])
    connection.shut_down()
    assert connection.receive_data(bytes(20_028)) == []
    assert said(connection) == [f"7: error {ESHUTDOWN} said"]


def test_shutting_down_refuses_options_but_abort() -> None:
    connection = Connection(EXPORTS)
    connection.shut_down()
    connection.receive_data(hello() + option(LIST) + go() + option(99) + option(2))
    answers = Answers(b"".join(connection.data_to_send()))
    answers.take(len(GREETING))
    expected = ["3 shutdown", "7 shutdown", "99 shutdown", "2 ack"]
    assert answers.option_replies() == expected and connection.phase is Phase.ENDED


def test_shutting_down_refuses_an_export_in_the_only_way_there_is() -> None:
    connection = Connection(EXPORTS)
    connection.shut_down()
    with pytest.raises(NbdError):
        connection.receive_data(PLAIN)


def test_what_is_broken_once_stays_broken() -> None:
    connection = begun()
    with pytest.raises(NbdError) as first:
        connection.receive_data(bytes(28) + command(FLUSH))
    assert first.value.position == len(STRUCTURED_GO), "where the request begins"
    with pytest.raises(NbdError):
        connection.receive_data(command(FLUSH))
    assert connection.data_to_send() == []


def test_an_error_says_where_it_is() -> None:
    connection = begun()
    for request in connection.receive_data(write(0, bytes(300_000)) + write(0, bytes(10))):
        answer(connection, request)
    with pytest.raises(NbdError) as caught:
        connection.receive_data(bytes(28))
    assert caught.value.position == len(STRUCTURED_GO) + 300_000 + 10 + 2 * 28


def test_a_client_that_only_announces_gets_no_memory() -> None:
    connection = begun(hello() + go(b"big"))
    connection.receive_data(command(1, 0, MAX))
    assert connection.waiting == 0 and len(connection.receive_buffer()) == MAX


@pytest.mark.parametrize("length", [MAX, MAX + 1, 1 << 30])
def test_the_longest_write_is_taken_and_one_that_is_longer_is_skipped(length: int) -> None:
    connection = begun(hello() + option(8) + go(b"big"))
    piece = b"x" * (1 << 20)
    requests = connection.receive_data(command(1, 0, length))
    for sent in range(0, length, len(piece)):
        requests += connection.receive_data(piece[: length - sent])
    requests += connection.receive_data(command(FLUSH, cookie=8))
    for request in requests:
        assert request.command != 1 or bytes(request.data) == b"x" * length
        connection.done(request)
    refused = length > MAX
    assert said(connection) == [f"7: error {EINVAL} said" if refused else "7: none", "8: none"]
