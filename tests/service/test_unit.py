"""The unit is one that systemd takes, and starts the colo that printed it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from click.testing import CliRunner

from colo.cli import main
from colo.cli.base import WRONG_USAGE
from colo.service.unit import unit


def test_systemd_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "colo@.service").write_text(unit(Path(shutil.which("true") or "/bin/true")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "colo@.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "colo@" in line]
    assert (done.returncode, ours) == (0, [])


def test_it_leaves_qemu_running_and_is_ready_when_colo_says_so() -> None:
    lines = unit(Path("/opt/colo/bin/colo")).splitlines()
    assert "Type=notify" in lines and "KillMode=process" in lines
    assert (
        "ExecStart=/opt/colo/bin/colo node /etc/colo/%i.toml --state-dir /var/lib/colo/%i" in lines
    )


def test_what_no_further_try_changes_is_not_tried_again() -> None:
    assert f"RestartPreventExitStatus={WRONG_USAGE}\n" in unit(Path("/colo"))


def test_the_command_prints_it() -> None:
    result = CliRunner().invoke(main, ["node", "--print-unit"])
    assert result.exit_code == 0
    assert "[Service]" in result.output and "ExecStart=COLO" not in result.output
