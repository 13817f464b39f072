"""A register behind a command: its exits, its time limit, and the example (see test_register)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colo.arbiters.command import CommandRegister, parse_command
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer, UsageError
from tests.arbiters.processes import HANGING, pid_in, until_gone


def script(folder: Path, text: str) -> CommandRegister:
    path = folder / "command"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return CommandRegister((str(path), "first", "second one"), "web1")


def test_it_is_called_as_the_contract_says(tmp_path: Path) -> None:
    register = script(tmp_path, f'printf "%s\\n" "$@" >{tmp_path}/args; cat >{tmp_path}/input')
    assert register.read() == Seen(None)
    assert (tmp_path / "args").read_text() == "first\nsecond one\nread\nweb1\n"
    assert register.compare_and_set(Seen(None), "new")
    assert (tmp_path / "args").read_text() == "first\nsecond one\ncompare-and-set\nweb1\n"
    assert json.loads((tmp_path / "input").read_text()) == {"expected": None, "new": "new"}
    assert register.compare_and_set(Seen("old"), "new")
    assert json.loads((tmp_path / "input").read_text()) == {"expected": "old", "new": "new"}


def test_what_it_prints_is_what_it_holds(tmp_path: Path) -> None:
    assert script(tmp_path, "echo the text").read() == Seen("the text")


def test_exit_1_says_that_another_text_stands(tmp_path: Path) -> None:
    assert not script(tmp_path, "exit 1").compare_and_set(Seen("old"), "new")


@pytest.mark.parametrize("code", [2, 127])
def test_another_exit_is_no_answer(tmp_path: Path, code: int) -> None:
    register = script(tmp_path, f"echo more >&2; echo why >&2; exit {code}")
    with pytest.raises(LocalError, match=rf"read: exit {code}: why") as read:
        register.read()
    assert not isinstance(read.value, NoAnswer)
    with pytest.raises(NoAnswer, match=rf"compare-and-set: exit {code}: why") as written:
        register.compare_and_set(Seen(None), "new")
    assert written.value.may_be_done


def test_one_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    register = script(tmp_path, HANGING.format(tmp_path / "pid"))
    with pytest.raises(NoAnswer, match="no answer in"):
        register.compare_and_set(Seen(None), "new")
    until_gone(pid_in(tmp_path / "pid"))


def test_one_that_does_not_read_its_input_is_asked_all_the_same(tmp_path: Path) -> None:
    assert script(tmp_path, "exec <&-; exit 0").compare_and_set(Seen(None), "new" * 100_000)


def test_one_that_is_not_there_is_told() -> None:
    with pytest.raises(LocalError, match="the command /none: No such file"):
        CommandRegister(("/none",), "web1").read()


def test_its_arguments_are_split_as_a_shell_does_it() -> None:
    assert parse_command("exec:/bin/x 'a b' c", "k") == ("/bin/x", "a b", "c")


@pytest.mark.parametrize("text", ["", "/bin/x", "exec:", "exec:x", "exec:/x '", "run:/x"])
def test_what_is_no_command_is_refused_with_its_key(text: str) -> None:
    with pytest.raises(UsageError, match=r"^\[failover\] fence = "):
        parse_command(text, "[failover] fence")
