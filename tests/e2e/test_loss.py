"""The two sides lose each other, one way or another, and what goes on."""

from __future__ import annotations

import contextlib
import fcntl
import random
import signal
import socket
import struct
import termios

import pytest

from colo.errors import GuestError
from tests.e2e.basics import wait
from tests.e2e.harness import Scene
from tests.e2e.vm import VmFile
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

NEVER_MS = 3_600_000
HALF_A_CHECKPOINT = [Phase.RAM, Phase.DEVICES]


@pytest.mark.parametrize("phase", HALF_A_CHECKPOINT, ids=lambda phase: phase.name)
def test_connection_is_cut(scene: Scene, draw: random.Random, phase: Phase) -> None:
    primary, wire, host = scene.protected()

    host.wait_checkpoint(3)
    number = wire.stop_at(phase, draw.random(), ahead=draw.randrange(2, 6))
    wire.wait_stopped()
    wire.cut()

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == number - 1
    reason = primary.ended()
    assert reason.startswith("QEMU left COLO, reason: error"), reason
    assert not primary.is_running(), "two VMs run"
    scene.check_goes_on(primary, host, number - 1)
    assert not primary.is_running(), "two VMs run"


def test_connection_is_cut_between_checkpoints(scene: Scene) -> None:
    """The primary's QEMU learns of it at the next checkpoint, and says so then."""
    primary, wire, host = scene.protected(delay_ms=NEVER_MS)

    primary.execute("migrate-set-parameters", x_checkpoint_delay=NEVER_MS)  # one, now
    host.wait_checkpoint(1)
    wire.cut()

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == 1
    assert status["lost_in"] == "READY"
    scene.check_goes_on(primary, host, 1)
    primary.execute("migrate-set-parameters", x_checkpoint_delay=NEVER_MS)
    reason = primary.ended()
    assert reason.startswith("QEMU left COLO, reason: error"), reason


def test_primary_falls_silent_within_a_checkpoint(scene: Scene, draw: random.Random) -> None:
    vm = VmFile(silence_s=1.5)
    primary, wire, host = scene.protected(vm)

    host.wait_checkpoint(3)
    number = wire.stop_at(Phase.RAM, draw.random())
    wire.wait_stopped()
    primary.signal(signal.SIGSTOP)

    status = host.wait_state("RUNNING")
    assert "silent for" in status["error"]
    assert status["takeover"]["checkpoint"] == number - 1
    assert status["lost_in"] == "RECEIVING_RAM"
    scene.check_goes_on(primary, host, number - 1)

    primary.signal(signal.SIGCONT)
    reason = primary.ended()
    assert reason.startswith("QEMU left COLO, reason: error"), reason
    assert not primary.is_running(), "two VMs run"


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_silence_between_checkpoints_is_no_loss(scene: Scene) -> None:
    vm = VmFile(silence_s=0.5)
    primary, _, host = scene.protected(vm, delay_ms=NEVER_MS)
    primary.console.wait_progress(40)
    assert host.status()["state"] == "KEEPING"


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_primary_lost_before_any_checkpoint(scene: Scene) -> None:
    """Over TCP, and only the first migration is there."""
    host, primary = scene.host(), scene.primary()
    host.listen = f"tcp:127.0.0.1:{free_port()}"
    host.start()
    primary.console.wait_count(3)
    primary.protect(host.listen, NEVER_MS)
    host.wait_said("PROTECTED")
    primary.console.wait_progress()
    assert host.status()["checkpoint"] == 0
    primary.kill()

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == 0
    assert status["primary"].startswith("tcp:127.0.0.1:")
    host.console.wait_progress()
    host.console.verify()
    first = host.console.lines()[0][0]
    assert first <= primary.console.last()


