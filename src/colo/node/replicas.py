"""What a secondary keeps of its primary's disks: a replica each, and the link that they come by."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from colo.config import VmConfig
from colo.config.vm import Disk
from colo.disks.blockfile import RealFile
from colo.disks.durable import Durable
from colo.disks.extents import Extents
from colo.disks.head import HeadState, Unreadable
from colo.disks.journal import Journal
from colo.disks.replica import Replica
from colo.disks.standing import At, Condition, epoch_of
from colo.disks.words import DiskHello, OneDisk, answer
from colo.errors import ColoError, DiskError, PeerError, UsageError
from colo.membership.grant import Grant
from colo.qemu.read_only import differences
from colo.session.disk_intake import DiskIntake
from colo.session.first_line import first_line

__all__ = ["QCOW2_REPLICA", "Replicas", "Waiting", "run_on", "runs_on"]

_HELLO_S: Final = 2.0
#: Of a disk whose primary has not been heard of yet.
_UNKNOWN_BYTES: Final = 1 << 20
_QCOW2: Final = ".qcow2"
_NOTHING: Final[Mapping[str, Extents]] = {}
#: Of a disk and its path: why that cannot be one.
QCOW2_REPLICA: Final = (
    "[[disks]] {}: {} is a qcow2, and a replica has to be raw: take another name here, or "
    "`qemu-img convert -O raw` it"
)


class Waiting(Protocol):
    """The QEMU that waits on the replicas."""

    @property
    def read_only(self) -> dict[str, str]:
        """The digests of what its guest would only read, by the drives' names."""

    def renew(self) -> None:
        """Have another one wait: a disk has another size than this one knows."""


class Replicas:
    """The replicas of the VM's disks, their journals in ``folder``.

    ``on_cut`` and ``on_lost``: see DiskIntake.
    """

    def __init__(
        self,
        config: VmConfig,
        folder: Path,
        waiting: Waiting,
        on_cut: Callable[[], None],
        on_lost: Callable[[ColoError], None],
    ) -> None:
        self._vm_name = config.name
        self._disks = config.disks
        self._folder = folder
        self._journal_bytes = config.store.disk_journal_mib << 20
        self._waiting = waiting
        self._on_cut, self._on_lost = on_cut, on_lost
        self._replicas: list[Replica] = []
        self._holds: tuple[bool, ...] = ()  # which of them have an older copy
        self._busy = False
        self._ending: asyncio.Task[None] | None = None
        self.intake: DiskIntake | None = None

    def prepare(self) -> None:
        """See that each disk has its file, so that a QEMU can wait on it.  Raises UsageError."""
        for disk in self._disks:
            path = disk.secondary
            if path.suffix == _QCOW2:
                raise UsageError(QCOW2_REPLICA.format(disk.id, path))
            try:
                if not path.exists():
                    with path.open("ab") as file:
                        file.truncate(_UNKNOWN_BYTES)
            except OSError as error:
                raise UsageError(f"[[disks]] {disk.id}: {path}: {error.strerror}") from error

    @property
    def replicas(self) -> Sequence[Replica]:
        """One for each disk, while there is a copy."""
        return tuple(self._replicas)

    def is_merged_at(self, number: int) -> bool:
        """Whether the files of all are the disks at checkpoint ``number``."""
        return all(
            isinstance(at := replica.standing, At) and at.epoch == epoch_of(number)
            and not replica.lag
            for replica in self._replicas
        )  # fmt: skip

    @property
    def lacking(self) -> bool:
        """Whether there are disks, and they are not in step with the primary's."""
        return bool(self._disks) and (self.intake is None or not self.intake.in_step)

    async def greet(self, sock: socket.socket, primary: Callable[[], Grant | None]) -> str | None:
        """Take in the disk link over ``sock``, or return why not; it is closed then.

        ``primary`` gives the grant of the one whose disks can be taken in, or None.
        """
        why, final = "it has a disk link already, or is about to", False
        if self.intake is not None and not self.intake.is_open:
            self.forget()
        if not self._busy and self.intake is None:
            self._busy = True
            try:
                why, final = await self._judge(sock, primary)
                if not why:
                    await asyncio.get_running_loop().sock_sendall(sock, answer(holds=self._holds))
            except OSError as error:
                why = f"the disk link broke: {error.strerror}"
            finally:
                self._busy = False
        if why:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(sock, answer(why, final))
        if why or not self._disks:
            sock.close()  # without disks, all was said that was to be
            return why or None
        self.intake = DiskIntake(sock, self._replicas, self._on_cut, self._on_lost)
        return None

    async def _judge(
        self, sock: socket.socket, primary: Callable[[], Grant | None]
    ) -> tuple[str, bool]:
        """Begin to copy; or say why not, and whether no further try changes it.  Raises OSError."""
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = DiskHello.decode(await first_line(sock, "it closed the disk link"))
            refused = hello.refusal(self._vm_name, tuple(OneDisk(d.id, 0) for d in self._disks))
            refused = refused or differences(hello.read_only, self._waiting.read_only)
            if refused:
                return refused, True
            who = Grant(hello.grant, hello.holder)
            if primary() == who:
                await self._begin(hello)
            if primary() != who:  # before, or by now
                return "it is not of the primary that has said hello, or too late", False
        except TimeoutError:
            return "it said nothing on the disk link", False
        except (PeerError, DiskError) as error:
            return str(error), False
        return "", False

    async def _begin(self, hello: DiskHello) -> None:
        """Begin to copy.  Raises DiskError."""
        await self._settled()
        self._close()
        resized = False
        holds: list[bool] = []
        try:
            for disk, theirs in zip(self._disks, hello.disks, strict=True):
                resized |= await asyncio.to_thread(_resize, disk, theirs.size)
                holds.append(await asyncio.to_thread(_has_content, disk.secondary))
                self._replicas.append(await asyncio.to_thread(self._create, disk))
        finally:
            if resized:  # at the next try it is so already
                self._waiting.renew()
        self._holds = tuple(holds)

    def _create(self, disk: Disk) -> Replica:
        """A replica that is being copied; of an earlier one only what lies in its file counts."""
        path = self._folder / f"{disk.id}.journal"
        with contextlib.ExitStack() as opened:
            base = RealFile(disk.secondary, disk.id)
            opened.callback(base.close)
            if path.exists() and path.stat().st_size == self._journal_bytes:
                journal = RealFile(path, disk.id)
            else:
                path.unlink(missing_ok=True)
                journal = RealFile.make(path, disk.id, self._journal_bytes)
            opened.callback(journal.close)
            replica = Replica.create(disk.id, base, journal, uuid4())
            opened.pop_all()
        return replica

    # -- the end of a session -------------------------------------------------------------

    def forget(self) -> None:
        """The session is over: what was not committed is dropped, the rest is being merged."""
        intake, self.intake = self.intake, None
        if intake is not None:
            intake.close()
            self._ending = asyncio.get_running_loop().create_task(self._end(intake))

    async def _end(self, intake: DiskIntake) -> None:
        await intake.settled()
        for replica in self._replicas:
            if replica.condition in (Condition.COPYING, Condition.WHOLE):
                replica.drop()

    async def hand_over(self, over: Mapping[str, Extents] = _NOTHING) -> None:
        """The VM is about to run on the disks, as of the last commit.  Raises DiskError.

        ``over``: what it has written over that already, by disk.
        """
        intake, self.intake = self.intake, None
        if intake is not None:
            intake.close()
            await intake.settled()
        for replica in self._replicas:
            if replica.condition is not Condition.HANDED_OVER:
                await asyncio.to_thread(replica.hand_over, over.get(replica.disk))

    async def _settled(self) -> None:
        """Wait until the session before has ended."""
        ending, self._ending = self._ending, None
        if ending is not None:
            await ending

    async def close(self) -> None:
        """Let go of the files, once what is committed is merged."""
        self.forget()
        await self._settled()
        self._close()

    def _close(self) -> None:
        replicas, self._replicas = self._replicas, []
        for replica in replicas:
            with contextlib.suppress(DiskError):
                replica.close()

    def status(self) -> list[dict[str, Any]]:
        """What the status file has of each disk."""
        return [
            {
                "id": replica.disk,
                "size": replica.size,
                "condition": replica.condition.name,
                "meaning": replica.condition.value,
                "epoch_bytes": replica.epoch_bytes,
                "held_bytes": replica.held_bytes,
                "merge_lag": replica.lag,
            }
            for replica in self._replicas
        ]


