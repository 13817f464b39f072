"""The moves on a grant: exclusive and numbered, whatever answers are lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from colo.membership.grant import (
    Ending,
    Foreign,
    Grant,
    Held,
    Moved,
    Record,
    begin,
    check,
    claim,
    give_back,
    order,
    take,
)

A1 = Record(1, "a")


def test_a_record_begins_once() -> None:
    assert begin(None) == Record(0, "", "")
    assert begin(A1) is A1


def test_the_next_number_is_for_one_only() -> None:
    assert take(A1, 1, "b") == Record(2, "b", "a")
    assert take(Record(2, "b"), 1, "a") == Moved(Grant(2, "b"))


def test_a_grant_whose_answer_never_came_is_got_by_asking_again() -> None:
    got = take(A1, 1, "a")
    assert got == Record(2, "a", "a")
    assert take(got, 1, "a") is got


@pytest.mark.parametrize("record", [None, Record(), A1])
def test_a_number_that_never_was_is_no_grant_of_this_record(record: Record | None) -> None:
    assert isinstance(take(record, 7, "b"), Foreign)
    assert isinstance(check(record, Grant(7, "a")), Foreign)


def test_only_who_begins_has_a_record() -> None:
    assert take(None, 0, "a") == Foreign(Grant(0, ""), 0)
    assert order(None, "a") == Foreign(Grant(0, ""), 0)
    assert give_back(None, "a", Ending.LEFT) is None
    assert claim(None, "a", force=False) == Record(1, "a")


@pytest.mark.parametrize(
    ("void", "got"),
    [
        (Grant(2, "a"), Record(3, "b", "a")),
        (Grant(3, "a"), Moved(Grant(2, "a"))),
        (Grant(2, "c"), Moved(Grant(2, "a"))),
        (None, Moved(Grant(2, "a"))),
    ],
)
def test_a_grant_whose_holder_is_dead_is_in_nobodys_way_but_only_that_one(
    void: Grant | None, got: Record | Moved
) -> None:
    assert take(Record(2, "a"), 1, "b", void) == got


def test_an_order_takes_the_next_whatever_stands() -> None:
    assert order(A1, "b") == Record(2, "b", "a")


def test_a_free_right_and_our_own_are_claimed_and_anothers_by_force_alone() -> None:
    assert claim(Record(4, "", "b"), "a", force=False) == Record(5, "a", "b")
    assert claim(A1, "a", force=False) == Record(2, "a", "a")
    assert claim(A1, "b", force=False) == Held(Grant(1, "a"))
    assert claim(A1, "b", force=True) == Record(2, "b", "a")


@pytest.mark.parametrize(
    ("ending", "left_by"), [(Ending.UNUSED, "b"), (Ending.LEFT, "a"), (Ending.SHUT_DOWN, "")]
)
def test_who_gives_back_says_whose_state_is_the_newest(ending: Ending, left_by: str) -> None:
    held = Record(2, "a", "b")
    assert held.left_by == "a"
    given = give_back(held, "a", ending)
    assert given == Record(2, "", left_by)
    assert given.left_by == left_by


def test_another_ones_grant_is_not_given_back() -> None:
    assert give_back(A1, "b", Ending.SHUT_DOWN) is A1


def test_another_hosts_grant_is_the_one_that_stands() -> None:
    assert check(A1, Grant(1, "")) == Grant(1, "a")
    assert check(A1, Grant(1, "a")) == Grant(1, "a")
    assert check(A1, Grant(0, "a")) == Grant(1, "a"), "of which it has not heard"
    assert check(A1, Grant(1, "b")) == Moved(Grant(1, "a"))
    assert check(A1, Grant(0, "")) == Moved(Grant(1, "a"))
    assert check(Record(1, ""), Grant(1, "a")) == Moved(Grant(1, ""))


@given(st.builds(Record, st.integers(min_value=0), st.text(), st.text()))
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    text = record.encode()
    assert "\n" not in text and text.isascii()
    assert Record.decode(text) == record


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[]", "7", '{"number": 1, "holder": "a"}',
        '{"number": "1", "holder": "a", "last": ""}', '{"number": -1, "holder": "a", "last": ""}',
        '{"number": true, "holder": "a", "last": ""}', '{"number": 1, "holder": 2, "last": ""}',
        '{"number": 1, "holder": "a", "last": null}',
        '{"number": 1, "holder": "a", "last": "", "more": 1}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Record.decode(text)


class Host:
    """A host as far as the grant goes: what it knows, and whether it believes it may run the VM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.begin_life()

    def begin_life(self, life: int = 0) -> None:
        """A new process: it has a name of its own."""
        self.holder = f"{self.name}/{life}"
        self.known = 0
        self.void: Grant | None = None
        self.unheard = 0
        self.runs = self.asks = False
        self.call: tuple[Record, Record] | None = None


