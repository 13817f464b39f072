"""What is drawn, of whatever is known, on a terminal of whatever size."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from colo.status.history import Line
from colo.status.overview import Health, Pair, View
from colo.top.screen import Model, as_text, draw

NOW = 1_000_000.0


def view(name: str, health: Health = Health.WELL, **more: object) -> View:
    facts: dict[str, object] = {
        "peer": "tcp:10.0.0.2:9000",
        "peer_state": "KEEPING",
        "checkpoint": 1734,
        "age_s": 0.012,
        "stopped": Pair(1.5, 4.0),
        "held": Pair(3.2, 8.1),
        "held_bytes": 1500,
        "lag_s": 0.009,
        "grant": 3,
        "arbiter": "file:/g",
        "disks": ("root",),
        "sums": {"stopped": (1, 1.0)},
        **more,
    }
    state = {Health.WELL: "PROTECTED", Health.BAD: "LOST"}.get(health, "UNPROTECTED")
    return View(Path("/s") / name, name, "primary", state, "it is so", health, True, **facts)  # type: ignore[arg-type]


def test_on_80_by_24_there_is_all_of_it() -> None:
    history = [
        Line(NOW - 60, "secondary", "KEEPING", ""),
        Line(NOW - 30, "secondary", "RUNNING", "", why="it is dead", takeover_ms=12.4),
    ]
    model = Model(Path("/s"), [view("web1"), view("db1", Health.BAD, error="no answer")])
    model.history = history
    lines = as_text(draw(model, 80, 24, NOW))
    assert len(lines) == 24
    assert lines[0].startswith("colo top  2 VMs, 1 to look at")
    assert lines[1].split() == ["VM", "STATE", "AGE", "STOPPED", "ms", "HELD", "ms"]
    assert lines[2].startswith(">web1 PROTECTED     12 ms   1.5/4.0 ")
    assert lines[3].startswith(" db1  LOST ")
    text = "\n".join(lines)
    assert "web1 primary  PROTECTED: it is so\n" in text
    assert "  peer tcp:10.0.0.2:9000: it says KEEPING  checkpoint 1734  lag 9 ms" in text
    assert "secondary RUNNING in 12 ms: it is dead\n" in text
    assert lines[-1] == "q quit  ↑↓ select  s switchover"
    model.move(1)
    assert "  no answer\n" in "\n".join(as_text(draw(model, 80, 24, NOW)))


def test_the_one_that_is_selected_is_always_in_sight() -> None:
    model = Model(Path("/s"), [view(f"vm{number:03}") for number in range(100)])
    for at in (0, 1, 50, 98, 99):
        model.selected = Path(f"/s/vm{at:03}")
        rows = [line for line in as_text(draw(model, 80, 24, NOW)) if line.startswith(">")]
        assert [row.split()[0] for row in rows] == [f">vm{at:03}"]
    model.move(1)
    assert model.at == 99
    model.move(-100)
    assert model.at == 0


def test_a_wide_terminal_has_the_peers_and_a_narrow_one_the_states() -> None:
    model = Model(Path("/s"), [view("web1")])
    assert "PEER" in as_text(draw(model, 120, 24, NOW))[1]
    assert as_text(draw(model, 22, 5, NOW))[2].split() == [">web1", "PROTECTED"]


def test_a_question_and_an_answer_stand_below() -> None:
    model = Model(Path("/s"), [view("web1")], asked=view("web1"))
    assert as_text(draw(model, 80, 24, NOW))[-1] == ("have web1 go over to tcp:10.0.0.2:9000? y/n")
    model.asked, model.message = None, "web1: the VM runs on the other host"
    assert as_text(draw(model, 80, 24, NOW))[-1].startswith(
        "web1: the VM runs on the other host  q"
    )


@pytest.mark.parametrize("ascii_only", [False, True])
def test_without_vms_it_says_where_it_looks(ascii_only: bool) -> None:
    lines = as_text(draw(Model(Path("/none"), ascii_only=ascii_only), 80, 24, NOW))
    assert "no VM has a state folder in /none" in lines[0]


def test_what_others_say_does_nothing_to_the_terminal() -> None:
    evil = "\x1b[2J\r\n\x07"
    model = Model(Path("/s"), [view(evil, Health.BAD, peer=evil, error=evil, arbiter=evil)])
    model.history = [Line(NOW, evil, evil, evil, why=evil)]
    model.message = evil
    for line in as_text(draw(model, 120, 24, NOW)):
        assert line.isprintable()


names = st.text(max_size=40)


@given(
    st.lists(st.builds(view, names, st.sampled_from(Health), error=names), max_size=5),
    st.integers(1, 200),
    st.integers(1, 60),
    names,
)
def test_it_fits_any_terminal(views: list[View], width: int, height: int, message: str) -> None:
    model = Model(Path("/s"), views, message=message)
    model.trends.look(views)
    lines = as_text(draw(model, width, height, NOW))
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
