"""The command line: wrong usage is one line and exit code 2."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from colo.cli import base, main
from colo.errors import UsageError
from colo.log import LogFile
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


@pytest.mark.parametrize(
    ("command", "which", "told"),
    [
        ("primary", [], "colo: which QEMU? say its --qmp, or its --libvirt domain"),
        ("primary", ["--qmp", "unix:/q", "--libvirt", "web1"], "colo: --qmp and --libvirt: "),
        ("node", ["--qmp", "unix:/q", "--libvirt", "web1"], "colo: --qmp and --libvirt: "),
        ("check", ["--qmp", "unix:/q", "--libvirt", "web1"], "colo: --qmp and --libvirt: "),
    ],
)
def test_a_qemu_that_runs_is_named_once(
    command: str, which: list[str], told: str, tmp_path: Path
) -> None:
    where = ["--to", "unix:/b"] if command == "primary" else []
    arguments = [command, str(tls_file(tmp_path)), *which, *where]
    result = CliRunner().invoke(main, [*arguments, "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 2
    assert result.output.startswith(told) and len(result.output.splitlines()) == 1
    assert not (tmp_path / "state").exists()


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
        base.say("web1: PROTECTED")
    assert caplog.messages == ["web1: PROTECTED"]


def test_what_others_say_does_nothing_to_the_terminal_nor_to_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path / "a\x1b[2Jb")])
    assert result.exit_code == 1
    assert result.output.startswith(f"colo: {tmp_path}/a\\x1b[2Jb is no state folder")
    with caplog.at_level("INFO", "colo"):
        base.say("host b refuses: \x1b[2J\nweb1: RUNNING")
    assert capsys.readouterr().err == "host b refuses: \\x1b[2J\\nweb1: RUNNING\n"
    assert caplog.messages == ["host b refuses: \\x1b[2J\\nweb1: RUNNING"]


@pytest.fixture
def no_log() -> Iterator[None]:
    """Whatever a command has set up for its log goes again."""
    loggers = {name: logging.getLogger(name) for name in ("colo", "asyncio")}
    before = {name: list(logger.handlers) for name, logger in loggers.items()}
    level = loggers["colo"].level
    yield
    for name, logger in loggers.items():
        for handler in [each for each in logger.handlers if each not in before[name]]:
            logger.removeHandler(handler)
            handler.close()
    loggers["colo"].setLevel(level)


@pytest.mark.parametrize("command", ["primary", "run", "secondary"])
def test_a_state_folder_with_too_long_a_name_is_one_line_and_is_not_made(
    command: str, tmp_path: Path
) -> None:
    file, state = tmp_path / "web1.toml", tmp_path / ("x" * 120)
    file.write_text('name = "web1"\n[qemu]\nbinary = "/nonexistent"\n')
    where = ["--listen" if command == "secondary" else "--to", f"unix:{tmp_path}/b"]
    where += ["--qmp", f"unix:{tmp_path}/q"] if command == "primary" else []
    result = CliRunner().invoke(main, [command, str(file), *where, "--state-dir", str(state)])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"colo: state folder {state}: ")
    assert not state.exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EACCES, "Permission denied", "/a\x1b/b"), r"/a\x1b/b: Permission denied"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (TimeoutError(), "TimeoutError"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_the_log_says_where(
    error: Exception,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("colo.status.report.read_status", fail)
    with caplog.at_level("INFO", "colo"):
        result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path)])
    assert (result.exit_code, result.output) == (1, f"colo: {line}\n")
    assert "in fail" in caplog.text


def test_an_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyError

    monkeypatch.setattr("colo.status.report.read_status", fail)
    result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path)])
    assert isinstance(result.exception, KeyError)


def test_a_log_that_has_no_room_is_told_of_once_and_goes_on_where_there_is_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_log: None,
) -> None:
    base.log_to(tmp_path / "colo.log", trace=False)
    logger, write = logging.getLogger("colo"), os.write

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    logger.info("one")
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("colo.log.os.write", full)
            logger.info("two")
            logger.info("three")
        assert os.write is write
        logger.info("four")
    assert capsys.readouterr().err == (
        f"colo: {tmp_path}/colo.log: No space left on device: "
        "lines are left out until it can be written\n"
    )
    lines = (tmp_path / "colo.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "four", "four"]


def test_what_a_callback_raises_is_in_the_log(tmp_path: Path, no_log: None) -> None:
    async def run() -> None:
        asyncio.get_running_loop().call_soon({"a": 1}.__getitem__, "no such key")
        await asyncio.sleep(0)

    base.log_to(tmp_path / "colo.log", trace=False)
    asyncio.run(run())
    assert "KeyError: 'no such key'" in (tmp_path / "colo.log").read_text()


def test_a_log_is_its_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    LogFile(tmp_path / "colo.log").close()
    assert (tmp_path / "colo.log").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_begun_is_one_line_and_lets_go_of_the_folder(tmp_path: Path) -> None:
    file, state = tmp_path / "web1.toml", tmp_path / "state"
    file.write_text('name = "web1"\n')
    (state / "colo.log").mkdir(parents=True)
    command = ["primary", str(file), "--qmp", f"unix:{tmp_path}/q", "--to", f"unix:{tmp_path}/b"]
    for _ in range(2):
        result = CliRunner().invoke(main, [*command, "--state-dir", str(state)])
        assert result.exit_code == 2
        assert result.output == f"colo: {state}/colo.log: Is a directory\n"


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["status", "--state-dir", "FILE"], "Directory 'FILE' is a file: see `colo status --help`"),
        (["status"], "Missing option '--state-dir', or --all: see `colo status --help`"),
        (["status", "--stat-dir", "x"], "No such option '--stat-dir'"),
        (["statsu"], "No such command 'statsu'"),
        (["--wrong"], "No such option '--wrong'"),
        (["secondary", "x", "--on-loss", "y"], "'y' is not one of 'takeover', 'hold'"),
    ],
)
def test_wrong_usage_is_one_line(command: list[str], line: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = CliRunner().invoke(
        main, [each.replace("FILE", str(file)) for each in command], prog_name="colo"
    )
    assert result.exit_code == 2
    (told,) = result.output.splitlines()
    assert told.startswith("colo: ")
    assert line.replace("FILE", str(file)) in told
    assert told.endswith("--help`")


def test_without_a_command_there_is_help() -> None:
    result = CliRunner().invoke(main, [])
    assert "Commands:" in result.output
    assert CliRunner().invoke(main, ["status", "--help"]).exit_code == 0


def test_what_stays_behind_is_told_in_the_same_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: Path) -> None:
        error = UsageError("host b refuses")
        error.add_note("grant 2 stays here")
        raise error

    monkeypatch.setattr("colo.status.report.read_status", fail)
    result = CliRunner().invoke(main, ["status", "--state-dir", str(tmp_path)])
    assert (result.exit_code, result.output) == (2, "colo: host b refuses; grant 2 stays here\n")
