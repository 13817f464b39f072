"""Where command lines come from: files, libvirt; and that wrong ones are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colo.cli import main
from colo.config import load
from colo.config.vm import parse

SAMPLES = Path(__file__).parent / "samples"
PROXMOX = SAMPLES / "proxmox-scsi.txt"


def run(*args: object, given: bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["import", *map(str, args)], input=given)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_file_and_standard_input_are_the_same() -> None:
    code, text, told = run("--proxmox", PROXMOX)
    assert code == 0 and parse(text).name == "web1"
    again = run("--libvirt-argv", "-", given=PROXMOX.read_bytes())
    assert again[1].splitlines()[1:] == text.splitlines()[1:]
    assert "from standard input." in again[1] and again[2] == told
    assert all(line.startswith("web1: ") for line in told.splitlines())


def test_a_file_is_written_for_its_owner_and_never_over_another(tmp_path: Path) -> None:
    file = tmp_path / "vm.toml"
    code, text, _ = run("--proxmox", PROXMOX, "-o", file, "--name", "other")
    assert (code, text) == (0, "")
    assert load(file).name == "other" and file.stat().st_mode & 0o777 == 0o600
    code, _, told = run("--proxmox", PROXMOX, "-o", file)
    assert (code, told) == (2, f"colo: {file} is there already: it is not touched\n")
    code, _, told = run("--proxmox", PROXMOX, "-o", tmp_path / "no" / "vm.toml")
    assert code == 2 and told.endswith("No such file or directory\n")


VIRSH = """#!/bin/sh
[ "$1" = --quiet ] && shift
case "$1 $3" in
"dumpxml web1") echo "<domain/>" ;;
"domxml-to-native /dev/stdin") [ "$(cat)" = "<domain/>" ] && cat SAMPLE ;;
*) echo "error: failed to get domain '$3'" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def virsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virsh that knows one domain; nothing else but a shell is on the PATH with it."""
    program = tmp_path / "virsh"
    program.write_text(VIRSH.replace("SAMPLE", str(SAMPLES / "libvirt-q35-ovmf.txt")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return program


def test_libvirt_is_asked_by_virsh(virsh: Path) -> None:
    code, text, _ = run("--libvirt", "web1")
    assert code == 0 and "from libvirt's domain web1." in text
    assert [disk.id for disk in parse(text).disks][1:] == ["libvirt-3-format", "libvirt-2-format"]
    code, _, told = run("--libvirt", "--help")
    assert (code, told) == (1, "colo: virsh dumpxml: error: failed to get domain '--help'\n")


def test_without_virsh_it_is_said_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, told = run("--libvirt", "web1")
    assert code == 2 and "there is no virsh here: run `virsh domxml-to-native" in told


WRONG: list[tuple[list[str], bytes, str]] = [
    ([], b"", "say one source"),
    (["--proxmox", "-", "--pid", "1"], b"", "say one source"),
    (["--proxmox", "/nonexistent"], b"", "/nonexistent: No such file or directory"),
    (["--proxmox", "/"], b"", "/: Is a directory"),
    (["--proxmox", "-"], b"\xff", "it is no text in UTF-8"),
    (["--proxmox", "-"], b"x" * (1 << 20) + b"y", "no command is longer"),
    (["--libvirt-argv", "-"], b"<domain/>", "standard input: it is XML"),
    (["--proxmox", "-"], b"Configuration file 'x' does not exist", "cannot be taken apart|no QEMU"),
    (["--proxmox", "-"], b"/usr/bin/kvm -m 512MB", "makes no VM file: -m 512MB: not a size"),
    (["--qmp", "tcp:a:1"], b"", "QMP is reached by unix:PATH"),
    (["--qmp", "unix:/nonexistent"], b"", "there is no QMP socket /nonexistent"),
    (["--pid", "1"], b"", "no QEMU: say QEMU's by --pid"),
    (["--pid", "0"], b"", "0 is not in the range"),
    (["--libvirt", "a\0b"], b"", "virsh"),
]


@pytest.mark.parametrize(("args", "given", "told"), WRONG, ids=[told for *_, told in WRONG])
def test_wrong_input_is_one_line(args: list[str], given: bytes, told: str, virsh: Path) -> None:
    code, text, line = run(*args, given=given)
    assert code in (1, 2) and text == ""
    assert len(line.splitlines()) == 1 and line.startswith("colo: ")
    assert any(each in line for each in told.split("|")), line


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | st.text().map(lambda text: f"qemu {text}".encode("utf-8", "ignore")))
def test_any_bytes_are_a_vm_file_or_one_line(data: bytes) -> None:
    code, text, told = run("--proxmox", "-", given=data)
    if code == 0:
        parse(text)
    else:
        assert text == "" and len(told.splitlines()) == 1, told
