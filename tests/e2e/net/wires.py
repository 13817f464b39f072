"""What is done to the wires between the hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from colo.demo.lab import REPLICATION_ADDRESS, Place
from tests.e2e.net.stage import Stage

__all__ = ["MEMBERS", "slow", "three_members"]

#: Who votes: a member on each host, and one on the switch between them.
MEMBERS: Final = {**REPLICATION_ADDRESS, Place.SWITCH: "10.78.0.3"}


@contextmanager
def slow(stage: Stage, rate: str) -> Iterator[None]:
    """What the hosts send to each other goes no faster than that."""
    wires = [(place, "replication") for place in (Place.HOST_A, Place.HOST_B)]
    for place, wire in wires:
        limit = ["tbf", "rate", rate, "burst", "256kb", "latency", "400ms"]
        stage.lab.run(place, "tc", "qdisc", "add", "dev", wire, "root", *limit)
    try:
        yield
    finally:
        for place, wire in wires:
            stage.lab.run(place, "tc", "qdisc", "del", "dev", wire, "root")


@contextmanager
def three_members(stage: Stage) -> Iterator[None]:
    """``with``: the switch too has an address on the replication network, for whoever votes.

    A cable that is cut ends in the switch still: what comes in there is not for that address.
    """
    address = (f"{MEMBERS[Place.SWITCH]}/24", "dev", "replication")
    strictly = "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter"
    stage.lab.run(Place.SWITCH, "sh", "-c", strictly)
    stage.lab.run(Place.SWITCH, "ip", "link", "set", "lo", "up")
    stage.lab.run(Place.SWITCH, "ip", "addr", "add", *address)
    try:
        yield
    finally:
        stage.lab.run(Place.SWITCH, "ip", "addr", "del", *address)
