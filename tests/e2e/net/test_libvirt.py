"""A domain of libvirt's is protected as it runs, while libvirt works, and dies, and comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from colo.demo.guest_image import KERNEL_WORDS, build
from colo.demo.lab import LAN_PREFIX, Place
from tests.e2e.basics import ACCEL, ROOT, SLOWNESS, colo, wait
from tests.e2e.net.libvirt_daemon import LIBRARIES
from tests.e2e.net.stage import HERE, Colo, Stage
from tests.e2e.net.test_node import HOSTS, wait_protected

pytestmark = pytest.mark.e2e

URI: Final = "LIBVIRT_DEFAULT_URI"
VIRSH_S: Final = 60 * SLOWNESS
#: Set in the machine of scripts/kvm-lab: AppArmor confines the QEMUs of libvirt there, for sure.
CONFINED: Final = "COLO_E2E_CONFINED"
#: AppArmor lets libvirt start no QEMU that is only unpacked somewhere.
VERSIONS: Final = ["7.2"] if Path("/sys/kernel/security/apparmor").exists() else ["7.2", "11.1"]
#: Confined and as another user, as libvirt does it: only the libraries are colo's.
DOMAIN: Final = """
<domain type="{kind}" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>web1</name><memory unit="MiB">{memory}</memory><vcpu>1</vcpu>
  <os>
    <type arch="x86_64" machine="pc">hvm</type>
    <kernel>{files}/vmlinuz</kernel><initrd>{files}/initrd.gz</initrd><cmdline>{words}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode="custom" match="exact"><model fallback="forbid">qemu64</model></cpu>
  <devices>
    <emulator>{emulator}</emulator>
    <serial type="file"><source path="{console}"/></serial>
    <controller type="usb" model="none"/><memballoon model="none"/>
    <interface type="ethernet">
      <mac address="{mac}"/><target dev="tap0" managed="no"/>
      <model type="virtio"/><driver name="qemu"/>
    </interface>
  </devices>
  <qemu:commandline><qemu:env name="LD_PRELOAD" value="{libraries}"/></qemu:commandline>
</domain>
"""


class Libvirt:
    """A libvirt of the test's own on host A, and its domain web1; the stage's end ends it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.folder = stage.folder / "v"
        libraries = self.folder / "libraries" / "colo"
        libraries.mkdir(parents=True)
        self._preload = subprocess.run(
            [colo(), "preload", "--tcg", "--to", libraries],
            capture_output=True, text=True, check=True,
        ).stdout.strip().replace(str(libraries.parent), LIBRARIES)  # fmt: skip
        stage.folder.chmod(0o711)  # QEMU is another user's
        command = ("unshare", "--mount", sys.executable, str(HERE / "libvirt_daemon.py"))
        with (stage.folder / "libvirt.log").open("wb") as log:
            self._keeper = stage.lab.start(
                Place.HOST_A, *command, str(self.folder), stage.binary,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        stage.processes.append(self._keeper)
        self.pid = 0

    def start(self) -> None:
        """Start the daemon, which finds what runs."""
        orders, answers = self._keeper.stdin, self._keeper.stdout
        assert orders is not None and answers is not None
        orders.write(b"start\n")
        orders.flush()
        self.pid = int(answers.readline())
        wait(lambda: self._run("list").returncode == 0, "libvirt to answer", VIRSH_S)

    def kill(self) -> None:
        """Kill the daemon; its domain goes on."""
        os.kill(self.pid, signal.SIGKILL)

    def virsh(self, *words: str) -> str:
        """What virsh says."""
        done = self._run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["virsh", *words], capture_output=True, text=True, timeout=VIRSH_S, check=False
        )

    def domain(self, console: Path) -> None:
        """Start the domain; wait until its guest has booted."""
        stage, image = self._stage, build(ROOT / "build" / "guest", lambda line: None)
        for boot_file in (image.kernel, image.initrd):
            shutil.copy(boot_file, self.folder)  # libvirt makes them the other user's
        file = self.folder / "web1.xml"
        words = f"{KERNEL_WORDS} colo.mode=serve colo.ip={stage.address}/{LAN_PREFIX}"
        file.write_text(
            DOMAIN.format(
                emulator=shutil.which(stage.binary),
                kind="kvm" if ACCEL == "kvm" else "qemu",
                memory=stage.vm.memory_mib,
                files=self.folder,
                words=words,
                console=console,
                mac=stage.mac,
                libraries=self._preload,
            )
        )
        self.virsh("define", str(file))
        self.virsh("start", "web1")
        wait(lambda: console.exists() and "count=" in console.read_text(), "the guest", VIRSH_S)

    def is_confined(self) -> bool:
        """Whether AppArmor, by libvirt's profile for this domain, says what its QEMU may do."""
        if "<model>apparmor</model>" not in self.virsh("capabilities"):
            return False
        label = Path(f"/proc/{self.qemu_pid()}/attr/current").read_text()
        return label.startswith("libvirt-") and label.rstrip("\0\n").endswith("(enforce)")

    def qemu_pid(self) -> int:
        """The process of the domain."""
        return int((self.folder / "run" / "libvirt" / "qemu" / "web1.pid").read_text())