def run_on(config: VmConfig, folder: Path) -> None:
    """Have this host's disks be a VM's that starts on them: what is committed is in their files.

    Raises DiskError where one of them was a replica, and holds a mixture.
    """
    for disk in config.disks:
        path = folder / f"{disk.id}.journal"
        if not path.exists():
            continue  # it never was one
        with contextlib.ExitStack() as opened:
            base = RealFile(disk.primary, disk.id)
            opened.callback(base.close)
            journal = RealFile(path, disk.id)
            opened.callback(journal.close)
            durable = Durable(disk.id, base, journal)
            found = durable.recover()
            if isinstance(found, At):
                durable.hand_over(found.epoch, Extents())
            elif not found.is_vms:
                raise DiskError(
                    disk.id,
                    f"it holds no disk that a VM could run on ({found.reason}): copy one there, "
                    f"and remove {path}",
                    str(disk.primary),
                )


def runs_on(config: VmConfig, folder: Path) -> None:
    """See that this host's disks were a VM's already when somebody else started a VM on them.

    Raises DiskError where one of them was a replica yet: its journal may be ahead of it.
    """
    for disk in config.disks:
        path = folder / f"{disk.id}.journal"
        if not path.exists():
            continue
        with contextlib.closing(RealFile(path, disk.id)) as file:
            try:
                is_vms = Journal.open(file, disk.id).head.state is HeadState.HANDED_OVER
            except Unreadable:
                is_vms = False
        if not is_vms:
            why = "the VM was started on it while it was a replica: end it, and start it after colo"
            raise DiskError(disk.id, why, str(disk.primary))


def _resize(disk: Disk, size: int) -> bool:
    """Give the file of a replica its size; return whether it had another.  Raises DiskError."""
    path = disk.secondary
    try:
        if stat.S_ISBLK(path.stat().st_mode):
            with path.open("rb") as device:
                has = os.lseek(device.fileno(), 0, os.SEEK_END)
            if has != size:
                raise DiskError(disk.id, f"it has {has} bytes, the primary's {size}", str(path))
            return False
        if path.stat().st_size == size:
            return False
        os.truncate(path, size)
    except OSError as error:
        raise DiskError(disk.id, f"cannot resize it: {error.strerror}", str(path)) from error
    return True


def _has_content(path: Path) -> bool:
    """Whether there is anything to compare with."""
    found = path.stat()
    return stat.S_ISBLK(found.st_mode) or found.st_blocks > 0
