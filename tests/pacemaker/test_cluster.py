"""What is asked of the cluster, by Pacemaker's own commands over a CIB in a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from colo.errors import LocalError, NoAnswer
from colo.pacemaker import cluster as module
from colo.pacemaker.cluster import Cluster, Nodes
from tests.pacemaker.cib import NEEDED, Cib

PATH = f"{os.environ['PATH']}:/usr/sbin"
needs_pacemaker = pytest.mark.skipif(
    any(shutil.which(each, path=PATH) is None for each in NEEDED), reason="no pacemaker-cli-utils"
)


@pytest.fixture
def cib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cib:
    monkeypatch.setenv("PATH", PATH)
    return Cib(tmp_path, monkeypatch)


def script(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """Have a command do this."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# -- who is there -------------------------------------------------------------------------


@needs_pacemaker
def test_a_node_is_a_member_or_surely_off_or_neither(cib: Cib) -> None:
    cib.holds(a="member", b="lost", c="off")
    assert Cluster().nodes() == Nodes(frozenset("a"), frozenset("c"))


@needs_pacemaker
def test_nobody_is_surely_off_where_nobody_fences(cib: Cib) -> None:
    cib.holds(fences=False, a="member", b="off")
    with pytest.raises(LocalError, match="fences nobody here: set stonith-enabled=true"):
        Cluster().nodes()


@needs_pacemaker
def test_a_part_without_quorum_knows_nothing(cib: Cib) -> None:
    cib.holds(quorum=False, a="member", b="off")
    with pytest.raises(LocalError, match="no quorum"):
        Cluster().nodes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("echo down >&2; exit 102", "does not answer on this host: down"),
        ("echo '<not'", "does not answer on this host: exit 0"),
        ("echo '<pacemaker-result/>'", "fences nobody here"),
    ],
)
def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, why: str
) -> None:
    script(tmp_path, monkeypatch, "crm_mon", text)
    with pytest.raises(LocalError, match=why):
        Cluster().nodes()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(LocalError, match="crm_mon is missing: install Pacemaker"):
        Cluster().nodes()


def test_a_command_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COMMAND_S", 0.1)
    script(tmp_path, monkeypatch, "cibadmin", "exec sleep 60")
    with pytest.raises(NoAnswer, match="cibadmin did not end in") as raised:
        Cluster().replace("colo-web1", "old", "new")
    assert raised.value.may_be_done


# -- compare and set ----------------------------------------------------------------------


@needs_pacemaker
def test_a_value_is_replaced_where_it_is_what_was_expected_and_nowhere_else(cib: Cib) -> None:
    cib.holds(a="member", b="member")
    first, second = ('{"holder": "a/1/2", "number": 1}', '{"holder": "<&b>", "number": 2}')
    cluster = Cluster()
    assert cluster.value("colo-web1", "b") is None
    assert not cluster.replace("colo-web1", first, second), "there is nothing"
    assert cluster.replace("colo-web1", None, first)
    assert not cluster.replace("colo-web1", None, second), "there is something"
    assert not cluster.replace("colo-web1", second, first), "there is something else"
    assert not cluster.replace("colo-web2", first, second), "that is another VM's"
    assert cluster.value("colo-web1", "a") == first
    assert cluster.replace("colo-web1", first, second)
    assert cluster.value("colo-web1", "b") == second


@needs_pacemaker
def test_what_stands_there_cannot_change_what_is_compared(cib: Cib) -> None:
    cib.holds(a="member")
    with pytest.raises(LocalError, match="something else than colo's under colo-web1"):
        Cluster().replace("colo-web1", "' or '1'='1", "new")


@pytest.mark.parametrize("code", [1, 124])
def test_a_change_that_may_be_done_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    script(tmp_path, monkeypatch, "cibadmin", f"echo Timer expired >&2; exit {code}")
    with pytest.raises(NoAnswer, match="did not take a change: Timer expired") as raised:
        Cluster().replace("colo-web1", "old", "new")
    assert raised.value.may_be_done
    with pytest.raises(LocalError, match="on host b does not answer: Timer expired"):
        Cluster().value("colo-web1", "b")


# -- scores, and this node ----------------------------------------------------------------


def test_a_score_is_set_or_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, monkeypatch, "crm_attribute", f'echo "$@" >>{tmp_path}/asked')
    Cluster().score(50)
    Cluster().score(None)
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--promotion --lifetime reboot --update 50",
        "--promotion --lifetime reboot --delete",
    ]
    script(tmp_path, monkeypatch, "crm_attribute", "exit 105")
    Cluster().score(None)
    script(tmp_path, monkeypatch, "crm_attribute", "echo no >&2; exit 102")
    with pytest.raises(LocalError, match="promotion score: no"):
        Cluster().score(50)


def test_the_node_says_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, monkeypatch, "crm_node", '[ "$1" = --name ] && echo a')
    assert Cluster().this_node() == "a"
    script(tmp_path, monkeypatch, "crm_node", "echo not here >&2; exit 102")
    with pytest.raises(LocalError, match="which node this is: not here"):
        Cluster().this_node()
