"""The guest's clock goes on over checkpoints and a takeover, and never goes back."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from colo.errors import GuestError
from colo.qemu.preload import CLOCK_LIBRARY, Library
from tests.e2e.basics import ACCEL, Moment
from tests.e2e.harness import Scene
from tests.e2e.vm import USUAL, PrimaryVm
from tests.e2e.wire import Phase, Wire

pytestmark = pytest.mark.e2e

STOPS = 3
STOP_S = 1.0


def stop_some(primary: PrimaryVm, wire: Wire) -> float:
    """Have the VM stand still for some seconds, within checkpoints; return for how long."""
    stood_s = 0.0
    for _ in range(STOPS):
        primary.console.wait_progress(2)
        wire.stop_at(Phase.LOADED)
        wire.wait_stopped()
        began = time.monotonic()
        time.sleep(STOP_S)  # what is measured: a stop of a known length
        stood_s += time.monotonic() - began
        wire.go_on()
    primary.console.wait_progress(2)
    return stood_s


def lost_at_most(first: Moment, second: Moment) -> float:
    """How much less than the host's time has gone by for the guest between two looks."""
    return (second.latest - first.earliest) - (second.guest - first.guest)


def lost_at_least(first: Moment, second: Moment) -> float:
    """The same, where the looks took no time."""
    return (second.earliest - first.latest) - (second.guest - first.guest)


def test_time_that_checkpoints_take_is_given_back(scene: Scene) -> None:
    primary, wire, _ = scene.protected()
    first = primary.console.clock()
    stood_s = stop_some(primary, wire)
    second = primary.console.clock()
    assert lost_at_least(first, second) < stood_s / 10
    assert lost_at_most(first, second) < stood_s / 2
    given = primary.given_back()
    assert given is not None and given.trouble is None
    assert given.seconds > stood_s
    assert (given.kvm_clocks > 0) == (ACCEL == "kvm")
    assert "CORRUPT" not in primary.console.text()


def test_without_the_library_it_is_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above would notice; and the VM is protected all the same."""

    built = Library.built

    def no_compiler(library: Library) -> Path:
        if library is CLOCK_LIBRARY:
            raise GuestError("there is no C compiler")
        return built(library)

    monkeypatch.setattr(Library, "built", no_compiler)
    primary, wire, _ = scene.protected()
    first = primary.console.clock()
    stood_s = stop_some(primary, wire)
    assert lost_at_least(first, primary.console.clock()) > stood_s / 2
    assert primary.given_back() is None


def test_after_a_takeover_the_clock_has_gone_on_and_not_back(scene: Scene) -> None:
    primary, _, host = scene.protected(USUAL, "--on-loss", "hold")
    primary.console.wait_progress(5)
    first = primary.console.clock()
    primary.console.wait_progress(5)
    primary.signal(signal.SIGKILL)
    host.wait_said("holding checkpoint")
    began = time.monotonic()
    time.sleep(STOPS * STOP_S)  # the VM stands still on neither host
    stood_s = time.monotonic() - began
    assert host.run("failover").returncode == 0
    host.console.wait_progress(3)
    second = host.console.clock()
    assert second.guest > first.guest
    assert lost_at_most(first, second) < stood_s / 2
    assert "CORRUPT" not in host.console.text()
