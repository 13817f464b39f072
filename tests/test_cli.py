"""The command line: wrong usage is one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from colo import cli
from colo.cli import main
from tests.certificates import Authority


def tls_file(folder: Path) -> Path:
    """A VM file with TLS."""
    files = Authority.make(folder / "ca").issue("a")
    path = folder / "web1.toml"
    path.write_text(
        f'name = "web1"\n[tls]\nca = "{files.ca}"\n'
        f'certificate = "{files.certificate}"\nkey = "{files.key}"\n'
    )
    return path


def test_a_stock_secondary_has_no_tls(tmp_path: Path) -> None:
    command = ["primary", str(tls_file(tmp_path)), "--qmp", "unix:/q", "--stock"]
    command += ["--to", "tcp:127.0.0.1:9", "--state-dir", str(tmp_path / "state")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert "--stock and [tls]: " in result.output


@pytest.mark.parametrize("command", ["secondary", "run"])
def test_a_certificate_that_is_missing_is_told_at_once(command: str, tmp_path: Path) -> None:
    path = tls_file(tmp_path)
    (tmp_path / "ca" / "a.crt").unlink()
    where = "--listen" if command == "secondary" else "--to"
    arguments = [command, str(path), where, "tcp:127.0.0.1:0"]
    result = CliRunner().invoke(main, [*arguments, "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert f"[tls] certificate = {tmp_path / 'ca' / 'a.crt'}" in result.output
    assert not (tmp_path / "state").exists()


def test_what_nobody_reads_any_more_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A terminal that is gone decides nothing, and the log has the line."""

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("click.echo", broken)
    with caplog.at_level("INFO", "colo"):
        cli._say("web1: PROTECTED")
    assert caplog.messages == ["web1: PROTECTED"]


def test_what_others_say_does_nothing_to_the_terminal_nor_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path / "a\x1b[2Jb")])
    assert result.exit_code == 1
    assert result.output.startswith(f"colo: {tmp_path}/a\\x1b[2Jb is no state folder")
    with caplog.at_level("INFO", "colo"):
        cli._say("host b refuses: \x1b[2J\nweb1: RUNNING")
    assert capsys.readouterr().err == "host b refuses: \\x1b[2J\\nweb1: RUNNING\n"
    assert caplog.messages == ["host b refuses: \\x1b[2J\\nweb1: RUNNING"]
