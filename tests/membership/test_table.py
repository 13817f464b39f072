"""A host's table: whatever is asked can be answered, and nobody is left without an end."""

from __future__ import annotations

import pytest

from colo.errors import InvariantBroken, LocalProtocolError
from colo.membership.grant import Grant
from colo.membership.member import Facts, Means, Member
from colo.membership.states import FINAL, OUTCOMES, Do, Event, Row, State, When
from colo.membership.table import TABLE
from colo.membership.words import WordKind

A = Grant(1, "a/1/1")
#: What may happen at any moment to a host whose VM runs here, or is to.
LEADS = (
    State.UNPROTECTED, State.BEGINNING, State.COPYING, State.PROTECTED, State.GOING_OVER,
    State.LOST, State.RESUMING, State.PARTING,
)  # fmt: skip
FOLLOWS = (
    State.LISTENING, State.GREETED, State.RECEIVING, State.KEEPING, State.CUT_OFF, State.ORPHANED,
    State.TAKING_OVER, State.RUNNING,
)  # fmt: skip


def rows() -> list[tuple[State, Event, Row]]:
    return [(*key, row) for key, those in TABLE.items() for row in those]


def test_whatever_is_asked_has_a_place_for_each_of_its_answers() -> None:
    missing = [
        (state.name, event.name, row.to.name, do.name, outcome.name)
        for state, event, row in rows()
        for do in row.do
        for outcome in OUTCOMES.get(do, ())
        if (row.to, outcome) not in TABLE
    ]
    assert missing == []


def test_the_last_row_of_a_state_and_an_event_always_holds() -> None:
    """Nothing that happens finds no row because of what is known."""
    conditional = {key for key, those in TABLE.items() if those[-1].when}
    assert conditional == set()


def test_every_state_is_reached_and_left() -> None:
    reached = {row.to for state, _, row in rows() if row.to is not state} | {State.LOOKING}
    left = {state for state, _, row in rows() if row.to is not state}
    assert reached == set(State)
    assert set(State) - left == {State.ENDED, State.LEFT, State.GONE}


@pytest.mark.parametrize("state", LEADS, ids=lambda state: state.name)
@pytest.mark.parametrize(
    "event", [Event.DIED, Event.SHUT_DOWN, Event.INTERRUPT, Event.ORDER, Event.SWITCHOVER]
)
def test_what_may_happen_at_any_moment_has_its_place_where_a_vm_runs(
    state: State, event: Event
) -> None:
    assert (state, event) in TABLE


@pytest.mark.parametrize("state", FOLLOWS, ids=lambda state: state.name)
@pytest.mark.parametrize("event", [Event.LINK_UP, Event.CHANNEL_UP, Event.ORDER, Event.INTERRUPT])
def test_what_may_happen_at_any_moment_has_its_place_where_a_copy_is_kept(
    state: State, event: Event
) -> None:
    assert (state, event) in TABLE


def test_what_is_over_hears_nothing_more() -> None:
    for state in FINAL:
        for event in Event:
            those = TABLE[state, event]
            assert event is Event.GO_ON or {(row.to, row.do) for row in those} <= {
                (state, ()), (state, (Do.DECLINE,)),
            }  # fmt: skip


def test_an_event_out_of_place_changes_nothing() -> None:
    member = Member("web1", Means(), State.LISTENING)
    before = member.facts
    with pytest.raises(LocalProtocolError, match="web1: RUNS is out of place in LISTENING"):
        member.handle(Event.RUNS)
    assert (member.state, member.facts) == (State.LISTENING, before)


