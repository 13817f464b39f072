"""An arbiter makes its moves on a register, whatever answers are lost and whoever else moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo.arbiters.arbiter import (
    Arbiter,
    claim,
    give_back,
    require_exclusive,
    require_memory,
)
from colo.arbiters.manual import ManualArbiter, NoArbiter
from colo.arbiters.register import MemoryRegister, Seen
from colo.errors import LocalError, NoAnswer, UsageError
from colo.membership.grant import Ending, Grant, Record


class Lossy(MemoryRegister):
    """Deals each setting a ``fate``: it is made or not, heard of or not; None: as it should be."""

    def __init__(self, *fates: tuple[bool, bool] | None) -> None:
        super().__init__()
        self.fates = list(fates)
        self.away = False
        self.meanwhile: Callable[[], object] | None = None

    def read(self) -> Seen:
        if self.away:
            raise LocalError("no route to host")
        return super().read()

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        fate = self.fates.pop(0) if self.fates else None
        if fate is None:
            return super().compare_and_set(expected, new)
        made, heard = fate
        changed = made and super().compare_and_set(expected, new)
        if not heard:
            raise NoAnswer("it did not say", True)
        return changed


def begun(register: MemoryRegister | None = None) -> Arbiter:
    """The arbiter of a register in which grant 1 is a's."""
    arbiter = Arbiter(register or MemoryRegister())
    arbiter.claim("a", force=False)
    return arbiter


def test_the_first_grant_is_number_one() -> None:
    arbiter = Arbiter(MemoryRegister())
    assert arbiter.begin() == Record()
    assert arbiter.current() == Record()
    assert arbiter.take(0, "a") == Grant(1, "a")
    assert arbiter.current() == Record(1, "a")


def test_only_one_of_two_who_know_the_same_number_gets_the_next() -> None:
    arbiter = begun()
    assert arbiter.take(1, "b") == Grant(2, "b")
    assert arbiter.take(1, "a") is None
    assert arbiter.current().grant == Grant(2, "b")


def test_who_reads_at_the_same_time_and_sets_later_gets_nothing() -> None:
    register = Lossy()
    arbiter = begun(register)
    register.meanwhile = lambda: arbiter.take(1, "b")
    assert arbiter.take(1, "a") is None


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize(
    ("move", "stands"),
    [
        (lambda arbiter: arbiter.take(1, "b"), Record(2, "b", "a")),
        (lambda arbiter: arbiter.order("b"), Record(2, "b", "a")),
        (lambda arbiter: arbiter.claim("a", force=False), Record(2, "a", "a")),
        (lambda arbiter: arbiter.give_back("a", Ending.LEFT), Record(1, "", "a")),
    ],
)
def test_an_answer_that_never_came_is_got_by_reading_who_holds_it(
    move: Callable[[Arbiter], Grant | None], stands: Record, made: bool
) -> None:
    register = Lossy(None, (made, False), (made, False))
    arbiter = begun(register)
    assert move(arbiter) in (stands.grant, None)
    assert arbiter.current() == stands, "once, and no more often"


def test_where_nothing_can_be_read_either_it_may_be_done() -> None:
    register = Lossy(None, (True, False))
    arbiter = begun(register)
    register.meanwhile = lambda: setattr(register, "away", True)
    with pytest.raises(NoAnswer, match="it did not say") as caught:
        arbiter.take(1, "b")
    assert caught.value.may_be_done
    register.away = False
    assert arbiter.take(1, "b") == Grant(2, "b"), "asking again gets it"


def test_a_register_out_of_reach_has_done_nothing() -> None:
    register = Lossy()
    arbiter = begun(register)
    register.away = True
    with pytest.raises(LocalError, match="no route") as caught:
        arbiter.take(1, "b")
    assert not isinstance(caught.value, NoAnswer)


def test_a_register_that_never_says_is_asked_a_bounded_number_of_times() -> None:
    register = Lossy(None, *[(False, False)] * 100)
    with pytest.raises(NoAnswer):
        begun(register).take(1, "b")
    assert len(register.fates) > 50


