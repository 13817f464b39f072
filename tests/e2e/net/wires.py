"""What is done to the wires between the hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from colo.demo.lab import Place
from tests.e2e.net.stage import Stage

__all__ = ["slow"]


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
