"""A call of an arbiter is answered, or given up: then it changes nothing, or that is known."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from colo import node
from colo.arbiters import asking as module
from colo.arbiters.arbiter import Arbiter, claim
from colo.arbiters.asking import reach
from colo.arbiters.file import FileRegister
from colo.errors import LocalError, NoAnswer
from colo.membership.grant import Ending, Grant


class SlowDisk(FileRegister):
    """What is written is there, and whoever wrote it waits for the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.done = threading.Event()

    def _write(self, file: int, data: bytes) -> None:
        super()._write(file, data)
        self.done.wait()


def arbiter_of(path: Path) -> Arbiter:
    return Arbiter(FileRegister(path))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.05)
    monkeypatch.setattr(module, "_calls", [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A grant file that shows grant 1 of "a"."""
    path = tmp_path / "grant"
    arbiter = arbiter_of(path)
    arbiter.begin()
    arbiter.take(0, "a")
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The file's lock is held elsewhere; once it is let go, whoever waited for it goes on."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    for thread in module._calls:
        thread.join(5)
        assert not thread.is_alive()


def test_what_an_arbiter_answers_is_passed_on() -> None:
    def fail() -> None:
        raise LocalError("it is gone")

    async def ask() -> None:
        assert await reach(max, 1, 2) == 2
        with pytest.raises(LocalError, match="it is gone"):
            await reach(fail)

    asyncio.run(ask())


def test_an_arbiter_that_hangs_is_one_out_of_reach() -> None:
    released = threading.Event()

    async def ask() -> None:
        try:
            with pytest.raises(NoAnswer, match=r"did not answer in .* dead network mount"):
                await reach(released.wait)
        finally:
            released.set()

    asyncio.run(ask())


ASKED: dict[str, Callable[[Arbiter], Awaitable[object]]] = {
    "take": lambda arbiter: reach(arbiter.take, 1, "a"),
    "order": lambda arbiter: reach(arbiter.order, "a"),
    "give back": lambda arbiter: reach(arbiter.give_back, "a", Ending.LEFT),
    "claim": lambda arbiter: reach(claim, arbiter, "a", "web1", stock=False, force=False),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_call_that_comes_to_life_after_it_was_given_up_changes_nothing(
    file: Path, asked: str
) -> None:
    async def ask() -> None:
        with locked(file):
            with pytest.raises(NoAnswer) as caught:
                await ASKED[asked](arbiter_of(file))
            assert not caught.value.may_be_done
        assert arbiter_of(file).current().grant == Grant(1, "a")
        await ASKED[asked](arbiter_of(file))
        assert arbiter_of(file).current().grant != Grant(1, "a"), (
            "what was given up stops nothing later"
        )

    asyncio.run(ask())


def test_a_call_that_is_cancelled_changes_nothing(file: Path) -> None:
    async def ask() -> None:
        with locked(file):
            asking = asyncio.ensure_future(reach(arbiter_of(file).take, 1, "a"))
            await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert arbiter_of(file).current().grant == Grant(1, "a")

    asyncio.run(ask())


def test_whoever_gives_up_while_it_is_written_is_told(file: Path) -> None:
    async def ask() -> None:
        slow = SlowDisk(file)
        with pytest.raises(NoAnswer) as caught:
            await reach(Arbiter(slow).take, 1, "a")
        assert caught.value.may_be_done
        slow.done.set()
        assert await reach(Arbiter(slow).take, 1, "a") == Grant(2, "a"), "asking again gets it"

    asyncio.run(ask())


def test_no_node_calls_an_arbiter_by_itself() -> None:
    """It would stand still, with all that it serves, for as long as the arbiter's mount is dead."""
    modules = sorted(Path(node.__path__[0]).glob("*.py"))
    calls = [
        f"{module.name}:{call.lineno}"
        for module in modules
        for call in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and (
            ast.unparse(call.func) in ("claim", "give_back")
            or "_arbiter." in ast.unparse(call.func).replace("_arbiter.automatic", "")
        )
    ]
    assert len(modules) > 10 and calls == []
