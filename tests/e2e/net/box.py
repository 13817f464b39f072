"""A host as a machine: a Debian of its own, its processes, its name and its place in a lab.

Its disk is a layer over build/bookworm, in memory of the machine that runs the tests, and stays
when the host dies; its /run and /dev/shm do not.  All its processes are below one, systemd, and die
with that, as where a plug is pulled.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from colo.demo.lab import Lab, Place
from tests.e2e.basics import ROOT, SLOWNESS, wait

__all__ = ["DEBIAN", "Box", "boxes"]

DEBIAN: Final = ROOT / "build" / "bookworm"
_COMMAND_S: Final = 120.0 * SLOWNESS
#: Its first process: it makes the host, and becomes its systemd.
_BOOT: Final = """
set -e
mount -t overlay -o "lowerdir=$1,upperdir=$2/disk,workdir=$2/work" overlay "$2/root"
cd "$2/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
if [ "$5" = 2 ]; then
    mount -t cgroup2 cgroup sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
for each in full kvm net/tun null random tty urandom zero; do
    [ ! -e "/dev/$each" ] || cp -a "/dev/$each" "dev/$each"
done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p shared
mount --bind "$3" shared
echo "$4" >etc/hostname
ln -sfn /dev/null etc/systemd/system/getty.target
exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd
"""
_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb",
}  # fmt: skip
#: Where systemd has its groups: beside the controllers, or with them.
_CGROUPS: Final = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup"))


def is_cgroup(folder: Path) -> bool:
    """Whether a group can be made there."""
    return (folder / "cgroup.procs").exists() and os.path.ismount(folder)


class Box:
    """One host.  ``shared``: the folder that is /shared there."""

    def __init__(self, lab: Lab, place: Place, name: str, folder: Path, shared: Path) -> None:
        self.name = name
        self._lab = lab
        self._place = place
        self._folder = folder
        self._shared = shared
        self._first: subprocess.Popen[Any] | None = None
        self._pid = 0
        top = next(filter(is_cgroup, _CGROUPS))
        self._cgroup = top / f"{folder.parent.name}-{name}"
        for each in ("disk", "work", "root"):
            (folder / each).mkdir(parents=True)

    def boot(self) -> None:
        """Start it."""
        kinds = ("--mount", "--uts", "--pid", "--fork", "--kill-child", "--ipc", "--cgroup")
        words = (str(DEBIAN), str(self._folder), str(self._shared), self.name)
        self._cgroup.mkdir(exist_ok=True)
        enter = f'echo $$ > {self._cgroup}/cgroup.procs; exec unshare "$@"'
        with (self._folder / "boot.log").open("wb") as log:
            self._first = self._lab.start(
                self._place,
                *("bash", "-ec", enter, "enter", *kinds, "bash", "-c", _BOOT, "boot", *words),
                "1" if self._cgroup.parent == _CGROUPS[0] else "2",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        wait(lambda: self._first_child(children), f"the first process of host {self.name}")
        wait(self._is_up, f"host {self.name} to boot")

    def _first_child(self, children: Path) -> bool:
        assert self._first is not None and self._first.poll() is None, self.told()
        self._pid = int(children.read_text() or 0)
        # Before that it is in the root of the machine that runs the tests.
        return self._pid != 0 and Path(f"/proc/{self._pid}/comm").read_text() == "systemd\n"

    def _is_up(self) -> bool:
        """Whether its systemd has started all that it starts."""
        assert self._first is not None and self._first.poll() is None, self.told()
        return self.ask("systemctl is-system-running")[1] in ("running\n", "degraded\n")

    def pull_the_plug(self) -> None:
        """End it: all that runs there dies at once."""
        if self._first is not None:
            self._first.kill()
            self._first.wait(_COMMAND_S)
            self._first = None
            wait(lambda: not Path(f"/proc/{self._pid}").exists(), f"the end of host {self.name}")
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(folder)

    def path(self, name: str) -> Path:
        """A file that was written there, seen from outside."""
        return self._folder / "disk" / name.lstrip("/")

    def put(self, file: Path, where: str) -> None:
        """Copy a file there; ``where`` is a folder or a file."""
        shutil.copy(file, self._shared)
        self.run(f"mv /shared/{file.name} {where}")

    def run(self, line: str) -> str:
        """Run lines of a shell, as root in /root; return what they said.  They have to succeed."""
        code, said = self.ask(line)
        assert code == 0, f"host {self.name}: {line}: exit code {code}: {said}"
        return said

    def ask(self, line: str) -> tuple[int, str]:
        """Run lines of a shell; return the exit code, and what they said, errors too."""
        done = subprocess.run(
            self._command(line),
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        return done.returncode, done.stdout

    def start(self, line: str) -> None:
        """Start a line that stays."""
        log = self._folder / f"{len(list(self._folder.glob('*.log')))}.log"
        with log.open("wb") as output:
            self._lab.start(
                self._place,
                *self._command(f"exec {line}"),
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def colo_pid(self) -> int:
        """The process there of the colo that keeps web1, by its status file."""
        return int(json.loads(self.run("cat /var/lib/colo/web1/status.json"))["pid"])

    def wait_ended(self) -> None:
        """Wait for the end of that colo: its VM may run on."""
        free = "flock -n /var/lib/colo/web1/lock true"
        wait(lambda: self.ask(free)[0] == 0, f"the end of colo on host {self.name}", _COMMAND_S)

    def told(self) -> str:
        """What all lines that were started have said, and services, for a failure's report."""
        told = {log.name: log.read_text() for log in sorted(self._folder.glob("*.log"))}
        told["journal"] = self.ask("journalctl --no-pager")[1]
        return "".join(f"-- host {self.name}, {name}\n{text}" for name, text in told.items())

    def _command(self, line: str) -> list[str]:
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wdns=/root")
        return ["nsenter", f"--target={self._pid}", *spaces, "bash", "-ec", line]


@contextlib.contextmanager
def boxes(lab: Lab, **names: Place) -> Iterator[list[Box]]:
    """``with``: hosts of these names at these places, which share a folder; nothing is left.

    Without build/bookworm the test is skipped.
    """
    if not (DEBIAN / "made").exists():
        pytest.skip("no build/bookworm: make bookworm")
    if not any(map(is_cgroup, _CGROUPS)):
        pytest.skip("no cgroups for a systemd of the tests")
    folder = Path(tempfile.mkdtemp(prefix="colo-box-", dir="/dev/shm"))
    (folder / "shared").mkdir()
    made = [
        Box(lab, place, name, folder / name, folder / "shared") for name, place in names.items()
    ]
    with contextlib.ExitStack() as ends:
        ends.callback(shutil.rmtree, folder)
        for each in made:
            ends.callback(each.pull_the_plug)
        for each in made:
            each.boot()
        try:
            yield made
        finally:
            for each in made:
                print(each.told())
