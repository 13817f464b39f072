"""A register in a file: besides what every register does (see test_register)."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.file import FileRegister
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer
from colo.membership.grant import Grant


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grant"


def test_it_is_private_and_made_by_whoever_sets_it_first(file: Path) -> None:
    register = FileRegister(file)
    assert register.read() == Seen(None)
    with pytest.raises(LocalError, match="No such file"):
        register.compare_and_set(Seen("x"), "y")
    assert not file.exists()
    assert register.compare_and_set(Seen(None), "x")
    assert file.stat().st_mode & 0o777 == 0o600


def test_an_empty_file_holds_nothing(file: Path) -> None:
    file.touch()
    register = FileRegister(file)
    assert register.read() == Seen(None)
    assert register.compare_and_set(Seen(None), "x")
    assert register.read() == Seen("x")


def test_a_file_out_of_reach_is_said_and_not_made(tmp_path: Path) -> None:
    register = FileRegister(tmp_path / "not mounted" / "grant")
    with pytest.raises(LocalError, match="No such file"):
        register.compare_and_set(Seen(None), "x")
    with pytest.raises(LocalError, match="Is a directory"):
        FileRegister(tmp_path).read()


def test_a_text_that_is_too_long_changes_nothing(file: Path) -> None:
    register = FileRegister(file)
    with pytest.raises(LocalError, match="too long"):
        register.compare_and_set(Seen(None), "x" * 2000)
    assert register.read() == Seen(None)


def test_a_disk_that_fails_may_have_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(NoAnswer, match="Input/output error") as caught:
        FileRegister(file).compare_and_set(Seen(None), "x")
    assert caught.value.may_be_done


def _race(file: Path, holder: str, known: int, start: object, won: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    if Arbiter(FileRegister(file)).take(known, holder) is not None:
        won.put(holder)  # type: ignore[attr-defined]


def test_a_race_of_processes_has_one_winner_every_time(file: Path) -> None:
    arbiter = Arbiter(FileRegister(file))
    arbiter.begin()
    context = multiprocessing.get_context("fork")
    for known in range(20):
        start, won = context.Event(), context.Queue()
        racers = [
            context.Process(target=_race, args=(file, f"host{n}", known, start, won))
            for n in range(4)
        ]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            racer.join()
        assert arbiter.current().grant == Grant(known + 1, won.get(timeout=5))
        assert won.empty()
