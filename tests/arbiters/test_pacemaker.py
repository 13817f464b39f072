"""A promotion is the grant: what each host of a cluster is told, in each of its partitions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import _Call, _current
from colo.arbiters.pacemaker import CibRegister, PacemakerArbiter
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer
from colo.membership.grant import Ending, Grant, Record
from colo.pacemaker.cluster import Cluster, Nodes
from colo.pacemaker.permit import Permit


class Copies(Cluster):
    """A cluster of which each node has a copy of the CIB, and this host sees ``there``.

    A change reaches the members, in one step; ``lag`` are those that it reaches not yet.
    """

    def __init__(self) -> None:
        self.there = Nodes(frozenset("ab"), frozenset())
        self.copies: dict[str, dict[str, str]] = {"a": {}, "b": {}}
        self.lag: set[str] = set()
        self.after: Callable[[], None] = lambda: None

    def nodes(self) -> Nodes:
        return self.there

    def value(self, name: str, node: str) -> str | None:
        return self.copies[node].get(name)

    def replace(self, name: str, expected: str | None, new: str) -> bool:
        if any(self.copies[each].get(name) != expected for each in self.there.members):
            return False
        for each in self.there.members - self.lag:
            self.copies[each][name] = new
        self.after()
        return True


@pytest.fixture
def cluster() -> Copies:
    return Copies()


@pytest.fixture
def register(cluster: Copies) -> CibRegister:
    return CibRegister("web1", ("a", "b"), cluster)


@pytest.fixture
def permit(tmp_path: Path) -> Permit:
    return Permit("web1", tmp_path)


# -- what stands --------------------------------------------------------------------------


def test_what_both_hosts_show_stands(register: CibRegister, cluster: Copies) -> None:
    assert register.read() == Seen(None)
    assert register.compare_and_set(Seen(None), "one")
    assert cluster.copies == {"a": {"colo-web1": "one"}, "b": {"colo-web1": "one"}}
    assert not register.compare_and_set(Seen(None), "two")
    assert not register.compare_and_set(Seen("none"), "two")
    assert register.read() == Seen("one")


def test_nothing_is_known_while_a_host_is_lost_and_not_fenced(
    register: CibRegister, cluster: Copies
) -> None:
    register.compare_and_set(Seen(None), "one")
    cluster.there = Nodes(frozenset("a"), frozenset())
    with pytest.raises(LocalError, match="host b is lost, and Pacemaker has not fenced it yet"):
        register.read()
    cluster.there = Nodes(frozenset("a"), frozenset("b"))
    assert register.read() == Seen("one")
    assert register.compare_and_set(Seen("one"), "two")


def test_nothing_is_known_while_the_hosts_show_different_grants(
    register: CibRegister, cluster: Copies
) -> None:
    register.compare_and_set(Seen(None), "one")
    cluster.copies["b"]["colo-web1"] = "two"
    with pytest.raises(LocalError, match="do not show the same grant yet"):
        register.read()


def test_a_host_that_is_no_node_is_never_off(register: CibRegister, cluster: Copies) -> None:
    cluster.there = Nodes(frozenset({"a", "c"}), frozenset())
    with pytest.raises(LocalError, match="host b is lost"):
        register.read()


def test_a_change_counts_once_the_other_host_has_it(register: CibRegister, cluster: Copies) -> None:
    """Else that one could be promoted by a partition of its own, with the old record."""
    register.compare_and_set(Seen(None), "one")
    cluster.lag = {"b"}
    with pytest.raises(NoAnswer, match="do not show the same grant yet") as raised:
        register.compare_and_set(Seen("one"), "two")
    assert raised.value.may_be_done


def test_a_change_does_not_count_where_the_other_host_got_lost_meanwhile(
    register: CibRegister, cluster: Copies
) -> None:
    register.compare_and_set(Seen(None), "one")

    def lose() -> None:
        cluster.there = Nodes(frozenset("a"), frozenset())

    cluster.after = lose
    with pytest.raises(NoAnswer, match="host b is lost") as raised:
        register.compare_and_set(Seen("one"), "two")
    assert raised.value.may_be_done


def test_a_change_upon_which_another_follows_at_once_is_looked_at_again(
    register: CibRegister, cluster: Copies
) -> None:
    def follow() -> None:
        for copy in cluster.copies.values():
            copy["colo-web1"] = "three"

    cluster.after = follow
    with pytest.raises(NoAnswer, match="moved on at once"):
        register.compare_and_set(Seen(None), "two")


def test_who_has_given_up_changes_nothing(register: CibRegister, cluster: Copies) -> None:
    call = _Call()
    call.give_up()
    token = _current.set(call)
    try:
        with pytest.raises(LocalError, match="has given up"):
            register.compare_and_set(Seen(None), "one")
    finally:
        _current.reset(token)
    assert cluster.copies == {"a": {}, "b": {}}


# -- who may ask --------------------------------------------------------------------------


def made(permit: Permit, wait_s: float = 0.0) -> tuple[CibRegister, PacemakerArbiter]:
    register = CibRegister("web1", ("a", "b"), Copies())
    return register, PacemakerArbiter(register, permit, wait_s)


def test_only_a_promoted_host_is_granted_anything(permit: Permit) -> None:
    register, arbiter = made(permit)
    assert arbiter.begin() == Record()
    for ask in (
        lambda: arbiter.take(0, "a/1/2"),
        lambda: arbiter.order("a/1/2"),
        lambda: arbiter.claim("a/1/2", True),
        arbiter.ready,
    ):
        with pytest.raises(LocalError, match="Pacemaker has not promoted this host"):
            ask()
    assert arbiter.current() == Record()
    permit.give()
    arbiter.ready()
    assert arbiter.take(0, "a/1/2") == Grant(1, "a/1/2")
    permit.take_away()
    with pytest.raises(LocalError, match="not promoted"):
        arbiter.take(1, "a/1/2")
    assert register.read().text is not None


def test_who_is_not_promoted_is_told_at_once_that_the_grant_has_moved_on(permit: Permit) -> None:
    register, arbiter = made(permit, wait_s=60.0)
    Arbiter(register).begin()
    Arbiter(register).take(0, "a/1/2")
    assert arbiter.take(0, "b/1/2") is None


def test_a_grant_that_was_got_unheard_needs_no_promotion_to_be_heard_of(permit: Permit) -> None:
    register, arbiter = made(permit)
    Arbiter(register).begin()
    Arbiter(register).take(0, "a/1/2")
    assert arbiter.take(0, "a/1/2") == Grant(1, "a/1/2")


def test_a_grant_is_given_back_without_a_promotion(permit: Permit) -> None:
    register, arbiter = made(permit)
    Arbiter(register).begin()
    Arbiter(register).take(0, "a/1/2")
    arbiter.give_back("a/1/2", Ending.SHUT_DOWN)
    assert arbiter.current() == Record(1, "", "")


def test_a_promotion_that_comes_meanwhile_is_waited_for(permit: Permit) -> None:
    register, arbiter = made(permit, wait_s=60.0)
    Arbiter(register).begin()
    got: list[Grant | None] = []
    asking = threading.Thread(target=lambda: got.append(arbiter.take(0, "a/1/2")))
    asking.start()
    assert not got
    permit.give()
    asking.join(30)
    assert got == [Grant(1, "a/1/2")]


def test_the_other_host_is_off_where_pacemaker_says_so(
    register: CibRegister, cluster: Copies, permit: Permit
) -> None:
    arbiter = PacemakerArbiter(register, permit)
    assert not arbiter.is_off("b")
    cluster.there = Nodes(frozenset("a"), frozenset())
    assert not arbiter.is_off("b"), "it is lost, and not fenced"
    cluster.there = Nodes(frozenset("a"), frozenset("b"))
    assert arbiter.is_off("b") and not arbiter.is_off("a")
