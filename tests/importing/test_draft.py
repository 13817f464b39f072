"""A draft as a VM file with comments."""

from __future__ import annotations

from pathlib import Path

from colo.config import load
from colo.findings import Topic
from colo.importing.draft import DiskFound, Draft, Kind, Line, Remark, vm_file
from colo.qemu.options import Option


def test_a_draft_is_a_vm_file_with_what_was_said_of_it(tmp_path: Path) -> None:
    draft = Draft("web1", "a test", "/opt/qemu")
    comment = "netdev n: " + "word " * 40
    draft.shared = [Line(Option("device", '{"driver":"x"}')), Line(Option("nodefaults"))]
    draft.local = [Line(Option("netdev", "tap,id=n"), (comment,))]
    draft.disks = [DiskFound("root", "/a", "/b", ("a\nb",))]
    text = vm_file(draft)
    file = tmp_path / "web1.toml"
    file.write_text(text)
    config = load(file)
    assert config.qemu.args == ("-device", '{"driver":"x"}', "-nodefaults")
    assert config.qemu.primary.args == config.qemu.secondary.args == ("-netdev", "tap,id=n")
    assert (config.disks[0].id, config.disks[0].primary) == ("root", Path("/a"))
    assert """'{"driver":"x"}'""" in text and "\n# a\\nb\n" in text
    assert max(map(len, text.splitlines())) < 100


def test_the_commented_tables_are_tables_of_a_vm_file(tmp_path: Path) -> None:
    text = vm_file(Draft("web1", "a test"))
    head, tail = text.split("# Who may run")
    wanted = [
        line[2:]
        for line in tail.splitlines()
        if line.startswith(("# [", "# a", "# b ", "# c", "# k"))
    ]
    file = tmp_path / "web1.toml"
    file.write_text(head + "\n".join(line for line in wanted if "=" in line or "[" in line))
    config = load(file)
    assert config.failover.arbiter == "file:/shared/web1.grant"
    assert list(config.hosts) == ["a", "b"] and config.tls is not None


def test_a_remark_is_said_once_and_in_its_place() -> None:
    draft = Draft("web1", "a test")
    for _ in range(2):
        draft.say(Kind.NOTE, "n")
        draft.say(Kind.TO_DO, "t", Topic.TAP)
        draft.say(Kind.CHANGED, "c")
    assert draft.told() == ["changed: c", "to do 1: t: see docs/refused.md#tap", "note: n"]
    assert Remark(Kind.NOTE, "n") in draft.remarks
