"""Orders: one line there, one back, and before it the pieces of what was ordered."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from colo.errors import ColoError, LocalError, StoreError
from colo.node.orders import (
    Answer,
    Order,
    fetch_checkpoint,
    fetch_streams,
    give_order,
    serve_orders,
)

T = TypeVar("T")
PIECES = [b"a" * 70_000, b"b", b"c" * 300_000]


def asked(folder: Path, answer: Callable[[Order], Answer], ask: Callable[[Path], T]) -> T:
    """What ``ask`` gets in a thread of its own, from a server that gives this answer."""

    async def obey(order: Order) -> Answer:
        return answer(order)

    async def run() -> T:
        server = await serve_orders(folder / "control.sock", obey)
        async with server:
            return await asyncio.get_running_loop().run_in_executor(None, ask, folder)

    return asyncio.run(run())


def test_an_order_is_answered(tmp_path: Path) -> None:
    def answer(order: Order) -> Answer:
        return Answer(order.force, f"did {order.name}")

    assert asked(tmp_path, answer, lambda at: give_order(at, Order("x", force=True))) == Answer(
        True, "did x"
    )
    assert asked(tmp_path, answer, lambda at: give_order(at, Order("y"))) == Answer(False, "did y")


def test_an_order_that_was_taken_is_answered_though_its_colo_ends(tmp_path: Path) -> None:
    """As when the order was to end the VM: colo ends with it."""

    async def run() -> Answer:
        taken, done = asyncio.Event(), asyncio.Event()

        async def obey(order: Order) -> Answer:
            taken.set()
            await done.wait()
            return Answer(True, "it has ended")

        orders = await serve_orders(tmp_path / "control.sock", obey)
        asking = asyncio.get_running_loop().run_in_executor(
            None, give_order, tmp_path, Order("stop")
        )
        await taken.wait()
        asyncio.get_running_loop().call_later(0.05, done.set)
        await orders.answered()
        return await asking

    assert asyncio.run(run()) == Answer(True, "it has ended")


def test_an_order_that_has_waited_for_a_colo_that_stood_still_is_not_obeyed(
    tmp_path: Path,
) -> None:
    obeyed = list[Order]()

    def answer(order: Order) -> Answer:
        obeyed.append(order)
        return Answer(True, "done")

    given_at = time.monotonic() - 60
    line = Order("failover", force=True, given_at=given_at).line()
    assert Order.of(line) == Order("failover", force=True, given_at=given_at)

    def ask(folder: Path) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(folder / "control.sock"))
            sock.sendall(line)
            return sock.makefile("rb").readline()

    told = json.loads(asked(tmp_path, answer, ask))
    assert told == {
        "ok": False,
        "text": "the order is 60 s old: look at `colo status`, and give it again",
    }
    assert obeyed == []
    given = asked(tmp_path, answer, lambda at: give_order(at, Order("failover")))
    assert given == Answer(True, "done") and obeyed[0].given_at is not None


def test_a_checkpoint_comes_in_its_pieces(tmp_path: Path) -> None:
    orders = []

    def answer(order: Order) -> Answer:
        orders.append(order.name)
        return Answer(True, "", (iter(PIECES),))

    assert asked(tmp_path, answer, lambda at: list(fetch_checkpoint(at))) == PIECES
    assert orders == ["inspect"]


def test_streams_come_one_after_the_other_and_are_closed_at_the_end(tmp_path: Path) -> None:
    closed: list[str] = []

    def answer(order: Order) -> Answer:
        streams = iter(PIECES), iter(()), iter(PIECES[:1])
        return Answer(True, "", streams, lambda: closed.append(order.name))

    def take(at: Path) -> list[list[bytes]]:
        return [list(stream) for stream in fetch_streams(at, "export")]

    assert asked(tmp_path, answer, take) == [PIECES, [], PIECES[:1]]
    assert closed == ["export"]


def test_whoever_takes_no_more_of_it_has_it_closed(tmp_path: Path) -> None:
    closed: list[bool] = []

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    def take(at: Path) -> None:
        for stream in fetch_streams(at, "export"):
            next(stream)
            break

    asked(tmp_path, lambda order: Answer(True, "", (endless(),), lambda: closed.append(True)), take)
    assert closed == [True]


def test_what_goes_wrong_on_the_way_is_told_at_the_end(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield PIECES[0]
        raise StoreError("this checkpoint is no more")

    taken = []

    def take(at: Path) -> None:
        for piece in fetch_checkpoint(at):
            taken.append(piece)

    with pytest.raises(ColoError, match="this checkpoint is no more"):
        asked(tmp_path, lambda order: Answer(True, "", (pieces(), iter(PIECES))), take)
    assert taken == PIECES[:1]


def test_a_refusal_has_no_pieces(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match="no whole checkpoint"):
        asked(
            tmp_path,
            lambda order: Answer(False, "there is no whole checkpoint yet", (iter(()),)),
            lambda at: list(fetch_checkpoint(at)),
        )


def test_a_refusal_may_come_without_pieces(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match=r"^this is the wrong host$"):
        asked(
            tmp_path,
            lambda order: Answer(False, "this is the wrong host"),
            lambda at: list(fetch_checkpoint(at)),
        )


def test_what_is_no_order_is_told_to_whoever_asked_for_a_checkpoint(tmp_path: Path) -> None:
    def answer(order: Order) -> Answer:
        return Answer(False, "that is not an order")  # it came late, or not whole

    with pytest.raises(ColoError, match=r"^that is not an order$"):
        asked(tmp_path, answer, lambda at: list(fetch_checkpoint(at)))


@pytest.mark.parametrize("said", [b"{", b'{"ok', b'{"ok": true}\n', b"{}\n", b"[1]\n", b"{\n"])
def test_an_answer_that_is_none_is_one_line(tmp_path: Path, said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    async def run(ask: Callable[[], object]) -> None:
        async with await asyncio.start_unix_server(serve, tmp_path / "control.sock"):
            await asyncio.get_running_loop().run_in_executor(None, ask)

    for ask in (lambda: list(fetch_checkpoint(tmp_path)), lambda: give_order(tmp_path, Order("x"))):
        with pytest.raises(ColoError) as caught:
            asyncio.run(run(ask))
        assert str(caught.value).startswith(f"{tmp_path / 'control.sock'}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 4, 100, 70_003, 70_008])
def test_a_colo_that_ends_in_between_is_told(tmp_path: Path, cut: int) -> None:
    whole = b"".join(len(piece).to_bytes(4, "big") + piece for piece in PIECES)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(whole[:cut])
        writer.close()

    async def run() -> list[bytes]:
        async with await asyncio.start_unix_server(serve, tmp_path / "control.sock"):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, lambda: list(fetch_checkpoint(tmp_path)))

    with pytest.raises(ColoError, match="before all was here"):
        asyncio.run(run())


@pytest.mark.parametrize("there", ["nothing", "a file", "a stale socket"])
def test_where_no_colo_runs_that_is_said(tmp_path: Path, there: str) -> None:
    if there == "a file":
        (tmp_path / "control.sock").write_text("")
    elif there == "a stale socket":
        asked(tmp_path, lambda order: Answer(True, ""), lambda at: give_order(at, Order("x")))
    with pytest.raises(ColoError, match="no colo runs with the state folder"):
        list(fetch_checkpoint(tmp_path))


def test_a_socket_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    async def obey(order: Order) -> Answer:
        return Answer(True, "")

    path = tmp_path / "none" / "control.sock"
    with pytest.raises(LocalError, match=rf"^{path}: No such file or directory$"):
        asyncio.run(serve_orders(path, obey))


def test_only_the_owner_gives_orders_and_what_was_left_is_no_obstacle(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    modes = []

    def answer(order: Order) -> Answer:
        modes.append((tmp_path / "control.sock").stat().st_mode & 0o777)
        return Answer(True, "")

    for _ in range(2):
        asked(tmp_path, answer, lambda at: give_order(at, Order("x")))
    assert modes == [0o600, 0o600]


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"order": "x", "grace_s": -1}', b"7"])
def test_what_is_no_order_is_refused(tmp_path: Path, line: bytes) -> None:
    def ask(at: Path) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(at / "control.sock"))
            sock.sendall(line + b"\n")
            return sock.makefile("rb").readline()

    answer = json.loads(asked(tmp_path, lambda order: Answer(True, "did it"), ask))
    assert answer == {"ok": False, "text": "that is not an order"}


def test_an_order_that_fails_by_an_error_of_ours_is_not_told_as_no_order(tmp_path: Path) -> None:
    def broken(order: Order) -> Answer:
        raise TypeError("ours")

    with pytest.raises(ColoError, match="colo gave no answer: see its log"):
        asked(tmp_path, broken, lambda at: give_order(at, Order("x")))
