"""How `colo check` tells what it found: a line each, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colo.findings import Finding

__all__ = ["as_json", "is_fit", "lines"]


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing refuses the VM."""
    return not any(each.refused for each in findings)


def lines(name: str, findings: Sequence[Finding]) -> list[str]:
    """A line for each, those that refuse first, and one for all."""
    ordered = sorted(findings, key=lambda each: not each.refused)
    told = [f"{name}: {'refused' if each.refused else 'note'}: {each}" for each in ordered]
    refused = sum(each.refused for each in findings)
    end = f"{refused} to be mended" if refused else "it can be protected, as far as this host shows"
    return [*told, f"{name}: {end}"]


def as_json(name: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it, for scripts."""
    return {
        "name": name,
        "fits": is_fit(findings),
        "findings": [
            {
                "topic": each.topic.value,
                "refused": each.refused,
                "text": each.text,
                "see": each.topic.place,
            }
            for each in findings
        ],
    }
