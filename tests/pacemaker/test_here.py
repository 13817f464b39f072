"""What the agent sees of a VM's colo on its host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from colo.errors import GuestError
from colo.pacemaker.here import Here, Seen
from colo.qemu import killing


def says(folder: Path, **content: Any) -> None:
    (folder / "status.json").write_text(json.dumps(content))


def started(*words: str) -> Generator[int, None, None]:
    command = [sys.executable, "-c", "print(flush=True); input()", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid


def test_there_is_a_colo_where_its_process_was_started_for_this_folder(tmp_path: Path) -> None:
    here = Here(tmp_path)
    assert (here.look(), here.colo(), here.vm()) == (None, None, "")
    for pid in started("node", "web1.toml", "--state-dir", str(tmp_path)):
        says(tmp_path, pid=pid, written_at=time.time(), state="KEEPING", vm="web1", turn=None)
        assert here.look() == Seen(pid, "KEEPING")
        assert (here.colo(), here.vm()) == (pid, "web1")
        says(tmp_path, pid=pid, written_at=time.time() - 11, state="KEEPING")
        assert here.look() is None, "it hangs"
        assert here.colo() == pid
    assert here.colo() is None


def test_another_process_with_that_id_is_no_colo(tmp_path: Path) -> None:
    says(tmp_path, pid=os.getpid(), written_at=time.time(), state="KEEPING")
    assert Here(tmp_path).look() is None
    for pid in started("node", "--state-dir", f"{tmp_path}0"):
        says(tmp_path, pid=pid, written_at=time.time(), state="KEEPING")
        assert Here(tmp_path).look() is None, "it is another VM's"


@pytest.mark.parametrize("text", ["", "[]", '{"pid": "x"}', "{"])
def test_what_is_no_status_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert (Here(tmp_path).look(), Here(tmp_path).colo()) == (None, None)


def test_the_qemus_are_those_of_this_folder(tmp_path: Path) -> None:
    for pid in started("-qmp", f"unix:{tmp_path}/colo-qmp.sock,server=on"):
        assert Here(tmp_path).qemus() == [pid]
        assert Here(tmp_path / "colo").qemus() == []
        assert Here(Path(str(tmp_path)[:-1])).qemus() == []
    assert Here(tmp_path).qemus() == []


def test_a_qemu_that_stays_does_not_keep_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-qmp", f"unix:{tmp_path}/colo-qmp.sock,server=on")
    processes = [started(*words), started(*words)]
    stays, other = map(next, processes)
    send = signal.pidfd_send_signal

    def lost_on_one(process: int, number: int) -> None:
        if f"Pid:\t{stays}\n" not in Path(f"/proc/self/fdinfo/{process}").read_text():
            send(process, number)

    with monkeypatch.context() as patched:
        patched.setattr(killing, "_DYING_S", 0.05)
        patched.setattr(Here, "qemus", lambda _: [stays, other])
        patched.setattr(signal, "pidfd_send_signal", lost_on_one)
        with pytest.raises(GuestError, match=f"QEMU {stays} does not end"):
            Here(tmp_path).end_qemus()
    deadline = time.monotonic() + 30
    while Here(tmp_path).qemus() != [stays] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Here(tmp_path).qemus() == [stays]
    Here(tmp_path).end_qemus()
    assert Here(tmp_path).qemus() == []
    for each in processes:
        each.close()
