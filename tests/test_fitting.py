"""`colo check` on the command line: its exit codes, its lines, its JSON."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from colo.checking import host as module
from colo.cli import main
from colo.findings import Finding, Topic
from colo.qemu.preload import Library

FILE = """
name = "web1"
[qemu]
args = ["-machine", "pc-i440fx-7.2", "-m", "64"]
[store]
folder = "FOLDER"
[failover]
arbiter = "file:FOLDER/grant"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VM file that fits, on a host that has all of it."""
    monkeypatch.setattr(module, "version_of", lambda binary: (7, 2))
    monkeypatch.setattr(module, "working_accelerator", lambda qemu: "kvm")
    monkeypatch.setattr(Library, "built", lambda library: Path("/cache/x.so"))
    path = tmp_path / "web1.toml"
    path.write_text(FILE.replace("FOLDER", str(tmp_path)))
    return path


def check(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", *map(str, args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_vm_that_fits(file: Path) -> None:
    before = sorted(file.parent.iterdir())
    for more in ([], ["--role", "secondary"], ["--state-dir", file.parent / "state"]):
        assert check(file, *more) == (0, "web1: it can be protected, as far as this host shows\n")
    assert sorted(file.parent.iterdir()) == before, "nothing is left"


def test_notes_are_no_reason_and_obstacles_are(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("pc-i440fx-7.2", "pc"))
    code, told = check(file)
    assert code == 0 and told.startswith("web1: note: -machine pc is another machine")
    file.write_text(text.replace('"64"', '"64", "-nic", "tap,vhost=on"'))
    code, told = check(file)
    assert code == 1 and "docs/refused.md#vhost\nweb1: 1 to be mended\n" in told
    code, told = check(file, "--json")
    assert code == 1
    assert [each["see"] for each in json.loads(told)["findings"]] == ["docs/refused.md#vhost"]


@pytest.mark.parametrize(
    ("text", "topic"),
    [("name = 3", Topic.VM_FILE), ("=", Topic.VM_FILE), (None, Topic.VM_FILE),
     ('name = "x"\na = ' + "[" * 5000, Topic.VM_FILE),
     ('name = "x"\n[hosts]\na = "tcp:a:1"\nb = "tcp:b:1"', Topic.HOSTS)],
)  # fmt: skip
def test_a_file_that_is_none_is_a_finding(text: str | None, topic: Topic, tmp_path: Path) -> None:
    file = tmp_path / "web1.toml"
    if text is not None:
        file.write_text(text)
    code, told = check(file)
    assert code == 1 and f"docs/refused.md#{topic.value}" in told
    assert told.splitlines()[-1] == "web1.toml: 1 to be mended"


def test_a_host_knows_its_part_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "b")
    folder = file.parent
    with file.open("a") as more:
        more.write(f'[hosts]\na = "unix:{folder}/a"\nb = "unix:{folder}/b"\n')
        more.write('[qemu.secondary]\nargs = ["-nic", "tap,vhost=on"]\n')
    assert check(file)[0] == 1
    assert check(file, "--host", "a")[0] == 0
    assert check(file, "--role", "primary")[0] == 0
    code, told = check(file, "--host", "c")
    assert code == 1 and "docs/refused.md#hosts" in told


def test_the_other_hosts_file(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(file.read_text().replace("web1", "web2"))
    code, told = check(file, "--other", other)
    assert code == 1 and "its VM is web2, this one is web1: see docs/refused.md#two-files" in told
    assert check(file, "--other", file)[0] == 0
    code, told = check(file, "--other", tmp_path / "none")
    assert code == 1 and "docs/refused.md#two-files" in told


def test_the_running_qemu_is_asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def running(*_: object) -> list[Finding]:
        return [Finding(Topic.VM_STOPPED, "it is paused"), Finding(Topic.DISK_NOT_NAMED, "a disk")]

    monkeypatch.setattr("colo.checking.running.check_running", running)
    monkeypatch.setattr("colo.checking.running.check_started", running)
    for more in (["--qmp", "unix:/q"], ["--start"]):
        code, told = check(file, *more)
        assert code == 1 and "disk-not-named" in told and "vm-stopped" in told
        assert "disk-not-named" not in check(file, *more, "--unprotected-disks")[1]
    assert check(file, "--start", "--role", "secondary")[0] == 2


@pytest.mark.parametrize("args", [["--qmp", "tcp:a:1"], ["--role", "x"], ["--what"]])
def test_wrong_usage_is_one_line(args: list[str], file: Path) -> None:
    code, told = check(file, *args)
    assert code == 2 and len(told.splitlines()) == 1


@pytest.mark.parametrize("command", ["check", "import"])
def test_help_says_where_to_read_on(command: str) -> None:
    told = CliRunner().invoke(main, [command, "--help"]).output
    assert "docs/refused.md" in told or "colo check" in told.replace("`", "")
