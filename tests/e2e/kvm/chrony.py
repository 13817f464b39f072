"""chrony in a KVM guest whose QEMU has no library of colo's: ``python -m tests.e2e.kvm.chrony``.

The guest tells its CLOCK_REALTIME on the serial line, and that is held against the time here.  For
a while chrony is not there, then it is, with the host's clock as its source (``ptp_kvm``).  Prints
for each time how far the guest's clock went back or forth against the host's, in ms.
"""

from __future__ import annotations

import json
import lzma
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from colo.demo.guest_image import CpioEntry, module_dependencies, write_cpio
from tests.e2e.kvm.lab import measure

__all__ = ["main"]

SECONDS: Final = 20.0
PROTECTED_S: Final = 60.0
BOOTED_S: Final = 120.0
#: Its own time a second: what is lost here is a tenth of it.
SHARE: Final = 0.1
INIT: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /lib/order); do insmod /lib/$module; done
/bin/tell &
echo "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
read line
exec /bin/chronyd -d -u root -f /etc/chrony.conf
"""
TELL: Final = """\
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(void)
{
    struct timespec now;
    for (;; usleep(100000)) {
        clock_gettime(CLOCK_REALTIME, &now);
        printf("T %lld.%09ld\\n", (long long)now.tv_sec, now.tv_nsec);
        fflush(stdout);
    }
}
"""
#: As docs/operating.md has it.
CHRONY: Final = """\
refclock PHC /dev/ptp0 poll 0 dpoll -2
makestep 0.05 -1
"""
VM: Final = """\
name = "chrony"
[qemu]
accel = "kvm"
args = ["-machine", "pc", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none",
        "-kernel", "{kernel}", "-initrd", "{initrd}", "-append", "console=ttyS0 quiet"]
