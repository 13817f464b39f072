"""The alert rules and the dashboard: Prometheus takes them, and they name what there is."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from colo.cli import main
from colo.metrics.families import families
from colo.metrics.shared import SHARED, shared
from tests.metrics.statuses import PRIMARY, SECONDARY
from tests.metrics.test_families import LAST, REACHED

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "src" / "colo" / "metrics" / "share" / "colo.rules.yml"


def names() -> set[str]:
    """The series that there are, by their names."""
    return {
        sample.name
        for status in (PRIMARY, SECONDARY)
        for family in families("web1", {**status, "wire": {"rate": 1.0}}, LAST, REACHED)
        for sample in family.samples
    } | {
        sample.name for family in families("web1", PRIMARY, LAST, None) for sample in family.samples
    }


@pytest.mark.parametrize(
    "command", [["check", "rules", str(RULES)], ["test", "rules", "colo.rules.test.yml"]]
)
def test_the_rules_are_rules_and_alert_when_they_should(command: list[str]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=Path(__file__).parent, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def test_every_rule_is_played() -> None:
    played = (Path(__file__).parent / "colo.rules.test.yml").read_text()
    rules = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert len(rules) > 10
    assert [rule for rule in rules if f'alertname="{rule}"' not in played] == []


@pytest.mark.parametrize("name", SHARED)
def test_what_they_ask_for_is_told(name: str) -> None:
    asked = set(re.findall(r"\bcolo_[a-z_]+", shared(name)))
    labels = {"colo_state", "colo_gate", "colo_disk_replica"}
    assert len(asked) > 10
    assert asked - labels <= names()


def test_the_dashboard_is_one() -> None:
    content = json.loads(shared("dashboard"))
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places), "no panel lies on another"
    assert max(x for x, _ in places) < 24


def test_grafanas_own_model_has_a_place_for_all_of_it() -> None:
    """What it does not know is lost as it is read and written again."""
    register_default_plugins()
    content = json.loads(shared("dashboard"))
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    # What an annotation's title is, the model leaves to the source, here Prometheus.
    assert list(lost(content, again)) == ["/annotations/list/0/titleFormat"]
    content["panels"][3]["fieldConfig"]["defaults"]["unti"] = "s"
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    assert "/panels/3/fieldConfig/defaults/unti" in lost(content, again)


def lost(content: Any, again: Any, path: str = "") -> Iterator[str]:
    """The paths of what is in one and not in the other, or is something else there."""
    if isinstance(content, dict) and isinstance(again, dict):
        parts = [(key, value, again.get(key)) for key, value in content.items()]
    elif isinstance(content, list) and isinstance(again, list) and len(content) == len(again):
        parts = [(str(n), *both) for n, both in enumerate(zip(content, again, strict=True))]
    else:
        if content != again:
            yield path
        return
    for name, value, other in parts:
        yield from lost(value, other, f"{path}/{name}")


@pytest.mark.parametrize("name", SHARED)
def test_they_are_printed(name: str) -> None:
    result = CliRunner().invoke(main, ["metrics", name])
    assert (result.exit_code, result.output) == (0, shared(name))


def test_the_manual_names_every_figure() -> None:
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    told = set(re.findall(r"`(colo_[a-z_]+)`", manual))
    ends = ("_bucket", "_count", "_sum")
    assert {name for name in names() if not name.endswith(ends)} <= told
    bare = {name.removesuffix(end) for name in names() for end in ends}
    assert told <= names() | bare
