"""All VMs of a host in one view, whatever lies in their folders."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from colo.cli import main
from colo.node.state_folder import StateFolder
from colo.status.overview import Health, Pair, View, cells, look, trouble
from tests.metrics.statuses import NODE, PRIMARY, SECONDARY


@pytest.fixture
def colos(tmp_path: Path) -> Iterator[dict[str, StateFolder]]:
    """Three VMs, whose colos run: web1 is protected, db1 kept, and x waits."""
    with ExitStack() as stack:
        folders = {}
        for name, status in (("web1", PRIMARY), ("db1", SECONDARY), ("x", NODE)):
            folders[name] = folder = StateFolder(tmp_path / name)
            stack.callback(folder.close)
            folder.write_status({**status, "vm": name, "checkpoint_at": time.time()})
        yield folders


def all_of(under: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["status", "--all", "--under", str(under), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_a_line_for_each_and_why_where_one_is_not_well(
    colos: dict[str, StateFolder], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    code, text = all_of(tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == [
        "vm",
        "role",
        "state",
        "peer",
        "age",
        "stopped",
        "ms",
        "held",
        "ms",
        "held",
        "lag",
    ]
    assert [line[:3] for line in lines[1:4]] == [
        ["db1", "secondary", "KEEPING"],
        ["web1", "primary", "PROTECTED"],
        ["x", "node", "WAITING"],
    ]
    assert lines[2][3] == "b:9000"
    assert lines[2][-6:] == ["1.5/4.0", "3.0/8.0", "1", "KiB", "4", "ms"]
    assert "  x: host b is out of reach\n" in text
    assert code == 1


def test_all_is_well_by_the_exit_code(colos: dict[str, StateFolder], tmp_path: Path) -> None:
    colos["x"].write_status({**NODE, "role": "secondary", "state": "SHUTDOWN"})
    assert all_of(tmp_path)[0] == 0
    colos["web1"].write_status({**PRIMARY, "state": "UNPROTECTED"})
    assert all_of(tmp_path)[0] == 1
    colos["web1"].write_status(PRIMARY)
    assert all_of(tmp_path)[0] == 0
    (tmp_path / "web1" / "lock").unlink()  # nobody holds it
    code, text = all_of(tmp_path)
    assert code == 1
    assert "  web1: colo does not run; it was PROTECTED\n" in text


def test_for_scripts(colos: dict[str, StateFolder], tmp_path: Path) -> None:
    code, text = all_of(tmp_path, "--json")
    assert code == 1
    db1, web1, x = json.loads(text)
    assert (db1["vm"], db1["health"], db1["alive"]) == ("db1", "WELL", True)
    assert web1["stopped_ms"] == {"median": 1.5, "p99": 4.0}
    assert web1["held_ms"] == {"median": 3.0, "p99": 8.0}
    assert (web1["held_bytes"], web1["lag_s"], web1["peer"]) == (1500, 0.004, "tcp:b:9000")
    assert web1["peer_state"] == "KEEPING"
    assert 0 <= web1["age_s"] < 60
    assert web1["state_dir"] == str(tmp_path / "web1")
    assert (x["health"], x["error"], x["age_s"] is not None) == (
        "BAD",
        "host b is out of reach",
        True,
    )


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--all", "--under", "EMPTY"], 1, "no VM has a state folder in EMPTY"),
        (["--all", "--under", "EMPTY/none"], 2, "EMPTY/none: No such file or directory; say"),
        (["--all", "--state-dir", "EMPTY"], 2, "--all and --state-dir: one or the other"),
        (["--state-dir", "EMPTY", "--under", "EMPTY"], 2, "--under is of --all"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str], code: int, line: str, tmp_path: Path
) -> None:
    given = [each.replace("EMPTY", str(tmp_path)) for each in options]
    result = CliRunner().invoke(main, ["status", *given])
    (told,) = result.output.splitlines()
    assert (result.exit_code, told.startswith("colo: ")) == (code, True)
    assert line.replace("EMPTY", str(tmp_path)) in told


BAD = ["", "{", "[]", "1", '{"pid": 1}', '{"pid": "x"}', "\udcff", '{"pid": 99999999999999999999}']


@pytest.mark.parametrize("content", BAD)
def test_what_is_no_status_is_a_line_that_says_so(
    content: str, colos: dict[str, StateFolder], tmp_path: Path
) -> None:
    colos["x"].status.write_bytes(content.encode(errors="surrogateescape"))
    code, text = all_of(tmp_path)
    assert code == 1
    assert "UNKNOWN" in text and f"  x: {colos['x'].status}: " in text
    assert "web1  primary    PROTECTED" in text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.sampled_from(sorted(PRIMARY)), st.sampled_from(["a", "b"]), anything)
def test_any_value_of_any_key_is_a_view(
    tmp_path_factory: pytest.TempPathFactory, key: str, role: str, value: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    status = {**(PRIMARY if role == "a" else SECONDARY), key: value}
    (folder / "status.json").write_text(json.dumps(status))
    view = look(folder)
    assert len(cells(view)) == 9
    json.dumps(view.as_json(), allow_nan=False)


def test_an_old_status_of_a_colo_that_runs_is_not_well(colos: dict[str, StateFolder]) -> None:
    assert look(colos["web1"].path).health is Health.WELL
    late = look(colos["web1"].path, time.time() + 60)
    assert late.health is Health.BAD
    assert trouble(late).endswith("it wrote nothing for some time")


def test_numbers_are_short() -> None:
    view = View(Path("/x"), "v", "primary", "PROTECTED", "", Health.WELL, True)
    assert cells(view)[3:] == ("–",) * 6
    far = {"age_s": 9000.0, "lag_s": 0.25, "held_bytes": 5 << 20, "stopped": Pair(0.5, 1234.5)}
    assert cells(View(*list(vars(view).values())[:7], **far))[4:] == (  # type: ignore[arg-type]
        "2 h",
        "0.5/1234",
        "–",
        "5 MiB",
        "250 ms",
    )
