"""A running QEMU's disks, by their names; mirrors themselves are in tests/e2e/test_disks.py."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from colo.errors import GuestError
from colo.qemu.mirrors import Source, disk_names, find_disks
from colo.qemu.monitor import Monitor

DRIVE = {
    "device": "virtio0",
    "qdev": "/machine/peripheral-anon/device[0]/virtio-backend",
    "inserted": {"node-name": "#block139", "image": {"virtual-size": 1 << 20}},
}
DEVICE = {
    "device": "",
    "qdev": "/machine/peripheral/data/virtio-backend",
    "inserted": {"node-name": "node0", "image": {"virtual-size": 2 << 20}},
}
SCSI = {
    "device": "",
    "qdev": "scsi1",
    "inserted": {"node-name": "node1", "image": {"virtual-size": 3 << 20}},
}
EMPTY = {"device": "cd0", "qdev": "/machine/unattached/device[9]"}


class Qemu:
    """Has these drives."""

    async def execute(self, command: str) -> list[dict[str, Any]]:
        assert command == "query-block"
        return [DRIVE, DEVICE, SCSI, EMPTY]


def found(*ids: str) -> tuple[Source, ...]:
    return asyncio.run(find_disks(cast(Monitor, Qemu()), ids))


@pytest.mark.parametrize(
    ("entry", "name"),
    [(DRIVE, "virtio0"), (DRIVE, "#block139"), (DEVICE, "data"), (DEVICE, "node0"),
     (SCSI, "scsi1"), (EMPTY, "cd0")],
)  # fmt: skip
def test_a_drive_goes_by_its_own_name_its_devices_and_its_nodes(
    entry: dict[str, Any], name: str
) -> None:
    assert name in disk_names(entry)
    assert "" not in disk_names(entry)


def test_disks_are_found_in_the_order_of_the_vm_file() -> None:
    assert found("data", "virtio0", "scsi1") == (
        Source("data", "node0", 2 << 20),
        Source("virtio0", "#block139", 1 << 20),
        Source("scsi1", "node1", 3 << 20),
    )


@pytest.mark.parametrize("name", ["other", "cd0", "virtio-backend"])
def test_a_disk_that_is_not_there_is_said_with_those_that_are(name: str) -> None:
    with pytest.raises(GuestError) as caught:
        found("data", name)
    text = str(caught.value)
    assert f"[[disks]] {name}: this QEMU has no drives of that name" in text
    assert "(it has data, node1, virtio0)" in text
