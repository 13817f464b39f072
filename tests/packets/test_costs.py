"""The model of what the next checkpoint costs: it finds what a made-up VM costs, and follows it."""

from __future__ import annotations

import random

import pytest

from colo.packets.costs import Costs, Line


def test_a_line_is_found_through_noise() -> None:
    dice, line = random.Random(1), Line()
    for _ in range(300):
        x = dice.uniform(1e5, 1e8)
        line.add(x, 0.003 + 2e-9 * x + dice.uniform(-1e-3, 1e-3))
    assert line.slope == pytest.approx(2e-9, rel=0.1)
    assert line.fixed == pytest.approx(0.003, abs=1e-3)


def test_sizes_that_are_all_alike_say_nothing_of_a_byte() -> None:
    line = Line()
    for _ in range(50):
        line.add(400_000, 0.002)
    assert line.at(400_000) == pytest.approx(0.002)
    assert line.fixed == 0


def test_nothing_is_known_before_the_first() -> None:
    costs = Costs()
    assert not costs.is_known and costs.run_for_stop(0.05) == float("inf")


def test_what_any_checkpoint_has_is_not_taken_for_what_the_vm_writes() -> None:
    """After a burst of requests, each with 400 kB a few ms after the other, it is idle."""
    costs = Costs()
    for _ in range(20):
        costs.stopped(0.005, 400_000, 0.002)
    assert costs.run_for_stop(0.05) > 10


def test_a_vm_that_begins_to_write_is_followed() -> None:
    costs = Costs()
    for _ in range(40):
        costs.stopped(1.0, 400_000, 0.002)
    for _ in range(4):
        costs.stopped(0.2, 400_000 + 20_000_000, 0.002 + 0.05)
    assert costs.size_at(1.0) == pytest.approx(1e8, rel=0.1)
    assert costs.run_for_stop(0.05) == pytest.approx(0.19, rel=0.2)
    for _ in range(5):
        costs.stopped(1.0, 400_000, 0.002)
    assert costs.size_at(1.0) == pytest.approx(1e8, rel=0.1), "it may do so again"
    for _ in range(10):
        costs.stopped(1.0, 400_000, 0.002)
    assert costs.run_for_stop(0.05) > 1