def test_primary_lost_within_the_first_migration(scene: Scene) -> None:
    """Nothing is whole: the secondary waits for the next primary, and protects that one."""
    host, first = scene.host(), scene.primary()
    host.start()
    wire = scene.wire(host, first)
    wire.stop_in_first_migration(8 << 20)
    first.console.wait_count(3)
    first.begin_to_protect(f"unix:{wire.path}")
    wire.wait_stopped()
    assert host.wait_state("RECEIVING")["checkpoint"] is None
    refused = host.run("failover", "--force")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no whole checkpoint" in refused.stderr
    first.kill()
    wire.cut()

    host.wait_said("no first copy")
    assert host.status()["state"] == "LISTENING"
    second = scene.primary()
    second.console.wait_count(3)
    wire = scene.wire(host, second)
    second.protect(f"unix:{wire.path}")
    host.wait_checkpoint(2)
    wire.stop_at(Phase.DONE)
    wire.wait_stopped()
    second.kill()
    wire.cut()
    status = host.wait_state("RUNNING")
    scene.check_goes_on(second, host, status["checkpoint"])


def test_loss_arrives_together_with_the_first_copys_last_byte(scene: Scene) -> None:
    """What a wire recorded is sent to another host, which then reads its end and the loss."""
    recording = scene.host()
    recording.start("--on-loss", "hold")
    primary = scene.primary()
    primary.console.wait_count(3)
    wire = scene.wire(recording, primary)
    wire.first_migration = bytearray()
    primary.protect(f"unix:{wire.path}", NEVER_MS)
    recording.wait_said("PROTECTED")
    primary.kill()
    recording.wait_said("holding checkpoint 0")
    recording.close()

    host = scene.host()
    host.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.socket))
        sock.sendall(wire.first_migration[:-1])
        wait(lambda: not unread(sock), "the secondary to read it")
        host.signal(signal.SIGSTOP)
        sock.sendall(wire.first_migration[-1:])
    host.signal(signal.SIGCONT)
    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == status["checkpoint"] == 0
    scene.check_goes_on(primary, host, 0)


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_second_primary_is_refused(scene: Scene) -> None:
    primary, _, host = scene.protected()
    stranger = scene.primary(VmFile(guest=False))
    checkpoint = host.status()["checkpoint"]

    with pytest.raises(GuestError, match="did not start"):
        stranger.protect(host.listen)
    assert stranger.is_running()

    line = host.wait_said("was refused")
    assert line.endswith("was refused: this VM has its primary already")
    assert len(host.said("was refused")) == 1
    host.wait_checkpoint(checkpoint + 5)
    primary.console.wait_progress()


def test_secondary_is_killed_and_comes_back(scene: Scene) -> None:
    primary, _, host = scene.protected()
    host.wait_checkpoint(2)
    orphan = host.qemu_pid()
    host.signal(signal.SIGKILL)
    host.wait_exit()

    reason = primary.ended()
    assert reason.startswith("QEMU left COLO, reason: error"), reason
    primary.run_alone()
    primary.console.wait_progress()
    assert primary.is_running()
    status = host.status()
    assert status["alive"] is False
    assert host.run("status").returncode == 1
    assert any(f"process {orphan}:" in left for left in scene.leftovers())
    assert host.run("failover").stderr.startswith("colo: no colo runs with the state folder")

    host.start()
    assert not any(f"process {orphan}:" in left for left in scene.leftovers())
    wire = scene.wire(host, primary)
    primary.protect(f"unix:{wire.path}")
    host.wait_checkpoint(3)
    number = wire.stop_at(Phase.DEVICES, 0.5)
    wire.wait_stopped()
    primary.kill()
    wire.cut()
    assert host.wait_state("RUNNING")["takeover"]["checkpoint"] == number - 1
    scene.check_goes_on(primary, host, number - 1)


def unread(sock: socket.socket) -> int:
    """How many bytes the other side has still to read; reads what it sent."""
    with contextlib.suppress(BlockingIOError):
        sock.recv(4096, socket.MSG_DONTWAIT)
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    assert isinstance(count, int)
    return count


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert isinstance(port, int)
        return port
