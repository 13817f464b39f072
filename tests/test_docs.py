"""The documents say what the code says."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import cast, get_args, get_type_hints
from xml.etree import ElementTree

import pytest

from colo.arbiters.named import check_failover
from colo.cli import main
from colo.config import TlsFiles, VmConfig, load
from colo.pacemaker.agent import metadata
from colo.transport.tls import Tls

ROOT = Path(__file__).parent.parent


def test_the_diagrams_are_those_of_the_tables() -> None:
    command = [sys.executable, "scripts/diagrams.py", "--check", "docs/protocol.md", "docs/host.md"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0, "run `make docs`"


def test_the_picture_is_the_scripts_and_names_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, "scripts/picture.py", "--check", "docs/architecture.svg"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    picture = importlib.import_module("picture")
    lacking = [each for each in picture.modules() if not (ROOT / f"src/colo/{each}.py").exists()]
    assert lacking == []


def test_the_readmes_vm_file_is_one(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    file = tmp_path / "web1.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    config = load(file)
    assert (config.name, config.memory) == ("web1", 512 << 20)
    assert config.failover.arbiter.startswith("file:")


def test_the_arbiter_of_the_manual_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "failover.md").read_text()
    start = text.index("    [failover]\n")
    table = text[start : text.index("\n\n", start)].replace("\n    ", "\n").strip()
    file = tmp_path / "web1.toml"
    file.write_text(f'name = "web1"\n{table}\n')
    etcd = load(file).failover.etcd
    assert etcd is not None and etcd.user == "colo"


def test_the_manuals_commands_make_certificates_for_tls(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "operating.md").read_text().replace("\\\n", "")
    commands = [line.strip() for line in manual.splitlines() if line.startswith("    openssl ")]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    Tls(TlsFiles(tmp_path / "ca.crt", tmp_path / "host.crt", tmp_path / "host.key"))
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", "web1.example"]
    subprocess.run([*verify, "host.crt"], cwd=tmp_path, check=True, capture_output=True)


def keys_of(kind: type) -> set[str]:
    """The keys of a table of the VM file and of those within it, but for the tables' own."""
    keys = set()
    for name, hint in get_type_hints(kind).items():
        inner = [each for each in (*get_args(hint), hint) if is_dataclass(each)]
        keys |= keys_of(cast(type, inner[0])) if inner else {name}
    return keys


def test_the_manual_names_every_key_of_the_vm_file() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text()
    keys = keys_of(VmConfig)
    assert keys >= {"name", "folder", "silence_s", "certificate"}
    assert [key for key in sorted(keys) if f"{key}`" not in manual] == []


def test_the_guest_of_the_manual_does_what_it_says() -> None:
    text = (ROOT / "docs" / "guests.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout) == ("", text.split("```text\n")[1].split("```")[0])


def test_the_page_on_two_hosts_names_a_vm_file_and_commands_that_there_are(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "two-hosts.md").read_text()
    file = tmp_path / "web1.toml"
    file.write_text(textwrap.dedent(text.split("```toml\n")[1].split("```")[0]))
    config = load(file)
    assert config.other_host("a") == "b"
    assert config.seen_from("b").qemu.primary == config.qemu.secondary
    commands = {line.split()[1] for line in text.splitlines() if line.strip().startswith("colo ")}
    assert commands == {"import", "check", "node", "status", "switchover"}
    assert commands <= set(main.commands)


def test_the_page_on_packages_says_what_colo_needs_and_is_tested_with() -> None:
    needed = dict(each.split(">=") for each in project()["dependencies"])
    pinned = dict(
        line.split()[0].split("==")
        for line in (ROOT / "requirements" / "runtime.txt").read_text().splitlines()
        if "==" in line
    )
    rows = (ROOT / "docs" / "packages.md").read_text().split("| Debian 12 |\n")[1].split("\n\n")[0]
    said: dict[str, tuple[str, str]] = {}
    for row in rows.splitlines()[1:]:
        names, needs, tested, _ = (cell.split(", ") for cell in row.strip("| ").split(" | "))
        said |= dict(zip(names, zip(needs, tested, strict=True), strict=True))
    assert {name: needs for name, (needs, _) in said.items()} == needed
    for name, (_, version) in said.items():
        assert f"{pinned[name.replace('.', '-')]}.".startswith(f"{version}."), name


def project() -> dict[str, list[str]]:
    """The project's metadata."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        content = tomllib.load(file)["project"]
    assert isinstance(content, dict)
    return content


def test_the_page_on_pacemaker_names_what_its_agent_has(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "pacemaker.md").read_text()
    file = tmp_path / "web1.toml"
    table = textwrap.dedent(text.split("```toml\n")[1].split("```")[0])
    file.write_text(f'name = "web1"\n{table}')
    assert load(file, check_failover).failover.arbiter == "pacemaker"
    agent = ElementTree.fromstring(metadata())
    parameters = {each.get("name") for each in agent.iter("parameter")}
    for command in ("crm configure primitive web1", "pcs resource create web1"):
        given = text[text.index(command) :].split("\n\n")[0].split("clone web1")[0]
        words = [word.partition("=") for word in given.split() if "=" in word]
        assert {"config", "state_dir"} <= {name for name, _, _ in words} & parameters
        said = [value for name, _, value in words if name == "timeout"]
        names = {"start", "stop", "promote", "demote", "monitor"}
        assert sorted(said) == sorted(timeouts(agent, names)), command


def timeouts(agent: ElementTree.Element, names: set[str]) -> list[str]:
    """What the agent advises for these actions."""
    actions = agent.iter("action")
    return [each.get("timeout", "") for each in actions if each.get("name") in names]
