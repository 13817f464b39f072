"""Host A's decisions on the secondary VM: whose words count, and for how long they are awaited.

How they are carried out is in ``tests/session/test_comparing.py``.
"""

from __future__ import annotations

import math

import pytest

from colo.errors import PeerError
from colo.packets.costs import Costs
from colo.packets.hybrid_words import Kind, Said
from colo.packets.other_vm import Other, OtherVm
from colo.packets.pace import Pace
from tests.packets.two_vms import tcp

ONE, TWO = tcp(1000, 5, b"one"), tcp(1003, 5, b"two")
PACE = Pace()


class Host:
    """What is around the decisions, and notes what they ask for."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.released = self.urged = 0
        self.may = True
        self.vm = OtherVm(True, 1 << 20, 0.1, 2.0, self)
        self.vm.begin([True])
        self.vm.linked()

    def say(self, said: Said) -> None:
        self.said.append(said)

    def release(self, card: int, count: int) -> None:
        self.released += count

    def may_release(self) -> bool:
        return self.may

    def urge(self) -> None:
        self.urged += 1

    def schedule(self) -> None:
        pass

    def tell(self, text: str) -> None:
        pass

    def hears(self, kind: Kind, number: int = 0, payload: bytes = b"", now: float = 1.0) -> None:
        self.vm.hear(Said(kind, 0, number, payload), now)

    def runs(self, number: int = 0) -> None:
        """Have a secondary VM run from this checkpoint."""
        self.vm.cover(number, 1.0)
        self.vm.safe(number, 0.005, 1.0)
        self.hears(Kind.READY)
        self.hears(Kind.RUNS, number)
        assert self.vm.other is Other.RUNS


def test_what_both_say_leaves() -> None:
    host = Host()
    host.runs()
    assert host.vm.says(0, ONE + TWO, 1.0) == 0
    host.hears(Kind.SAID, 0, ONE)
    assert host.released == len(ONE)
    assert [said.kind for said in host.said] == [Kind.CUT, Kind.START, Kind.HEARD]


@pytest.mark.parametrize("number", [0, 2])
def test_the_words_of_another_checkpoint_count_for_nothing(number: int) -> None:
    host = Host()
    host.runs(1)
    host.vm.says(0, ONE, 1.0)
    host.hears(Kind.SAID, number, ONE)
    assert host.released == 0


def test_nothing_leaves_by_comparing_between_a_checkpoint_and_its_secondary_vm() -> None:
    host = Host()
    host.runs()
    host.hears(Kind.SAID, 0, ONE)
    host.vm.cover(1, 1.0)
    host.hears(Kind.READY)
    assert host.vm.other is Other.READY, "none begins from what is not safe"
    assert host.vm.says(0, ONE, 1.0) == 0
    host.vm.safe(1, 0.005, 1.0)
    host.hears(Kind.SAID, 1, ONE)
    assert host.released == 0
    host.hears(Kind.RUNS, 1)
    assert host.released == len(ONE)


@pytest.mark.parametrize("is_link", [True, False])
def test_what_one_has_said_that_is_gone_is_covered_at_once(is_link: bool) -> None:
    host = Host()
    host.runs()
    host.hears(Kind.SAID, 0, ONE)
    if is_link:
        host.vm.unlinked(1.0)
        host.vm.linked()
    else:
        host.hears(Kind.GONE, 0)
    assert host.urged == 1 and host.vm.other is Other.NONE
    assert host.vm.says(0, ONE, 1.0) == 0
    host.hears(Kind.SAID, 0, ONE)
    assert host.released == 0
    host.hears(Kind.READY)
    begins = Other.READY if is_link else Other.BEGINS
    assert host.vm.other is begins, "host B does not know what came while there was no link"


def test_nothing_leaves_where_the_other_host_may_have_taken_over() -> None:
    host = Host()
    host.runs()
    host.may = False
    host.vm.says(0, ONE, 1.0)
    host.hears(Kind.SAID, 0, ONE)
    assert host.released == 0


def test_what_is_held_waits_no_longer_than_it_is_worth() -> None:
    host = Host()
    assert host.vm.waits_until(PACE, 1.0, 10) is None
    host.runs()
    assert host.vm.waits_until(PACE, None, 0) == math.inf
    assert host.vm.waits_until(PACE, 1.0, 10) == 1.5, "it has yet to catch up"
    host.hears(Kind.SAID, 0, ONE)
    assert host.vm.waits_until(PACE, 1.0, 10) == pytest.approx(1.01)
    assert host.vm.waits_until(PACE, 1.0, PACE.high_water) is None
    host.vm.says(0, tcp(1000, 5, b"other"), 1.0)
    assert host.vm.waits_until(PACE, 1.0, 10) is None


def test_a_checkpoint_comes_for_what_waits_in_vain_and_for_age() -> None:
    host = Host()
    host.runs()
    held = 1.25, 10
    assert host.vm.due_at(PACE, Costs(), *held, 1.0, 0.0) == 1.75
    assert host.vm.due_at(PACE, Costs(), None, 0, 1.0, 0.0) == 2.0


@pytest.mark.parametrize("kind", [Kind.INPUT, Kind.CUT, Kind.START, Kind.HEARD])
def test_what_host_b_may_not_say_is_an_error(kind: Kind) -> None:
    with pytest.raises(PeerError, match=kind.name):
        Host().hears(kind)
