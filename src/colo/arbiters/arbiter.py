"""Arbiters: who may run the VM without the other side.

The right is a *grant*: exclusive and numbered.  While two hosts protect a VM together, both know
the number of the grant under which its primary runs.  When they lose each other, either may ask for
the next number, naming the one it knows; only one of them can get it, because the number has
moved on for whoever asks second.  That one runs the VM; the other stays silent.

``file:PATH``   a file that both hosts reach, locked while it is read and written.
``manual``      nobody is granted anything, but by an operator's order.
``none``        whoever asks is granted: for a lone secondary of a stock QEMU, whose
                user says by ``--on-loss`` what is to happen.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from colo.arbiters.asking import about_to_write
from colo.errors import LocalError, UsageError

__all__ = [
    "Arbiter",
    "FileArbiter",
    "Grant",
    "ManualArbiter",
    "NoArbiter",
    "claim",
    "give_back",
    "make_arbiter",
]

_FILE_BYTES: Final = 512


@dataclass(frozen=True)
class Grant:
    """The right to run a VM, number ``number``; ``holder`` is "" where nobody has it now."""

    number: int
    holder: str


class Arbiter(Protocol):
    """Hands out the right to run one VM.  All calls raise LocalError where it cannot be reached.

    They may hang: see ``arbiters.asking``, by which they are called.  Before one changes who has
    the grant it says ``about_to_write``.
    """

    automatic: bool

    def begin(self) -> Grant:
        """Return the grant as it stands; where there never was one, number 0 is there now."""

    def current(self) -> Grant:
        """Return the grant as it stands."""

    def check(self, grant: Grant) -> Grant:
        """Return another host's ``grant`` as it stands: a later one where it got that unheard.

        Its holder may be "", which is not known.  Raises LocalError where the grant cannot have
        come from this arbiter, or is no more.
        """

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Take the grant after number ``known``; None where it has moved on without us.

        To ``void``, it has not: its holder has said that it will run nothing.  Raises LocalError
        where ``known`` cannot have come from this arbiter.
        """

    def order(self, holder: str) -> Grant:
        """Take the next grant whatever stands: by an operator's order."""

    def release(self, grant: Grant) -> None:
        """Give the grant back, so that anyone may begin anew; nothing where it has moved on."""


