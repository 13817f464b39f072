"""What ``colo primary`` refuses: one line, an exit code, and nothing is left in QEMU."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from colo.demo.lab import Place
from colo.membership.grant import Record
from tests.e2e.basics import qmp
from tests.e2e.net.stage import Colo, Stage, Vm, at, left_in_qemu

pytestmark = pytest.mark.e2e

BARE = Vm(guest=False, memory_mib=32)
ARGS = BARE.args


@dataclass(frozen=True)
class Case:
    """One obstacle: the VM's own, or the secondary's VM file, or what ``prepare`` does."""

    code: int
    words: str
    vm: Vm = BARE
    other: Vm | None = None
    other_name: str = ""
    prepare: Callable[[Stage, Colo], object] = field(default=lambda stage, qemu: None)
    way_out: str = ""
    runs: bool = True


def hold_qmp(stage: Stage, qemu: Colo) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(qemu.state / "qmp.sock"))
    assert b"QMP" in sock.recv(1000)
    return sock


def remove_qmp(stage: Stage, qemu: Colo) -> None:
    (qemu.state / "qmp.sock").unlink()


def migrate(stage: Stage, qemu: Colo) -> None:
    second = qemu.state / "second.sock"
    qmp(second, "migrate-set-parameters", max_bandwidth=1024)
    qmp(second, "migrate", uri="exec:sleep 60")


def pause(stage: Stage, qemu: Colo) -> None:
    qmp(qemu.state / "second.sock", "stop")


def plug_blocker(stage: Stage, qemu: Colo) -> None:
    memory = {"qom_type": "memory-backend-ram", "id": "m", "size": 1 << 20, "share": True}
    qmp(qemu.state / "second.sock", "object-add", **memory)
    qmp(qemu.state / "second.sock", "device_add", driver="ivshmem-plain", memdev="m")


def set_tls(stage: Stage, qemu: Colo) -> None:
    qmp(qemu.state / "second.sock", "migrate-set-parameters", tls_creds="none")


def grant_another(stage: Stage, qemu: Colo) -> None:
    stage.grant.write_text(Record(7, "elsewhere/1/1").encode())


DISK = ("-drive", "if=virtio,driver=null-co,size=1048576,id=d0")
CASES = {
    "another name": Case(1, "its VM is ", other=BARE, other_name="another"),
    "other args": Case(1, "another machine", other=replace(BARE, args=(*ARGS, "-snapshot"))),
    "other arbiter": Case(1, "its arbiter is ", other=replace(BARE, arbiter="manual")),
    "no arbiter": Case(2, "arbiter", vm=replace(BARE, arbiter="none")),
    "granted to another": Case(2, "say --claim", prepare=grant_another, way_out="--claim"),
    "no QMP socket": Case(1, "there is no QMP socket", prepare=remove_qmp),
    "QMP is busy": Case(1, "another client holds it", prepare=hold_qmp),
    "a disk": Case(
        1, "--unprotected-disks", vm=replace(BARE, args=DISK), way_out="--unprotected-disks"
    ),
    "a migration": Case(1, "a migration is active", prepare=migrate),
    "paused": Case(1, "the VM does not run (paused)", prepare=pause, runs=False),
    "a blocker": Case(1, "QEMU cannot migrate this VM", prepare=plug_blocker),
    "tls-creds": Case(1, "the migration parameter tls-creds is set", prepare=set_tls),
    "suppress-vmdesc": Case(
        1, "suppress-vmdesc", vm=replace(BARE, args=("-machine", "suppress-vmdesc=on"))
    ),
}


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused(stage: Stage, case: Case) -> None:
    stage.vm = case.vm
    qemu = stage.qemu("q")
    if case.other is not None:
        name = case.other_name and f"{case.other_name}-{stage.folder.name}"  # cleared by the latter
        other = stage.colo("b", Place.HOST_B, case.other, name)
        other.start("secondary", "--listen", at(Place.HOST_B))
        other.wait_said("waiting for a primary")
    kept = case.prepare(stage, qemu)
    primary = stage.protect("a", Place.HOST_A, qemu.state / "qmp.sock")

    assert primary.wait_exit() == case.code, primary.text()
    assert len(primary.text().splitlines()) == 1, primary.text()
    assert case.words in primary.text()
    assert left_in_qemu(qemu.state / "second.sock") == []
    assert qmp(qemu.state / "second.sock", "query-status")["running"] is case.runs
    if isinstance(kept, socket.socket):
        kept.close()
    if case.way_out:
        secondary = stage.secondary()
        again = stage.protect("a2", Place.HOST_A, qemu.state / "qmp.sock", case.way_out)
        again.wait_state("PROTECTED")
        again.signal(signal.SIGINT)
        assert again.wait_exit() == 0
        secondary.wait_state("LISTENING")


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)
def test_a_qemu_that_a_colo_protects_is_left_to_it(stage: Stage) -> None:
    """It may have a second QMP socket; nothing of the first colo's is touched by that."""
    stage.vm = BARE
    qemu = stage.qemu("q")
    stage.secondary()
    first = stage.protect("a", Place.HOST_A, qemu.state / "qmp.sock")
    first.wait_state("PROTECTED")
    first.wait_checkpoints()
    for options in ((), ("--claim",)):
        second = stage.protect(
            f"a{len(options)}2", Place.HOST_A, qemu.state / "second.sock", *options
        )
        assert second.wait_exit() == 2
        assert len(second.text().splitlines()) == 1, second.text()
        assert "another colo protects this QEMU" in second.text()
    first.wait_checkpoints()
    assert len(first.said("PROTECTED by")) == 1
    assert first.state_name() == "PROTECTED"


