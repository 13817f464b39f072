"""libvirt's daemon with folders of its own, for a test: `python libvirt_daemon.py FOLDER QEMU`.

To be run in mount and network namespaces of its own.  Each line on standard input starts a daemon,
whose process is told on standard output.  What the daemons leave behind (QEMU) is reaped here, as
by an init: libvirt takes a process that nobody reaps for one that lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

#: Folders of libvirt's, and what the test has in their place.
PLACES: Final = {
    "/run": "run",
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/cache/libvirt": "cache",
    "/var/log/libvirt": "log",
}
#: Libraries for QEMU that the test has, where AppArmor lets it read them, and Debian's own.
LIBRARIES: Final = "/usr/lib/x86_64-linux-gnu"
#: Where Debian's QEMU looks for modules, all of them as libvirt asks it for its types.  One that is
#: unpacked elsewhere has its own beside it, and must not meet those of another version.
MODULES: Final = f"{LIBRARIES}/qemu"
#: No daemon besides this one, no cgroups: a test may run where there are none.
QEMU_CONF: Final = 'stdio_handler = "file"\ncgroup_controllers = []\n'
DAEMON_CONF: Final = 'unix_sock_dir = "{}"\nauth_unix_rw = "none"\n'
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOOK_S: Final = 0.05


def main(folder: Path, qemu: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for place, own in PLACES.items():
        (folder / own).mkdir()
        subprocess.run(["mount", "--bind", str(folder / own), place], check=True)
    layers = f"lowerdir={folder / 'libraries'}:{LIBRARIES}"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "colo", LIBRARIES], check=True)
    modules = qemu.resolve().parent / f"root/{MODULES}"
    if modules.exists() and Path(MODULES).exists():
        subprocess.run(["mount", "--bind", str(modules), MODULES], check=True)
    (folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
    (folder / "etc" / "libvirtd.conf").write_text(DAEMON_CONF.format(folder))
    while True:
        if select.select([sys.stdin], [], [], _LOOK_S)[0]:
            if not sys.stdin.readline():
                return
            command = ["libvirtd", "--config", "/etc/libvirt/libvirtd.conf"]
            print(subprocess.Popen(command, stdin=subprocess.DEVNULL).pid, flush=True)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
