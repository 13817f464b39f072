"""What a guest only reads: told by its name, compared by what is in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from colo.qemu.monitor import Monitor
from colo.qemu.read_only import differences, read_only_drives


def drive(
    device: str, node: str, path: object, ro: bool = True, qdev: str | None = None
) -> dict[str, Any]:
    inserted = {"node-name": node, "ro": ro, "image": {"filename": str(path)}}
    return {"device": device, "inserted": inserted} | ({"qdev": qdev} if qdev else {})


class Qemu:
    def __init__(self, *drives: dict[str, Any]) -> None:
        self._drives = drives

    async def execute(self, command: str) -> tuple[dict[str, Any], ...]:
        assert command == "query-block"
        return self._drives


def found(*drives: dict[str, Any]) -> dict[str, str]:
    return asyncio.run(read_only_drives(cast(Monitor, Qemu(*drives))))


def test_a_drive_is_told_by_its_name_and_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "cd"
    path.write_bytes(b"content")
    digests = found(
        drive("cd0", "#block1", path),
        drive("", "node1", path),
        drive("", "#block2", path, qdev="/machine/peripheral/cd2"),
        drive("disk0", "#block3", path, ro=False),
        {"device": "empty"},
        drive("net0", "#block4", "nbd://elsewhere/x"),
    )
    assert set(digests) == {"cd0", "node1", "/machine/peripheral/cd2", "net0"}
    assert digests["net0"] == "", "that is nobody's to read here"
    assert len({digests["cd0"], digests["node1"]}) == 1
    path.write_bytes(b"another")
    assert found(drive("cd0", "#block1", path))["cd0"] != digests["cd0"]


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        ({}, {"cd0": "1"}, ""),
        ({"cd0": "1"}, {"cd0": "1", "cd1": "2"}, ""),
        ({"cd0": "", "cd1": "2"}, {"cd0": "1", "cd1": ""}, ""),
        ({"cd0": "1"}, {"cd0": "2"}, "drive cd0, which the guest only reads, is another on this"),
        ({"cd0": "1"}, {}, "the primary's drive cd0, which the guest only reads, has nothing here"),
    ],
)
def test_what_differs(theirs: dict[str, str], ours: dict[str, str], text: str) -> None:
    assert differences(theirs, ours).startswith(text)
    assert bool(differences(theirs, ours)) == bool(text)
