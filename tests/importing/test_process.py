"""What /proc tells of a QEMU: its command, and what its descriptors are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from colo.errors import UsageError
from colo.importing import process as module
from colo.importing.process import read_process


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc with a process 7."""
    monkeypatch.setattr(module, "_PROC", tmp_path)
    folder = tmp_path / "7"
    for name in ("fd", "fdinfo", "net"):
        (folder / name).mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"/usr/bin/qemu-system-x86_64\0-m\x00512\0-append\0\0")
    (folder / "cwd").symlink_to("/srv/vm")
    return folder


def test_descriptors_have_names_again(proc: Path) -> None:
    links = {
        "3": "/dev/net/tun", "4": "socket:[77]", "5": "socket:[78]", "6": "/var/log/x.log",
        "7": "pipe:[1]", "8": "/dev/net/tun", "9": "/gone (deleted)",
    }  # fmt: skip
    for number, target in links.items():
        (proc / "fd" / number).symlink_to(target)
    (proc / "fdinfo" / "3").write_text("pos:\t0\niff:\tvnet3\n")
    (proc / "fdinfo" / "8").write_text("pos:\t0\n")
    (proc / "net" / "unix").write_text(
        "Num RefCount Protocol Flags Type St Inode Path\n"
        "0: 00000002 00000000 00010000 0001 01 77 /run/a b.sock\n"
        "0: 00000002 00000000 00010000 0001 01 79 @abstract\nbroken\n"
    )
    words, known = read_process(7)
    assert words == ["/usr/bin/qemu-system-x86_64", "-m", "512", "-append", ""]
    assert known.folder == "/srv/vm"
    assert known.taps == {"3": "vnet3", "8": ""}
    assert known.sockets == {"4": "/run/a b.sock"}
    assert known.files == {"6": "/var/log/x.log", "9": "/gone"}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (b"", "a process without a command line"),
        (
            b"/usr/sbin/libvirtd\0",
            "process 7 is '/usr/sbin/libvirtd', no QEMU: say QEMU's by --pid",
        ),
        (b"qemu\0\xff\0", "is no UTF-8"),
    ],
)
def test_what_is_no_qemu_is_told(proc: Path, command: bytes, told: str) -> None:
    (proc / "cmdline").write_bytes(command)
    with pytest.raises(UsageError) as caught:
        read_process(7)
    assert told in str(caught.value)


def test_no_process_is_told(proc: Path) -> None:
    with pytest.raises(UsageError, match="process 8: there is no such process"):
        read_process(8)


def test_a_process_of_another_user_has_no_descriptors_to_be_seen(proc: Path) -> None:
    for name in ("fd", "fdinfo"):
        (proc / name).rmdir()
    assert read_process(7)[1].taps == {}


def test_a_real_socket_is_found_by_its_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        inode = os.readlink(f"/proc/self/fd/{sock.fileno()}")
        found = module._listening(Path("/proc/self"))
        assert found[inode.removeprefix("socket:[").rstrip("]")] == str(tmp_path / "s")
