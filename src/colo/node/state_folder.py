"""The state folder: what others may look at, and what an earlier run left behind.

``qemu.pid`` and ``qmp.sock`` of the QEMU that this side runs or keeps waiting, ``status.json``,
``history.jsonl``, ``colo.log``, ``control.sock``, and ``store``, a link to the store's folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from colo.errors import LocalError, UsageError
from colo.membership.grant import Grant
from colo.qemu.killing import kill
from colo.status.history import History

__all__ = ["LONGEST_STATE_FOLDER", "SECONDARY_VM", "StateFolder", "check_length"]

#: How the folders below it begin in which QEMUs are started to be secondary VMs.
SECONDARY_VM: Final = "secondary-vm-"

#: The longest path of a state folder in bytes: what sun_path holds of a socket in it, less its NUL.
LONGEST_STATE_FOLDER: Final = 107 - len("/gate-back.sock")

_QMP_S: Final = 2.0
#: The states of a QEMU in which no VM has run yet.
_MUTE: Final = ("prelaunch", "inmigrate")


class StateFolder:
    """One VM's state folder on this host, locked for as long as this object is open."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        #: The last status that was to be written here.
        self.last: dict[str, Any] = {}
        check_length(self.path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"state folder {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UsageError(
                f"another colo uses the state folder {self.path}: stop it, or take another folder"
            ) from None
        with contextlib.suppress(OSError):
            for half in self.path.glob(".*-????????"):  # a colo was killed while it wrote them
                half.unlink()
        try:
            self._end_secondary_vms()
        except BaseException:
            os.close(self._lock)
            raise
        self._grant = _number(self.path / "known-grant")
        self._overridden = _number(self.path / "overridden-grant") or None
        self._granted = _grant(self.path / "granted")
        self.history = History(self.path)

    @property
    def last_state(self) -> tuple[str, str]:
        """State and meaning of the last status that was to be written here."""
        return self.last.get("state", ""), self.last.get("meaning", "")

    @property
    def status(self) -> Path:
        """The file that ``colo status`` shows."""
        return self.path / "status.json"

    @property
    def control(self) -> Path:
        """The socket that takes orders."""
        return self.path / "control.sock"

    @property
    def qemu_socket(self) -> Path:
        """The QMP socket that is colo's own, of the QEMU that was started for this folder."""
        return self.path / "colo-qmp.sock"

    @property
    def known_grant(self) -> int:
        """The highest number of a grant that was ever seen here; 0 where none was."""
        return self._grant

    def know_grant(self, number: int) -> None:
        """Remember it: an arbiter that shows less is another one.  Raises LocalError."""
        try:
            self._keep_grant(number)
        except OSError as error:
            raise LocalError(f"{self.path / 'grant'}: {error.strerror}") from error

    def _keep_grant(self, number: int) -> None:
        if number > self._grant:
            _keep(self.path / "known-grant", f"{number}")
            self._grant = number

    @property
    def overridden(self) -> int | None:
        """The number of the grant in spite of which the VM runs here by an operator's force."""
        return self._overridden

    def override(self, number: int | None) -> None:
        """Remember it, until the arbiter knows; None where it does.  Raises OSError."""
        if number == self._overridden:
            return
        if number is None:
            (self.path / "overridden-grant").unlink(missing_ok=True)
        else:
            _keep(self.path / "overridden-grant", f"{number}")
        self._overridden = number

    @property
    def granted(self) -> Grant | None:
        """The last grant that a process of this host got, or None."""
        return self._granted

    def note_grant(self, grant: Grant) -> None:
        """Remember it, as long as the process may live.  Raises OSError."""
        if grant != self._granted:
            _keep(self.path / "granted", f"{grant.number} {grant.holder}", durably=False)
            self._granted = grant

    def store(self, base: Path, vm_name: str) -> Path:
        """The folder for the store of this state folder's VM, below ``base``."""
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        return base / f"colo-{vm_name}-{digest}"

    def clean(self, store: Path) -> None:
        """Remove what a colo left behind that was killed: its waiting QEMU and its store.

        Raises UsageError where that QEMU may run the VM by now, GuestError where it stays.
        """
        self._end_leftover(
            "the VM runs here since an earlier takeover ({qemu}, QMP {qmp}): end it, or take "
            "another state folder"
        )
        shutil.rmtree(store, ignore_errors=True)
        link = self.path / "store"
        link.unlink(missing_ok=True)
        link.symlink_to(store)

    def clean_start(self) -> None:
        """Remove the QEMU that a colo left behind that was killed, where no VM runs in it yet.

        Raises UsageError where one may, GuestError.
        """
        self._end_leftover(
            "the QEMU of this state folder is still there ({qemu}): protect it by `colo primary "
            "--qmp unix:{qmp}`, or end it"
        )

    def write_status(self, content: dict[str, Any]) -> None:
        """Replace the status as a whole: a reader sees the one before or this one.

        The grant that it tells of is remembered, and a new state is added to the history.  Raises
        OSError and leaves nothing behind: it is tried again, however long it takes.
        """
        content = {**content, "pid": os.getpid(), "written_at": time.time()}
        self.last = content
        self.history.note(content)
        self._keep_grant(content.get("grant") or 0)
        file, name = tempfile.mkstemp(dir=self.path, prefix=".status-")
        try:
            with os.fdopen(file, "w") as text:
                json.dump(content, text, indent=1)
            os.replace(name, self.status)
        except OSError:
            os.unlink(name)
            raise

    def close(self) -> None:
        """Let go of the lock, and of what is of no use to anybody any more."""
        link = self.path / "store"
        with contextlib.suppress(OSError):
            self.control.unlink(missing_ok=True)
            if self.leftover() is None:
                (self.path / "incoming.sock").unlink(missing_ok=True)
            if link.is_symlink() and not link.exists():
                link.unlink()
        os.close(self._lock)

    def _end_secondary_vms(self) -> None:
        """End the QEMUs of secondary VMs that a colo left behind that was killed.

        One that has become the VM has its pid in this folder itself, and stays.  Raises GuestError.
        """
        for folder in self.path.glob(f"{SECONDARY_VM}*"):
            pid = _started_for(folder)
            if pid is not None:
                kill(pid)
            shutil.rmtree(folder, ignore_errors=True)

    def _end_leftover(self, refusal: str) -> None:
        """End a QEMU of this folder in which certainly no VM has run; one that is silent may.

        Raises GuestError, and UsageError where it has to stay, with ``refusal``: «{qemu}» and
        «{qmp}» in it.
        """
        pid = self.leftover()
        if pid is None:
            return
        state = _run_state(self.qemu_socket)
        if state not in _MUTE:
            qemu = f"pid {pid}, {state or 'which does not answer'}"
            raise UsageError(refusal.format(qemu=qemu, qmp=self.path / "qmp.sock"))
        kill(pid)

    def leftover(self) -> int | None:
        """The id of a QEMU that was started for this folder and still is there.

        It may have been started to be a secondary VM, and have become the VM.
        """
        return _started_for(self.path)