class FileArbiter:
    """A file with the grant as JSON, and a lock on it.

    The file has to be on a file system that both hosts reach and that carries flock between them
    (NFSv4 does).  Where the file is out of reach nobody is granted anything.  It is made only by
    ``begin``: where another host has a grant, a file that is not there is not the one.
    """

    automatic = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self) -> Grant:
        """Return the grant as it stands, of a file that is there from now on."""
        with self._locked(os.O_CREAT) as file:
            return self._read(file)

    def current(self) -> Grant:
        """Return the grant as it stands."""
        with self._locked() as file:
            return self._read(file)

    def check(self, grant: Grant) -> Grant:
        """Return the grant in the file.  Raises LocalError unless it is that other host's."""
        try:
            now = self.current()
        except LocalError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise self._another_file(grant.number) from error
            raise
        if now.number < grant.number:
            raise self._another_file(grant.number)
        if (now.holder == grant.holder) if grant.holder else (now.number == grant.number):
            return now
        raise LocalError(
            f"grant {grant.number} of the primary does not stand: by {self._path} here "
            f"{now.holder or 'nobody'} has grant {now.number}"
        )

    def _another_file(self, number: int) -> LocalError:
        return LocalError(
            f"the grant file {self._path} here does not show grant {number} of the primary: "
            "both hosts must see the same file"
        )

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Take the grant after number ``known``; None where it has moved on, but to ``void``."""
        with self._locked() as file:
            now = self._read(file)
            if now.number > known and now.holder == holder:
                return now  # we have it from a call whose answer never came
            if now.number < known:
                raise self._another_file(known)
            if now.number > known and now != void:
                return None
            return self._write(file, Grant(now.number + 1, holder))

    def order(self, holder: str) -> Grant:
        """Take the next grant whatever stands."""
        with self._locked() as file:
            return self._write(file, Grant(self._read(file).number + 1, holder))

    def release(self, grant: Grant) -> None:
        """Give the grant back."""
        with self._locked() as file:
            if self._read(file) == grant:
                self._write(file, Grant(grant.number, ""))

    @contextlib.contextmanager
    def _locked(self, flags: int = 0) -> Iterator[int]:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        except OSError as error:
            raise LocalError(f"arbiter {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        except OSError as error:
            raise LocalError(f"arbiter {self._path}: {error.strerror}") from error
        finally:
            os.close(file)

    def _read(self, file: int) -> Grant:
        data = os.pread(file, _FILE_BYTES, 0)
        if not data:
            return Grant(0, "")
        try:
            content = json.loads(data)
            return Grant(int(content["number"]), str(content["holder"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LocalError(f"arbiter {self._path}: it does not hold a grant") from error

    def _write(self, file: int, grant: Grant) -> Grant:
        """Write in place, in one call and at a fixed length: the lock is on this very file."""
        data = json.dumps(asdict(grant)).encode().ljust(_FILE_BYTES - 1) + b"\n"
        if len(data) > _FILE_BYTES:
            raise LocalError(f"arbiter {self._path}: the holder's name {grant.holder} is too long")
        about_to_write()
        os.pwrite(file, data, 0)
        os.fsync(file)
        return grant


class ManualArbiter:
    """Grants nothing by itself: an operator gives the order to one side."""

    automatic = False

    def __init__(self) -> None:
        self._grant = Grant(0, "")

    def begin(self) -> Grant:
        """Return the grant as this side knows it."""
        return self._grant

    def current(self) -> Grant:
        """Return the grant as this side knows it."""
        return self._grant

    def check(self, grant: Grant) -> Grant:
        """Return it: an operator sees to it that only one side is given the order."""
        return grant

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Nobody is granted anything without an order."""
        return None

    def order(self, holder: str) -> Grant:
        """The operator's order is the grant."""
        self._grant = Grant(self._grant.number + 1, holder)
        return self._grant

    def release(self, grant: Grant) -> None:
        """There is nothing to give back."""


class NoArbiter(ManualArbiter):
    """Whoever asks is granted."""

    automatic = True

    def take(self, known: int, holder: str, void: Grant | None = None) -> Grant | None:
        """Grant it."""
        return self.order(holder)


def claim(arbiter: Arbiter, holder: str, vm: str, stock: bool, force: bool) -> Grant:
    """Make sure that ``holder`` may run the VM, before it is protected; return its grant.

    ``stock``: the secondary is a stock QEMU, which takes over only by an operator's hand.
    ``force``: take the right from another holder.  Raises UsageError, LocalError.
    """
    if isinstance(arbiter, NoArbiter) and not stock:
        raise UsageError(
            '[failover] arbiter = "none" would let both hosts run the VM when they lose each '
            "other: set file:PATH, on a file system that both reach, or manual"
        )
    if not arbiter.automatic:
        return Grant(arbiter.current().number, holder)
    grant = arbiter.begin()
    if grant.holder in ("", holder):
        taken = arbiter.take(grant.number, holder)
    elif force:
        taken = arbiter.order(holder)
    else:
        raise UsageError(
            f"the right to run {vm} belongs to {grant.holder} (grant {grant.number}); if that VM "
            "is certainly dead, say --claim"
        )
    if taken is None:
        raise UsageError(f"another host took the right to run {vm} just now")
    return taken


def give_back(arbiter: Arbiter, holder: str) -> None:
    """Give back what ``holder`` has, also where it was granted unheard.  Raises LocalError."""
    grant = arbiter.current()
    if grant.holder == holder:
        arbiter.release(grant)


def make_arbiter(text: str) -> Arbiter:
    """Make the arbiter that the VM file names.  Raises UsageError."""
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        if not Path(rest).is_absolute():
            raise UsageError(
                f"[failover] arbiter = {text!r}: the whole path, from / on: another one would be "
                "another file for each folder that colo is started in"
            )
        return FileArbiter(Path(rest))
    if text == "manual":
        return ManualArbiter()
    if text == "none":
        return NoArbiter()
    raise UsageError(f"[failover] arbiter = {text!r}: file:PATH, manual or none")
