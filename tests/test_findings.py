"""Findings and docs/refused.md: every topic has its entry, and every entry its topic."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import colo
from colo.findings import Finding, Topic, note, summed

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "refused.md").read_text()
SOURCE = Path(colo.__file__).parent


def test_every_topic_has_an_entry_and_every_entry_a_topic() -> None:
    entries = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert set(entries) == {topic.value for topic in Topic}


@pytest.mark.parametrize("topic", Topic, ids=lambda topic: topic.value)
def test_every_entry_says_something_and_some_code_refers_to_it(topic: Topic) -> None:
    _, _, rest = PAGE.partition(f"\n### {topic.value}\n")
    text = re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0]
    assert len(text.split()) >= 10
    named = f"Topic.{topic.name}"
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "findings.py"]
    assert any(re.search(rf"{named}\b", path.read_text()) for path in modules)


def test_the_links_of_the_page_lead_somewhere() -> None:
    for file, anchor in re.findall(r"\]\(([a-z-]+\.md)#([a-z0-9-]+)\)", PAGE):
        heads = re.findall(r"^#+ (.+)$", (ROOT / "docs" / file).read_text(), re.MULTILINE)
        assert anchor in {
            re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads
        }


def test_a_finding_is_one_line_that_names_its_entry() -> None:
    found = [Finding(Topic.VHOST, "vhost is on"), note(Topic.CPU, "-cpu host")]
    assert [each.refused for each in found] == [True, False]
    assert summed(found) == (
        "vhost is on: see docs/refused.md#vhost; -cpu host: see docs/refused.md#cpu"
    )
