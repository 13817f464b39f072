"""The tables of hybrid mode say what is met and what is missed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.loads import LOADS, RATES, REQUESTS
from bench.render_hybrid import hybrid
from bench.stats import summarise

WAYS = ("unprotected", "periodic", "hybrid", "auto")


def row(load: str, way: str, figures: dict[str, list[float]]) -> dict[str, Any]:
    """A row of that load and way."""
    made: dict[str, Any] = {"load": load, "way": way}
    for name, values in figures.items():
        is_list = name in ("added_ms", "of_two")
        made[name] = values if is_list else asdict(summarise(values))
    return made


def rendered(protected: dict[str, list[float]]) -> list[str]:
    """The lines of the tables where all that is protected has these figures."""
    rows = [row(load, way, protected if way != WAYS[0] else {}) for load in LOADS for way in WAYS]
    beside = {load: asdict(summarise([100.0])) for load in RATES}
    lost = {"load": "bulk out", "way": "hybrid", "lost": ["the client failed"]}
    figures = {"seconds": 6.0, "others_share": [0.5], "side_by_side": beside, "loads": rows}
    return hybrid([{"qemu": "7.2", **figures, "gaps": [lost]}]).splitlines()


def aims(lines: list[str]) -> list[str]:
    return [line for line in lines if line.count("met") + line.count("missed") == len(WAYS) - 1]


def test_each_aim_is_met_or_missed() -> None:
    met = aims(rendered({"added_ms": [0.5], "of_two": [0.8], "stopped_share": [0.009]}))
    missed = aims(rendered({"added_ms": [0.6], "of_two": [0.69], "stopped_share": [0.01]}))
    assert len(met) == len(missed) == len(REQUESTS) + len(RATES) + 1 + len(REQUESTS)
    assert not [line for line in met if "missed" in line]
    assert not [line for line in missed if ", met" in line]


def test_what_was_not_measured_is_neither() -> None:
    lines = rendered({})
    assert aims(lines) == []
    assert [line for line in lines if line.startswith("| 7.2 | bulk out | hybrid |")][-1].endswith(
        "|  |  | 0 | 1 |"
    )
