"""The primary is killed, at a point that each run draws anew, in each phase of a checkpoint."""

from __future__ import annotations

import random
import signal

import pytest

from tests.e2e.basics import wait
from tests.e2e.harness import Scene
from tests.e2e.wire import Phase

pytestmark = pytest.mark.e2e

#: By phase: in which state the secondary learns of it.
LOST_IN = {
    Phase.REQUEST: "READY",
    Phase.REPLY: "REPLIED",
    Phase.RAM: "RECEIVING_RAM",
    Phase.DEVICES: "RECEIVING_DEVICES",
    Phase.RECEIVED: "READY",
    Phase.LOADED: "READY",
    Phase.DONE: "READY",
}


@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name)
def test_primary_killed_in_a_checkpoint(scene: Scene, draw: random.Random, phase: Phase) -> None:
    primary, wire, host = scene.protected()

    host.wait_checkpoint(3)
    number = wire.stop_at(phase, draw.random(), ahead=draw.randrange(2, 6))
    wire.wait_stopped()
    print(f"checkpoint {number}, {phase.value}, {wire.passed} bytes into it")
    assert wire.error is None, wire.error
    primary.kill()
    wire.cut()

    status = host.wait_state("RUNNING")
    whole = number if phase.is_whole else number - 1
    assert status["takeover"]["checkpoint"] == status["checkpoint"] == whole
    assert status["lost_in"] == LOST_IN[phase]
    assert status["alive"]
    scene.check_goes_on(primary, host, whole)
    assert len(host.said("RUNNING HERE")) == 1


def test_loss_arrives_together_with_the_last_byte(scene: Scene) -> None:
    """The secondary's host is busy: it reads the checkpoint's end and the loss in one go."""
    primary, wire, host = scene.protected()

    host.wait_checkpoint(3)
    number = wire.stop_at(Phase.DEVICES, fraction=1.0)
    wire.wait_stopped()
    # All but the end has to be read, or there is no room for the end while the host stands still.
    trace, read = host.state / "colo.log", f"#{number} secondary AWAITING_SIZE → RECEIVING_DEVICES"
    wait(lambda: read in trace.read_text(), "the secondary to read the pages")
    host.signal(signal.SIGSTOP)
    wire.go_on_to_end()
    primary.kill()
    wire.cut()
    host.signal(signal.SIGCONT)

    status = host.wait_state("RUNNING")
    assert status["takeover"]["checkpoint"] == status["checkpoint"] == number
    scene.check_goes_on(primary, host, number)