@pytest.mark.parametrize(
    ("state", "event", "row", "facts", "rule"),
    [
        (State.KEEPING, Event.LINK_LOST, Row(State.TAKING_OVER, (Do.LOAD,)), Facts(),
         "no takeover without right"),
        (State.LOST, Event.NO_ANSWER, Row(State.RESUMING, (Do.RUN_ALONE,)), Facts(contested=True),
         "only by right a VM runs alone"),
        (State.PROTECTED, Event.LOST, Row(State.UNPROTECTED, (Do.OPEN,)), Facts(right=True),
         "only a VM that runs alone is heard at once"),
        (State.RESUMING, Event.RUNS, Row(State.UNPROTECTED, (Do.OPEN,)),
         Facts(right=True, shut=True), "who was silenced stays so"),
        (State.KEEPING, Event.LINK_LOST, Row(State.LISTENING, (Do.FORGET,)), Facts(),
         "the only copy is kept"),
        (State.ORPHANED, Event.INTERRUPT, Row(State.GONE, (Do.FORGET,)), Facts(),
         "the only copy is kept"),
        (State.PROTECTED, Event.DIED, Row(State.DEAD, (Do.GIVE_BACK,)), Facts(contested=True),
         "the other host's copy needs the grant"),
        (State.STARTING, Event.FIT, Row(State.STARTING, (Do.START,)), Facts(starts=True),
         "the other host is asked before a VM starts"),
        (State.STARTING, Event.AGREES, Row(State.STARTING, (Do.START,)), Facts(starts=True),
         "the other host is asked before a VM starts"),
    ],
)  # fmt: skip
def test_a_step_that_would_break_a_rule_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    state: State,
    event: Event,
    row: Row,
    facts: Facts,
    rule: str,
) -> None:
    monkeypatch.setitem(TABLE, (state, event), (row,))
    member = Member("web1", Means(), state)
    member.facts = facts
    with pytest.raises(InvariantBroken, match=rule):
        member.handle(event)
    assert (member.state, member.facts) == (state, facts)


def lost(means: Means) -> Member:
    """A primary that has lost its secondary, which may have a whole copy."""
    member = Member("web1", means, State.PROTECTED)
    member.facts = Facts(grant=A, contested=True, protected=True, linked=True, connected=True)
    assert member.handle(Event.LINK_LOST) == (Do.CLOSE, Do.LOOK)
    return member


def test_a_dead_vm_says_which_grant_it_may_have_got_unheard() -> None:
    member = lost(Means())
    assert member.handle(Event.ANSWERS) == (Do.ASK,)
    member.handle(Event.DIED)
    assert member.facts.last_number == 2


def test_a_manual_arbiter_waits_for_an_operator_and_an_order_looks_again() -> None:
    member = lost(Means(automatic=False))
    assert member.handle(Event.ANSWERS) == ()
    assert member.handle(Event.ORDER) == (Do.LOOK,)
    assert member.handle(Event.ANSWERS) == (Do.ASK_BY_ORDER,)
    assert member.handle(Event.GRANTED, grant=Grant(2, "a/1/1")) == (Do.RUN_ALONE,)
    assert Do.AGREE in member.handle(Event.RUNS)


def test_a_plain_order_does_not_override_an_arbiter_and_force_does() -> None:
    for force, asked in ((False, Do.ASK), (True, Do.ASK_BY_ORDER)):
        member = Member("web1", Means(asks=False), State.ORPHANED)
        assert member.handle(Event.ORDER, force=force) == (Do.STOP_ASKING, asked)


def test_a_vm_that_does_not_run_is_not_heard_and_left_to_the_other_host() -> None:
    member = lost(Means())
    member.handle(Event.ANSWERS)
    member.handle(Event.GRANTED, grant=Grant(2, "a/1/1"))
    effects = member.handle(Event.STUCK)
    assert effects.index(Do.SHUT) < effects.index(Do.SAY_DEAD) and Do.OPEN not in effects


def test_who_ends_a_protection_and_reaches_no_arbiter_lets_the_other_host_go_first() -> None:
    member = Member("web1", Means(), State.PROTECTED)
    member.facts = Facts(grant=A, contested=True, protected=True, linked=True, connected=True)
    assert member.handle(Event.INTERRUPT) == (Do.LOOK,)
    assert member.handle(Event.ANSWERS) == (Do.ASK,)
    assert member.handle(Event.NO_ANSWER) == (Do.SAY_BYE, Do.PAUSE)
    assert member.handle(Event.LETS_GO) == (Do.CLOSE, Do.RUN_ALONE)


def test_a_copy_that_is_let_go_is_said_to_be() -> None:
    member = Member("web1", Means(), State.KEEPING)
    assert member.handle(Event.LETS_GO) == (Do.SAY_BYE, Do.FORGET)


