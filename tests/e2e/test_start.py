"""What cannot start says why in one line, with QEMU's own words, and leaves nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Host, Scene
from tests.e2e.vm import VmFile

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.parametrize("qemu", ["11.1"], indirect=True),  # decided above QEMU
]

TMPFS_MIB = 32


def refused(scene: Scene, host: Host, code: int) -> str:
    """Start it, see it end with ``code``, and return its one line."""
    host.start(ready=False)
    assert host.wait_exit() == code, host.text()
    lines = host.text().splitlines()
    assert len(lines) == 1, host.text()
    assert lines[0].startswith("colo: ")
    assert scene.leftovers() == []
    return lines[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-nonsense",), "-nonsense: invalid option"),
        (("-device", "nonsense"), "'nonsense' is not a valid device model name"),
        (("-drive", "file=/nonexistent/disk,format=raw"), "Could not open '/nonexistent/disk'"),
    ],
    ids=["option", "device", "disk"],
)
def test_arguments_that_qemu_refuses(scene: Scene, args: tuple[str, ...], words: str) -> None:
    line = refused(scene, scene.host(VmFile(guest=False, args=args)), 1)
    assert "ended with code 1: " in line
    assert words in line


def test_no_such_binary(scene: Scene) -> None:
    line = refused(scene, scene.host(VmFile(guest=False, binary="qemu-system-nonsense")), 1)
    assert line == "colo: there is no qemu-system-nonsense: install QEMU, or set [qemu] binary"


def test_no_qemu_at_all(scene: Scene) -> None:
    line = refused(scene, scene.host(VmFile(guest=False, binary="/bin/true")), 1)
    assert line.startswith("colo: /bin/true is no QEMU: true ")


def test_wrong_usage(scene: Scene) -> None:
    host = scene.host(VmFile(guest=False, args=("-S",)))
    assert "remove -S" in refused(scene, host, 2)
    host = scene.host(VmFile(guest=False))
    host.listen = "nowhere"
    assert "'nowhere' is no address: unix:PATH or tcp:HOST:PORT" in refused(scene, host, 2)


def test_state_folder_and_address_are_taken(scene: Scene) -> None:
    first, second = scene.host(VmFile(guest=False)), scene.host(VmFile(guest=False))
    first.start()
    pid = first.qemu_pid()
    second.listen = first.listen
    second.start(ready=False)
    assert second.wait_exit() == 2
    assert f"cannot listen on {first.listen}: Address already in use" in second.text()
    second.state, second.listen = first.state, second.listen + "2"
    second.start(ready=False)
    assert second.wait_exit() == 2
    assert "another colo uses the state folder" in second.text()
    assert first.status()["alive"]
    assert first.status()["qemu"]["pid"] == first.qemu_pid() == pid


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs with these options, at ``folder``."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small folder: {done.stderr.strip()}: run this as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with little room."""
    yield from mounted(tmp_path, f"size={TMPFS_MIB}m")


@pytest.fixture
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which files can be made, but nothing be written."""
    for folder in mounted(tmp_path, "size=64k,mode=755"):
        (folder / "other").write_bytes(bytes(64 << 10))
        yield folder


def test_store_has_no_room(scene: Scene, small_folder: Path) -> None:
    line = refused(scene, scene.host(VmFile(guest=False, store_folder=str(small_folder))), 1)
    assert f"{small_folder}/" in line
    assert f"has {TMPFS_MIB} MiB free, the checkpoint store needs 192 MiB: make room" in line
    assert list(small_folder.iterdir()) == []


def test_state_folder_has_no_room(scene: Scene, full_folder: Path) -> None:
    host = scene.host(VmFile(guest=False))
    host.state = full_folder
    line = refused(scene, host, 1)
    assert line == f"colo: {full_folder}/qemu.pid: No space left on device"
    left = {path.name: path.stat().st_size for path in full_folder.iterdir()}
    assert left == {"other": 64 << 10, "lock": 0, "qemu.log": 0, "colo.log": 0}


def test_all_is_its_owners_alone_also_in_a_folder_that_is_not(scene: Scene) -> None:
    host = scene.host(VmFile(guest=False))
    host.state.mkdir(mode=0o755)
    host.start()
    for path in host.state.iterdir():
        if path.name not in ("incoming.sock", "store"):  # QEMU makes the one, the other is a link
            assert path.stat().st_mode & 0o77 == 0, path
    assert host.state.stat().st_mode & 0o777 == 0o755
    host.close()
    left = {path.name for path in host.state.iterdir()}
    assert left == {"lock", "qemu.log", "colo.log", "status.json", "history.jsonl"}
