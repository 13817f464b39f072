"""The workload, compiled once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from colo.demo import guest_image


@pytest.fixture(scope="session")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    program = tmp_path_factory.mktemp("workload") / "workload"
    sources = [str(guest_image.SOURCES / name) for name in guest_image.WORKLOAD]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), *sources], check=True)
    return program
