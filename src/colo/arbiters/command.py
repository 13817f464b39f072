"""``exec:COMMAND``: the register is a site's own store, reached by a command.

The contract, which docs/failover.md has for its author::

    COMMAND read NAME               prints the text and exits with 0; nothing where there is none
    COMMAND compare-and-set NAME    gets {"expected": TEXT or null, "new": TEXT} as JSON, and exits
                                    with 0 where it holds the new text now, with 1 where it did
                                    not hold the expected one

Any other exit is no answer, as is none in two seconds; then the command is killed with all that it
started.  After a compare-and-set without an answer colo reads what stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from typing import Final

from colo.arbiters.asking import about_to_write
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer, UsageError

__all__ = ["CommandRegister", "parse_command"]

_LIMIT_S: Final = 2.0
_DIFFERS: Final = 1


def parse_command(text: str, key: str) -> tuple[str, ...]:
    """The arguments in ``exec:COMMAND``, which are split as a shell does it.

    Raises UsageError with the VM file's ``key``.
    """
    kind, _, command = text.partition(":")
    try:
        arguments = tuple(shlex.split(command)) if kind == "exec" else ()
    except ValueError as error:
        raise UsageError(f"{key} = {text!r}: {error}") from error
    if not arguments:
        raise UsageError(f"{key} = {text!r}: exec:COMMAND")
    if not os.path.isabs(arguments[0]):
        raise UsageError(f"{key} = {text!r}: the whole path of the command, from / on")
    return arguments


class CommandRegister:
    """What ``command`` keeps under the name of the VM, ``vm``."""

    def __init__(self, command: tuple[str, ...], vm: str) -> None:
        self.name = f"the command {command[0]}"
        self._command = command
        self._vm = vm

    def read(self) -> Seen:
        """Return what it holds."""
        code, output, why = self._run("read", "")
        if code != 0:
            raise LocalError(f"{self.name} read: {why}")
        return Seen(output.strip() or None)

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where it still holds ``expected``."""
        request = json.dumps({"expected": expected.text, "new": new})
        about_to_write()
        code, _, why = self._run("compare-and-set", request)
        if code not in (0, _DIFFERS):
            raise NoAnswer(f"{self.name} compare-and-set: {why}", True)
        return code == 0

    def _run(self, call: str, request: str) -> tuple[int | None, str, str]:
        """Return its exit code, or None where there is none, its output, and what went wrong."""
        try:
            process = subprocess.Popen(
                [*self._command, call, self._vm],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise LocalError(f"{self.name}: {error.strerror}") from error
        with process:
            try:
                output, errors = process.communicate(request, timeout=_LIMIT_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return None, "", f"no answer in {_LIMIT_S:.0f} s"
        said = errors.strip().splitlines()
        return process.returncode, output, f"exit {process.returncode}: {said[-1] if said else ''}"
