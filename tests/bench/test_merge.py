"""Figures of several runs in one file: each part says where it is from."""

from __future__ import annotations

from typing import Any

import pytest

from bench.errors import BenchError
from bench.merge import merge

HERE = {"cpu": "this one", "cores": 2, "memory_gib": 24}
THERE = {"cpu": "another one", "cores": 2, "memory_gib": 24}


def run(machine: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"date": "2026-01-02", "rounds": 1, "machine": machine, **parts}


def rows(*versions: str, value: int = 0) -> list[dict[str, Any]]:
    return [{"qemu": version, "value": value} for version in versions]


def test_a_part_takes_the_place_of_the_old_one_and_says_where_it_is_from() -> None:
    whole = run(HERE, memory=rows("7.2"), wire=rows(""))
    merged = merge(run(THERE, memory=rows("7.2", value=1)), whole)
    assert merged["memory"] == rows("7.2", value=1)
    assert merged["wire"] == rows("")
    (also,) = merged["machine"]["also"]
    assert (also["machine"], also["parts"], also["date"]) == (THERE, ["memory"], "2026-01-02")
    assert whole["memory"] == rows("7.2")


def test_a_part_that_is_measured_again_is_of_its_last_run_alone() -> None:
    whole = merge(run(THERE, memory=rows("7.2"), wire=rows("")), run(HERE))
    again = merge({**run(THERE, wire=rows("", value=1)), "date": "2026-01-03"}, whole)
    assert [(run["date"], run["parts"]) for run in again["machine"]["also"]] == [
        ("2026-01-02", ["memory"]),
        ("2026-01-03", ["wire"]),
    ]


def test_rows_of_another_qemu_stay_where_they_are_of_the_same_machine() -> None:
    first = merge(run(THERE, floor=rows("7.2")), run(HERE))
    both = merge(run(THERE, floor=rows("11.1")), first)
    assert both["floor"] == rows("7.2", "11.1")
    assert [run["parts"] for run in both["machine"]["also"]] == [["floor"]]
    with pytest.raises(BenchError, match="another one"):
        merge(run(HERE, floor=rows("11.1")), first)
