"""What has become of a VM on a host, as its state folder tells it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from colo.node.state_folder import StateFolder
from colo.status.history import History, read_history


def status(role: str, state: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "state": state, "meaning": "it is so", **more}


def test_a_state_is_a_line_and_a_takeover_is_counted_over_all_colos(tmp_path: Path) -> None:
    took = {"takeover": {"total_ms": 12.5}, "grant": 3, "checkpoint": 7, "error": "it is dead"}
    for _ in range(2):
        history = History(tmp_path)
        for _ in range(3):
            history.note(status("secondary", "KEEPING"))
            history.note(status("secondary", "RUNNING", **took))
            history.note(status("secondary", "RUNNING", **took))
        history.note(status("primary", "UNPROTECTED"))
    lines = read_history(tmp_path, 100)
    assert [line.state for line in lines] == (["KEEPING", "RUNNING"] * 3 + ["UNPROTECTED"]) * 2
    assert [line.takeovers for line in lines] == [0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    assert (lines[-2].takeover_ms, lines[-1].takeover_ms) == (12.5, None)
    assert lines[-1].takeover_at == lines[-2].takeover_at == lines[-2].at
    assert (lines[-2].grant, lines[-2].checkpoint, lines[-2].why) == (3, 7, "it is dead")
    assert [line.state for line in read_history(tmp_path, 2)] == ["RUNNING", "UNPROTECTED"]


def test_it_stays_bounded_and_is_its_owners_alone(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.note(status("secondary", "RUNNING", takeover={"total_ms": 12.5}))
    for number in range(4000):
        history.note(status("primary", f"S{number}", error="x" * 1000))
    path = tmp_path / "history.jsonl"
    assert path.stat().st_size < 300_000
    assert path.stat().st_mode & 0o777 == 0o600
    took, *lines = read_history(tmp_path, 10_000)
    assert took.takeover_ms == 12.5, "takeovers are kept for longer"
    assert len(lines) > 100
    assert [line.state for line in lines] == [f"S{n}" for n in range(4000 - len(lines), 4000)]
    assert {path.name for path in tmp_path.iterdir()} == {"history.jsonl"}


LINE = '{"at": 1, "role": "primary", "state": "LOST", "meaning": ""%s}\n'
BAD = ["", "[]\n", "{", '{"at": "x"}\n', "\0\n", "1\n2\n", '{"at": 1}\n', '{"at": null}\n']
BAD += [LINE % f', "{key}": {value}' for key in ("at", "takeover_ms") for value in ("NaN", "[]")]
BAD += [LINE % ', "takeovers": null', LINE % ', "grant": 1e999', LINE % ', "checkpoint": {}']


@pytest.mark.parametrize("content", BAD)
def test_what_is_no_history_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(content)
    assert read_history(tmp_path, 10) == []
    history = History(tmp_path)
    history.note(status("primary", "STARTING"))
    assert history.last is not None and history.last.takeovers == 0


def test_of_what_others_have_written_the_kinds_are_right(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(LINE % ', "why": ["x"], "more": 1' + "{\n" + LINE % "")
    one, two = read_history(tmp_path, 9)
    assert (one.at, one.why, two.why, two.takeover_ms) == (1.0, "['x']", "", None)


def test_where_there_is_no_room_the_status_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = StateFolder(tmp_path)
    monkeypatch.setattr("colo.status.history.os.write", full)
    folder.write_status(status("primary", "STARTING"))
    assert not (tmp_path / "history.jsonl").exists()
    monkeypatch.undo()
    folder.write_status(status("primary", "PROTECTED"))
    folder.close()
    assert folder.last_state == ("PROTECTED", "it is so")
    assert [line.state for line in read_history(tmp_path, 9)] == ["PROTECTED"]
