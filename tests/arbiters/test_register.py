"""What every register does, whichever it is: one list of cases for all of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import _Call, _current
from colo.arbiters.command import CommandRegister
from colo.arbiters.etcd import EtcdRegister
from colo.arbiters.file import FileRegister
from colo.arbiters.register import MemoryRegister, Register
from colo.errors import LocalError
from colo.membership.grant import Ending, Grant, Record
from tests.arbiters.etcd import Cluster, running

EXAMPLE = Path(__file__).parents[2] / "examples" / "arbiter-sqlite"
KINDS = [
    "memory",
    "file",
    "exec",
    pytest.param(
        "etcd", marks=pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd-server")
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(params=KINDS)
def hosts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Register]]:
    """What makes the register as one host after the other sees it."""
    made: list[EtcdRegister] = []
    memory = MemoryRegister()

    def host() -> Register:
        if request.param == "memory":
            return memory
        if request.param == "file":
            return FileRegister(tmp_path / "grant")
        if request.param == "exec":
            return CommandRegister((str(EXAMPLE), str(tmp_path / "grants.db")), "web1")
        made.append(EtcdRegister(request.getfixturevalue("cluster").urls, str(tmp_path)))
        return made[-1]

    yield host
    for register in made:
        register.close()


def test_it_holds_nothing_until_it_is_set(hosts: Callable[[], Register]) -> None:
    a, b = hosts(), hosts()
    nothing = b.read()
    assert a.read().text is None
    assert a.compare_and_set(a.read(), "one")
    assert a.read().text == b.read().text == "one"
    assert not b.compare_and_set(nothing, "two"), "somebody was faster"
    assert b.read().text == "one"


def test_it_is_set_where_it_holds_what_was_read_and_nowhere_else(
    hosts: Callable[[], Register],
) -> None:
    a, b = hosts(), hosts()
    assert a.compare_and_set(a.read(), "one")
    seen = b.read()
    assert a.compare_and_set(a.read(), "two")
    assert not b.compare_and_set(seen, "three")
    assert a.read().text == b.read().text == "two"
    assert b.compare_and_set(b.read(), "three")
    assert a.read().text == "three"


def test_it_holds_any_line_of_text(hosts: Callable[[], Register]) -> None:
    text = Record(7, "ä\"'\\ $(x)\t/1/2", "b").encode()
    a, b = hosts(), hosts()
    assert a.compare_and_set(a.read(), text)
    assert json.loads(b.read().text or "") == json.loads(text)
    assert b.compare_and_set(b.read(), "next")


def until_answered(arbiter: Arbiter, known: int, holder: str, got: list[Grant | None]) -> None:
    """Ask again where nobody answered: a machine may be too busy for the time limit."""
    while True:
        with contextlib.suppress(LocalError):
            got.append(arbiter.take(known, holder))
            return


def test_of_many_at_once_one_gets_each_number(hosts: Callable[[], Register]) -> None:
    arbiters = [Arbiter(hosts()) for _ in range(3)]
    arbiters[0].begin()
    for known in range(3):
        got: list[Grant | None] = []
        threads = [
            threading.Thread(target=until_answered, args=(arbiter, known, f"host{number}", got))
            for number, arbiter in enumerate(arbiters)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(got) == 3
        assert [grant for grant in got if grant] == [arbiters[0].current().grant]
        assert arbiters[0].current().number == known + 1


def test_whoever_has_given_up_sets_nothing(hosts: Callable[[], Register]) -> None:
    a = hosts()
    assert a.compare_and_set(a.read(), "one")
    seen, call = a.read(), _Call()
    assert not call.give_up(), "nothing was written yet"
    token = _current.set(call)
    try:
        with pytest.raises(LocalError, match="has given up"):
            a.compare_and_set(seen, "two")
    finally:
        _current.reset(token)
    assert hosts().read().text == "one"


def test_whoever_asks_in_time_is_known_to_have_written(hosts: Callable[[], Register]) -> None:
    a, call = hosts(), _Call()
    seen = a.read()
    token = _current.set(call)
    try:
        assert a.compare_and_set(seen, "one")
    finally:
        _current.reset(token)
    assert call.give_up()


def test_the_story_of_a_pair(hosts: Callable[[], Register]) -> None:
    a, b = Arbiter(hosts()), Arbiter(hosts())
    assert a.claim("a/1/1", force=False) == Grant(1, "a/1/1")
    assert b.check(Grant(1, "a/1/1")) == Grant(1, "a/1/1")
    assert b.take(1, "b/2/2") == Grant(2, "b/2/2")
    assert a.take(1, "a/1/1") is None
    b.give_back("b/2/2", Ending.SHUT_DOWN)
    assert a.current() == Record(2)
