"""The state folder: a status that cannot be written leaves nothing behind."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from colo.node.statefolder import StateFolder


def test_a_status_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, text: Any, **options: Any) -> None:
        text.write("{half")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = StateFolder(tmp_path)
    folder.write_status({"state": "READY"})
    with monkeypatch.context() as patch:
        patch.setattr("colo.node.statefolder.json.dump", full)
        with pytest.raises(OSError, match="No space left"):
            folder.write_status({"state": "LOST"})
    assert json.loads(folder.status.read_text())["state"] == "READY"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "status.json"]
    folder.close()
