"""The permit is there from a promotion to its end."""

from __future__ import annotations

from pathlib import Path

from colo.pacemaker.permit import Permit


def test_it_is_there_while_the_host_is_promoted(tmp_path: Path) -> None:
    permit, other = Permit("web1", tmp_path / "colo"), Permit("web2", tmp_path / "colo")
    assert not permit.is_there
    permit.give()
    permit.give()
    assert permit.is_there and not other.is_there
    permit.take_away()
    permit.take_away()
    assert not permit.is_there
