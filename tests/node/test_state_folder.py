"""The state folder: what cannot be written leaves nothing behind, and what may be a VM stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest

from colo.errors import UsageError
from colo.node.state_folder import LONGEST_STATE_FOLDER, StateFolder


def test_a_status_is_replaced_as_a_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, text: Any, **options: Any) -> None:
        text.write("{half")
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = StateFolder(tmp_path)
    folder.write_status({"state": "READY"})
    with monkeypatch.context() as patch:
        patch.setattr("colo.node.state_folder.json.dump", full)
        with pytest.raises(OSError, match="No space left"):
            folder.write_status({"state": "LOST"})
    assert json.loads(folder.status.read_text())["state"] == "READY"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["history.jsonl", "lock", "status.json"]
    folder.close()


class LeftQemu:
    """A process that looks like a QEMU of this folder, and answers QMP with ``state``, or not."""

    def __init__(self, folder: Path, state: str | None) -> None:
        qmp = folder / "colo-qmp.sock"
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()", str(qmp)], stdin=subprocess.PIPE
        )
        command = Path(f"/proc/{self.process.pid}/cmdline")
        while os.fsencode(qmp) not in command.read_bytes():  # it has been started, and has none yet
            time.sleep(0.001)
        (folder / "qemu.pid").write_text(str(self.process.pid))
        self._state = state
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(qmp))
        self._server.listen(1)
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                with contextlib.suppress(OSError), peer, peer.makefile("rw") as stream:
                    self._converse(stream)

    def _converse(self, stream: TextIO) -> None:
        if self._state is None:
            stream.read()
        stream.write('{"QMP": {}}\n')
        stream.flush()
        for answer in ({}, {"status": self._state}):
            stream.readline()
            stream.write('{"event": "RESUME"}\n' + json.dumps({"return": answer}) + "\n")
            stream.flush()

    def __enter__(self) -> LeftQemu:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    # Who answers may be slow on a busy machine; only a test of silence waits for less.
    monkeypatch.setattr("colo.node.state_folder._QMP_S", 30.0)
    folder = StateFolder(tmp_path / "state")
    yield folder
    folder.close()


@pytest.mark.parametrize("is_the_vm", [True, False])
def test_secondary_vms_that_were_left_behind_are_ended_but_not_one_that_is_the_vm(
    tmp_path: Path, is_the_vm: bool
) -> None:
    below = tmp_path / "secondary-vm-3"
    below.mkdir()
    with LeftQemu(below, None) as left:
        if is_the_vm:
            (below / "qemu.pid").rename(tmp_path / "qemu.pid")
        folder = StateFolder(tmp_path)
        if is_the_vm:
            assert left.process.poll() is None
        else:  # it has no command line a moment before it can be reaped
            assert left.process.wait(10) == -signal.SIGKILL
        assert folder.leftover() == (left.process.pid if is_the_vm else None)
        assert not below.exists()
        folder.close()


@pytest.mark.parametrize("state", ["running", "paused", "colo", None])
def test_a_qemu_that_may_run_the_vm_is_not_ended(
    folder: StateFolder, state: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above all not one that does not answer: it may be the only one that has the VM."""
    if state is None:
        monkeypatch.setattr("colo.node.state_folder._QMP_S", 0.2)
    (tmp_path / "store").mkdir()
    with LeftQemu(folder.path, state) as left:
        for clean in (partial(folder.clean, tmp_path / "store"), folder.clean_start):
            with pytest.raises(UsageError) as caught:
                clean()
            assert f"pid {left.process.pid}, {state or 'which does not answer'}" in str(
                caught.value
            )
            assert left.process.poll() is None
    assert (tmp_path / "store").exists()


@pytest.mark.parametrize("state", ["inmigrate", "prelaunch"])
def test_a_qemu_in_which_no_vm_has_run_is_ended(folder: StateFolder, state: str) -> None:
    with LeftQemu(folder.path, state) as left:
        reaper = threading.Thread(target=left.process.wait)
        reaper.start()
        folder.clean(folder.path / "elsewhere")
        reaper.join(10)
        assert left.process.returncode == -signal.SIGKILL


def test_a_folder_whose_sockets_would_have_too_long_names_is_refused_before_it_is_made(
    tmp_path: Path,
) -> None:
    parent = tmp_path / ("a" * 10)
    path = parent / ("x" * (LONGEST_STATE_FOLDER + 1 - len(os.fsencode(parent)) - 1))
    with pytest.raises(UsageError, match="too long for its sockets: take a shorter one") as caught:
        StateFolder(path)
    assert str(caught.value).startswith(f"state folder {path}: ")
    assert not parent.exists()
    StateFolder(path.with_name(path.name[1:])).close()


def test_what_is_of_no_use_to_anybody_goes_with_its_colo(tmp_path: Path) -> None:
    """But for what is another's, as is a QMP socket of a QEMU that colo did not start."""
    folder = StateFolder(tmp_path / "state")
    folder.clean(tmp_path / "store")
    for name in ("control.sock", "incoming.sock", "qmp.sock"):
        (folder.path / name).touch()
    with LeftQemu(folder.path, "running"):
        folder.close()
    left = {"lock", "incoming.sock", "qmp.sock", "colo-qmp.sock", "qemu.pid"}
    assert {path.name for path in folder.path.iterdir()} == left
    StateFolder(tmp_path / "state").close()
    assert {path.name for path in folder.path.iterdir()} == left - {"incoming.sock"}


def test_what_was_half_written_when_colo_was_killed_is_removed(tmp_path: Path) -> None:
    for name in (".status-abcdefgh", ".known-grant-abcdefgh", ".hidden", "a-abcdefgh"):
        (tmp_path / name).touch()
    StateFolder(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"lock", ".hidden", "a-abcdefgh"}


def test_the_link_to_a_store_that_is_there_stays(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.clean(tmp_path / "store")
    (tmp_path / "store").mkdir()
    folder.close()
    assert (folder.path / "store").exists()
