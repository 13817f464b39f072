"""How long a VM stood still, what of it was given back, and what its operator is told."""

from __future__ import annotations

import time

import pytest

from colo.config import VmConfig
from colo.config.vm import Checkpoints
from colo.packets.pace import WINDOW_S
from colo.qemu.guest_clock import GivenBack
from colo.qemu.monitor import Monitor
from colo.session import standstill
from colo.session.standstill import StandStill


class Scene:
    """A VM whose library, if there is one, says ``given``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given: GivenBack | None) -> None:
        self.given = given
        self.said: list[str] = []
        monkeypatch.setattr(standstill, "given_back", lambda pid: self.given)
        config = VmConfig("web1", checkpoints=Checkpoints(stopped_share_max=0.2))
        self.still = StandStill(config, _Qemu(), self.said.append)

    def status(self) -> dict[str, object]:
        status = self.still.status()
        assert status is not None
        return status


class _Qemu(Monitor):
    def __init__(self) -> None:
        self.pid = 1


def gave(seconds: float, trouble: str | None = None) -> GivenBack:
    return GivenBack(trouble, 3, seconds, 0.1, 0)


def test_nothing_is_said_before_it_is_protected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Scene(monkeypatch, None).still.status() is None


def test_with_the_library_all_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, gave(100.0))
    scene.still.protected()
    scene.still.stopped(2.0, time.monotonic())
    scene.given = gave(102.0)
    status = scene.status()
    assert (status["stood_still_s"], status["given_back_s"], status["lost_s"]) == (2.0, 2.0, 0.0)
    assert status["trouble"] is None
    assert scene.said == []
    scene.given = None  # QEMU has ended: what was known stays
    assert scene.status()["given_back_s"] == 2.0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "this QEMU was started without colo's library: see `colo preload`"),
        (gave(0.0, "as it is"), "as it is"),
    ],
)
def test_without_it_the_loss_is_counted_and_said_once(
    monkeypatch: pytest.MonkeyPatch, given: GivenBack | None, why: str
) -> None:
    scene = Scene(monkeypatch, given)
    for _ in range(2):
        scene.still.protected()
        scene.still.stopped(1.5, time.monotonic())
    status = scene.status()
    assert status["lost_s"] == status["stood_still_s"] == 3.0
    assert status["trouble"] == why
    assert scene.said == [f"the guest's clock loses the time that checkpoints take: {why}"]


def test_a_share_above_the_bound_is_said_each_time_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, now = Scene(monkeypatch, gave(0.0)), 1000.0
    scene.still.stopped(0.1 * WINDOW_S, now)
    assert scene.said == []
    for _ in range(2):
        scene.still.stopped(0.15 * WINDOW_S, now + 1)
        scene.still.stopped(0.01, now + 2)
        now += 3 * WINDOW_S
        scene.still.stopped(0.1 * WINDOW_S, now)
    assert len(scene.said) == 2
    assert "stopped_share_max = 0.2" in scene.said[0]
