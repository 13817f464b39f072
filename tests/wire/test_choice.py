"""Which way pays: pure decisions, told by costs and a rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.wire.choice import (
    TRY_EVERY,
    TRY_FIRST,
    WORK_MIN,
    Choice,
    Cost,
    Way,
    bounds,
    break_even,
    choose,
)

COSTS = {
    Way.PLAIN: Cost(0.0, 1.0),
    Way.DIFFERENCE: Cost(0.5e-9, 0.3),
    Way.ZSTD: Cost(2.5e-9, 0.4),
    Way.BOTH: Cost(1.5e-9, 0.1),
}
DRAWN = st.dictionaries(
    st.sampled_from(list(Way)),
    st.builds(Cost, st.floats(1e-10, 1e-8), st.floats(0.0, 1.1)),
    min_size=1,
).map(lambda costs: {Way.PLAIN: Cost(0.0, 1.0)} | costs)


@pytest.mark.parametrize(
    ("rate", "way"),
    [
        (None, Way.PLAIN),
        (1e11, Way.PLAIN),
        (2e9, Way.PLAIN),
        (1e9, Way.DIFFERENCE),
        (3e8, Way.DIFFERENCE),
        (1e8, Way.BOTH),
        (1e6, Way.BOTH),
    ],
)
def test_the_slower_the_link_the_more_work_pays(rate: float | None, way: Way) -> None:
    assert choose(COSTS, rate) is way


def test_where_nothing_is_known_all_goes_as_it_is() -> None:
    assert choose({}, 1e6) is Way.PLAIN


def test_work_for_nothing_never_pays() -> None:
    assert choose({Way.ZSTD: Cost(1e-10, 1.0), Way.DIFFERENCE: Cost(0.0, 1.01)}, 1.0) is Way.PLAIN


@given(DRAWN, st.floats(1e5, 1e11))
def test_the_chosen_way_is_the_cheapest(costs: dict[Way, Cost], rate: float) -> None:
    cost = costs[choose(costs, rate)]
    assert all(
        cost.work + cost.wire / rate <= each.work + each.wire / rate for each in costs.values()
    )


@given(DRAWN, st.sampled_from(list(Way)[1:]))
def test_below_its_break_even_rate_a_way_is_better_than_plain(
    costs: dict[Way, Cost], way: Way
) -> None:
    two = {each: costs[each] for each in (Way.PLAIN, way) if each in costs}
    for each, rate in break_even(two).items():
        if rate > 1e3 and two[Way.PLAIN].wire > two[each].wire:
            assert choose(two, rate * 0.999) is each
            if two[each].work - two[Way.PLAIN].work > WORK_MIN:
                assert choose(two, rate * 1.001) is Way.PLAIN
        assert rate <= bounds(two)[each]


def test_break_even_rates() -> None:
    assert break_even(COSTS) == pytest.approx(
        {Way.DIFFERENCE: 1.4e9, Way.ZSTD: 2.4e8, Way.BOTH: 6e8}
    )
    assert break_even({Way.ZSTD: Cost(1e-9, 1.2)}) == {Way.ZSTD: 0.0}


# -- what is tried ------------------------------------------------------------------------


def measure(choice: Choice, rate: float | None, batches: int, usable: tuple[Way, ...]) -> list[Way]:
    """Play a link of that rate, with the costs above."""
    taken = []
    for _ in range(batches):
        way = choice.next(rate, usable)
        taken.append(way)
        if choice.may_pay(rate):
            cost = COSTS[way]
            choice.note(way, cost.work * 1000, 1000, round(cost.wire * 1000))
    return taken


def test_each_way_is_tried_at_first_and_the_best_is_taken_then() -> None:
    taken = measure(Choice(tuple(Way)), 1e8, 60, tuple(Way))
    others = [Way.DIFFERENCE, Way.ZSTD, Way.BOTH]
    assert taken[: 3 * TRY_FIRST] == [way for way in others for _ in range(TRY_FIRST)]
    assert set(taken[3 * TRY_FIRST :]) == {Way.BOTH}


def test_once_in_a_while_another_is_tried() -> None:
    taken = measure(Choice(tuple(Way)), 1e8, 3 * TRY_FIRST + 4 * TRY_EVERY, tuple(Way))
    later = taken[3 * TRY_FIRST :]
    tried = [at for at, way in enumerate(later) if way is not Way.BOTH]
    assert tried == [TRY_EVERY * turn - 1 for turn in (1, 2, 3, 4)]
    assert {later[at] for at in tried} == {Way.DIFFERENCE, Way.ZSTD}


@pytest.mark.parametrize("rate", [None, 1 / WORK_MIN, 1e12])
def test_nothing_is_tried_where_nothing_can_pay(rate: float | None) -> None:
    choice = Choice(tuple(Way))
    assert not choice.may_pay(rate)
    assert set(measure(choice, rate, 200, tuple(Way))) == {Way.PLAIN}


def test_once_measured_a_fast_link_has_no_more_tries() -> None:
    choice = Choice(tuple(Way))
    measure(choice, 1e9, 20, tuple(Way))
    assert choice.may_pay(1.9e9)
    assert not choice.may_pay(2.1e9), "the least work alone takes longer"
    assert set(measure(choice, 2.1e9, 500, tuple(Way))) == {Way.PLAIN}


def test_what_cannot_pay_by_itself_is_not_tried_beside_what_can() -> None:
    choice = Choice(tuple(Way))
    measure(choice, 1e9, 20, tuple(Way))
    taken = measure(choice, 1e9, 500, tuple(Way))
    assert set(taken) == {Way.DIFFERENCE}


def test_what_cannot_be_used_is_not_taken() -> None:
    choice = Choice(tuple(Way))
    assert set(measure(choice, 1e8, 100, (Way.PLAIN,))) == {Way.PLAIN}
    assert set(measure(choice, 1e8, 20, (Way.PLAIN, Way.ZSTD))) == {Way.ZSTD}
    assert measure(choice, 1e8, 1, tuple(Way)) == [Way.DIFFERENCE]


def test_one_way_alone_is_no_choice() -> None:
    choice = Choice((Way.PLAIN,))
    assert not choice.may_pay(1.0)
    assert choice.next(1.0, tuple(Way)) is Way.PLAIN


def test_of_the_first_measurements_the_least_work_counts() -> None:
    choice = Choice(tuple(Way))
    for work_s in (9.0, 1.0, 5.0):
        choice.note(Way.ZSTD, work_s, 10, 5)
    assert choice.costs[Way.ZSTD] == Cost(0.1, 0.5)


def test_an_average_follows_what_changes() -> None:
    choice = Choice(tuple(Way))
    for _ in range(TRY_FIRST):
        choice.note(Way.ZSTD, 1.0, 1000, 900)
    for _ in range(40):
        choice.note(Way.ZSTD, 3.0, 1000, 100)
    assert choice.costs[Way.ZSTD].work == pytest.approx(0.003, rel=0.02)
    assert choice.costs[Way.ZSTD].wire == pytest.approx(0.1, rel=0.05)


def test_more_bytes_weigh_more() -> None:
    choice = Choice(tuple(Way))
    for _ in range(40):
        choice.note(Way.ZSTD, 1.0, 1000, 500)
        choice.note(Way.ZSTD, 1.0, 1, 1)
    assert choice.costs[Way.ZSTD].work == pytest.approx(0.002, rel=0.1)
