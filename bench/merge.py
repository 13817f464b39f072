"""The figures of one run put into those of others, with the machine and the day of each part."""

from __future__ import annotations

from typing import Any, Final

from bench.errors import BenchError

__all__ = ["merge"]

_Figures = dict[str, Any]
_OF_THE_RUN: Final = ("date", "rounds", "machine")


def merge(new: _Figures, into: _Figures) -> _Figures:
    """Return ``into`` with the parts of ``new``; rows of other versions of QEMU stay.

    ``also`` of the machine says which parts are of another run than the rest.  Raises BenchError
    where a part would have rows of two machines.
    """
    parts = {name: rows for name, rows in new.items() if name not in _OF_THE_RUN}
    others = [dict(run) for run in into["machine"].get("also", ())]
    for name, rows in parts.items():
        kept = _of_other_versions(into.get(name, ()), rows)
        before = next((run["machine"] for run in others if name in run["parts"]), into["machine"])
        if kept and _key(before) != _key(new["machine"]):
            raise BenchError(f"{name}: rows of {_key(before)} would stay beside these")
        into = {**into, name: [*kept, *rows] if kept else rows}
    for run in others:
        run["parts"] = [name for name in run["parts"] if name not in parts]
    mine = {"machine": new["machine"], "date": new["date"], "rounds": new["rounds"]}
    same = next((run for run in others if {**run, "parts": None} == {**mine, "parts": None}), None)
    if same is None:
        others.append({**mine, "parts": list(parts)})
    else:
        same["parts"] += parts
    also = [run for run in others if run["parts"]]
    return {**into, "machine": {**into["machine"], "also": also}}


def _of_other_versions(old: Any, rows: Any) -> list[Any]:
    """The rows that ``rows`` do not measure anew."""
    if not isinstance(rows, list) or not all("qemu" in row for row in rows):
        return []
    versions = {row["qemu"] for row in rows}
    return [row for row in old if row["qemu"] not in versions]


def _key(machine: _Figures) -> tuple[Any, ...]:
    return machine["cpu"], machine["cores"], machine["memory_gib"]
