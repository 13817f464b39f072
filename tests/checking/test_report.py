"""How findings are told."""

from __future__ import annotations

from colo.checking.report import as_json, is_fit, lines
from colo.findings import Finding, Topic, note

NOTE = note(Topic.CPU, "-cpu host")
REFUSED = Finding(Topic.VHOST, "vhost is on")


def test_what_refuses_comes_first_and_notes_refuse_nothing() -> None:
    assert lines("web1", [NOTE, REFUSED]) == [
        "web1: refused: vhost is on: see docs/refused.md#vhost",
        "web1: note: -cpu host: see docs/refused.md#cpu",
        "web1: 1 to be mended",
    ]
    assert (is_fit([NOTE]), is_fit([NOTE, REFUSED]), is_fit([])) == (True, False, True)
    assert lines("web1", []) == ["web1: it can be protected, as far as this host shows"]


def test_scripts_get_all_of_it() -> None:
    assert as_json("web1", [REFUSED]) == {
        "name": "web1",
        "fits": False,
        "findings": [
            {
                "topic": "vhost",
                "refused": True,
                "text": "vhost is on",
                "see": "docs/refused.md#vhost",
            }
        ],
    }