@pytest.fixture
def libvirt(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Libvirt]:
    """A libvirt, which virsh and colo find."""
    if shutil.which("libvirtd") is None or shutil.which("virsh") is None:
        pytest.skip("no libvirt: install libvirt-daemon-system and libvirt-clients")
    made = Libvirt(stage)
    monkeypatch.setenv(URI, f"qemu:///system?socket={made.folder}/libvirt-sock")
    made.start()
    yield made


def nodes(stage: Stage, libvirt: Libvirt) -> tuple[Colo, Colo]:
    """A ``colo node`` on either host, with the VM file that is imported from the domain.

    From its process; where that is the loader of a QEMU that is unpacked somewhere, from libvirt.
    """
    a, b = stage.colo("a", Place.HOST_A), stage.colo("b", Place.HOST_B)
    libvirt.domain(a.console.log)
    is_installed = Path(f"/proc/{libvirt.qemu_pid()}/exe").resolve().name.startswith("qemu")
    source = ("--pid", str(libvirt.qemu_pid())) if is_installed else ("--libvirt", "web1")
    done = subprocess.run(
        [colo(), "import", *source, "--name", stage.folder.name],
        capture_output=True, text=True, timeout=VIRSH_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = f"/var/log/{stage.folder.name}-charserial0.log" if is_installed else str(a.console.log)
    assert log in done.stdout
    text = done.stdout.replace(log, str(b.console.log))
    text += f'\n{HOSTS}\n[failover]\narbiter = "file:{stage.grant}"\n'
    for each in (a, b):
        each.file.write_text(text)
    return a, b


@pytest.mark.parametrize("qemu", VERSIONS, indirect=True)
def test_a_domain_is_protected_and_taken_over(stage: Stage, libvirt: Libvirt) -> None:
    a, b = nodes(stage, libvirt)
    assert libvirt.is_confined() or CONFINED not in os.environ
    libvirt.virsh("autostart", "web1")
    fits = (colo(), "check", str(a.file), "--host", "a", "--libvirt", "web1")
    assert "note: libvirt would start web1 by itself" in stage.lab.run(Place.HOST_A, *fits)
    b.start("node", "--host", "b")
    a.start("node", "--host", "a", "--libvirt", "web1")
    wait_protected(a)
    assert len(a.said("virsh autostart --disable web1")) == 1
    client = stage.client("stream")
    a.wait_checkpoints()
    assert a.status()["qemu"]["pid"] == libvirt.qemu_pid()
    assert "custom monitor control commands" in libvirt.virsh("dominfo", "web1")
    assert libvirt.virsh("domstate", "web1") in ("running", "paused")

    libvirt.kill()
    a.wait_said("libvirt is gone from the domain web1")
    a.wait_checkpoints()
    client.wait_heard()
    libvirt.start()
    a.wait_said("libvirt is back at the domain web1")
    assert libvirt.virsh("list", "--name") == "web1"
    a.wait_checkpoints()
    assert a.state_name() == "PROTECTED"

    os.kill(libvirt.qemu_pid(), signal.SIGKILL)
    b.wait_said("RUNNING HERE")
    client.wait_heard()
    client.check()
    wait_protected(b)  # host a follows, in a QEMU of colo's
    assert libvirt.virsh("domstate", "web1") == "shut off"


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)
def test_a_loss_while_libvirt_is_away_waits_for_it(stage: Stage, libvirt: Libvirt) -> None:
    a, b = nodes(stage, libvirt)
    a.start("node", "--host", "a", "--libvirt", "web1")
    b.start("node", "--host", "b")
    wait_protected(a)
    client = stage.client("stream")
    libvirt.kill()
    a.wait_said("libvirt is gone from the domain web1")
    stage.kill(b)
    a.wait_state("LOST")
    libvirt.start()
    a.wait_state("UNPROTECTED")
    client.wait_heard()
    client.check()

    libvirt.virsh("destroy", "web1")
    assert a.wait_exit() == 0
    assert "the guest has shut down" in a.text().splitlines()[-1]
