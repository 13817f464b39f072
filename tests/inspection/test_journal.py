"""What ``colo inspect`` says of a disk's journal."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner

from colo.cli import main
from colo.disks.blockfile import RealFile
from colo.disks.head import HEADS_SIZE, PLACE_SIZE
from colo.disks.replica import Replica

ID = UUID(int=5)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a disk of 1 MiB, at checkpoint 7."""
    with (tmp_path / "disk").open("wb") as file:
        file.truncate(1 << 20)
    path = tmp_path / "vda.journal"
    base = RealFile(tmp_path / "disk", "vda")
    replica = Replica.create("vda", base, RealFile.make(path, "vda", HEADS_SIZE + (64 << 10)), ID)
    replica.end_copy(0)
    replica.write(0, b"x")
    replica.cut()
    replica.commit(8)
    replica.merge()
    replica.close()
    return path


def inspect(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["inspect", *words])
    return done.exit_code, done.output


def test_a_journal_says_at_which_checkpoint_its_disk_is(journal: Path) -> None:
    before = journal.read_bytes()
    code, text = inspect(str(journal))
    assert code == 0
    assert "CLEAN" in text and "its disk is at a checkpoint" in text
    assert json.loads(inspect(str(journal), "--json")[1]) == {
        "state": "CLEAN",
        "meaning": "its disk is at a checkpoint",
        "checkpoint": 7,
        "replication": str(ID),
        "disk_bytes": 1 << 20,
        "journal_bytes": 64 << 10,
    }
    assert journal.read_bytes() == before


@pytest.mark.parametrize("handed", [False, True], ids=["copying", "a VM's"])
def test_one_that_is_at_no_checkpoint_says_so(journal: Path, handed: bool) -> None:
    base = RealFile(journal.with_name("disk"), "vda")
    replica = Replica.open("vda", base, RealFile(journal, "vda"))
    replica.hand_over() if handed else replica.begin_copy(ID)
    replica.close()
    found = json.loads(inspect(str(journal), "--json")[1])
    assert found["checkpoint"] is None
    assert found["state"] == ("HANDED_OVER" if handed else "COPYING")


def test_a_damaged_one_is_one_line(journal: Path) -> None:
    content = bytearray(journal.read_bytes())
    content[PLACE_SIZE : 2 * PLACE_SIZE] = bytes(PLACE_SIZE)
    journal.write_bytes(content)
    code, text = inspect(str(journal))
    assert code != 0
    assert "the journal's head is damaged" in text
