"""COLO on a QEMU: what is set in it for that time, and that it is set back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from colo.errors import GuestError
from colo.qemu.colo_mode import ColoPrimary
from colo.qemu.monitor import Monitor

BANDWIDTH = 128 << 20
DELAY_MS = 20_000
OLD = ("xbzrle", "compress", "events", "x-colo", "return-path", "auto-converge", "x-ignore-shared")
NEW = ("xbzrle", "events", "x-colo", "return-path", "auto-converge", "mapped-ram")


class FakeQemu(Monitor):
    """Knows the capabilities of its version, enters COLO at once, and leaves it when told."""

    def __init__(self, major: int, on: set[str]) -> None:
        super().__init__()
        self.major, self.minor = major, 1
        self.capabilities = {name: name in on for name in (OLD if major < 11 else NEW)}
        self.parameters: dict[str, Any] = {
            "max-bandwidth": BANDWIDTH,
            "x-checkpoint-delay": DELAY_MS,
        }
        self.status = "none"
        self.running = True

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        return getattr(self, command.replace("-", "_"))(**arguments)

    def query_version(self) -> dict[str, Any]:
        return {"qemu": {"major": self.major, "minor": self.minor}}

    def query_migrate_capabilities(self) -> list[dict[str, Any]]:
        return [{"capability": name, "state": on} for name, on in self.capabilities.items()]

    def query_migrate_parameters(self) -> dict[str, Any]:
        return self.parameters

    def migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> None:
        for each in capabilities:
            if each["capability"] not in self.capabilities:
                raise GuestError(f"there is no capability {each['capability']}")
            self.capabilities[each["capability"]] = each["state"]

    def migrate_set_parameters(self, **parameters: Any) -> None:
        self.parameters |= {name.replace("_", "-"): value for name, value in parameters.items()}

    def query_kvm(self) -> dict[str, bool]:
        return {"enabled": False}

    def query_status(self) -> dict[str, Any]:
        return {"running": self.running, "status": "running" if self.running else "paused"}

    def query_migrate(self) -> dict[str, str]:
        return {"status": self.status}

    def stop(self) -> None:
        self.running = False

    def cont(self) -> None:
        self.running = True

    def migrate(self, uri: str) -> None:
        self.status, self.running = "colo", True

    def yank(self, instances: list[dict[str, str]]) -> None:
        pass

    def x_colo_lost_heartbeat(self) -> None:
        self.status = "completed"

    @property
    def on(self) -> set[str]:
        return {name for name, state in self.capabilities.items() if state}


@pytest.mark.parametrize(
    ("major", "before", "during", "after"),
    [
        (7, set(), {"x-colo"}, set()),
        (11, set(), {"x-colo", "return-path"}, set()),
        (
            7,
            {"xbzrle", "compress", "return-path"},
            {"x-colo"},
            {"xbzrle", "compress", "return-path"},
        ),
        (11, {"xbzrle", "mapped-ram"}, {"x-colo", "return-path"}, {"xbzrle", "mapped-ram"}),
        (11, {"return-path"}, {"x-colo", "return-path"}, {"return-path"}),
        (7, {"events"}, {"x-colo", "events"}, {"events"}),
        (11, {"auto-converge"}, {"x-colo", "return-path", "auto-converge"}, {"auto-converge"}),
        (7, {"x-ignore-shared", "events"}, {"x-colo", "events"}, {"events"}),
        (11, {"x-colo", "return-path", "xbzrle"}, {"x-colo", "return-path"}, {"xbzrle"}),
    ],
)
def test_only_what_colo_needs_is_on_meanwhile(
    major: int, before: set[str], during: set[str], after: set[str]
) -> None:
    async def play() -> None:
        qemu = FakeQemu(major, before)
        colo = ColoPrimary(qemu)
        for _ in range(2):
            await colo.start("unix:/x", 100)
            assert qemu.on == during
            assert qemu.parameters["max-bandwidth"] > BANDWIDTH
            assert qemu.parameters["x-checkpoint-delay"] == 100
            await colo.run_alone()
            assert qemu.on == after
            assert qemu.parameters == {"max-bandwidth": BANDWIDTH, "x-checkpoint-delay": DELAY_MS}

    asyncio.run(play())


def test_what_a_colo_left_that_was_killed_is_off() -> None:
    async def play() -> None:
        qemu = FakeQemu(11, {"x-colo", "return-path", "xbzrle"})
        qemu.status, qemu.running = "colo", False
        colo = ColoPrimary(qemu)
        await colo.check()
        await colo.run_alone()
        assert (qemu.on, qemu.running) == ({"xbzrle"}, True)

    asyncio.run(play())


def test_a_second_start_remembers_what_the_first_found() -> None:
    async def play() -> None:
        qemu = FakeQemu(7, {"xbzrle"})
        colo = ColoPrimary(qemu)
        await colo.start("unix:/x", 100)
        await colo.start("unix:/x", 100)
        await colo.run_alone()
        assert qemu.on == {"xbzrle"}

    asyncio.run(play())


@pytest.mark.parametrize(("major", "minor", "is_broken"), [(10, 0, 1), (10, 1, 1), (10, 2, 0)])
def test_a_qemu_whose_colo_does_not_work_is_named(major: int, minor: int, is_broken: bool) -> None:
    async def check(allow_broken: bool) -> None:
        qemu = FakeQemu(major, set())
        qemu.minor = minor
        await ColoPrimary(qemu, allow_broken).check()

    if is_broken:
        with pytest.raises(GuestError, match=rf"QEMU {major}\.{minor} never enters COLO"):
            asyncio.run(check(allow_broken=False))
    else:
        asyncio.run(check(allow_broken=False))
    asyncio.run(check(allow_broken=True))