@pytest.mark.parametrize("ask", ["current", "take", "order", "check"])
def test_only_who_begins_makes_a_record(ask: str) -> None:
    register = MemoryRegister()
    arbiter = Arbiter(register)
    calls: dict[str, Callable[[], object]] = {
        "current": arbiter.current,
        "take": lambda: arbiter.take(7, "b"),
        "order": lambda: arbiter.order("b"),
        "check": lambda: arbiter.check(Grant(7, "")),
    }
    with pytest.raises(LocalError, match=r"nobody has begun there|does not show grant 7"):
        calls[ask]()
    assert register.read() == Seen(None)


def test_a_number_below_what_was_given_is_not_the_same_register() -> None:
    with pytest.raises(LocalError, match=r"does not show grant 7 .* must see the same one"):
        begun().take(7, "b")


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"number": "x"}', "\0" * 600])
def test_a_register_without_a_grant_grants_nothing(content: str) -> None:
    register = MemoryRegister()
    register.compare_and_set(Seen(None), content)
    with pytest.raises(LocalError, match="does not hold a grant"):
        Arbiter(register).take(0, "a")


def test_another_hosts_grant_is_the_one_that_stands() -> None:
    arbiter = begun()
    assert arbiter.check(Grant(0, "a")) == Grant(1, "a"), "of which it has not heard"
    with pytest.raises(LocalError, match="does not show grant 2"):
        arbiter.check(Grant(2, "a"))
    with pytest.raises(LocalError, match=r"grant 1 of .* does not stand: .* a has grant 1"):
        arbiter.check(Grant(1, "b"))
    arbiter.give_back("a", Ending.LEFT)
    with pytest.raises(LocalError, match="nobody has grant 1"):
        arbiter.check(Grant(1, "a"))


def test_what_one_has_is_given_back_and_what_another_has_is_not() -> None:
    arbiter = begun()
    give_back(arbiter, "b", Ending.SHUT_DOWN)
    assert arbiter.current() == Record(1, "a")
    give_back(arbiter, "a", Ending.SHUT_DOWN)
    assert arbiter.current() == Record(1)


class TestClaim:
    def test_a_free_right_and_our_own_are_claimed(self) -> None:
        arbiter = Arbiter(MemoryRegister())
        assert claim(arbiter, "a", "web1", stock=False, force=False) == Grant(1, "a")
        assert claim(arbiter, "a", "web1", stock=False, force=False) == Grant(2, "a")

    def test_another_holders_right_is_refused_by_name_and_taken_by_force(self) -> None:
        arbiter = begun()
        with pytest.raises(UsageError, match=r"belongs to a \(grant 1\); .* say --claim"):
            claim(arbiter, "b", "web1", stock=False, force=False)
        assert claim(arbiter, "b", "web1", stock=False, force=True) == Grant(2, "b")

    def test_two_hosts_may_not_do_without_an_arbiter(self) -> None:
        with pytest.raises(UsageError, match="would let both hosts run the VM"):
            claim(NoArbiter(), "a", "web1", stock=False, force=False)
        assert claim(NoArbiter(), "a", "web1", stock=True, force=False) == Grant(1, "a")

    def test_a_manual_arbiter_has_nothing_to_claim(self) -> None:
        assert claim(ManualArbiter(), "a", "web1", stock=False, force=False) == Grant(0, "a")


def test_a_look_changes_nothing() -> None:
    arbiter = Arbiter(MemoryRegister())
    assert arbiter.look() is None is arbiter.look()
    arbiter.begin()
    assert arbiter.look() == Record()


def test_what_an_arbiter_cannot_do_is_refused() -> None:
    require_exclusive(ManualArbiter())
    require_memory(Arbiter(MemoryRegister()), "file:/g")
    with pytest.raises(UsageError, match="both hosts run the VM"):
        require_exclusive(NoArbiter())
    with pytest.raises(UsageError, match='arbiter = "manual": `colo node` goes on by itself'):
        require_memory(ManualArbiter(), "manual")
