"""Grants are exclusive and numbered."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.arbiters.arbiter import (
    FileArbiter,
    Grant,
    ManualArbiter,
    NoArbiter,
    claim,
    give_back,
    make_arbiter,
)
from colo.errors import LocalError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grant"


def begun(file: Path) -> FileArbiter:
    """The arbiter of a file that somebody has begun with."""
    arbiter = FileArbiter(file)
    arbiter.begin()
    return arbiter


def test_the_first_grant_is_number_one_and_private(file: Path) -> None:
    arbiter = FileArbiter(file)
    assert arbiter.begin() == Grant(0, "")
    assert arbiter.current() == Grant(0, "")
    assert arbiter.take(0, "a") == Grant(1, "a")
    assert FileArbiter(file).current() == Grant(1, "a")
    assert file.stat().st_mode & 0o777 == 0o600


def test_only_one_of_two_who_know_the_same_number_gets_the_next(file: Path) -> None:
    arbiter = begun(file)
    arbiter.take(0, "pair")
    assert arbiter.take(1, "b") == Grant(2, "b")
    assert arbiter.take(1, "a") is None
    assert arbiter.current() == Grant(2, "b")


def _race(file: Path, holder: str, known: int, start: object, won: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    if FileArbiter(file).take(known, holder) is not None:
        won.put(holder)  # type: ignore[attr-defined]


def test_a_race_of_processes_has_one_winner_every_time(file: Path) -> None:
    begun(file)
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
        assert FileArbiter(file).current() == Grant(known + 1, won.get(timeout=5))
        assert won.empty()


def test_an_order_is_carried_out_whatever_stands(file: Path) -> None:
    arbiter = begun(file)
    arbiter.take(0, "a")
    assert arbiter.order("b") == Grant(2, "b")


def test_a_grant_given_back_is_nobodys_and_an_old_one_cannot_be(file: Path) -> None:
    arbiter = begun(file)
    first = arbiter.take(0, "a")
    assert first is not None
    second = arbiter.take(1, "b")
    assert second is not None
    arbiter.release(first)
    assert arbiter.current() == second
    arbiter.release(second)
    assert arbiter.current() == Grant(2, "")


@pytest.mark.parametrize("content", ["no json", "[]", '{"number": "x"}', "\0" * 600])
def test_a_file_without_a_grant_grants_nothing(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(LocalError, match="does not hold a grant"):
        FileArbiter(file).take(0, "a")


def test_a_file_out_of_reach_grants_nothing(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="No such file"):
        FileArbiter(tmp_path / "not mounted" / "grant").take(0, "a")


@pytest.mark.parametrize("ask", ["current", "take", "order", "check"])
def test_only_who_begins_makes_the_file(file: Path, ask: str) -> None:
    arbiter = FileArbiter(file)
    calls: dict[str, Callable[[], object]] = {
        "current": arbiter.current,
        "take": lambda: arbiter.take(7, "b"),
        "order": lambda: arbiter.order("b"),
        "check": lambda: arbiter.check(Grant(7, "")),
    }
    with pytest.raises(LocalError, match=r"No such file|does not show grant 7"):
        calls[ask]()
    assert not file.exists()


def test_a_number_below_what_was_given_is_not_the_same_file(file: Path) -> None:
    with pytest.raises(LocalError, match=r"does not show grant 7 .* must see the same file"):
        begun(file).take(7, "b")
    assert FileArbiter(file).current() == Grant(0, "")


def test_another_hosts_grant_is_the_one_that_stands(file: Path) -> None:
    arbiter = begun(file)
    arbiter.take(0, "a")
    assert arbiter.check(Grant(1, "")) == Grant(1, "a")
    assert arbiter.check(Grant(1, "a")) == Grant(1, "a")
    assert arbiter.check(Grant(0, "a")) == Grant(1, "a"), "of which it has not heard"
    with pytest.raises(LocalError, match="does not show grant 2"):
        arbiter.check(Grant(2, "a"))
    with pytest.raises(
        LocalError, match=r"grant 1 of the primary does not stand: .* a has grant 1"
    ):
        arbiter.check(Grant(1, "b"))
    arbiter.release(Grant(1, "a"))
    for unknown in (Grant(0, ""), Grant(1, "a")):
        with pytest.raises(LocalError, match="nobody has grant 1"):
            arbiter.check(unknown)
    arbiter.take(1, "b")
    with pytest.raises(
        LocalError, match=r"grant 1 of the primary does not stand: .* b has grant 2"
    ):
        arbiter.check(Grant(1, "a"))


def test_a_manual_arbiter_grants_by_order_only() -> None:
    arbiter = ManualArbiter()
    assert not arbiter.automatic
    assert arbiter.take(0, "a") is None
    assert arbiter.order("a") == Grant(1, "a")


def test_no_arbiter_grants_whoever_asks() -> None:
    assert NoArbiter().take(0, "a") == Grant(1, "a")


@pytest.mark.parametrize(
    ("text", "kind"),
    [("file:/x/grant", FileArbiter), ("manual", ManualArbiter), ("none", NoArbiter)],
)
def test_the_vm_file_names_it(text: str, kind: type) -> None:
    assert type(make_arbiter(text)) is kind


@pytest.mark.parametrize("text", ["", "file:", "etcd", "manual:x"])
def test_another_name_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UsageError, match="file:PATH, manual or none"):
        make_arbiter(text)


def test_a_grant_whose_answer_never_came_is_got_by_asking_again(file: Path) -> None:
    arbiter = begun(file)
    assert arbiter.take(0, "a") == Grant(1, "a")
    assert arbiter.take(0, "a") == Grant(1, "a")
    assert arbiter.take(0, "b") is None


@pytest.mark.parametrize(
    ("void", "got"),
    [(Grant(2, "a"), Grant(3, "b")), (Grant(3, "a"), None), (Grant(2, "c"), None), (None, None)],
)
def test_a_grant_whose_holder_is_dead_is_in_nobodys_way_but_only_that_one(
    file: Path, void: Grant | None, got: Grant | None
) -> None:
    arbiter = begun(file)
    arbiter.take(0, "a")
    arbiter.take(1, "a")
    assert arbiter.take(1, "b", void) == got
    assert arbiter.take(1, "b", void) == got, "and asking again is answered so again"


def test_what_one_has_is_given_back_and_what_another_has_is_not(file: Path) -> None:
    arbiter = begun(file)
    arbiter.take(0, "a")
    give_back(arbiter, "b")
    assert arbiter.current() == Grant(1, "a")
    give_back(arbiter, "a")
    assert arbiter.current() == Grant(1, "")


class TestClaim:
    def test_a_free_right_and_our_own_are_claimed(self, file: Path) -> None:
        arbiter = FileArbiter(file)
        assert claim(arbiter, "a", "web1", stock=False, force=False) == Grant(1, "a")
        assert claim(arbiter, "a", "web1", stock=False, force=False) == Grant(2, "a")

    def test_another_holders_right_is_refused_by_name_and_taken_by_force(self, file: Path) -> None:
        arbiter = begun(file)
        arbiter.take(0, "b")
        with pytest.raises(UsageError, match=r"belongs to b \(grant 1\); .* say --claim"):
            claim(arbiter, "a", "web1", stock=False, force=False)
        assert claim(arbiter, "a", "web1", stock=False, force=True) == Grant(2, "a")

    def test_two_hosts_may_not_do_without_an_arbiter(self) -> None:
        with pytest.raises(UsageError, match="would let both hosts run the VM"):
            claim(NoArbiter(), "a", "web1", stock=False, force=False)
        assert claim(NoArbiter(), "a", "web1", stock=True, force=False) == Grant(1, "a")

    def test_a_manual_arbiter_has_nothing_to_claim(self) -> None:
        assert claim(ManualArbiter(), "a", "web1", stock=False, force=False) == Grant(0, "a")
