"""What a secondary keeps of its primary's disks: how it takes them in, and lets go of them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colo.config import VmConfig
from colo.config.vm import Disk, StoreRoom
from colo.disks.blockfile import RealFile
from colo.disks.standing import Condition
from colo.disks.words import DiskHello, Kind, OneDisk, Said, encode, header
from colo.errors import ColoError, DiskError, UsageError
from colo.membership.grant import Grant
from colo.node.replicas import Replicas, run_on, runs_on

SIZE = 3 << 20
GRANT = Grant(3, "a/1/1")
HELLO = DiskHello("web1", 3, "a/1/1", (OneDisk("root", SIZE),))


def config(folder: Path, name: str = "root.raw") -> VmConfig:
    disk = Disk("root", folder / name, folder / name)
    return VmConfig("web1", store=StoreRoom(disk_journal_mib=1), disks=(disk,))


class Host:
    """A host with replicas, whose primary is the one with ``GRANT``, or none."""

    def __init__(self, folder: Path, made: VmConfig | None = None) -> None:
        self.folder = folder
        self.resized = 0
        self.cuts = 0
        self.lost: list[ColoError] = []
        self.primary: Grant | None = GRANT
        self.read_only = {"cd0": "123", "cd1": ""}
        self.replicas = Replicas(
            made or config(folder),
            folder,
            self,
            self._cut,
            self.lost.append,
        )
        self.sock, theirs = socket.socketpair()
        theirs.close()

    def renew(self) -> None:
        self.resized += 1

    def _cut(self) -> None:
        self.cuts += 1

    async def greet(self, *said: bytes) -> tuple[str | None, dict[str, object]]:
        """Say this on a disk link; return why it was refused, and the answer."""
        self.sock.close()
        self.sock, theirs = socket.socketpair()
        theirs.setblocking(False)
        for piece in said:
            self.sock.sendall(piece)
        why = await self.replicas.greet(theirs, lambda: self.primary)
        answered = self.sock.recv(4096)
        return why, json.loads(answered) if answered else {}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


def play(folder: Path, scene: Callable[[Host], Awaitable[None]]) -> None:
    async def run() -> None:
        host = Host(folder)
        try:
            await scene(host)
        finally:
            await host.replicas.close()
            host.sock.close()

    asyncio.run(run())


def test_a_disk_that_is_not_there_is_made_so_that_a_qemu_can_wait_on_it(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        assert (tmp_path / "root.raw").stat().st_size == 1 << 20
        (tmp_path / "root.raw").write_bytes(b"content")
        host.replicas.prepare()
        assert (tmp_path / "root.raw").read_bytes() == b"content"

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("name", "why"),
    [("root.qcow2", "a replica has to be raw"), ("none/root.raw", "No such file or directory")],
)
def test_where_no_replica_can_be(tmp_path: Path, name: str, why: str) -> None:
    async def run() -> None:
        host = Host(tmp_path, config(tmp_path, name))
        with host.sock, pytest.raises(UsageError, match=why):
            host.replicas.prepare()

    asyncio.run(run())


def test_a_new_disk_gets_its_size_and_has_nothing_to_compare_with(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        assert await host.greet(HELLO.encode()) == (None, {"holds": [False]})
        assert (tmp_path / "root.raw").stat().st_size == SIZE
        assert host.resized == 1
        assert host.replicas.lacking
        host.sock.sendall(encode(Said(Kind.WRITE, 0, 5, 3, payload=memoryview(b"abc"))))
        host.sock.sendall(header(Kind.IN_STEP))
        await host.until(lambda: not host.replicas.lacking)
        host.replicas.forget()
        assert await host.greet(HELLO.encode()) == (None, {"holds": [True]})
        assert host.resized == 1

    play(tmp_path, scene)


def test_a_disk_that_got_its_size_is_known_to_have_it_though_no_more_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> RealFile:
        raise DiskError("root", f"{path}: No space left on device")

    async def scene(host: Host) -> None:
        host.replicas.prepare()
        with monkeypatch.context() as patched:
            patched.setattr(RealFile, "make", full)
            why, _ = await host.greet(HELLO.encode())
        assert why is not None and why.endswith("No space left on device")
        assert await host.greet(HELLO.encode()) == (None, {"holds": [False]})
        assert host.resized == 1, "the QEMU that waits has not seen the new size"

    play(tmp_path, scene)


def test_one_primary_and_one_link_at_a_time(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        host.primary = None
        why, said = await host.greet(HELLO.encode())
        assert why == "it is not of the primary that has said hello, or too late"
        assert said == {"refused": why, "final": False}
        host.primary = Grant(4, "a/1/1")
        assert (await host.greet(HELLO.encode()))[0] == why
        host.primary = GRANT
        assert (await host.greet(HELLO.encode()))[0] is None
        kept = host.sock.dup()
        assert (await host.greet(HELLO.encode()))[0] == "it has a disk link already, or is about to"
        kept.close()
        host.sock.close()
        await host.until(lambda: host.lost)
        assert (await host.greet(HELLO.encode()))[0] is None, "one that broke is none"

    play(tmp_path, scene)


def test_a_primary_that_goes_while_it_is_taken_in_leaves_nothing(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        grants = iter([GRANT, None])
        near, far = socket.socketpair()
        far.setblocking(False)
        near.sendall(HELLO.encode())
        why = await host.replicas.greet(far, lambda: next(grants))
        near.close()
        assert why == "it is not of the primary that has said hello, or too late"
        assert host.replicas.intake is None
        assert (await host.greet(HELLO.encode()))[0] is None

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("said", "why", "final"),
    [
        (b"nonsense\n", "not a disk link's first line", False),
        (replace(HELLO, vm="web2").encode(), "its VM is web2", True),
        (replace(HELLO, read_only={"cd0": "124"}).encode(), "drive cd0, which the guest", True),
        (replace(HELLO, read_only={"cd2": ""}).encode(), "cd2, which the guest only reads", True),
        (replace(HELLO, disks=()).encode(), "its [[disks]] are none, this one's root", True),
        (HELLO.encode() + b"x", "it says more on the disk link before it is answered", False),
    ],
)
def test_who_is_refused_and_why(tmp_path: Path, said: bytes, why: str, final: bool) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        told, answered = await host.greet(said)
        assert told is not None and why in told
        assert answered == {"refused": told, "final": final}
        assert (await host.greet(HELLO.encode()))[0] is None, "and the next one is taken in"

    play(tmp_path, scene)


def test_what_is_only_read_is_compared_also_where_nothing_is_written(tmp_path: Path) -> None:
    async def run() -> None:
        host = Host(tmp_path, VmConfig("web1"))
        hello = replace(HELLO, disks=(), read_only={"cd0": "123", "cd1": "9"})
        assert await host.greet(hello.encode()) == (None, {"holds": []})
        assert host.sock.recv(1) == b"", "that was all"
        assert not host.replicas.lacking
        host.read_only = {}
        why, _ = await host.greet(hello.encode())
        assert why is not None and "have the same on both hosts" in why
        host.sock.close()

    asyncio.run(run())


def test_a_disk_that_cannot_be_had_is_said_and_nothing_stays_open(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        (tmp_path / "root.journal").mkdir()
        opened = len(os.listdir("/proc/self/fd"))
        why, answered = await host.greet(HELLO.encode())
        assert why is not None
        assert answered["refused"] == why
        assert len(os.listdir("/proc/self/fd")) <= opened
        (tmp_path / "root.journal").rmdir()
        assert (await host.greet(HELLO.encode()))[0] is None

    play(tmp_path, scene)


async def committed(host: Host) -> None:
    """The disk is at checkpoint 0, with «abc» at its beginning, and something after that."""
    host.replicas.prepare()
    await host.greet(HELLO.encode())
    host.sock.sendall(header(Kind.IN_STEP))
    host.sock.sendall(encode(Said(Kind.WRITE, 0, 0, 3, payload=memoryview(b"abc"))))
    intake = host.replicas.intake
    assert intake is not None
    await host.until(lambda: not host.replicas.lacking)
    await intake.settled()
    host.sock.sendall(header(Kind.CUT, number=0))
    await host.until(lambda: host.cuts)
    intake.require(0)
    intake.commit(0)
    host.sock.sendall(encode(Said(Kind.WRITE, 0, 0, 3, payload=memoryview(b"xyz"))))
    await host.until(lambda: intake.taken >= 4 * 24 + 6)


def test_a_takeover_has_the_last_commit_and_no_more(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        await committed(host)
        await host.replicas.hand_over()
        await host.replicas.hand_over()  # a start that failed is tried again
        assert (tmp_path / "root.raw").read_bytes()[:3] == b"abc"
        assert host.replicas.status()[0]["condition"] == Condition.HANDED_OVER.name

    play(tmp_path, scene)
    run_on(config(tmp_path), tmp_path)


def test_a_vm_may_start_on_a_disk_at_a_commit_and_then_it_is_at_none(tmp_path: Path) -> None:
    play(tmp_path, committed)
    run_on(config(tmp_path), tmp_path)
    assert (tmp_path / "root.raw").read_bytes()[:3] == b"abc"
    run_on(config(tmp_path), tmp_path)


def test_a_vm_that_others_started_may_not_have_done_so_on_a_replica(tmp_path: Path) -> None:
    runs_on(config(tmp_path), tmp_path)  # one that never was one
    play(tmp_path, committed)
    journal = tmp_path / "root.journal"
    before = journal.read_bytes()
    with pytest.raises(DiskError, match="started on it while it was a replica: end it"):
        runs_on(config(tmp_path), tmp_path)
    assert journal.read_bytes() == before
    run_on(config(tmp_path), tmp_path)
    runs_on(config(tmp_path), tmp_path)
    journal.write_bytes(b"")
    with pytest.raises(DiskError):
        runs_on(config(tmp_path), tmp_path)


def test_no_vm_starts_on_half_a_copy(tmp_path: Path) -> None:
    async def scene(host: Host) -> None:
        host.replicas.prepare()
        await host.greet(HELLO.encode())

    run_on(config(tmp_path), tmp_path)  # one that never was a replica is a VM's
    play(tmp_path, scene)
    with pytest.raises(DiskError, match="its first copy was cut off") as caught:
        run_on(config(tmp_path), tmp_path)
    assert f"remove {tmp_path / 'root.journal'}" in str(caught.value)
