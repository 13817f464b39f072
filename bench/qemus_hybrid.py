"""QEMU's own hybrid mode on a scene's VM: colo-compare, filter-mirror, filter-rewriter.

As ``docs/system/qemu-colo.rst`` of QEMU sets it up, added to a VM that runs.  Its character devices
are unix sockets from one QEMU to the other, so what goes between them does not pass the lab's
replication link.  Nothing here takes it out again: whoever wants a fresh VM starts one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from bench.errors import BenchError
from bench.network import Scene
from bench.qmp import Monitor
from bench.vm import set_capabilities, wait_until
from colo.demo.lab import Place

__all__ = ["qemus_own"]

_NETDEV: Final = "n0"
_ENTER_S: Final = 60.0
_BANDWIDTH: Final = 1 << 40
#: Whatever differs asks for a checkpoint; by itself none is due before so long.
_DELAY_MS: Final = 60_000


@contextlib.contextmanager
def qemus_own(scene: Scene) -> Iterator[int]:
    """The scene's VM, which runs, with QEMU's own secondary beside; yields the secondary's pid."""
    scene.lab.run(Place.HOST_B, "ip", "link", "set", "tap0", "nomaster")
    with scene.qemus_secondary() as (pid, qmp):
        secondary = Monitor(qmp)
        try:
            with scene.monitor() as primary:
                _Setting(scene, primary, secondary).begin()
            yield pid
        finally:
            secondary.close()


class _Setting:
    """What is put into the two QEMUs."""

    def __init__(self, scene: Scene, primary: Monitor, secondary: Monitor) -> None:
        self._folder = scene.folder
        self._primary, self._secondary = primary, secondary

    def begin(self) -> None:
        """Have both in hybrid mode.  Raises BenchError."""
        for name in ("mirror0", "compare1", "compare0", "compare_out"):
            self._chardev(self._primary, name, name, is_server=True)
        for name, to in (("compare0-0", "compare0"), ("compare_out0", "compare_out")):
            self._chardev(self._primary, name, to)
        for name, to in (("red0", "mirror0"), ("red1", "compare1")):
            self._chardev(self._secondary, name, to)
        self._filter(self._secondary, "filter-redirector", "f1", "tx", indev="red0")
        self._filter(self._secondary, "filter-redirector", "f2", "rx", outdev="red1")
        self._filter(self._secondary, "filter-rewriter", "rew0", "all")
        self._primary.execute("object-add", qom_type="iothread", id="iothread1")
        self._filter(self._primary, "filter-mirror", "m0", "tx", outdev="mirror0")
        self._filter(self._primary, "filter-redirector", "redire0", "rx", indev="compare_out")
        self._filter(self._primary, "filter-redirector", "redire1", "rx", outdev="compare0")
        _add(
            self._primary,
            "colo-compare",
            "comp0",
            {
                "primary_in": "compare0-0",
                "secondary_in": "compare1",
                "outdev": "compare_out0",
                "iothread": "iothread1",
            },
        )
        address = f"unix:{self._folder / 'own-migration.sock'}"
        for monitor in (self._secondary, self._primary):
            set_capabilities(monitor)
        self._secondary.execute("migrate-incoming", uri=address)
        self._primary.execute(
            "migrate-set-parameters", x_checkpoint_delay=_DELAY_MS, max_bandwidth=_BANDWIDTH
        )
        self._primary.execute("stop")
        self._primary.execute("migrate", uri=address)
        wait_until("QEMU's own hybrid mode", self._has_begun, _ENTER_S)

    def _has_begun(self) -> bool | None:
        status = self._primary.execute("query-migrate").get("status")
        if status in ("failed", "cancelled", "completed"):
            raise BenchError(f"QEMU's own hybrid mode did not begin, the migration {status}")
        if status != "colo":
            return None
        return bool(self._primary.execute("query-status")["running"]) or None

    def _chardev(self, monitor: Monitor, name: str, to: str, is_server: bool = False) -> None:
        path = self._folder / f"own-{to}.sock"
        data: dict[str, Any] = {"addr": {"type": "unix", "data": {"path": str(path)}}}
        data |= {"server": True, "wait": False} if is_server else {"server": False}
        backend = {"type": "socket", "data": data}
        monitor.execute("chardev-add", id=name, backend=backend)
        if is_server:
            deadline = time.monotonic() + _ENTER_S
            while not path.exists():
                if time.monotonic() > deadline:
                    raise BenchError(f"QEMU does not listen at {path}")

    def _filter(self, monitor: Monitor, kind: str, name: str, queue: str, **ends: str) -> None:
        _add(monitor, kind, name, {"netdev": _NETDEV, "queue": queue, **ends})


def _add(monitor: Monitor, kind: str, name: str, properties: Mapping[str, Any]) -> None:
    monitor.add_object(kind, name, {**properties, "vnet_hdr_support": True})