#: What both VM files say, while the QEMU that runs is another.
CARD = Vm(nics=("e1000",))
CPUS = Vm(args=("-no-reboot", "-smp", "2"))
RNG = Vm(args=("-no-reboot", "-device", "virtio-rng-pci"))
INSTEAD = (
    "memory 0000:00:02.0/virtio-net-pci.rom, the waiting QEMU has 0000:00:02.0/e1000.rom instead"
)


@pytest.mark.parametrize(
    ("qemu", "vm", "wrong", "words"),
    [
        ("7.2", Vm(), CARD, INSTEAD),
        ("7.2", Vm(), CPUS, " 1 processor, the waiting QEMU"),
        ("11.1", Vm(), CPUS, " 1 processor, the waiting QEMU"),
        ("11.1", RNG, Vm(), " virtio-rng at PCI address 03.0, the waiting QEMU has nothing there"),
    ],
    ids=[
        "7.2-another card",
        "7.2-another processor",
        "11.1-another processor",
        "11.1-a device less",
    ],
    indirect=["qemu"],
)
def test_a_vm_file_of_another_vm(stage: Stage, vm: Vm, wrong: Vm, words: str) -> None:
    """It is the same on both hosts, and the QEMU that runs was started by hand."""
    assert stage.vm is vm
    qemu = stage.qemu("q")
    client = stage.client("echo")
    stage.vm = wrong
    secondary = stage.secondary()
    primary = stage.protect("a", Place.HOST_A, qemu.state / "qmp.sock")

    assert primary.wait_exit() == 1, primary.text()
    told = [line for line in primary.text().splitlines() if "refuses" in line]
    assert len(told) == 1, primary.text()
    assert words in told[0]
    assert told[0].endswith("make [qemu] args the same as what the running QEMU was started with")
    assert told[0].partition(" refuses: ")[2] in secondary.said("no first copy: ")[0]
    for colo in (primary, secondary):
        assert not [line for line in colo.said("PROTECTED") if "UNPROTECTED" not in line]
    assert left_in_qemu(qemu.state / "second.sock") == []
    assert qmp(qemu.state / "second.sock", "query-status")["running"]
    client.wait_heard()
    client.check()
    assert secondary.state_name() == "LISTENING"
