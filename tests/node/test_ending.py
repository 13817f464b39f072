"""Every end has one outcome: another session, the VM's fate, or a last word."""

from __future__ import annotations

from colo.node.ending import LAST, End
from colo.node.running_on import Verdict


def test_every_end_for_good_and_every_decision_that_is_one_has_a_last_word() -> None:
    another_session, fate_says = {End.LOST}, {Verdict.ALONE, Verdict.GONE}
    assert set(LAST) == {*End, *Verdict} - another_session - fate_says


def test_an_end_in_good_order_exits_with_0() -> None:
    assert {end for end, last in LAST.items() if last.code == 0} == {End.SHUTDOWN, End.ORDERED}
