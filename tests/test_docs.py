"""The documents say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from colo.config import TlsFiles, VmConfig, load
from colo.transport.tls import Tls

ROOT = Path(__file__).parent.parent


def test_the_diagrams_are_those_of_the_tables() -> None:
    command = [sys.executable, "scripts/diagrams.py", "--check", "docs/protocol.md"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    assert done.returncode == 0, "run `make docs`"


def test_the_readmes_vm_file_is_one(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    file = tmp_path / "web1.toml"
    file.write_text(text.split("```toml\n")[1].split("```")[0])
    config = load(file)
    assert (config.name, config.memory) == ("web1", 512 << 20)
    assert config.arbiter.startswith("file:")


def test_the_manuals_commands_make_certificates_for_tls(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "operating.md").read_text().replace("\\\n", "")
    commands = [line.strip() for line in manual.splitlines() if line.startswith("    openssl ")]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    Tls(TlsFiles(tmp_path / "ca.crt", tmp_path / "host.crt", tmp_path / "host.key"))
    verify = ["openssl", "verify", "-CAfile", "ca.crt", "-verify_hostname", "web1.example"]
    subprocess.run([*verify, "host.crt"], cwd=tmp_path, check=True, capture_output=True)


def test_the_manual_names_every_key_of_the_vm_file() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text()
    keys = set(VmConfig.__dataclass_fields__) - {"primary_args", "secondary_args", "store_folder"}
    keys = keys - {"tls"} | set(TlsFiles.__dataclass_fields__)
    assert [key for key in sorted(keys) if f"{key}`" not in manual] == []


def test_the_guest_of_the_manual_does_what_it_says() -> None:
    text = (ROOT / "docs" / "guests.md").read_text()
    program = text.split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout) == ("", text.split("```text\n")[1].split("```")[0])
