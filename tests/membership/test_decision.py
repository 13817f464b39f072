"""What a secondary does about a loss: the whole table."""

from __future__ import annotations

from itertools import product

import pytest

from colo.membership.decision import Decision, Heard, LinkState, decide_secondary
from colo.membership.words import WordKind

UP, LOST, NONE = LinkState.UP, LinkState.LOST, LinkState.NONE


@pytest.mark.parametrize(
    ("case", "channel_up", "link", "word", "decision"),
    [
        ("all is well", True, UP, None, Decision.GO_ON),
        ("a stock primary, connected", True, NONE, None, Decision.GO_ON),
        ("a stock primary is gone", False, NONE, None, Decision.ASK),
        ("both connections are gone: the host died", False, LOST, None, Decision.ASK),
        ("the link fell silent, the channel seems open", True, LOST, None, Decision.ASK),
        ("the channel broke, the primary lives: it decides", False, UP, None, Decision.WAIT),
        (
            "the VM's process died; its last bytes still come",
            True,
            UP,
            WordKind.DEAD,
            Decision.WAIT,
        ),
        ("the VM's process died", False, UP, WordKind.DEAD, Decision.ASK),
        ("it died, and then its host", False, LOST, WordKind.DEAD, Decision.ASK),
        ("the guest shut down", True, UP, WordKind.SHUTDOWN, Decision.FORGET),
        ("it shut down, and then its host", False, LOST, WordKind.SHUTDOWN, Decision.FORGET),
        ("the primary has the grant", False, UP, WordKind.ALONE, Decision.FORGET),
        ("protection was ended", False, LOST, WordKind.BYE, Decision.FORGET),
    ],
)
def test_decision(
    case: str, channel_up: bool, link: LinkState, word: WordKind | None, decision: Decision
) -> None:
    assert decide_secondary(channel_up, Heard(link, word=word)) is decision, case


def test_a_vm_that_ended_in_good_order_is_never_taken_over() -> None:
    for channel_up, link in product((True, False), LinkState):
        for word in (WordKind.SHUTDOWN, WordKind.BYE, WordKind.ALONE):
            heard = Heard(link, word=word)
            assert decide_secondary(channel_up, heard) is Decision.FORGET


def test_nobody_is_asked_while_the_primary_can_still_speak() -> None:
    assert decide_secondary(False, Heard(LinkState.UP, word=None)) is Decision.WAIT
    assert decide_secondary(True, Heard(LinkState.UP, word=None)) is Decision.GO_ON
