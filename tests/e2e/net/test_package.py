"""What colo is installed from, installed where nothing of colo is, and taken away again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo import __version__
from colo.cli import main
from colo.demo.lab import Lab, Place
from tests.e2e.basics import SLOWNESS, wait
from tests.e2e.net.box import Box, boxes
from tests.e2e.package import Package

pytestmark = pytest.mark.e2e

VERSION = f"colo, version {__version__}\n"
INSTALL = "apt-get install ./colo_*_amd64.deb"
STATE = "/var/lib/colo/web1"
#: What has the service begin with the machine.
WANTED = "/etc/systemd/system/multi-user.target.wants/colo@web1.service"
LEFT = "/var/lib/colo/* /etc/colo/* /usr/lib/colo /usr/lib/x86_64-linux-gnu/colo"
#: A VM that only waits; its file lies where the service looks for it.
VM_FILE = """
cat > /etc/colo/web1.toml <<'END'
name = "web1"
[qemu]
accel = "tcg"
args = ["-machine", "pc", "-m", "64", "-nodefaults", "-display", "none"]
[failover]
arbiter = "file:/shared/web1.grant"
END
touch /var/lib/colo/web1.qcow2
"""

#: Every module of colo's, and so every package that one of them needs.
IMPORT_ALL = """
import colo, importlib, pkgutil
for each in pkgutil.walk_packages(colo.__path__, "colo."):
    if not each.name.endswith("__main__"):
        print(importlib.import_module(each.name).__name__)
"""


def run(*words: object) -> str:
    """Run a command of this machine; it has to succeed and to say nothing on standard error."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120 * SLOWNESS, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), (command, done.stdout)
    return done.stdout


def test_the_wheel_is_all_that_an_empty_environment_needs(package: Package, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    pip = ("-m", "pip", "--python", tmp_path, "--disable-pip-version-check", "-qqq")
    run(sys.executable, *pip, "install", "--no-compile", package.wheel)
    colo = tmp_path / "bin" / "colo"
    assert run(colo, "--version") == VERSION
    assert "switchover" in run(colo, "--help")
    assert f"ExecStart={colo} node" in run(colo, "node", "--print-unit")
    assert "alert: " in run(colo, "metrics", "rules")
    modules = run(tmp_path / "bin" / "python", "-c", IMPORT_ALL).split()
    assert "colo.node.daemon" in modules


def test_the_sdist_makes_the_same_wheel(package: Package, tmp_path: Path) -> None:
    with tarfile.open(package.sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True, timeout=120)
    (again,) = (folder / "dist").iterdir()

    def content(path: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}

    assert again.name == package.wheel.name
    assert content(again) == content(package.wheel)
    assert "colo/service/colo@.service" in content(again)


def test_the_index_would_take_both(package: Package) -> None:
    told = run(sys.executable, "-m", "twine", "check", "--strict", package.wheel, package.sdist)
    assert told.count("PASSED") == 2


def test_lintian_has_no_objection(package: Package) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("no lintian: install it")
    strict = ("--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0")
    assert run("lintian", *strict, package.deb) == ""


@pytest.fixture
def box(lab: Lab, package: Package) -> Iterator[Box]:
    """A Debian without colo, and the package in its /root."""
    with boxes(lab, a=Place.HOST_A) as (box,):
        box.put(package.deb, "/root")
        yield box


def test_the_debian_package_has_what_a_package_has(box: Box) -> None:
    box.run(INSTALL)
    assert box.run("dpkg --verify colo") == ""
    assert box.run("colo --version") == VERSION

    for page in ["colo.toml", "colo", *(f"colo-{name}" for name in main.commands)]:
        # What groff warns of comes with what it prints.
        shown = box.run(f"MANWIDTH=100 man --warnings=all {page} | cat; exit ${{PIPESTATUS[0]}}")
        assert "warning" not in shown and "SEE ALSO" in shown, shown
    node = box.run("MANWIDTH=200 man colo-node | cat")
    assert "--print-unit" in node and "Print a systemd unit" in node
    assert "stopped_share_max" in box.run("man colo.toml | cat")

    unit = "/lib/systemd/system/colo@.service"
    assert box.run(f"colo node --print-unit | diff - {unit}") == ""
    assert box.run("systemd-analyze verify colo@web1.service") == ""

    words = "COMP_WORDS=(colo switch) COMP_CWORD=1 && _colo_completion colo && echo ${COMPREPLY[@]}"
    bash = box.run(f". /usr/share/bash-completion/completions/colo; {words}")
    assert bash == "switchover\n"
    assert box.run("fish -c 'complete -C \"colo switch\"'").startswith("switchover")
    assert box.run("zsh -fc 'autoload compinit; compinit -D -u; echo $_comps[colo]'") == "_colo\n"

    # There is no compiler, and none is needed.
    assert box.ask("command -v cc gcc")[0] != 0
    folder = "/usr/lib/x86_64-linux-gnu/colo"
    libraries = box.run("colo preload --tcg")
    assert libraries == f"{folder}/tcg-preload.so:{folder}/clock-preload.so\n"


def test_what_runs_is_not_taken_away_and_a_purge_leaves_what_is_not_colos(box: Box) -> None:
    box.run(INSTALL)
    box.run(VM_FILE)
    box.start(f"colo secondary /etc/colo/web1.toml --listen tcp:127.0.0.1:9 --state-dir {STATE}")
    wait(lambda: "waiting for a primary" in box.told(), "the secondary to listen")

    code, told = box.ask("apt-get purge colo")
    assert code != 0
    assert f"colo: a colo runs for {STATE}: end it first: systemctl disable --now colo@web1" in told
    assert box.run("colo --version") == VERSION

    box.run(f"kill -KILL {box.colo_pid()}")
    box.wait_ended()
    told = box.run("apt-get purge colo")
    qemu = box.run(f"cat {STATE}/qemu.pid").strip()
    kept = f"{STATE} is kept: its VM runs on, in the QEMU with the process id {qemu}"
    assert kept in told
    assert box.ask("colo --version")[0] == 127

    box.run(INSTALL)
    box.run("systemctl enable colo@web1")
    assert box.run(f"readlink {WANTED}").strip() == "/lib/systemd/system/colo@.service"
    store = box.run(f"readlink {STATE}/store").strip()
    box.run(f"test -d {store}")
    box.run(f"kill -KILL {qemu}")
    wait(lambda: box.ask(f"kill -0 {qemu}")[0] != 0, "the end of QEMU")
    assert "kept" not in box.run("apt-get purge colo")
    left = box.run(f"ls -d {LEFT} {WANTED} {store} 2>/dev/null || true")
    assert left.split() == ["/etc/colo/web1.toml", "/var/lib/colo/web1.qcow2"]