def test_every_condition_is_used() -> None:
    assert {when for _, _, row in rows() for when in row.when} == set(When)


def test_a_question_of_a_host_whose_vm_is_dead_voids_no_copy() -> None:
    """It had got a later grant in vain, and has said so."""
    member = Member("web1", Means(), State.CUT_OFF)
    member.facts = Facts(known=A, linked=True)
    member.handle(Event.SAYS_GONE, word=WordKind.DEAD, grant=Grant(2, ""))
    assert member.handle(Event.LINK_UP, grant=Grant(2, A.holder)) == (Do.REFUSE,)
    assert Do.FORGET in member.handle(Event.LINK_UP, grant=Grant(3, A.holder))


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("lacks", [False, True])
def test_who_lacks_what_clients_heard_leaves_the_grant_to_the_primary(
    cut_off: bool, lacks: bool
) -> None:
    """Its secondary VM has spoken and died: it would only silence the one that has all."""
    member = Member("web1", Means(node=True), State.KEEPING)
    member.facts = Facts(known=A, linked=True, connected=True)
    if cut_off:
        assert member.handle(Event.LOST, lacks=lacks) == (Do.CLOSE,)
    effects = member.handle(Event.LINK_LOST, lacks=lacks)
    assert member.state is State.ORPHANED
    assert effects == ((Do.CLOSE,) if lacks else (Do.CLOSE, Do.ASK))
    if lacks:
        assert member.handle(Event.ORDER, lacks=True) == (Do.DECLINE,)
        assert member.handle(Event.ORDER, force=True, lacks=True)[-1] is Do.ASK_BY_ORDER
        assert member.handle(Event.NO_ANSWER) == (Do.LOAD,)


def test_what_was_ordered_by_force_the_arbiter_is_told_as_soon_as_it_can_be() -> None:
    member = lost(Means(node=True))
    member.handle(Event.ORDER, force=True)
    assert member.handle(Event.ANSWERS) == (Do.ASK_BY_ORDER,)
    assert member.handle(Event.NO_ANSWER) == (Do.RUN_ALONE,)
    assert member.handle(Event.RUNS)[-1] is Do.ASK_BY_ORDER
    assert member.handle(Event.NO_ANSWER) == (Do.PAUSE,)
    member.handle(Event.TIME)
    assert member.handle(Event.GRANTED, grant=Grant(9, A.holder)) == (Do.CALL,)
    member.handle(Event.UNREACHED)
    assert member.handle(Event.TIME) == (Do.CALL,)


def test_what_was_ordered_by_force_is_told_before_the_vm_is_protected_anew() -> None:
    """What was asked before may have been granted unheard: who is protected by a grant that it does
    not know takes the same one for an answer at the next loss, and the other host has the next."""
    member = Member("web1", Means(), State.LOST)
    member.facts = Facts(grant=A, contested=True, protected=True)
    member.handle(Event.ANSWERS)
    member.handle(Event.ORDER, force=True)
    assert Do.RUN_ALONE in member.handle(Event.NO_ANSWER, may_be_done=True)
    effects = member.handle(Event.RUNS)
    assert effects[-1] is Do.ASK_BY_ORDER and Do.OPEN in effects and Do.CALL not in effects
    assert member.handle(Event.NO_ANSWER) == (Do.PAUSE,)
    assert member.handle(Event.TIME) == (Do.ASK_BY_ORDER,)
    assert member.handle(Event.GRANTED, grant=Grant(3, "a/1/1")) == (Do.CALL,)


def test_a_vm_taken_over_by_force_is_led_without_a_claim_that_would_be_refused() -> None:
    member = Member("web1", Means(node=True), State.ORPHANED)
    member.facts = Facts(known=A)
    member.handle(Event.ORDER, force=True)
    assert member.handle(Event.NO_ANSWER) == (Do.LOAD,)
    member.handle(Event.RUNS)
    member.handle(Event.GO_ON)
    assert member.handle(Event.BEGIN) == (Do.PREPARE,)
    assert member.handle(Event.FIT) == (Do.ASK_BY_ORDER,)