class World(RuleBasedStateMachine):
    """Two hosts over one register: each call is read, then written, and its answer may be lost.

    A write whose asker has given up may still happen, at any time later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lives = 0
        self.a, self.b = Host("a"), Host("b")
        first = claim(None, self.a.holder, force=False)
        assert isinstance(first, Record)
        self.record = first
        self.stood = [self.record]
        self.late: list[tuple[Record, Record]] = []
        self.paired(self.a, self.b)

    def paired(self, primary: Host, secondary: Host) -> None:
        """``secondary`` has a checkpoint of the VM that ``primary`` runs."""
        self.lives += 1
        secondary.begin_life(self.lives)
        self.primary, self.secondary = primary, secondary
        primary.runs, primary.asks, primary.call = True, False, None
        secondary.known = primary.known = self.record.number

    def write(self, call: tuple[Record, Record]) -> bool:
        seen, new = call
        if self.record != seen:
            return False
        self.record = new
        self.stood.append(new)
        return True

    def host(self, first: bool) -> Host:
        return self.a if first else self.b

    @precondition(lambda self: self.primary.runs and not self.secondary.asks)
    @rule()
    def lose_each_other(self) -> None:
        self.primary.runs = False
        self.primary.asks = self.secondary.asks = True

    @rule(first=st.booleans())
    def read(self, first: bool) -> None:
        host = self.host(first)
        if not host.asks or host.call is not None:
            return
        got = take(self.record, host.known, host.holder, host.void)
        assert not isinstance(got, Foreign | Held)
        if isinstance(got, Moved):
            host.asks = False
        elif got is self.record:
            self.granted(host)
        else:
            host.call = self.record, got

    @rule(first=st.booleans(), fate=st.sampled_from(["answered", "lost", "late", "never"]))
    def go_on(self, first: bool, fate: str) -> None:
        host = self.host(first)
        call, host.call = host.call, None
        if call is None:
            return
        if fate in ("lost", "late"):
            host.unheard = call[1].number
        if fate == "late":
            self.late.append(call)
        elif fate != "never" and self.write(call) and fate == "answered":
            self.granted(host)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def happen_late(self, data: st.DataObject) -> None:
        self.write(self.late.pop(data.draw(st.integers(0, len(self.late) - 1))))

    def granted(self, host: Host) -> None:
        host.asks, host.runs, host.known = False, True, self.record.number

    @precondition(lambda self: self.primary.asks and self.primary.call is None)
    @rule()
    def the_primary_dies_and_says_so(self) -> None:
        """It runs nothing any more, and names the grant that may have become its own."""
        self.primary.asks = False
        last = max(self.primary.known, self.primary.unheard)
        self.secondary.void = Grant(last, self.primary.holder)

    @precondition(lambda self: self.a.runs != self.b.runs and not (self.a.asks or self.b.asks))
    @rule()
    def protect_again(self) -> None:
        alone = self.a if self.a.runs else self.b
        self.paired(alone, self.b if alone is self.a else self.a)

    @precondition(lambda self: self.a.runs != self.b.runs and not (self.a.asks or self.b.asks))
    @rule(ending=st.sampled_from(Ending), force=st.booleans())
    def end_and_begin_elsewhere(self, ending: Ending, force: bool) -> None:
        alone = self.a if self.a.runs else self.b
        other = self.b if alone is self.a else self.a
        given = give_back(self.record, alone.holder, ending)
        assert given is not None and self.write((self.record, given))
        alone.runs = False
        claimed = claim(self.record, other.holder, force)
        assert isinstance(claimed, Record) and self.write((self.record, claimed))
        self.paired(other, alone)

    @invariant()
    def one_voice(self) -> None:
        assert not (self.a.runs and self.b.runs)
        for host in (self.a, self.b):
            assert not host.runs or self.record.holder == host.holder

    @invariant()
    def numbered_and_never_again(self) -> None:
        assert len(set(self.stood)) == len(self.stood)
        holders: dict[int, str] = {}
        for before, after in zip(self.stood, self.stood[1:], strict=False):
            assert after.number >= before.number
        for record in self.stood:
            if record.holder:
                assert holders.setdefault(record.number, record.holder) == record.holder


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
