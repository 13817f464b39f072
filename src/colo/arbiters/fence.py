"""``[failover] fence``: making sure that the other host is off, before its VM runs here.

A grant keeps the other host's VM silent: its packets are held by its gate.  What no gate holds
back, a disk that both hosts write or a console, needs a fence: a command that turns the other host
off, or its access to the disk, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from typing import BinaryIO, Final

from colo.errors import LocalError

__all__ = ["Fence"]

_LIMIT_S: Final = 30.0
_SAID_MAX: Final = 400


class Fence:
    """Runs ``command`` with ``vm`` and the other host's name; exit 0: that host is surely off."""

    def __init__(self, command: tuple[str, ...], vm: str) -> None:
        self._command = command
        self._vm = vm

    async def off(self, host: str) -> None:
        """See to it that ``host`` is off; "" where its name is not known.

        Raises LocalError where that is not sure, also after 30 seconds.  Then, and where this is
        cancelled, the command is killed with all that it started.
        """
        with tempfile.TemporaryFile() as errors:  # who writes to it is never held up
            await self._run(host, errors)

    async def _run(self, host: str, errors: BinaryIO) -> None:
        name = f"the fence {self._command[0]}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                self._vm,
                host,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise LocalError(f"{name}: {error.strerror}") from error
        try:
            async with asyncio.timeout(_LIMIT_S):
                code = await process.wait()
        except TimeoutError:
            raise LocalError(f"{name}: no answer in {_LIMIT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code != 0:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _SAID_MAX))
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise LocalError(f"{name}: exit {code}: {lines[-1] if lines else ''}")