def test_a_secondary_that_went_late_lets_the_vm_go_on_all_the_same() -> None:
    member = Member("web1", Means(), State.PROTECTED)
    member.facts = Facts(grant=A, contested=True, protected=True, linked=True, connected=True)
    for event in (Event.INTERRUPT, Event.ANSWERS, Event.NO_ANSWER, Event.TIME, Event.LETS_GO):
        member.handle(event)
    assert member.state is State.LOST
    assert member.handle(Event.ANSWERS) == (Do.RUN_ALONE,)


def test_who_was_told_to_end_does_not_begin_another_part() -> None:
    """Else the first word to that would count years later, when it has the only copy."""
    member = lost(Means(node=True))
    member.handle(Event.ANSWERS)
    assert member.handle(Event.INTERRUPT) == (Do.WARN,)
    member.handle(Event.DENIED)
    assert member.handle(Event.GO_ON) == (Do.END_GUEST,)
    assert member.state is State.GONE
    for state, effects in ((State.DEAD, (Do.END_GUEST,)), (State.REFUSED, ())):
        member = Member("web1", Means(node=True), state)
        member.handle(Event.INTERRUPT)
        assert member.handle(Event.GO_ON) == effects
        assert member.state is State.GONE


@pytest.mark.parametrize("force", [False, True])
def test_a_vm_is_started_anew_on_an_operators_word_unless_another_got_the_grant_since(
    force: bool,
) -> None:
    """He says that the other host is gone; one that has a later grant is not, as far as we know."""
    asked = Do.ASK_BY_ORDER if force else Do.ASK
    member = Member("web1", Means(node=True), State.LISTENING)
    assert member.handle(Event.ORDER, force=force) == (asked,)
    assert member.state is State.LOOKING
    assert member.handle(Event.DENIED) == (Do.END_GUEST, Do.DECLINE, Do.READ_RECORD)


@pytest.mark.parametrize("node", [False, True])
def test_a_refusal_for_good_ends_a_part_and_not_a_daemon(node: bool) -> None:
    """Who goes on looks again: what was wrong on the other host may be mended there."""
    member = Member("web1", Means(node=node), State.BEGINNING)
    member.facts = Facts(grant=A, right=True, linked=True, connected=True)
    member.handle(Event.REJECTED, final=True)
    member.handle(Event.ANSWERS)
    effects = member.handle(Event.RUNS)
    assert (member.state is State.ENDED) is not node
    assert (Do.PAUSE in effects) is node and (Do.GIVE_BACK in effects) is not node

    member = Member("web1", Means(node=node), State.UNPROTECTED)
    effects = member.handle(Event.UNFIT)
    assert (member.state is State.ENDED) is not node
    assert (Do.PAUSE in effects) is node and (Do.GIVE_BACK in effects) is not node


@pytest.mark.parametrize(
    ("means", "state", "event", "facts", "to", "does"),
    [
        (Means(), State.COPYING, Event.INTERRUPT, Facts(contested=True), State.PARTING, Do.HOLD),
        (Means(), State.PARTING, Event.COPY_BEGUN, Facts(grant=A), State.PARTING, Do.HOLD),
        (Means(), State.PARTING, Event.DIED, Facts(grant=A), State.DEAD, Do.GIVE_BACK),
        (Means(), State.GOING_OVER, Event.SHUT_DOWN, Facts(grant=A, contested=True),
         State.SHUTDOWN, Do.SAY_SHUTDOWN),
        (Means(claims=True), State.STARTING, Event.OBJECTS, Facts(starts=True), State.REFUSED,
         Do.END_GUEST),
    ],
    ids=["told to end while it copies", "told to end before", "dies while it parts",
         "shuts down on its way", "claimed, and spoken against"],
)  # fmt: skip
def test_what_chance_seldom_comes_to(
    means: Means, state: State, event: Event, facts: Facts, to: State, does: Do
) -> None:
    member = Member("web1", means, state)
    member.facts = facts
    effects = member.handle(event)
    assert member.state is to and does in effects
    assert Do.GIVE_BACK_UNUSED not in effects, "a grant that was claimed is kept"
