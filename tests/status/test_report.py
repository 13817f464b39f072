"""What people see of a status."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest

from colo.errors import ColoError
from colo.node.state_folder import StateFolder
from colo.status.report import is_alive, read_status, render
from colo.terminal import console

STATUS: dict[str, Any] = {
    "pid": os.getpid(),
    "alive": True,
    "written_at": time.time(),
    "role": "secondary",
    "vm": "web1",
    "state": "READY",
    "meaning": "protected",
    "checkpoint": None,
    "qemu": None,
    "arbiter": "none",
    "grant": 0,
    "error": None,
}
FORWARD = {"to": "tcp:c:9000", "state": "RUNNING", "checkpoint": 12, "bytes": 3 << 20}


def shown(**changes: Any) -> str:
    text = io.StringIO()
    render({**STATUS, **changes}, console(file=text))
    return text.getvalue()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "to tcp:c:9000: checkpoint 12 is there, 3 MiB sent"),
        ({"checkpoint": None}, "to tcp:c:9000: no whole checkpoint is there, 3 MiB sent"),
        (
            {"bytes": 0, "error": "no answer"},
            "to tcp:c:9000: checkpoint 12 is there, 0 MiB sent; not now: no answer",
        ),
    ],
)
def test_what_is_handed_on(changes: dict[str, Any], line: str) -> None:
    text = shown(forward={"error": None, **FORWARD, **changes})
    assert f"  handed on    {line}\n" in text


COPIED = {"in_step": False, "share": 0.25, "left_s": 90.0, "written_bytes": 0, "by_digest": False}
KEPT = {"condition": "WHOLE", "meaning": "it is whole", "held_bytes": 3 << 20, "merge_lag": 0}
KEPT |= {"epoch_bytes": 1 << 20}


@pytest.mark.parametrize(
    ("disk", "line"),
    [
        (COPIED, "2,048 MiB, 25% copied, 2 min left"),
        ({**COPIED, "share": 0.0, "left_s": None}, "2,048 MiB, 0% copied"),
        (
            {**COPIED, "in_step": True, "written_bytes": 5 << 20},
            "2,048 MiB, in step; 5 MiB written since it began",
        ),
        (
            {**COPIED, "by_digest": True},
            "2,048 MiB, 25% copied, as far as digests differ, 2 min left",
        ),
        (KEPT, "2,048 MiB, it is whole; 1 MiB since the last checkpoint, 3 MiB held"),
        (
            {**KEPT, "merge_lag": 2},
            "2,048 MiB, it is whole; 1 MiB since the last checkpoint, 3 MiB held, "
            "2 checkpoints are being written into it",
        ),
    ],
)
def test_a_disk_on_either_host(disk: dict[str, Any], line: str) -> None:
    assert f"  disk         root: {line}\n" in shown(
        disks=[{"id": "root", "size": 2 << 30, **disk}]
    )


@pytest.mark.parametrize(
    ("peer", "line"),
    [
        (None, "tcp:b:9000"),
        ({}, "tcp:b:9000"),
        (
            {"checkpoint": 1733, "state": "READY"},
            "tcp:b:9000: it says checkpoint 1733, state READY",
        ),
        ({"held_bytes": [None], "\x1b": {}}, r"tcp:b:9000: it says held bytes [None], \x1b {}"),
    ],
)
def test_what_the_other_host_says_of_itself(peer: dict[str, Any] | None, line: str) -> None:
    assert f"  secondary    {line}\n" in shown(secondary="tcp:b:9000", peer=peer)


CLOCK: dict[str, Any] = {
    "stood_still_s": 12.4,
    "given_back_s": 12.4,
    "lost_s": 0.0,
    "trouble": None,
    "stopped_share": 0.02,
    "stopped_share_max": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "the VM stood still 12.4 s in 62 min (2% of the last minute), all given back"),
        (
            {"stopped_share": 0.6},
            "the VM stood still 12.4 s in 62 min (60% of the last minute, more than "
            "stopped_share_max = 0.5), all given back",
        ),
    ],
)
def test_the_clock_of_a_guest_that_gets_its_time_back(changes: dict[str, Any], line: str) -> None:
    clock = {**CLOCK, "since": time.time() - 62 * 60, **changes}
    assert f"clock {line}" in " ".join(shown(clock=clock).split())


def test_the_clock_of_a_guest_that_loses_time() -> None:
    since = time.time() - 1000
    clock = {**CLOCK, "since": since, "given_back_s": 0.0, "lost_s": 12.4, "trouble": "no library"}
    text = " ".join(shown(clock=clock).split())
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(since))
    assert f"clock lost 12.4 s (1.24%) since {at} (2% of the last minute): no library" in text


@pytest.mark.parametrize(
    ("trouble", "line"), [(None, "kept; 1.5 s given back"), ("why", "not kept: why; 1.5 s")]
)
def test_the_clock_of_a_guest_that_was_taken_over(trouble: str | None, line: str) -> None:
    assert line in shown(clock={"trouble": trouble, "seconds": 1.5})


@pytest.mark.parametrize(
    ("aside", "line"),
    [
        (
            {
                "held_bytes": 3 << 20,
                "room_bytes": 256 << 20,
                "memory_bytes": 12 << 20,
                "lag_s": 1.5,
            },
            "3 MiB of 256 MiB held here for the secondary (memory 12 MiB); the secondary is "
            "1,500 ms behind",
        ),
        (
            {"held_bytes": 0, "room_bytes": 0, "memory_bytes": 0, "lag_s": 0.004},
            "nothing is held here while the VM runs; the secondary is 4 ms behind",
        ),
    ],
)
def test_what_the_secondary_lacks(aside: dict[str, Any], line: str) -> None:
    assert line in " ".join(shown(aside=aside).split())


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (2.4e7, "24 MB/s; 100 MiB went as 40 MiB, with 1.5 s of work"),
        (
            None,
            "as fast as QEMU, and nothing is coded now; 100 MiB went as 40 MiB, with 1.5 s of work",
        ),
    ],
)
def test_what_goes_on_the_wire(rate: float | None, line: str) -> None:
    told = {
        "rate": rate,
        "is_coded": rate is not None,
        "stream_bytes": 100 << 20,
        "wire_bytes": 40 << 20,
        "work_s": 1.5,
    }
    assert line in " ".join(shown(wire=told).split())


def test_of_a_secondary_that_has_nothing_no_lag_is_told() -> None:
    assert "behind" not in shown(aside={"lag_s": None})


def test_how_far_a_first_copy_is() -> None:
    assert "  first copy   3 MiB sent\n" in shown(state="COPYING", bytes_total=3 << 20)
    assert "first copy" not in shown(state="PROTECTED", bytes_total=3 << 20)
    assert "first copy" not in shown(state="COPYING", bytes_total=None)


def test_what_a_takeover_waits_for() -> None:
    assert "  waits        no grant yet: x\n" in shown(waits_for="no grant yet: x")
    assert "waits" not in shown(waits_for=None)


def test_a_secondary_that_hands_nothing_on_says_nothing_of_it() -> None:
    assert "handed on" not in shown(forward=None)


@pytest.mark.parametrize("content", ["[]", '"READY"', "1", "null", "{", "", "\udcff"])
def test_a_status_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ColoError) as caught:
        read_status(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_alive_is_who_holds_the_lock_and_not_who_has_the_process_id(tmp_path: Path) -> None:
    """After a reboot another process may have it: here it is this one."""
    folder = StateFolder(tmp_path)
    folder.write_status(STATUS)
    assert is_alive(read_status(tmp_path))
    folder.close()
    content = read_status(tmp_path)
    assert content["pid"] == os.getpid()
    assert not is_alive(content)
    assert "colo does not run" in shown(**content)
    StateFolder(tmp_path).close()  # nobody who looked holds the lock
    (tmp_path / "lock").unlink()
    assert not is_alive(read_status(tmp_path))


def test_a_folder_without_a_status_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ColoError, match="is no state folder of colo"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ('[failover] arbiter = "none" would do', '[failover] arbiter = "none" would do'),
        ("tcp:[fd00::2]:9000 refuses: [/]", "tcp:[fd00::2]:9000 refuses: [/]"),
        ("tcp:b:9000 and tcp:smile:1", "tcp:b:9000 and tcp:smile:1"),
        ("it is \x1b]0;mine\x07", r"it is \x1b]0;mine\x07"),
    ],
)
def test_what_others_say_stands_as_it_is(told: str, seen: str) -> None:
    text = shown(error=told, secondary=told, meaning=told, forward={**FORWARD, "error": told})
    assert f"  last error   {seen}\n" in text
    assert f"  secondary    {seen}\n" in text
    assert text.count(seen) == 4


def test_an_old_status_of_a_colo_that_runs_is_told_as_one() -> None:
    text = shown(written_at=time.time() - 90)
    assert "  it wrote this 2 min ago: is there room in its state folder?\n" in text
    assert "wrote" not in shown(written_at=time.time() - 2)


@pytest.mark.parametrize(
    ("state", "was"),
    [
        ("PROTECTED", "PROTECTED"),
        ("LISTENING", "LISTENING"),
        ("FENCED", "FENCED: the VM runs; its output is held"),
    ],
)
def test_of_a_colo_that_is_dead_nothing_is_claimed_that_may_be_so_no_more(
    state: str, was: str
) -> None:
    meaning = "the VM runs; its output is held"
    text = shown(alive=False, state=state, meaning=meaning, written_at=time.time() - 90)
    assert text.startswith(
        f"web1  secondary  colo does not run; what it wrote 2 min ago:\n  was          {was}\n"
    )


def test_a_grant_that_is_nobodys_is_not_shown() -> None:
    assert "  arbiter      none\n" in shown(grant=None)


COMPARED = {
    "other": "RUNS",
    "meaning": "it runs, from the last checkpoint",
    "compared": 2100,
    "alike": 2000,
    "differed": {"udp": 2, "connection": 1},
    "rests_s": 0.0,
    "trouble": None,
}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {},
            "both VMs the secondary VM: it runs, from the last checkpoint; 2,000 of 2,100 packets "
            "left as both said them; differed: connection 1, udp 2",
        ),
        (
            {"other": "NONE", "meaning": "there is none", "rests_s": 7.9, "differed": {}},
            "there is none, and is not wanted for 8 s; 2,000 of 2,100 packets left as both said "
            "them; differed: nothing",
        ),
        (
            {"other": "NONE", "meaning": "there is none", "trouble": "out of reach"},
            "the secondary VM: there is none (out of reach); 2,000",
        ),
    ],
)
def test_what_both_vms_have_said(change: dict[str, Any], line: str) -> None:
    assert line in " ".join(shown(hybrid={**COMPARED, **change}).split())


@pytest.mark.parametrize(
    ("vm", "line"),
    [
        ({"runs": True, "trouble": None}, "secondary VM runs, from checkpoint 7; 3 have begun"),
        ({"runs": False, "trouble": None}, "secondary VM none runs just now; 3 have begun"),
        ({"runs": False, "trouble": "it has died"}, "secondary VM it has died"),
    ],
)
def test_the_secondary_vm_beside_a_copy(vm: dict[str, Any], line: str) -> None:
    shows = shown(secondary_vm={"from_checkpoint": 7, "begun": 3, **vm})
    assert line in " ".join(shows.split())
