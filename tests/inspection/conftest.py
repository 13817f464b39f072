"""Sources for the tests of what ``colo inspect`` tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.streams import Stream

Written = Callable[[str, Stream], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Write a stream's migration to a file of some name."""

    def write(name: str, stream: Stream) -> Path:
        path = tmp_path / name
        path.write_bytes(stream.data)
        return path

    return write
