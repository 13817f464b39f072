"""When processors are kept awake, and what the kernel is told for it."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from colo.config import VmConfig
from colo.config.vm import Checkpoints
from colo.session.awake import Awake

OFTEN_S = 0.02  # half of the interval of the idle VM
NEVER = "/proc/self/no-such-device"


class Scene:
    """An Awake whose device is a file, so that what is written stays there to be read."""

    def __init__(
        self,
        folder: Path,
        latency_us: int | None = 7,
        device: str = "",
        age_max_ms: float = 1000.0,
    ) -> None:
        self.device = Path(device) if device else folder / "device"
        if not device:
            self.device.touch()
        self.said: list[str] = []
        checkpoints = Checkpoints(age_max_ms=age_max_ms, cpu_latency_us=latency_us)
        config = VmConfig("web1", checkpoints=checkpoints)
        self.awake = Awake(config, self.said.append, self.device)

    @property
    def open(self) -> int:
        """How often this process holds the device open."""
        links = (Path(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return sum(link.exists() and os.readlink(link) == str(self.device) for link in links)


def play(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def test_two_checkpoints_soon_after_another_hold_the_device_with_the_latency(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path)

    async def scenario() -> None:
        scene.awake.checkpoint()
        assert not scene.awake.held
        assert scene.open == 0
        for _ in range(3):
            scene.awake.checkpoint()
            assert scene.awake.held
            assert scene.open == 1

    play(scenario)
    assert scene.device.read_bytes() == struct.pack("@i", 7)
    scene.awake.close()
    assert scene.open == 0


def test_it_lasts_while_checkpoints_come_and_ends_with_them(tmp_path: Path) -> None:
    scene = Scene(tmp_path, age_max_ms=2e3 * OFTEN_S)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        last, rests = loop.time(), 0
        scene.awake.checkpoint()
        for _ in range(40):  # longer than a single hold lasts
            await asyncio.sleep(OFTEN_S / 10)
            rests += loop.time() - last >= OFTEN_S  # this machine was busy elsewhere
            last = loop.time()
            scene.awake.checkpoint()
            assert scene.awake.held or rests
        async with asyncio.timeout(10):
            while scene.awake.held:
                await asyncio.sleep(OFTEN_S / 10)
        assert loop.time() - last >= OFTEN_S
        assert scene.open == 0

    play(scenario)


def test_an_idle_vm_lets_processors_sleep(tmp_path: Path) -> None:
    scene = Scene(tmp_path, age_max_ms=2e3 * OFTEN_S)

    async def scenario() -> None:
        for _ in range(4):
            scene.awake.checkpoint()
            await asyncio.sleep(1.5 * OFTEN_S)
            assert not scene.awake.held

    play(scenario)


def test_without_a_latency_nothing_is_opened(tmp_path: Path) -> None:
    scene = Scene(tmp_path, latency_us=None)

    async def scenario() -> None:
        for _ in range(3):
            scene.awake.checkpoint()

    play(scenario)
    assert (scene.awake.held, scene.open, scene.said) == (False, 0, [])


@pytest.mark.parametrize("device", [NEVER, "/dev/full"])
def test_a_kernel_that_does_not_let_us_is_told_once(tmp_path: Path, device: str) -> None:
    scene = Scene(tmp_path, device=device)

    async def scenario() -> None:
        for _ in range(4):
            scene.awake.checkpoint()

    play(scenario)
    assert (scene.awake.held, scene.open) == (False, 0)
    [line] = scene.said
    assert device in line
    assert "remove cpu_latency_us" in line


def test_closing_twice_is_no_fault(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def scenario() -> None:
        scene.awake.checkpoint()
        scene.awake.checkpoint()
        scene.awake.close()
        scene.awake.close()
        assert not scene.awake.held

    play(scenario)
