"""A secondary that keeps nothing: how long a QEMU stops its VM where nobody holds it up.

It reads what a stock primary sends, by colo's readers, into a buffer that stays in the processor's
cache, and answers at once.  What is left is QEMU's own: to stop, to save, and to send at the speed
of memory.  ``python -m bench.null_sink PATH`` listens on a unix socket for one primary, and at its
end says in one JSON object what came: of each checkpoint the median.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from bench.errors import BenchError
from bench.stats import median
from bench.vm import Process, Vm, wait_until
from colo.migration.buffer import ReceiveBuffer
from colo.migration.format import Command
from colo.migration.ram import Limits, PageRun
from colo.migration.reader import LiveStateReader, Migration, MigrationReader
from colo.migration.writer import pong, shut
from colo.protocol.messages import COLOMessage, Message, encode, parse_message
from colo.transport.sockets import soon

__all__ = ["main", "null_secondary", "what_came"]

_NAME: Final = "null-secondary"
_START_S: Final = 20.0
#: The devices of a first migration and what describes them have to fit; a checkpoint fills no
#: more than a chunk of it.
_BUFFER_BYTES: Final = 16 << 20
_CHUNK: Final = 256 << 10
_ANY_SIZE: Final = 1 << 60


@contextlib.contextmanager
def null_secondary(vm: Vm, address: str, folder: Path) -> Iterator[Process]:
    """Run one at ``address``, a unix socket's.  Which VM it is does not matter to it."""
    path = Path(address.removeprefix("unix:"))
    command = [sys.executable, "-m", "bench.null_sink", str(path)]
    process = Process(_NAME, command, folder)
    try:
        wait_until("the null sink", lambda: path.exists() or None, _START_S, process)
        yield process
    finally:
        process.terminate()


def what_came(folder: Path) -> dict[str, Any]:
    """What a null secondary has said at its end.  Raises BenchError where it failed."""
    text = (folder / f"{_NAME}.log").read_text()
    try:
        said = json.loads(text)
    except ValueError:
        raise BenchError(f"the null sink failed: {text.strip()[-500:]}") from None
    assert isinstance(said, dict)
    return said


def main() -> int:
    """Be the secondary of whoever connects."""
    signal.signal(signal.SIGTERM, _stop)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen(1)
        sock, _ = server.accept()
    sink = _Sink(sock)
    with sock, contextlib.suppress(_Ended, ConnectionError):
        sink.run()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps(sink.figures()))
    return 0


class _Ended(BaseException):
    """The primary has closed the connection, or it is enough."""


def _stop(*_: object) -> NoReturn:
    raise _Ended


@dataclass
class _Came:
    """What a checkpoint was: full pages and others, and all its bytes."""

    pages: int = 0
    bytes: int = 0


class _Sink:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = ReceiveBuffer(bytearray(_BUFFER_BYTES))
        self._came: list[_Came] = []
        self._now = _Came()
        self._first = MigrationReader(
            self._buffer,
            Limits(ram_bytes=_ANY_SIZE),
            lambda header, blocks: None,
            self._count,
            self._command,
        )

    def run(self) -> None:
        """Take the first migration, and then one checkpoint after the other."""
        while not self._first.advance():
            self._receive()
        migration = self._first.migration
        assert migration is not None
        if migration.return_path:
            self._sock.sendall(shut())
        self._say(COLOMessage.CHECKPOINT_READY)
        while True:
            self._expect(COLOMessage.CHECKPOINT_REQUEST)
            self._say(COLOMessage.CHECKPOINT_REPLY)
            self._expect(COLOMessage.VMSTATE_SEND)
            self._checkpoint(migration)
            self._say(COLOMessage.VMSTATE_RECEIVED, COLOMessage.VMSTATE_LOADED)
            self._came.append(self._now)

    def figures(self) -> dict[str, Any]:
        """What came; without any checkpoint no more than that."""
        if not self._came:
            return {"checkpoints": 0}
        return {
            "checkpoints": len(self._came),
            "pages": median([each.pages for each in self._came]),
            "bytes": median([each.bytes for each in self._came]),
        }

    def _checkpoint(self, migration: Migration) -> None:
        self._now, began = _Came(), self._buffer.position
        live = LiveStateReader(self._buffer, self._first.ram, migration.ram_section, self._count)
        while not live.advance():
            self._receive()
        size = self._expect(COLOMessage.VMSTATE_SIZE).value
        assert size is not None
        while size:
            taken = len(self._buffer.take(min(size, self._buffer.available)))
            size -= taken
            if size:
                self._receive()
        self._now.bytes = self._buffer.position - began

    def _expect(self, kind: COLOMessage) -> Message:
        buffer = self._buffer
        while (parsed := parse_message(buffer.data, buffer.start, buffer.end)) is None:
            self._receive(sleeps=kind is COLOMessage.CHECKPOINT_REQUEST)
        message, length = parsed
        if message.kind is not kind:
            raise BenchError(f"the primary says {message}, not {kind.wire_name}")
        buffer.start += length
        return message

    def _receive(self, sleeps: bool = False) -> None:
        """Receive some bytes; while the VM stands still, without going to sleep first."""
        self._buffer.rewind()
        room = self._buffer.writable(_CHUNK)
        count = -1
        if not sleeps:
            with contextlib.suppress(BlockingIOError):
                count = soon(lambda: self._sock.recv_into(room, 0, socket.MSG_DONTWAIT))
        if count < 0:
            count = self._sock.recv_into(room)
        if not count:
            raise _Ended
        self._buffer.wrote(count)

    def _say(self, *kinds: COLOMessage) -> None:
        self._sock.sendall(b"".join(encode(Message(kind)) for kind in kinds))

    def _count(self, run: PageRun) -> None:
        self._now.pages += len(run)

    def _command(self, command: Command, value: int | None) -> None:
        if command is Command.PING and value is not None:
            self._sock.sendall(pong(value))


if __name__ == "__main__":
    sys.exit(main())
