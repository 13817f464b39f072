"""Arbiters that no two hosts share."""

from __future__ import annotations

from colo.arbiters.manual import ManualArbiter, NoArbiter
from colo.membership.grant import Ending, Grant


def test_a_manual_arbiter_grants_by_order_only() -> None:
    arbiter = ManualArbiter()
    assert not arbiter.automatic
    assert arbiter.take(0, "a") is None
    assert arbiter.order("a") == Grant(1, "a")
    assert arbiter.check(Grant(7, "b")) == Grant(7, "b")
    arbiter.give_back("a", Ending.LEFT)
    assert arbiter.current().grant == Grant(1, "a")


def test_no_arbiter_grants_whoever_asks() -> None:
    arbiter = NoArbiter()
    assert arbiter.automatic and not arbiter.exclusive
    assert arbiter.take(0, "a") == Grant(1, "a")
    assert arbiter.take(0, "b") == Grant(2, "b")