def check_length(path: Path) -> None:
    """Raise UsageError where a state folder of this path could hold no sockets."""
    if (length := len(os.fsencode(path))) > LONGEST_STATE_FOLDER:
        raise UsageError(
            f"state folder {path}: {length} bytes, too long for its sockets: take a "
            f"shorter one, of at most {LONGEST_STATE_FOLDER}"
        )


def _started_for(folder: Path) -> int | None:
    """The id of the QEMU whose pid is in this folder, if it was started for it and is there."""
    try:
        pid = int((folder / "qemu.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    below = rb"/(" + re.escape(os.fsencode(SECONDARY_VM)) + rb"\d+/)?colo-qmp\.sock"
    own = re.escape(os.fsencode(folder)) + below
    return pid if re.search(own, command) else None


def _number(path: Path) -> int:
    """The number in a file; 0 where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _grant(path: Path) -> Grant | None:
    """The grant in a file; None where there is none."""
    try:
        number, _, holder = path.read_text().strip().partition(" ")
        return Grant(int(number), holder)
    except (OSError, ValueError):
        return None


def _keep(path: Path, content: str, *, durably: bool = True) -> None:
    """Have the file say it, or what it said before.  Raises OSError."""
    file, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(file, "w") as text:
        text.write(f"{content}\n")
        text.flush()
        if durably:
            os.fsync(text.fileno())
    os.replace(name, path)


def _run_state(qmp: Path) -> str | None:
    """Ask a QEMU for its run state; None where it does not answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_QMP_S)
        try:
            sock.connect(str(qmp))
            with sock.makefile("rw") as stream:
                stream.readline()
                for command in ("qmp_capabilities", "query-status"):
                    stream.write(json.dumps({"execute": command}) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                    while "return" not in answer:
                        answer = json.loads(stream.readline())
        except (OSError, ValueError):
            return None
    return str(answer["return"]["status"])