[qemu.primary]
args = ["-serial", "stdio"]
[qemu.secondary]
args = ["-serial", "null"]
[checkpoints]
stopped_share_max = {share}
[failover]
arbiter = "manual"
silence_s = 60
heartbeat_limit_s = 10
"""


class Guest:
    """What the guest says of its time, as the host's less the guest's, in seconds."""

    def __init__(self, console: IO[bytes]) -> None:
        self.said: list[str] = []
        self._behind: list[tuple[float, float]] = []
        threading.Thread(target=self._read, args=(console,), daemon=True).start()

    def _read(self, console: IO[bytes]) -> None:
        for raw in console:
            now, line = time.time(), raw.decode(errors="replace").strip()
            if found := re.search(r"T (\d+\.\d+)$", line):
                self._behind.append((now, now - float(found[1])))
            elif line:
                self.said.append(line)

    def wait(self) -> None:
        """Wait until it says something of its time."""
        ends = time.monotonic() + BOOTED_S
        while not self._behind:
            assert time.monotonic() < ends, f"the guest does not boot: {self.said}"
            time.sleep(0.1)

    def watch(self, seconds: float) -> dict[str, float]:
        """By how much its clock fell behind meanwhile, and how far behind it was, in ms."""
        began = time.time()
        time.sleep(seconds)
        seen = [behind for at, behind in self._behind if at >= began]
        assert len(seen) > 10, self.said
        #: The least of some: a line may come late, and none early.
        edge = max(5, len(seen) // 10)
        first, last = min(seen[:edge]), min(seen[-edge:])
        return {
            "span_s": round(seconds, 1),
            "lost_ms": round(1000 * (last - first), 1),
            "behind_ms_median": round(1000 * sorted(seen)[len(seen) // 2], 1),
            "behind_ms_max": round(1000 * max(seen), 1),
        }


def _inside() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        kernel = max(Path("/boot").glob("vmlinuz-*"))
        initrd, vm = folder / "initrd", folder / "vm.toml"
        initrd.write_bytes(write_cpio(_files(folder, kernel.name.removeprefix("vmlinuz-"))))
        vm.write_text(VM.format(kernel=kernel, initrd=initrd, share=SHARE))
        b = [
            "colo",
            "secondary",
            vm,
            "--listen",
            f"unix:{folder}/b.sock",
            "--state-dir",
            folder / "b",
        ]
        stack.enter_context(_running(b, folder))
        qemu = stack.enter_context(_running(_qemu(vm, folder), folder, console=True))
        assert qemu.stdout and qemu.stdin
        guest = Guest(qemu.stdout)
        guest.wait()
        _say("unprotected", guest.watch(SECONDS))
        a = ["colo", "primary", vm, "--qmp", f"unix:{folder}/qmp", "--to", f"unix:{folder}/b.sock"]
        stack.enter_context(_running([*a, "--state-dir", folder / "a"], folder))
        _wait_protected(folder / "a")
        _say("protected", guest.watch(SECONDS))
        qemu.stdin.write(b"go\n")
        qemu.stdin.flush()
        _say("protected, the first seconds with chrony", guest.watch(SECONDS))
        _say("protected, with chrony", guest.watch(PROTECTED_S))
        print(json.dumps({"said": guest.said[:8] + guest.said[-4:]}), flush=True)


def _say(case: str, row: dict[str, float]) -> None:
    print(json.dumps({"case": case, **row}), flush=True)


def _qemu(vm: Path, folder: Path) -> list[object]:
    """QEMU as others start it."""
    words = re.findall(r'"([^"]*)"', VM.split("args = [")[1].split("]")[0])
    kernel, initrd = re.findall(r'"(/[^"]*)"', vm.read_text())[:2]
    args = [{"{kernel}": kernel, "{initrd}": initrd}.get(word, word) for word in words]
    return ["qemu-system-x86_64", "-accel", "kvm", *args, "-serial", "stdio",
            "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]  # fmt: skip


@contextmanager
def _running(
    command: list[object], folder: Path, console: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE if console else subprocess.DEVNULL,
            stdout=subprocess.PIPE if console else log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if sys.exc_info()[0] is not None:
            sys.stderr.write((folder / "log").read_text(errors="replace")[-4000:])


def _wait_protected(state: Path) -> None:
    ends = time.monotonic() + BOOTED_S
    while True:
        try:
            if json.loads((state / "status.json").read_text())["state"] == "PROTECTED":
                return
        except (OSError, ValueError):
            pass
        assert time.monotonic() < ends, "it is not protected"
        time.sleep(0.2)


def _files(folder: Path, release: str) -> Iterator[CpioEntry]:
    """The guest: busybox, chrony with its libraries, and what makes the host's clock a device."""
    for name in ("bin", "dev", "etc", "lib", "lib64", "proc", "sys", "run", "run/chrony", "var"):
        yield CpioEntry(name, stat.S_IFDIR | 0o755)
    yield CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield CpioEntry("var/lib", stat.S_IFDIR | 0o755)
    yield CpioEntry("var/lib/chrony", stat.S_IFDIR | 0o755)
    (folder / "tell.c").write_text(TELL)
    subprocess.run(["cc", "-static", "-o", folder / "tell", folder / "tell.c"], check=True)
    programs = {"busybox": "/bin/busybox", "chronyd": "/usr/sbin/chronyd"}
    programs["tell"] = str(folder / "tell")
    for name, path in programs.items():
        yield _file(f"bin/{name}", Path(path).read_bytes())
    ldd = ["ldd", programs["chronyd"]]
    linked = subprocess.run(ldd, capture_output=True, text=True, check=True)
    for path in sorted(set(re.findall(r"(/lib\S+) \(", linked.stdout))):
        for parent in list(Path(path).parents)[-3::-1] if path.count("/") > 2 else []:
            yield CpioEntry(str(parent).lstrip("/"), stat.S_IFDIR | 0o755)
        yield _file(path.lstrip("/"), Path(path).read_bytes())
    yield _file("init", INIT.encode())
    yield _file("etc/chrony.conf", CHRONY.encode())
    yield _file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
    yield _file("etc/group", b"root:x:0:\n")
    order = []
    for path, content in _modules(Path("/lib/modules") / release, "ptp_kvm"):
        order.append(path)
        yield _file(f"lib/{path}", content)
    yield _file("lib/order", " ".join(order).encode())


def _file(name: str, content: bytes) -> CpioEntry:
    return CpioEntry(name, stat.S_IFREG | 0o755, content)


def _modules(root: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """A module of the machine's kernel, behind those that it needs; nothing of what is built in."""
    for path in root.rglob(f"{name}.ko*"):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for needed in module_dependencies(content):
            yield from _modules(root, needed)
        yield f"{name}.ko", content


def main() -> int:
    """Run it in the machine whose KVM works, or, with ``--inside``, here."""
    if sys.argv[1:] == ["--inside"]:
        _inside()
        return 0
    with tempfile.TemporaryDirectory(prefix="colo-kvm-") as folder:
        print(measure(Path(folder), "python3 -m tests.e2e.kvm.chrony --inside", with_new=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
